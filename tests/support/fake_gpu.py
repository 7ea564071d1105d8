"""A CUDA backend that is a fake, for programs on machines without a GPU; see fake_gpu.cpp.

`build_backend` compiles it, `environment` describes a machine with it, and a program on that
machine calls `install` before it uses llcuda. Only the seams are replaced: the backend, what the
binding says about its own build, the driver's library and NVML.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.support import fake_cuda, fake_nvml

ROOT = Path(__file__).resolve().parents[2]
GGML = ROOT / "vendor" / "llama.cpp" / "ggml"
T4 = "Tesla T4,7.5,14800,15360"  # name, compute capability, free and total MiB
A100 = "NVIDIA A100-SXM4-40GB,8.0,40000,40960"
P100 = "Tesla P100-PCIE-16GB,6.0,16000,16280"
INSTALL = """
import logging
from tests.support import fake_gpu
logging.basicConfig(format="%(message)s")
fake_gpu.install()
"""


def libraries() -> Path:
    """Return the folder of the real libraries."""
    from llcuda.native import library

    return library.installation()[0]


def build_backend(path: Path, needed: Sequence[Path] = (), symbol: str = "") -> Path:
    """Compile the fake backend; skip the test without a compiler or llama.cpp's source.

    Args:
        path: The library to write.
        needed: Libraries that it needs.
        symbol: A function of one of them that it calls.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not (GGML / "src" / "ggml-backend-impl.h").is_file():
        import pytest  # see tests.support.fake_cuda

        pytest.skip("needs a C++ compiler and the source of llama.cpp in vendor/")
    sources = [str(Path(__file__).with_suffix(".cpp"))]
    if symbol:
        extra = path.with_suffix(".cpp")
        extra.write_text(
            f'extern "C" {{ int {symbol}(); int fake_call() {{ return {symbol}(); }} }}'
        )
        sources.append(str(extra))
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(path), *sources]
    command += [f"-I{GGML / folder}" for folder in ("include", "src")]
    command += ["-DGGML_BACKEND_DL", "-DGGML_BACKEND_SHARED", "-DGGML_SHARED"]
    command += [str(libraries() / name) for name in ("libggml.so", "libggml-base.so")]
    command += ["-Wl,--no-as-needed", *map(str, needed)]
    command += [f"-Wl,-rpath-link,{':'.join(str(file.parent) for file in needed)}"]
    subprocess.run(command, check=True)
    return path


def environment(
    folder: Path,
    *,
    backend: Path | None = None,
    name: str = "CUDA",
    gpus: Sequence[str] = (T4,),
    seen: Sequence[str] | None = None,
    driver: str = "550.54.15",
    cuda: str = "",
    build: str = "12.4",
    architectures: str = "75",
    packages: Path | None = None,
    **variables: object,
) -> dict[str, str]:
    """Return the environment of a program on a machine.

    Args:
        folder: An empty folder.
        backend: The CUDA backend of llcuda; None = a build without CUDA.
        name: What the backend calls itself.
        gpus: The GPUs, as T4.
        seen: Those of them that CUDA sees; None = all.
        driver: The driver, one of fake_nvml.CUDA.
        cuda: The newest CUDA version that it runs; "" = as in fake_nvml.CUDA.
        build: The CUDA version that llcuda was built with; "" = without CUDA.
        architectures: The architectures that it was built for.
        packages: A folder of Python packages.
        **variables: Further variables.
    """
    place = folder / "llcuda" / "lib"
    place.mkdir(parents=True)
    for path in libraries().glob("libggml-*.so"):
        if path.name != "libggml-cuda.so":
            (place / path.name).symlink_to(path)
    if backend is not None:
        shutil.copy(backend, place / f"libggml-{name.lower()}.so")
    cuda = cuda or fake_nvml.CUDA[driver]
    major, minor = map(int, cuda.split("."))
    fake_cuda.driver(folder / "driver", major * 1000 + minor * 10)
    paths = [str(packages)] if packages else []
    path = os.pathsep.join([*paths, str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return fake_cuda.environment(
        folder / "driver",
        PYTHONPATH=path,
        FAKE_FOLDER=folder,
        FAKE_BACKEND=name,
        FAKE_GPUS=";".join(gpus if seen is None else seen),
        FAKE_NVML_GPUS=";".join(gpus),
        FAKE_DRIVER=driver,
        FAKE_CUDA=cuda,
        FAKE_BUILD=build,
        FAKE_ARCHITECTURES=architectures,
        CUDA_CACHE_PATH=folder.parent,  # not empty: no remark on the first run
        **variables,
    )


class _Lib:
    """The binding's functions, but for those that say how it was built and what CUDA tells."""

    def __init__(self, binding: Any) -> None:
        self._lib, new = binding.lib, binding.ffi.new
        folder = os.environ["FAKE_FOLDER"]
        self._path = new("char[]", f"{folder}/llcuda/lib/libllama.so".encode())
        self._version = new("char[]", os.environ["FAKE_BUILD"].encode())
        self._architectures = new("char[]", os.environ["FAKE_ARCHITECTURES"].encode())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def llcuda_library_path(self) -> Any:
        return self._path

    def llcuda_cuda_version(self) -> Any:
        return self._version

    def llcuda_cuda_architectures(self) -> Any:
        return self._architectures

    def llcuda_gpu_properties(self, number: int, gpu: Any) -> int:
        capability = os.environ["FAKE_GPUS"].split(";")[number].split(",")[1]
        gpu.capability_major, gpu.capability_minor = map(int, capability.split("."))
        return 0


def install() -> None:
    """Make llcuda find the machine that the environment describes."""
    from llcuda.native import _llama as binding

    fake: Any = SimpleNamespace(
        ffi=binding.ffi,
        lib=_Lib(binding),
        __file__=f"{os.environ['FAKE_FOLDER']}/llcuda/native/_llama.abi3.so",
    )
    sys.modules["llcuda.native._llama"] = fake
    sys.modules["pynvml"] = _nvml()


def _nvml() -> ModuleType:
    gpus = []
    for line in filter(None, os.environ["FAKE_NVML_GPUS"].split(";")):
        name, capability, free, total = line.split(",")
        major, minor = map(int, capability.split("."))
        memory = int(total) * 2**20, int(free) * 2**20
        gpus.append(fake_nvml.Gpu(name, (major, minor), memory=memory))
    driver, cuda = os.environ["FAKE_DRIVER"], os.environ["FAKE_CUDA"]
    return fake_nvml.module(fake_nvml.Driver(gpus, version=driver, cuda=cuda))
