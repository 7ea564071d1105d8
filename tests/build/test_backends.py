"""What LLCUDA_BACKENDS takes, and what it says of what is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BACKENDS = Path(__file__).parents[2] / "build" / "backends.cmake"
PROJECT = f"""
cmake_minimum_required(VERSION 3.24...3.31)
project(test LANGUAGES CXX)
include({BACKENDS})
find_further_backends()
message(STATUS "on: ${{GGML_VULKAN}} ${{GGML_HIP}}.")
"""
NO_VULKAN = (
    "-DCMAKE_DISABLE_FIND_PACKAGE_Vulkan=ON",
    "-DCMAKE_DISABLE_FIND_PACKAGE_SPIRV-Headers=ON",
)
NO_ROCM = ("-DCMAKE_DISABLE_FIND_PACKAGE_hip=ON",)

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(folder: Path, *options: str) -> tuple[int, str]:
    """Configure a project that chooses backends; return the exit status and what is said."""
    (folder / "CMakeLists.txt").write_text(PROJECT)
    command = ["cmake", "-S", str(folder), "-B", str(folder / "out"), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, " ".join((result.stdout + result.stderr).split())


def test_no_further_backend(tmp_path: Path) -> None:
    """The build goes on."""
    code, text = configure(tmp_path)
    assert (0, True) == (code, "on: ." in text)


@pytest.mark.parametrize(
    ("backends", "options", "message"),
    [
        ("cuda", (), "LLCUDA_BACKENDS=cuda; allowed are vulkan and rocm, separated by ';'"),
        ("vulkan", NO_VULKAN, "'apt install libvulkan-dev glslc spirv-headers', or set VULKAN_SDK"),
        ("rocm", NO_ROCM, "ROCm 6.1 or newer with hipBLAS was not found in /opt/rocm"),
    ],
)
def test_what_is_missing(
    backends: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """The build stops and says what to install."""
    code, text = configure(tmp_path, f"-DLLCUDA_BACKENDS={backends}", *options)
    assert 1 == code
    assert message in text


@pytest.mark.skipif(shutil.which("glslc") is None, reason="needs Vulkan's SDK")
def test_the_age_of_the_headers(tmp_path: Path) -> None:
    """llama.cpp's option is turned on where they have what it uses; Debian 12's do not."""
    header = tmp_path / "vulkan" / "vulkan_core.h"
    header.parent.mkdir()
    header.write_text("#define VK_EXT_layer_settings 1\n")
    options = ("-DLLCUDA_BACKENDS=vulkan", f"-DVulkan_INCLUDE_DIR={tmp_path}")
    code, text = configure(tmp_path, *options)
    assert 0 == code, text
    assert "vulkan is on" in text
    assert "on: ON ." in text
    header.write_text("#define VK_KHR_surface 1\n")
    code, text = configure(tmp_path, *options)
    assert 1 == code
    assert f"Vulkan's headers in {tmp_path} are too old" in text
