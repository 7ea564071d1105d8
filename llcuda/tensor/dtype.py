"""What a tensor's values are, and the devices that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from numbers import Integral
from typing import Any, Self

import numpy as np

from llcuda.errors import ArgumentError
from llcuda.native import library
from llcuda.native import tensor as native
from llcuda.native.gguf.types import GGML_BLOCK_SIZE, GGML_TYPE_SIZE, GGMLType


class DType(Enum):
    """The type of a tensor's values; the second group is ggml's, in blocks along the last axis."""

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
        # ggml has no unsigned bytes; nothing that is done to them depends on the sign.
        self.number = int(GGMLType["I8" if label == "U8" else label])
        self.is_float = label in ("F32", "F16", "BF16")
        self.is_quantized = not self.is_float and label not in ("I32", "I64", "U8")

    @cached_property
    def block(self) -> tuple[int, int]:
        """How many values a block has, and its bytes; a block of one value but for ggml's types."""
        kind = GGMLType(self.number)
        return GGML_BLOCK_SIZE[kind], GGML_TYPE_SIZE[kind]

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
FROM_GGML = {dtype.number: dtype for dtype in DType if dtype is not DType.UInt8}


def check_dtype(dtype: Any) -> DType:
    """Return a DType; ArgumentError for anything else."""
    if not isinstance(dtype, DType):
        raise ArgumentError(f"dtype={dtype!r}: expected a DType, e.g. DType.Float16")
    return dtype


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What there is to know of a device; what only GPUs have is 0 for the CPU.

    Memory in bytes. shared_memory_per_block: what a kernel gets; shared_memory_per_block_optin: the
    most that it can ask for.
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

    Made of a number, "cpu", "cuda", "cuda:1", or None: the first GPU, or the CPU where there is
    none. Equal to its number. ArgumentError where there is no such device.
    """

    def __new__(cls, device: Any = None) -> Self:
        """Return the device that `device` names."""
        count = native.gpu_count()
        if isinstance(device, str):
            if device == "cpu":
                device = native.CPU
            elif found := re.fullmatch(r"cuda(?::(\d{1,4}))?", device):
                device = int(found[1] or 0)
        if device is None:
            device = 0 if count else native.CPU
        if isinstance(device, bool) or not isinstance(device, Integral):
            raise ArgumentError(
                f"device={device!r}: expected a GPU's number, 'cuda:0', 'cpu' or -1 for the CPU"
            )
        number = int(device)
        if number != native.CPU and not 0 <= number < count:
            there = f"GPUs are 0 to {count - 1}" if count else _no_gpu()
            raise ArgumentError(f"no device {number}: {there}; 'cpu', or -1, is the CPU")
        return super().__new__(cls, number)

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU."""
        return self == native.CPU

    def __str__(self) -> str:
        return "cpu" if self == native.CPU else f"cuda:{int(self)}"

    __repr__ = __str__
    __format__ = object.__format__

    @staticmethod
    def count() -> int:
        """Return how many GPUs there are."""
        return native.gpu_count()

    @staticmethod
    def properties(device: Any = None) -> DeviceProperties:
        """Return what there is to know of a device."""
        return DeviceProperties(**native.device_facts(Device(device)))

    @staticmethod
    def get_free_memory(device: Any = None) -> int:
        """Return the bytes that new tensors may take; those kept of freed tensors are free."""
        return native.memory(Device(device))[0]

    @staticmethod
    def get_total_memory(device: Any = None) -> int:
        """Return all bytes of a device's memory."""
        return native.memory(Device(device))[1]

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """Wait until a device has computed all that it was given; errors of a GPU show here."""
        native.synchronize(Device(device))

    @staticmethod
    def release_memory(device: Any = None) -> None:
        """Give back what is kept of freed tensors, at most 320 MiB of a GPU, to other programs."""
        native.release(Device(device))


def _no_gpu() -> str:
    why = library.why_no_gpu()
    return f"there is no GPU ({why})" if why else "there is no GPU, or this build has no CUDA"
