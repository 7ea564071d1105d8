"""Which GPUs there are, and whether llcuda runs on them, as the NVIDIA driver says (NVML).

Nothing here loads CUDA or raises for a missing driver: without one there simply is no GPU.
Numbers in CUDA_VISIBLE_DEVICES are read in the driver's order (by PCI bus), which is also CUDA's
with CUDA_DEVICE_ORDER=PCI_BUS_ID or where all GPUs are alike.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

from llcuda.errors import ArgumentError

REQUIRED = (7, 5)  # Turing: the first with the int8 tensor cores that the kernels are built for
logger = logging.getLogger("llcuda")


class GpuInfo(TypedDict):
    """One GPU. compute_capability: e.g. "7.5"; memory: bytes, None where it is the CPU's."""

    name: str
    compute_capability: str
    memory: int | None
    driver_version: str


class CudaInfo(TypedDict):
    """What `detect_cuda` found. version: the newest CUDA that the driver runs, e.g. "12.2"."""

    available: bool
    version: str | None
    gpus: list[GpuInfo]


class Compatibility(TypedDict):
    """Whether llcuda can use a GPU here. platform: "local", "colab" or "kaggle"."""

    compatible: bool
    platform: str
    gpu_name: str | None
    compute_capability: str | None
    reason: str


@dataclass
class _Survey:
    """What NVML says; reason: why there is no GPU."""

    version: str | None = None
    gpus: list[GpuInfo] = field(default_factory=list)
    free: list[int | None] = field(default_factory=list)
    reason: str = "the driver finds no GPU"


def detect_cuda() -> CudaInfo:
    """Return the GPUs that CUDA programs may use here. Never raises."""
    survey = _survey()
    return {"available": bool(survey.gpus), "version": survey.version, "gpus": survey.gpus}


def check_gpu_compatibility() -> Compatibility:
    """Return whether llcuda can use a GPU here, and why (not). Never raises.

    It needs compute capability 7.5; of several GPUs the first that has it counts.
    """
    survey = _survey()
    gpu = next((gpu for gpu in survey.gpus if _capability(gpu) >= REQUIRED), None)
    if gpu is None and survey.gpus:
        gpu = survey.gpus[0]
    if gpu is None:
        reason = f"{survey.reason}; the CPU is used"
    else:
        reason = f"{gpu['name']} has compute capability {gpu['compute_capability']}"
        if _capability(gpu) < REQUIRED:
            reason += ", GPU work needs 7.5 or higher; the CPU still works"
        elif _capability(gpu) > REQUIRED:
            _note_newer(gpu["name"], gpu["compute_capability"])
    return {
        "compatible": gpu is not None and _capability(gpu) >= REQUIRED,
        "platform": _platform(),
        "gpu_name": gpu and gpu["name"],
        "compute_capability": gpu and gpu["compute_capability"],
        "reason": reason,
    }


def free_memory(index: int = 0) -> int | None:
    """Return the free bytes of GPU `index` of `detect_cuda`; None where they are the CPU's."""
    survey = _survey()
    if not 0 <= index < len(survey.free):
        why = f"there are {len(survey.free)}" if survey.free else survey.reason
        raise ArgumentError(f"no GPU {index}: {why}")
    return survey.free[index]


def _capability(gpu: GpuInfo) -> tuple[int, ...]:
    return tuple(int(part) for part in gpu["compute_capability"].split("."))


@functools.cache
def _note_newer(name: str, capability: str) -> None:
    """Log, once for a kind of GPU, that it is newer than the one that llcuda is tuned for."""
    logger.info("%s has compute capability %s; llcuda is tuned for 7.5", name, capability)


def _platform() -> str:
    """Return the notebook service; Kaggle's images also carry Colab's variables."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if os.environ.keys() & {"COLAB_RELEASE_TAG", "COLAB_GPU"} else "local"


def _survey() -> _Survey:
    """Return what the driver says now."""
    survey = _Survey()
    try:
        import pynvml  # type: ignore[import-untyped]  # nvidia-ml-py has no types
    except ImportError:
        survey.reason = "GPUs cannot be looked for: pip install nvidia-ml-py"
        return survey
    try:
        with _session(pynvml):
            number = pynvml.nvmlSystemGetCudaDriverVersion()
            survey.version = f"{number // 1000}.{number % 1000 // 10}"
            driver = str(pynvml.nvmlSystemGetDriverVersion())
            present = _present(pynvml)
            handles = _visible(pynvml, present)
            if present and not handles:
                chosen = os.environ["CUDA_VISIBLE_DEVICES"]
                survey.reason = f"CUDA_VISIBLE_DEVICES={chosen!r} leaves no GPU visible"
            for handle in handles:
                gpu, free = _describe(pynvml, handle, driver)
                survey.gpus.append(gpu)
                survey.free.append(free)
    except pynvml.NVMLError as error:
        survey.reason = f"no NVIDIA driver answers ({error})"
    return survey


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _present(nvml: Any) -> dict[int, Any]:
    """Return the handles of all GPUs that answer, by their number."""
    handles = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:  # lost, or not ours to use
            logger.warning("GPU %d does not answer: %s", index, error)
    return handles


def _visible(nvml: Any, present: dict[int, Any]) -> list[Any]:
    """Return the handles that CUDA_VISIBLE_DEVICES leaves, by CUDA's rules.

    The list ends before its first wrong entry; an entry that comes twice makes all of it void
    (CUDA C++ Programming Guide, "CUDA Environment Variables").
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(present.values())
    handles: list[Any] = []
    for word in chosen.split(","):
        handle = _find(nvml, present, word.strip())
        if handle is None:
            break
        if any(handle is other for other in handles):
            return []
        handles.append(handle)
    return handles


def _find(nvml: Any, present: dict[int, Any], word: str) -> Any:
    """Return the handle that a number, or the beginning of one GPU's UUID, names; or None."""
    if word.isdecimal():
        return present.get(int(word))
    if word.startswith("MIG-"):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(word)
        except nvml.NVMLError:
            return None
    if not word.startswith("GPU-"):
        return None
    found = [h for h in present.values() if str(nvml.nvmlDeviceGetUUID(h)).startswith(word)]
    return found[0] if len(found) == 1 else None


def _describe(nvml: Any, handle: Any, driver: str) -> tuple[GpuInfo, int | None]:
    """Return a GPU's facts and its free memory in bytes."""
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:  # a slice of a GPU (MIG) does not say; the whole one does
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(whole)
    total = free = None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:  # a GPU without memory of its own
        pass
    gpu: GpuInfo = {
        "name": str(nvml.nvmlDeviceGetName(handle)),
        "compute_capability": f"{major}.{minor}",
        "memory": total,
        "driver_version": driver,
    }
    return gpu, free
