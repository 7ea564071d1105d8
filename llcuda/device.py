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
from typing import Any, NotRequired, TypedDict

from llcuda.errors import ArgumentError, LibraryError
from llcuda.native import library
from llcuda.native.cuda_build import WITH_CUDA, CudaBuild, Remark, cache_is_empty

REQUIRED = (7, 5)  # Turing: the first with the int8 tensor cores that the kernels are built for
NO_GPU = Remark("the driver finds no GPU", "check nvidia-smi")
logger = logging.getLogger("llcuda")


class GpuInfo(TypedDict):
    """One GPU. compute_capability: e.g. "7.5"; memory: bytes, None where it is the CPU's."""

    name: str
    compute_capability: str
    memory: int | None
    driver_version: str


class CudaInfo(TypedDict):
    """What `detect_cuda` found. version: the newest CUDA that the driver runs, e.g. "12.2".

    reason: only without a GPU; why, and what to do.
    """

    available: bool
    version: str | None
    gpus: list[GpuInfo]
    reason: NotRequired[str]


class Compatibility(TypedDict):
    """Whether llcuda can use a GPU here. platform: "local", "colab" or "kaggle".

    note: only where the first run has to wait; for what, and how long.
    """

    compatible: bool
    platform: str
    gpu_name: str | None
    compute_capability: str | None
    reason: str
    note: NotRequired[str]


class GpuSpeed(TypedDict):
    """How fast a GPU runs just now, and at most: clocks in MHz, memory_bandwidth in bytes a second.

    memory_bandwidth: the highest memory clock x bus width x 2 transfers, the memory's own limit.
    None: the driver does not say.
    """

    clock: int | None
    clock_limit: int | None
    memory_clock: int | None
    memory_clock_limit: int | None
    memory_bus_bits: int | None
    memory_bandwidth: float | None


@dataclass
class Survey:
    """What NVML says. version: the newest CUDA that the driver runs; reason: why no GPU."""

    version: str | None = None
    gpus: list[GpuInfo] = field(default_factory=list)
    free: list[int | None] = field(default_factory=list)
    reason: Remark = NO_GPU


def detect_cuda() -> CudaInfo:
    """Return the GPUs that CUDA programs may use here. Never raises."""
    found = survey()
    info: CudaInfo = {
        "available": bool(found.gpus),
        "version": found.version,
        "gpus": found.gpus,
    }
    if not found.gpus:
        info["reason"] = str(found.reason)
    return info


def check_gpu_compatibility() -> Compatibility:
    """Return whether llcuda can use a GPU here, and why (not). Never raises.

    It needs compute capability 7.5, a driver that is not older than llcuda's CUDA, and a build with
    CUDA; of several GPUs the first that can be used counts.
    """
    found, build = survey(), _build()
    judged = [(gpu, problem(gpu, found.version, build)) for gpu in found.gpus]
    usable = [gpu for gpu, wrong in judged if wrong is None]
    gpu = next(iter([*usable, *found.gpus]), None)
    if gpu is None:
        reason = f"{found.reason}; the CPU is used"
    elif not usable:
        reason = f"{judged[0][1]}; the CPU still works"
    else:
        reason = f"{gpu['name']} has compute capability {gpu['compute_capability']}"
    answer: Compatibility = {
        "compatible": bool(usable),
        "platform": _platform(),
        "gpu_name": gpu and gpu["name"],
        "compute_capability": gpu and gpu["compute_capability"],
        "reason": reason,
    }
    if usable:
        wait = first_run(usable[0], build)
        if wait is not None and cache_is_empty(os.environ):
            answer["note"] = str(wait)
        if capability(usable[0]) > REQUIRED:
            _note_newer(reason, answer.get("note", ""))
    return answer


def problem(gpu: GpuInfo, driver: str | None, build: CudaBuild | None) -> Remark | None:
    """Return why llcuda cannot use a GPU; None if it can.

    driver: the newest CUDA that the driver runs. build: None = without CUDA.
    """
    has = f"{gpu['name']} has compute capability {gpu['compute_capability']}"
    if capability(gpu) < REQUIRED:
        return Remark(f"{has}, and GPU work needs 7.5 or higher", "take a newer GPU")
    if build is None:
        return Remark(f"{has}, but this llcuda was built without CUDA", WITH_CUDA)
    return build.problem(capability(gpu), _version(driver) if driver else None)


