"""Weights of 4 bits to floats and back, in C. llcuda.nf4 checks what comes here."""

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
    """Write `count` values to this process's memory."""
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
    """Begin to write `count` values to a GPU's memory, from addresses in it; TensorError."""
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
    """Return the packed values and each block's scale; None when a value is NaN or inf."""
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
