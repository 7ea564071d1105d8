"""A fake of the driver's NVML: the seam between llcuda and the GPUs of a machine."""

# ruff: noqa: D102, N801, N802, N818 - the fake has pynvml's names

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # programs import this module too, and pytest takes longer than all the rest
    import pytest

# Drivers, and the newest CUDA version that each runs.
CUDA = {
    "470.57.02": "11.4",
    "525.60.13": "12.0",
    "535.104.05": "12.2",
    "550.54.15": "12.4",
    "570.86.10": "12.8",
    "580.65.06": "13.0",
}


class NVMLError(Exception):
    """The base of what NVML raises."""


class NVMLError_NotSupported(NVMLError):
    """What NVML raises for a question that this GPU has no answer to."""


@dataclass
class Gpu:
    """A GPU of the fake driver; parent: the whole GPU, of a slice."""

    name: str = "Tesla T4"
    capability: tuple[int, int] | None = (7, 5)
    uuid: str = "GPU-00000000"
    memory: tuple[int, int] | None = (16 * 2**30, 15 * 2**30)
    lost: bool = False
    parent: Gpu | None = None


@dataclass
class Driver:
    """The functions of pynvml that llcuda calls, and how often a session was opened."""

    gpus: list[Gpu] = field(default_factory=list)
    slices: list[Gpu] = field(default_factory=list)
    failure: NVMLError | None = None
    version: str = "535.104.05"
    cuda: str = ""  # as in CUDA
    sessions: int = 0
    opened: int = 0

    def nvmlInit(self) -> None:
        if self.failure:
            raise self.failure
        self.sessions += 1
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        major, minor = map(int, (self.cuda or CUDA[self.version]).split("."))
        return major * 1000 + minor * 10

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.version

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        if self.gpus[index].lost:
            raise NVMLError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        for gpu in self.slices:
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError("Not Found")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, gpu: Gpu) -> Gpu | None:
        return gpu.parent

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name

    def nvmlDeviceGetCudaComputeCapability(self, gpu: Gpu) -> tuple[int, int]:
        if gpu.capability is None:
            raise NVMLError_NotSupported
        return gpu.capability

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> Any:
        if gpu.memory is None:
            raise NVMLError_NotSupported
        return SimpleNamespace(total=gpu.memory[0], free=gpu.memory[1])


T4 = Gpu()
P100 = Gpu("Tesla P100-PCIE-16GB", (6, 0), "GPU-11111111")
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), "GPU-33333333")
H200 = Gpu("NVIDIA H200", (9, 0), "GPU-22222222")


def module(driver: Driver) -> ModuleType:
    """Return a module pynvml that asks a driver."""
    result = ModuleType("pynvml")
    for name in dir(driver):
        if name.startswith("nvml"):
            setattr(result, name, getattr(driver, name))
    vars(result).update(NVMLError=NVMLError, NVMLError_NotSupported=NVMLError_NotSupported)
    return result


def install(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, **options: Any) -> Driver:
    """Make `import pynvml` find a driver with these GPUs."""
    driver = Driver(list(gpus), **options)
    monkeypatch.setitem(sys.modules, "pynvml", module(driver))
    return driver
