"""`from_nf4` of `llcuda.core`: packed weights of `llcuda.nf4` become a tensor on a device."""

from __future__ import annotations

from math import prod

import numpy as np

from llcuda.native.nf4 import dequantize, dequantize_on_gpu
from llcuda.native.tensor import stream
from llcuda.nf4 import CODES, QuantState
from llcuda.params import wrong_value
from llcuda.tensor.dtype import Device, DType
from llcuda.tensor.graph import Node, empty, memory_of
from llcuda.tensor.host import from_array
from llcuda.tensor.shape import check_shape

_NAMES = {DType.Float32: "float32", DType.Float16: "float16", DType.BFloat16: "bfloat16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def expand(state: QuantState, dtype: DType | None, device: Device) -> Node:
    """Return the weights as floats.

    Args:
        state: The packed weights.
        dtype: The type of the result; None = the type that the weights had before.
        device: The device that computes and holds the result.

    Raises:
        ArgumentError: `dtype` is no type of floats, or the weights have more than 4 axes.
        OutOfMemoryError: The device has too little memory.
    """
    if not isinstance(state, QuantState):
        raise wrong_value("state", state, "expected a QuantState of llcuda.nf4")
    dtype = _DTYPES[state.dtype] if dtype is None else dtype
    if dtype not in _NAMES:
        raise wrong_value("dtype", dtype, f"expected one of {', '.join(map(repr, _NAMES))}")
    shape = check_shape(state.shape)
    node = empty(dtype, shape, device)
    code = np.array(CODES[state.quant_type], np.float32)
    layout = code, state.block_size, _NAMES[dtype], prod(shape), memory_of(node).address
    if device.is_cpu:
        dequantize(state.packed, state.absmax, *layout)
    else:
        # Freed when this function returns: only what this stream does later can take the memory.
        copies = [memory_of(from_array(part, device)) for part in (state.packed, state.absmax)]
        dequantize_on_gpu(copies[0].address, copies[1].address, *layout, stream(device))
    return node
