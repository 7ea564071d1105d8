"""All libraries of a build share one C++ runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "build" / "runtime.cmake"
PROJECT = f"""
cmake_minimum_required(VERSION 3.24...3.31)
project(test LANGUAGES CXX)
include({RUNTIME})
check_shared_runtime()
"""

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(folder: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    """Configure a project that makes the check; return the exit status and what is said."""
    (folder / "CMakeLists.txt").write_text(PROJECT)
    without = {"CC", "CXX", "CXXFLAGS", "LDFLAGS"}
    environment = {k: v for k, v in os.environ.items() if k not in without} | dict(variables)
    command = ["cmake", "-S", str(folder), "-B", str(folder / "out")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, " ".join(result.stderr.split())


def test_a_compiler_that_shares_its_runtime(tmp_path: Path) -> None:
    """The build goes on."""
    assert (0, "") == configure(tmp_path, {})


@pytest.mark.parametrize("variable", ["LDFLAGS", "CXXFLAGS"])
def test_a_static_runtime_by_flags(variable: str, tmp_path: Path) -> None:
    """The build stops and says what to remove."""
    code, message = configure(tmp_path, {variable: "-static-libstdc++"})
    assert 1 == code
    assert "links the C++ runtime statically" in message
    assert "Remove -static-libstdc++" in message


def test_a_static_runtime_by_the_compiler(tmp_path: Path) -> None:
    """A toolchain that does it by itself is named."""
    compiler = tmp_path / "static-g++"
    compiler.write_text('#!/bin/sh\nexec g++ -static-libstdc++ "$@"\n')
    compiler.chmod(0o755)
    code, message = configure(tmp_path, {"CXX": str(compiler)})
    assert 1 == code
    assert f"{compiler} links the C++ runtime statically" in message
    assert "set them to another compiler" in message
