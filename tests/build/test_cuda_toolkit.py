"""build/cuda.cmake: whether the CUDA backend is built, by the nvcc that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[2] / "build" / "cuda.cmake"
PROJECT = f"""
cmake_minimum_required(VERSION 3.24...3.31)
project(test LANGUAGES C)
function(run_python result)
  set(${{result}} "{sys.prefix}/nowhere" PARENT_SCOPE)
endfunction()
include({CUDA})
find_cuda_toolkit(cuda)
message(NOTICE "CUDA: ${{cuda}} ${{LLCUDA_CUDA_VERSION}} ${{CMAKE_CUDA_FLAGS_INIT}}")
"""

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(folder: Path, wanted: str) -> tuple[bool, str]:
    """Configure a project that looks for CUDA in a folder; return success and all that is said."""
    project = folder / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(PROJECT)
    homes = {"CUDA_HOME": str(folder / "cuda"), "CUDA_PATH": str(folder / "cuda")}
    environment = {**os.environ, **homes}
    options = [f"-DLLCUDA_CUDA={wanted}", "-DLLCUDA_CUDA_ARCHITECTURES=75"]
    command = ["cmake", "-S", str(project), "-B", str(folder / "out"), *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return not result.returncode, " ".join((result.stdout + result.stderr).split())


def install(toolkit: Path, version: str, *files: str) -> None:
    """Write what looks like a CUDA toolkit."""
    nvcc = toolkit / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    answers = f"echo 'Cuda compilation tools, release {version}, V{version}.1'"
    nvcc.write_text(f"#!/bin/sh\necho 'TOP={toolkit}' >&2\n{answers}\n")
    nvcc.chmod(0o755)
    for name in files:
        (toolkit / name).parent.mkdir(exist_ok=True)
        (toolkit / name).touch()


WHOLE = (
    "include/cuda_runtime.h", "include/cublas_v2.h",
    "lib64/libcudart.so", "lib64/libcublas.so", "lib64/libcublasLt.so",
)  # fmt: skip


@pytest.mark.parametrize("version", ["12.4", "12.9", "13.0"])
def test_a_whole_toolkit(version: str, tmp_path: Path) -> None:
    """CUDA is on, and machine code is compressed."""
    install(tmp_path / "cuda", version, *WHOLE)
    works, said = configure(tmp_path, "AUTO")
    assert works, said
    assert f"CUDA: ON {version} -Xfatbin -compress-all" in said


@pytest.mark.parametrize(
    ("version", "files", "reason"),
    [
        ("12.3", WHOLE, "is of CUDA 12.3; install the CUDA toolkit 12.4 or newer"),
        ("11.8", WHOLE, "is of CUDA 11.8; install the CUDA toolkit 12.4 or newer"),
        ("12.4", WHOLE[:3], "'pip install nvidia-cublas-cu12' brings them"),
        ("13.0", WHOLE[:3], "'pip install nvidia-cublas' brings them"),
    ],
)
def test_a_toolkit_that_does_not_fit(
    version: str, files: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    """Left to itself the build goes on without CUDA; one that wants CUDA stops."""
    install(tmp_path / "cuda", version, *files)
    works, said = configure(tmp_path, "AUTO")
    assert works and reason in said and "CUDA: OFF" in said
    shutil.rmtree(tmp_path / "project")
    shutil.rmtree(tmp_path / "out")
    works, said = configure(tmp_path, "ON")
    assert not works
    assert reason in said


def test_a_wrong_value(tmp_path: Path) -> None:
    """The three that are allowed are named."""
    works, said = configure(tmp_path, "YES")
    assert not works
    assert "LLCUDA_CUDA=YES; allowed are AUTO, ON and OFF" in said
