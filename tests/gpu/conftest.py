"""Tests that need a GPU: skipped without one, those marked gpu2 without two."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from llcuda import Model
from llcuda.native import library

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine has no GPU for."""
    ours = [item for item in items if HERE in item.path.parents]
    count = sum(device.kind == "gpu" for device in library.devices()) if ours else 0
    for item in ours:
        needed = 2 if item.get_closest_marker("gpu2") else 1
        if count < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPUs, {count} are here"))


@pytest.fixture(scope="session")
def gpu_demo() -> Iterator[Model]:
    """The demo model, all of it on the first GPU."""
    with Model("demo", gpu_layers=99, devices=["CUDA0"]) as model:
        yield model


@pytest.fixture(scope="session")
def cpu_demo() -> Iterator[Model]:
    """The demo model, none of it on a GPU."""
    with Model("demo", gpu_layers=0, devices=()) as model:
        yield model


class Cuda:
    """The run-time library that the CUDA backend has loaded."""

    def __init__(self) -> None:
        maps = Path("/proc/self/maps").read_text()
        [*names] = sorted(set(re.findall(r"\S*/libcudart\.so\S*", maps)))
        self.library = ctypes.CDLL(names[0])

    def free(self) -> int:
        """Return the free bytes of the first GPU, and make it the current one."""
        assert self.library.cudaSetDevice(0) == 0
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert self.library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value

    @contextmanager
    def full(self, left: int = 0) -> Iterator[None]:
        """Take the memory of the first GPU but for `left` bytes."""
        with ExitStack() as taken:
            size = max(self.free() - left, 0)
            while size >= 2**21:
                pointer = ctypes.c_void_p()
                status = self.library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size))
                if status == 0:
                    taken.callback(self.library.cudaFree, pointer)
                    size = min(size, max(self.free() - left, 0))
                else:
                    self.library.cudaGetLastError()
                    size //= 2
            yield


@pytest.fixture
def cuda(gpu_demo: Model) -> Cuda:
    """CUDA's run-time library, once a model is on the GPU."""
    return Cuda()
