"""The types of tensors' values, and the devices that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from numbers import Integral
from typing import Any, Self

import numpy as np

from llcuda.errors import ArgumentError
from llcuda.native.gguf.types import GGML_BLOCK_SIZE, GGML_TYPE_SIZE, GGMLType
from llcuda.native.library import why_no_gpu
from llcuda.native.tensor import (
    CPU,
    device_facts,
    gpu_count,
    memory,
    refused_gpus,
    release,
    synchronize,
)
from llcuda.params import wrong_value


class DType(Enum):
    """The type of a tensor's values.

    Float32 to UInt8 hold single values. The others are ggml's quantized types, whose values stand
    in blocks along the last axis; `Tensor.to` quantizes and dequantizes.

    Attributes:
        ggml_type: ggml's type of the same layout. ggml has no unsigned bytes, so UInt8 has I8.
        is_float: Whether this is Float32, Float16 or BFloat16.
        is_quantized: Whether this is one of ggml's quantized types.
    """

    Float32 = "F32"
    Float16 = "F16"
    BFloat16 = "BF16"
    Int32 = "I32"
    Int64 = "I64"
    UInt8 = "U8"

    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    IQ1_S = "IQ1_S"
    IQ1_M = "IQ1_M"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    IQ2_S = "IQ2_S"
    IQ3_XXS = "IQ3_XXS"
    IQ3_S = "IQ3_S"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    MXFP4 = "MXFP4"
    NVFP4 = "NVFP4"
    Q1_0 = "Q1_0"
    Q2_0 = "Q2_0"

    def __init__(self, label: str) -> None:
        # Nothing that is done to bytes depends on their sign.
        self.ggml_type = GGMLType["I8" if label == "U8" else label]
        self.is_float = label in ("F32", "F16", "BF16")
        self.is_quantized = not self.is_float and label not in ("I32", "I64", "U8")

    @classmethod
    def _missing_(cls, value: object) -> Any:
        rule = f"expected one of {', '.join(dtype.value for dtype in cls)}"
        raise wrong_value("value", value, rule)

    @cached_property
    def block(self) -> tuple[int, int]:
        """Values of a block, and its bytes; a type that is not quantized has blocks of one."""
        return GGML_BLOCK_SIZE[self.ggml_type], GGML_TYPE_SIZE[self.ggml_type]

    def __repr__(self) -> str:
        return f"DType.{self.name}"


# numpy has no bfloat16.
NUMPY: dict[DType, np.dtype[Any]] = {
    DType.Float32: np.dtype(np.float32),
    DType.Float16: np.dtype(np.float16),
    DType.Int32: np.dtype(np.int32),
    DType.Int64: np.dtype(np.int64),
    DType.UInt8: np.dtype(np.uint8),
}
FROM_NUMPY = {kind: dtype for dtype, kind in NUMPY.items()}
FROM_GGML = {dtype.ggml_type: dtype for dtype in DType if dtype is not DType.UInt8}


def check_dtype(dtype: Any) -> DType:
    """Return a DType; ArgumentError for anything else."""
    if not isinstance(dtype, DType):
        raise wrong_value("dtype", dtype, "expected a DType, e.g. DType.Float16")
    return dtype


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """The properties of a device. Those that only GPUs have are 0 for the CPU.

    Attributes:
        name: Name of the device, e.g. "Tesla T4".
        total_memory: Bytes of its memory.
        free_memory: Bytes that new tensors may take.
        compute_capability_major: Compute capability before the point.
        compute_capability_minor: Compute capability behind the point.
        multiprocessor_count: Number of streaming multiprocessors.
        warp_size: Threads of a warp.
        shared_memory_per_block: Bytes of shared memory that a block of threads gets.
        shared_memory_per_block_optin: Bytes of shared memory that a block can ask for.
    """

    name: str
    total_memory: int
    free_memory: int
    compute_capability_major: int = 0
    compute_capability_minor: int = 0
    multiprocessor_count: int = 0
    warp_size: int = 0
    shared_memory_per_block: int = 0
    shared_memory_per_block_optin: int = 0


class Device(int):
    """A device by its number: 0 and up are CUDA GPUs, -1 is the CPU.

    It is made of a number, "cpu", "cuda" (the first GPU), "cuda:1", or None: the first GPU, or the
    CPU on a machine without one. A device is equal to its number.

    Raises:
        ArgumentError: There is no such device, or it is a GPU that llcuda cannot use.
    """

    def __new__(cls, device: Any = None) -> Self:
        """Return the device that `device` names."""
        count = gpu_count()
        number = device
        if isinstance(device, str):
            if device == "cpu":
                number = CPU
            elif match := re.fullmatch(r"cuda(?::(\d{1,4}))?", device):
                number = int(match[1] or 0)
        refused = refused_gpus()
        if device is None:
            number = next((gpu for gpu in range(count) if gpu not in refused), CPU)
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise wrong_value(
                "device", device, "expected a GPU's number, 'cuda:0', 'cpu' or -1 for the CPU"
            )
        number = int(number)
        if number != CPU and not 0 <= number < count:
            raise _no_device(device, count)
        if number in refused:
            remedy = f"{refused[number].mend}, or use device='cpu'"
            raise wrong_value("device", device, refused[number].what, remedy)
        return super().__new__(cls, number)

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU."""
        return self == CPU

    def __str__(self) -> str:
        return "cpu" if self == CPU else f"cuda:{int(self)}"

    __repr__ = __str__
    __format__ = object.__format__

    @staticmethod
    def count() -> int:
        """Return the number of GPUs."""
        return gpu_count()

    @staticmethod
    def properties(device: Any = None) -> DeviceProperties:
        """Return the properties of a device.

        Args:
            device: See `Device`.

        Raises:
            ArgumentError: There is no such device.
        """
        return DeviceProperties(**device_facts(Device(device)))

    @staticmethod
    def get_free_memory(device: Any = None) -> int:
        """Return the bytes that new tensors may take, with those that are cached for reuse.

        Args:
            device: See `Device`.

        Raises:
            ArgumentError: There is no such device.
            DeviceLostError: The GPU failed.
        """
        return memory(Device(device))[0]

    @staticmethod
    def get_total_memory(device: Any = None) -> int:
        """Return the bytes of a device's memory.

        Args:
            device: See `Device`.

        Raises:
            ArgumentError: There is no such device.
            DeviceLostError: The GPU failed.
        """
        return memory(Device(device))[1]

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """Wait until a device has computed all that it was given.

        Args:
            device: See `Device`.

        Raises:
            ArgumentError: There is no such device.
            TensorError: An operation failed on the device.
        """
        synchronize(Device(device))

    @staticmethod
    def release_memory(device: Any = None) -> None:
        """Return the memory that is cached for reuse to the system.

        Args:
            device: See `Device`.

        Raises:
            ArgumentError: There is no such device.
        """
        release(Device(device))


def _no_device(device: Any, count: int) -> ArgumentError:
    if count:
        gpus = f"the GPUs are 0 to {count - 1}" if count > 1 else "the only GPU is 0"
        return wrong_value("device", device, gpus, "use device='cpu' for the CPU")
    remark = why_no_gpu()
    if remark is None:
        return wrong_value(
            "device",
            device,
            "this llcuda was built without CUDA",
            "use device='cpu', or a build with CUDA on a machine with a GPU (llcuda doctor)",
        )
    return wrong_value("device", device, remark.what, f"{remark.mend}, or use device='cpu'")
