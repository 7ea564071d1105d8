"""CUDA's shared libraries in this process: the driver, and the run-time libraries of the backend.

The CUDA backend needs libcudart, libcublas and libcublasLt of the major version that it was built
with. Packages bring them to different folders, so they are loaded here, by their paths, before the
backend asks for them by name. Libraries of another major version have other names and other symbol
versions, so both kinds work in one process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llcuda.native.cuda_build import Driver, RuntimeLibraries, Version
from llcuda.native.shared_objects import is_truncated

# Libraries that come from one folder: libcublas calls private functions of its own libcublasLt.
PARTS = (("cudart",), ("cublasLt", "cublas"))
TOOLKITS = Path("/usr/local")


def driver() -> Driver | None:
    """Return the NVIDIA driver, as its library libcuda describes it; None without one."""
    number = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):  # AttributeError: a stub
        return None
    if status or not number.value:
        return Driver()
    return Driver((number.value // 1000, number.value % 1000 // 10))


def load_runtime(version: Version) -> RuntimeLibraries:
    """Load the run-time libraries that a CUDA backend needs, from the first folder that fits.

    Loaded libraries are taken, because the linker would take them too. Then come the folders of
    torch, which shares its libraries with llcuda so, of NVIDIA's packages for Python, of this
    Python, of CUDA toolkits, and the linker's own. A libcudart older than the backend is taken only
    if no other is there. What is missing is left to the backend's own search path.

    Args:
        version: The CUDA version that the backend was built with.
    """
    found = RuntimeLibraries()
    for names in PARTS:
        _load_part([f"lib{name}.so.{version[0]}" for name in names], version, found)
    return found


def _load_part(names: Sequence[str], version: Version, found: RuntimeLibraries) -> None:
    present = [name for name in names if _is_loaded(name)]
    found.paths |= {name: _path(name) for name in present}
    absent = [name for name in names if name not in present]
    if not absent:
        return
    beside = [str(Path(found.paths[name]).parent) for name in present if found.paths[name]]
    older: list[str] = []
    for folder in dict.fromkeys([*beside, *folders(version[0])]):
        files = [f"{folder}/{name}" if folder else name for name in absent]
        lacking = [file for file in files if folder and not Path(file).is_file()]
        if lacking:
            if len(lacking) < len(files):
                found.errors.append(f"{', '.join(lacking)} is missing")
            continue
        error = _load(files, version)
        if error is None:
            found.paths |= {name: _path(name) for name in absent}
            return
        if error is _OLDER:
            older = older or files
        elif folder:
            found.errors.append(str(error))
    if older and _load(older, None) is None:
        found.paths |= {name: _path(name) for name in absent}
        return
    found.missing += absent


_OLDER = OSError("older than the backend")


def _load(files: Sequence[str], version: Version | None) -> OSError | None:
    """Load files, all or none of them; return why not.

    Args:
        files: Paths, or names that the linker searches for.
        version: Refuse a libcudart that is older, with _OLDER.
    """
    loaded: list[ctypes.CDLL] = []
    failure: OSError | None = None
    for file in files:
        try:
            if Path(file).is_file() and is_truncated(Path(file)):
                raise OSError(f"{file} is truncated")
            loaded.append(ctypes.CDLL(file, os.RTLD_NOW | os.RTLD_LOCAL))
        except OSError as error:
            failure = error
            break
    if failure is None and version and _runtime_version(loaded[0]) < version:
        failure = _OLDER
    if failure is not None:
        close = ctypes.CDLL(None).dlclose
        for library in reversed(loaded):
            close(ctypes.c_void_p(library._handle))
    return failure


def _runtime_version(library: ctypes.CDLL) -> Version:
    """Return the CUDA version of a libcudart; a version above all others for another library."""
    number = ctypes.c_int()
    try:
        library.cudaRuntimeGetVersion(ctypes.byref(number))
    except AttributeError:
        return sys.maxsize, 0
    return number.value // 1000, number.value % 1000 // 10


def folders(major: int) -> Iterator[str]:
    """Yield the folders to search for the run-time libraries of a CUDA version; "" is the linker's.

    Args:
        major: The major version of CUDA.
    """
    torch = [Path(place) for place in _package("torch")]
    for place in torch:
        yield str(place / "lib")
    packages = [place.parent / "nvidia" for place in torch] + [*map(Path, _package("nvidia"))]
    for place in dict.fromkeys(packages):
        yield str(place / f"cu{major}" / "lib")
        yield str(place / "cuda_runtime" / "lib")
        yield str(place / "cublas" / "lib")
    yield str(Path(sys.prefix) / "lib")  # conda
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    homes += [str(TOOLKITS / "cuda")]
    homes += [str(path) for path in sorted(TOOLKITS.glob(f"cuda-{major}*"), reverse=True)]
    for home in homes:
        if home:
            yield from (f"{home}/lib64", f"{home}/lib")
    yield ""


def _package(name: str) -> list[str]:
    """Return the folders of a package, which is not imported for it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module without a spec
        return []
    return list(spec.submodule_search_locations or []) if spec else []


def _is_loaded(name: str) -> bool:
    with contextlib.suppress(OSError):
        ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_NOW)
        return True
    return False


def _path(name: str) -> str:
    """Return the file of a loaded library; "" if the system does not tell it."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(rf"(/\S.*/{re.escape(name)}[\d.]*)$", maps, re.MULTILINE)
    return match[1] if match else ""
