"""Weights of 4 bits to floats and back, in C. llcuda.nf4 checks what comes here."""

from __future__ import annotations

from typing import Any

import numpy as np

from llcuda.native import library

BITS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}  # as numpy holds them
_TYPES = {"float32": "GGML_TYPE_F32", "float16": "GGML_TYPE_F16", "bfloat16": "GGML_TYPE_BF16"}


def largest_block() -> int:
    """Return how many values may share a scale."""
    _, lib = library.load()
    return int(lib.LLCUDA_NF4_LARGEST_BLOCK)


def dequantize(
    packed: np.ndarray[Any, np.dtype[np.uint8]],
    absmax: np.ndarray[Any, np.dtype[np.float32]],
    code: np.ndarray[Any, np.dtype[np.float32]],
    block_size: int,
    dtype: str,
    out: np.ndarray[Any, Any],
) -> None:
    """Write the values into `out`, an array of BITS[dtype]."""
    ffi, lib = library.load()
    lib.llcuda_nf4_dequantize(
        ffi.from_buffer("uint8_t[]", packed),
        ffi.from_buffer("float[]", absmax),
        ffi.from_buffer("float[]", code),
        out.size,
        block_size,
        getattr(lib, _TYPES[dtype]),
        ffi.cast("void *", ffi.from_buffer(out, require_writable=True)),
    )


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