def first_run(gpu: GpuInfo, build: CudaBuild | None) -> Remark | None:
    """Return that the first run has to wait for the driver's compiler; None where it has not."""
    return build.first_run(capability(gpu), os.environ) if build else None


def _build() -> CudaBuild | None:
    try:
        return library.cuda_build()
    except LibraryError:
        return CudaBuild()  # said when a model is loaded; nothing of the GPU is known to be wrong


def free_memory(index: int = 0) -> int | None:
    """Return the free bytes of GPU `index` of `detect_cuda`; None where they are the CPU's."""
    found = survey()
    if not 0 <= index < len(found.free):
        why = f"there are {len(found.free)}" if found.free else found.reason
        raise ArgumentError(f"no GPU {index}: {why}")
    return found.free[index]


def gpu_speed(index: int = 0) -> GpuSpeed | None:
    """Return the clocks of GPU `index` of `detect_cuda`; None without a driver or such a GPU."""
    try:
        import pynvml as nvml  # type: ignore[import-untyped]  # nvidia-ml-py has no types
    except ImportError:
        return None
    try:
        with _session(nvml):
            handle = _visible(nvml, _present(nvml))[index]

            def ask(function: str, *arguments: Any) -> int | None:
                try:
                    return int(getattr(nvml, function)(handle, *arguments))
                except nvml.NVMLError:  # a slice of a GPU (MIG) has no clock of its own
                    return None

            limit = ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM)
            bus = ask("nvmlDeviceGetMemoryBusWidth")
            return {
                "clock": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
                "clock_limit": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
                "memory_clock": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
                "memory_clock_limit": limit,
                "memory_bus_bits": bus,
                "memory_bandwidth": limit * 1e6 * 2 * bus / 8 if limit and bus else None,
            }
    except (nvml.NVMLError, IndexError):
        return None


def capability(gpu: GpuInfo) -> tuple[int, int]:
    """Return a GPU's compute capability as numbers."""
    return _version(gpu["compute_capability"])


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


@functools.cache
def _note_newer(has: str, note: str) -> None:
    """Log, once for a kind of GPU, that it is newer than the one that llcuda is tuned for."""
    logger.info("%s; llcuda is tuned for 7.5", has)
    if note:
        logger.warning("%s", note)


def _platform() -> str:
    """Return the notebook service; Kaggle's images also carry Colab's variables."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if os.environ.keys() & {"COLAB_RELEASE_TAG", "COLAB_GPU"} else "local"


def survey() -> Survey:
    """Return what the driver says now. Never raises."""
    found = Survey()
    try:
        import pynvml
    except ImportError:
        found.reason = Remark("GPUs cannot be looked for", "pip install nvidia-ml-py")
        return found
    try:
        with _session(pynvml):
            number = pynvml.nvmlSystemGetCudaDriverVersion()
            found.version = f"{number // 1000}.{number % 1000 // 10}"
            driver = str(pynvml.nvmlSystemGetDriverVersion())
            present = _present(pynvml)
            handles = _visible(pynvml, present)
            if present and not handles:
                chosen, last = os.environ["CUDA_VISIBLE_DEVICES"], max(present)
                found.reason = Remark(
                    f"CUDA_VISIBLE_DEVICES={chosen!r} leaves no GPU visible",
                    f"unset it, or name some of 0{f' to {last}' if last else ''}",
                )
            for handle in handles:
                gpu, free = _describe(pynvml, handle, driver)
                found.gpus.append(gpu)
                found.free.append(free)
    except pynvml.NVMLError as error:
        mend = "install the driver, or run where there is a GPU"
        if _platform() == "colab":
            mend = "choose a GPU in the menu, Runtime > Change runtime type"
        found.reason = Remark(f"no NVIDIA driver answers ({error})", mend)
    return found


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
