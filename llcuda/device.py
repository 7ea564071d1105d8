"""The GPUs of this machine, by the NVIDIA driver's NVML, and whether llcuda runs on them.

CUDA is not loaded, and a missing driver raises nothing: it means that there is no GPU. Numbers in
CUDA_VISIBLE_DEVICES are read in the driver's order (by PCI bus), which is also CUDA's order with
CUDA_DEVICE_ORDER=PCI_BUS_ID or if all GPUs are of one kind.
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
from llcuda.native.cuda_build import (
    REQUIRED_CAPABILITY,
    CudaBuild,
    Driver,
    Remark,
    cache_is_empty,
    gpu_problem,
)

NO_GPU = Remark("the driver finds no GPU", "check nvidia-smi")
logger = logging.getLogger("llcuda")


class GpuInfo(TypedDict):
    """A GPU in the result of `detect_cuda`.

    Attributes:
        name: The name, e.g. "Tesla T4".
        compute_capability: The compute capability, e.g. "7.5".
        memory: The memory in bytes; None for a GPU that uses the CPU's memory.
        driver_version: The version of the NVIDIA driver.
    """

    name: str
    compute_capability: str
    memory: int | None
    driver_version: str


class CudaInfo(TypedDict):
    """The result of `detect_cuda`.

    Attributes:
        available: Whether there is a GPU.
        version: The newest CUDA version that the driver runs, e.g. "12.2"; None without a driver.
        gpus: The GPUs in the order of CUDA.
        reason: Why there is no GPU, or why this llcuda can use none of them, and what to do; only
            then.
    """

    available: bool
    version: str | None
    gpus: list[GpuInfo]
    reason: NotRequired[str]


class Compatibility(TypedDict):
    """The result of `check_gpu_compatibility`.

    Attributes:
        compatible: Whether llcuda can use a GPU.
        platform: "local", "colab" or "kaggle".
        gpu_name: The name of the GPU; None without one.
        compute_capability: The compute capability of the GPU, e.g. "7.5"; None without one.
        reason: Why llcuda can or cannot use a GPU.
        note: What the first run waits for, and how long; only if it waits.
    """

    compatible: bool
    platform: str
    gpu_name: str | None
    compute_capability: str | None
    reason: str
    note: NotRequired[str]


class GpuSpeed(TypedDict):
    """The result of `gpu_speed`; a value that the driver does not tell is None.

    Attributes:
        clock: The current clock in MHz.
        clock_limit: The highest clock in MHz.
        memory_clock: The current clock of the memory in MHz.
        memory_clock_limit: The highest clock of the memory in MHz.
        memory_bus_bits: The width of the memory's bus in bits.
        memory_bandwidth: The limit of the memory in bytes per second: its highest clock x bus
            width x 2 transfers.
    """

    clock: int | None
    clock_limit: int | None
    memory_clock: int | None
    memory_clock_limit: int | None
    memory_bus_bits: int | None
    memory_bandwidth: float | None


@dataclass
class Survey:
    """The answers of NVML.

    Attributes:
        version: The newest CUDA version that the driver runs; None without a driver.
        driver_version: The version of the driver; "" without one.
        gpus: The visible GPUs.
        free: The free bytes of each GPU; None for a GPU that uses the CPU's memory.
        reason: Why there is no GPU, if there is none.
    """

    version: str | None = None
    driver_version: str = ""
    gpus: list[GpuInfo] = field(default_factory=list)
    free: list[int | None] = field(default_factory=list)
    reason: Remark = NO_GPU

    @property
    def driver(self) -> Driver:
        """The driver, for `gpu_problem`."""
        return Driver(_version(self.version) if self.version else None, self.driver_version)

    def problems(self, build: CudaBuild | None) -> list[Remark | None]:
        """Return for each GPU why llcuda cannot use it; None if it can.

        Args:
            build: The CUDA code in the library; None without any.
        """
        return [gpu_problem(gpu["name"], capability(gpu), build, self.driver) for gpu in self.gpus]


def detect_cuda() -> CudaInfo:
    """Return the GPUs that CUDA programs can use, by NVIDIA's driver and CUDA_VISIBLE_DEVICES.

    It never raises: without a driver, or without the package nvidia-ml-py, there is no GPU.

    Returns:
        A dict with `available`, `version` (the newest CUDA version that the driver runs, e.g.
        "12.2", or None) and `gpus`, a list of dicts with `name`, `compute_capability` (e.g.
        "7.5"), `memory` (bytes) and `driver_version`. Also `reason` without a GPU, or if this
        llcuda can use none of them, e.g. because the driver is too old for it.
    """
    nvml = survey()
    problems = nvml.problems(_cuda_build()) if nvml.gpus else []
    info: CudaInfo = {
        "available": bool(nvml.gpus),
        "version": nvml.version,
        "gpus": nvml.gpus,
    }
    if all(problems):
        info["reason"] = str(next(iter(problems), nvml.reason))
    return info


def check_gpu_compatibility() -> Compatibility:
    """Return whether llcuda can use a GPU, and why or why not.

    llcuda needs a GPU of compute capability 7.5 or higher, a driver that runs the CUDA version it
    was built with, and a build with CUDA. Among several GPUs the first that fits counts. It never
    raises.

    Returns:
        A dict with `compatible` (bool), `platform` ("local", "colab" or "kaggle"), `gpu_name` and
        `compute_capability` (None without a GPU) and `reason`; also `note` if the first run waits
        for the driver's compiler.
    """
    nvml, build = survey(), _cuda_build()
    problems = nvml.problems(build)
    usable = [gpu for gpu, remark in zip(nvml.gpus, problems, strict=True) if remark is None]
    gpu = next(iter([*usable, *nvml.gpus]), None)
    if gpu is None:
        reason = f"{nvml.reason}; the CPU is used"
    elif not usable:
        reason = f"{problems[0]}; the CPU still works"
    else:
        reason = f"{gpu['name']} has compute capability {gpu['compute_capability']}"
    compatibility: Compatibility = {
        "compatible": bool(usable),
        "platform": _platform(),
        "gpu_name": gpu and gpu["name"],
        "compute_capability": gpu and gpu["compute_capability"],
        "reason": reason,
    }
    if usable:
        wait = first_run(usable[0], build)
        if wait is not None and cache_is_empty(os.environ):
            compatibility["note"] = str(wait)
        if capability(usable[0]) > REQUIRED_CAPABILITY:
            log_newer_gpu(reason, compatibility.get("note", ""))
    return compatibility


def first_run(gpu: GpuInfo, build: CudaBuild | None) -> Remark | None:
    """Return the remark that the first run waits for the driver's compiler; None if it does not.

    Args:
        gpu: The GPU.
        build: The CUDA code in the library; None without any.
    """
    return build.first_run(capability(gpu), os.environ) if build else None


def _cuda_build() -> CudaBuild | None:
    try:
        return library.cuda_build()
    except LibraryError:
        return CudaBuild()  # unknown; loading a model reports the library's error


def free_memory(index: int = 0) -> int | None:
    """Return the free memory of a GPU in bytes; None for a GPU that uses the CPU's memory.

    Args:
        index: The number of the GPU in the list of `detect_cuda`.

    Raises:
        ArgumentError: There is no such GPU.
    """
    nvml = survey()
    if not 0 <= index < len(nvml.free):
        reason = f"there are {len(nvml.free)}" if nvml.free else nvml.reason
        raise ArgumentError(f"no GPU {index}: {reason}", parameter="index")
    return nvml.free[index]


def gpu_speed(index: int = 0) -> GpuSpeed | None:
    """Return the clocks and the memory bandwidth of a GPU; None without a driver or such a GPU.

    Args:
        index: The number of the GPU in the list of `detect_cuda`.
    """
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
    """Return a GPU's compute capability as two numbers."""
    return _version(gpu["compute_capability"])


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


