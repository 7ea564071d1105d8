"""Weights of 4 bits to floats and back, in C. `llcuda.nf4` checks the arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from llcuda.errors import TensorError
from llcuda.native import library

BITS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}  # as numpy holds them
_TYPES = {"float32": "GGML_TYPE_F32", "float16": "GGML_TYPE_F16", "bfloat16": "GGML_TYPE_BF16"}


def dequantize(
    packed: np.ndarray[Any, np.dtype[np.uint8]],
    absmax: np.ndarray[Any, np.dtype[np.float32]],
    code: np.ndarray[Any, np.dtype[np.float32]],
    block_size: int,
    dtype: str,
    count: int,
    address: int,
) -> None:
    """Expand weights on the CPU: code[packed[i]] * absmax[i // block_size].

    Args:
        packed: Two values a byte, the first in the high half.
        absmax: The scale of each block.
        code: The 16 values that the bits stand for.
        block_size: Values of a block, a power of two.
        dtype: One of BITS.
        count: How many values.
        address: Where in this process's memory the values go.
    """
    ffi, lib = library.load()
    lib.llcuda_nf4_dequantize(
        ffi.from_buffer("uint8_t[]", packed),
        ffi.from_buffer("float[]", absmax),
        ffi.from_buffer("float[]", code),
        count,
        block_size,
        getattr(lib, _TYPES[dtype]),
        ffi.cast("void *", address),
    )


def dequantize_on_gpu(
    packed: int,
    absmax: int,
    code: np.ndarray[Any, np.dtype[np.float32]],
    block_size: int,
    dtype: str,
    count: int,
    address: int,
    stream: int,
) -> None:
    """Begin to expand weights on a GPU, as `dequantize` does.

    Args:
        packed: Address of the packed values in the GPU's memory, a multiple of 4.
        absmax: Address of the scales in the GPU's memory.
        code: The 16 values that the bits stand for.
        block_size: Values of a block, a power of two.
        dtype: One of BITS.
        count: How many values.
        address: Where in the GPU's memory the values go, a multiple of 16.
        stream: The CUDA stream to continue.

    Raises:
        TensorError: This build or this GPU cannot.
    """
    ffi, lib = library.load()
    status = lib.llcuda_nf4_on_gpu(
        packed,
        absmax,
        ffi.from_buffer("float[]", code),
        count,
        block_size,
        getattr(lib, _TYPES[dtype]),
        address,
        stream,
    )
    if status:
        library.fail(TensorError, "weights of 4 bits cannot be expanded on this GPU")


def quantize(
    values: np.ndarray[Any, np.dtype[np.float32]],
    bounds: np.ndarray[Any, np.dtype[np.float32]],
    codes: np.ndarray[Any, np.dtype[np.uint8]],
    block_size: int,
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.float32]]] | None:
    """Quantize values to 4 bits.

    Args:
        values: The values.
        bounds: The 15 bounds between the 16 values that bits stand for, in their order.
        codes: The bits of each of these values, in the same order.
        block_size: Values of a block, a power of two.

    Returns:
        The packed values and the scale of each block; None if a value is NaN or infinite.
    """
    ffi, lib = library.load()
    packed = np.empty((values.size + 1) // 2, np.uint8)
    absmax = np.empty(-(-values.size // block_size), np.float32)
    finite = lib.llcuda_nf4_quantize(
        ffi.from_buffer("float[]", values),
        values.size,
        block_size,
        ffi.from_buffer("float[]", bounds),
        ffi.from_buffer("uint8_t[]", codes),
        ffi.from_buffer("uint8_t[]", packed, require_writable=True),
        ffi.from_buffer("float[]", absmax, require_writable=True),
    )
    return (packed, absmax) if finite else None
