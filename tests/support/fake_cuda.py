"""Fakes of CUDA's shared libraries: small files with the real ones' names and symbol versions.

Their major versions are those of no CUDA, so that nothing of the machine's takes their place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

OURS, OTHER = 97, 96  # the major version that llcuda was built with, and another one
BUILT = (OURS, 4)

CUDART = """
int cudaRuntimeGetVersion(int * version) { *version = VERSION; return 0; }
"""
# Both parts of cuBLAS come from one build: the one calls a function of the other by a private name.
CUBLAS_LT = """
#define NAME_(build) cublas_lt_private_##build
#define NAME(build) NAME_(build)
int NAME(BUILD)(void) { return BUILD; }
int cublas_lt_build(void) { return BUILD; }
"""
CUBLAS = """
#define NAME_(build) cublas_lt_private_##build
#define NAME(build) NAME_(build)
int NAME(BUILD)(void);
int cublas_build(void) { return NAME(BUILD)(); }
"""
DRIVER = """
int cuDriverGetVersion(int * version) { *version = VERSION; return 0; }
"""
# A library that uses all of them, as the CUDA backend and torch do.
CLIENT = """
int cudaRuntimeGetVersion(int *);
int cublas_build(void);
int runtime(void) { int version; cudaRuntimeGetVersion(&version); return version; }
int cublas(void) { return cublas_build(); }
"""


def compiler() -> str:
    """Return the C compiler; skip the test without one."""
    path = shutil.which("cc") or shutil.which("gcc")
    if path is None:
        import pytest  # not in the programs that import this module: it takes longer than the rest

        pytest.skip("needs a C compiler")
    return path


def compile_library(
    path: Path,
    source: str,
    defines: dict[str, int] | None = None,
    needed: Sequence[Path] = (),
    rpath: str = "",
) -> Path:
    """Compile C to a shared library, with its name as soname and symbol version, as CUDA's have.

    Args:
        path: The library to write.
        source: Its C code.
        defines: Macros.
        needed: Libraries that it needs.
        rpath: Folders in which the linker searches for these, ':' between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    code, script = path.with_suffix(".c"), path.with_suffix(".map")
    code.write_text(source)
    script.write_text(f"{path.name} {{ global: *; }};")
    command = [compiler(), "-shared", "-fPIC", "-o", path, code, f"-Wl,-soname,{path.name}"]
    command += [f"-Wl,--version-script={script}"]
    command += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    command += ["-Wl,--no-as-needed", *needed]
    command += [f"-Wl,-rpath-link,{':'.join(str(file.parent) for file in needed)}"]
    command += [f"-Wl,-rpath,{rpath}"] if rpath else []
    subprocess.run(command, check=True)
    code.unlink()
    script.unlink()
    return path


def cudart(folder: Path, major: int = OURS, minor: int = 4) -> Path:
    """Write a libcudart of CUDA `major.minor` into a folder."""
    version = {"VERSION": major * 1000 + minor * 10}
    return compile_library(folder / f"libcudart.so.{major}", CUDART, version)


def cublas(folder: Path, major: int = OURS, build: int = 1) -> list[Path]:
    """Write a libcublasLt and a libcublas that belong together into a folder."""
    define = {"BUILD": build}
    inner = compile_library(folder / f"libcublasLt.so.{major}", CUBLAS_LT, define)
    outer = folder / f"libcublas.so.{major}"
    return [inner, compile_library(outer, CUBLAS, define, [inner], "$ORIGIN")]


def driver(folder: Path, version: int) -> Path:
    """Write a libcuda.so.1 that says that it runs a CUDA version, as 12040."""
    return compile_library(folder / "libcuda.so.1", DRIVER, {"VERSION": version})


def client(path: Path, libraries: Sequence[Path], rpath: str = "") -> Path:
    """Write a library that uses a libcudart and a libcublas."""
    return compile_library(path, CLIENT, {}, libraries, rpath)


def environment(*folders: Path, **variables: object) -> dict[str, str]:
    """Return the environment of a program that searches for libraries in folders first.

    Its GPUs are all visible, which those of this machine may not be.
    """
    searched = ":".join([*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(":")
    inherited = {name: os.environ[name] for name in os.environ if name != "CUDA_VISIBLE_DEVICES"}
    return {
        **inherited,
        "LD_LIBRARY_PATH": searched,
        **{name: str(value) for name, value in variables.items()},
    }