@functools.cache
def log_newer_gpu(description: str, note: str) -> None:
    """Log, once for each kind of GPU, that it is newer than the kind llcuda is tuned for."""
    logger.info("%s; llcuda is tuned for 7.5", description)
    if note:
        logger.warning("%s", note)


def _platform() -> str:
    """Return the notebook service, Kaggle first, because its images also have Colab's variables."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if os.environ.keys() & {"COLAB_RELEASE_TAG", "COLAB_GPU"} else "local"


def survey() -> Survey:
    """Return the current answers of the driver, without raising anything."""
    result = Survey()
    try:
        import pynvml
    except ImportError:
        result.reason = Remark("GPUs cannot be detected", "pip install nvidia-ml-py")
        return result
    try:
        with _session(pynvml):
            number = pynvml.nvmlSystemGetCudaDriverVersion()
            result.version = f"{number // 1000}.{number % 1000 // 10}"
            result.driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            present = _present(pynvml)
            handles = _visible(pynvml, present)
            if present and not handles:
                variable, last = os.environ["CUDA_VISIBLE_DEVICES"], max(present)
                result.reason = Remark(
                    f"CUDA_VISIBLE_DEVICES={variable!r} leaves no GPU visible",
                    f"unset it, or name some of 0{f' to {last}' if last else ''}",
                )
            for handle in handles:
                gpu, free = _describe(pynvml, handle, result.driver_version)
                result.gpus.append(gpu)
                result.free.append(free)
    except pynvml.NVMLError as error:
        mend = "install the driver, or run where there is a GPU"
        if _platform() == "colab":
            mend = "choose a GPU in the menu, Runtime > Change runtime type"
        result.reason = Remark(f"no NVIDIA driver answers ({error})", mend)
    return result


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _present(nvml: Any) -> dict[int, Any]:
    """Return the handles of all GPUs that answer, by number."""
    handles = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:  # lost, or not permitted
            logger.warning("GPU %d does not answer: %s", index, error)
    return handles


def _visible(nvml: Any, present: dict[int, Any]) -> list[Any]:
    """Return the handles that CUDA_VISIBLE_DEVICES leaves visible.

    The list ends before its first wrong entry, and a repeated entry makes it void (CUDA C++
    Programming Guide, "CUDA Environment Variables").
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return list(present.values())
    handles: list[Any] = []
    for word in variable.split(","):
        handle = _find(nvml, present, word.strip())
        if handle is None:
            break
        if any(handle is other for other in handles):
            return []
        handles.append(handle)
    return handles


def _find(nvml: Any, present: dict[int, Any], word: str) -> Any:
    """Return the handle that a number or the beginning of a UUID names, or None."""
    if word.isdecimal():
        return present.get(int(word))
    if word.startswith("MIG-"):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(word)
        except nvml.NVMLError:
            return None
    if not word.startswith("GPU-"):
        return None
    matches = [h for h in present.values() if str(nvml.nvmlDeviceGetUUID(h)).startswith(word)]
    return matches[0] if len(matches) == 1 else None


def _describe(nvml: Any, handle: Any, driver: str) -> tuple[GpuInfo, int | None]:
    """Return a GPU and its free memory in bytes."""
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:  # only the whole GPU tells it for a slice (MIG)
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(whole)
    total = free = None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:  # a GPU that uses the CPU's memory
        pass
    gpu: GpuInfo = {
        "name": str(nvml.nvmlDeviceGetName(handle)),
        "compute_capability": f"{major}.{minor}",
        "memory": total,
        "driver_version": driver,
    }
    return gpu, free
