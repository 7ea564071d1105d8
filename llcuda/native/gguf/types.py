"""The types of GGUF's values and of ggml's tensors, with the numbers that files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from functools import cached_property

from llcuda.native import library


class GGUFValueType(IntEnum):
    """The type of a value of the metadata, with its number in a file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class GGMLType(IntEnum):
    """The type of a tensor's values, with its number in a file; missing numbers were types once."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class _Sizes(Mapping[GGMLType, int]):
    """A number for each type, asked from ggml at the first use."""

    def __init__(self, function: str) -> None:
        self._function = function

    @cached_property
    def _sizes(self) -> dict[GGMLType, int]:
        _, lib = library.load()
        return {kind: int(getattr(lib, self._function)(kind)) for kind in GGMLType}

    def __getitem__(self, kind: GGMLType) -> int:
        return self._sizes[kind]

    def __iter__(self) -> Iterator[GGMLType]:
        return iter(GGMLType)

    def __len__(self) -> int:
        return len(GGMLType)


GGML_BLOCK_SIZE: Mapping[GGMLType, int] = _Sizes("ggml_blck_size")
"""Number of values in a block of each type; 1 for types that are not quantized."""

GGML_TYPE_SIZE: Mapping[GGMLType, int] = _Sizes("ggml_type_size")
"""Bytes of a block of each type."""


# numpy's names of the types that it has.
NUMPY_VALUES = {
    GGUFValueType.UINT8: "u1",
    GGUFValueType.INT8: "i1",
    GGUFValueType.UINT16: "u2",
    GGUFValueType.INT16: "i2",
    GGUFValueType.UINT32: "u4",
    GGUFValueType.INT32: "i4",
    GGUFValueType.FLOAT32: "f4",
    GGUFValueType.BOOL: "i1",
    GGUFValueType.UINT64: "u8",
    GGUFValueType.INT64: "i8",
    GGUFValueType.FLOAT64: "f8",
}
NUMPY_WHOLE = {
    GGMLType.I8: "i1",
    GGMLType.I16: "i2",
    GGMLType.I32: "i4",
    GGMLType.I64: "i8",
    GGMLType.F64: "f8",
}
