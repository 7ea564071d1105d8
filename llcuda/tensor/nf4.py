"""Weights of 4 bits, from the host to tensors on a device: only their packed form travels."""

from __future__ import annotations

from math import prod

import numpy as np

from llcuda.errors import ArgumentError
from llcuda.native import nf4 as native
from llcuda.native.tensor import stream
from llcuda.nf4 import CODES, QuantState
from llcuda.tensor.dtype import Device, DType
from llcuda.tensor.graph import Node, empty, memory_of
from llcuda.tensor.host import from_array
from llcuda.tensor.shape import check_shape

_NAMES = {DType.Float32: "float32", DType.Float16: "float16", DType.BFloat16: "bfloat16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def from_nf4(state: QuantState, dtype: DType | None, device: Device) -> Node:
    """Return the weights; dtype: None = what they were before.

    Raises ArgumentError for other types than floats and for more than 4 axes, OutOfMemoryError.
    """
    if not isinstance(state, QuantState):
        raise ArgumentError(f"{state!r:.80}: expected a QuantState of llcuda.nf4")
    dtype = _DTYPES[state.dtype] if dtype is None else dtype
    if dtype not in _NAMES:
        raise ArgumentError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, _NAMES))}")
    shape = check_shape(state.shape)
    node = empty(dtype, shape, device)
    code = np.array(CODES[state.quant_type], np.float32)
    form = code, state.block_size, _NAMES[dtype], prod(shape), memory_of(node).address
    if device.is_cpu:
        native.dequantize(state.packed, state.absmax, *form)
    else:
        # Freed at the end of this function, to be taken by what the stream does later.
        there = [memory_of(from_array(part, device)) for part in (state.packed, state.absmax)]
        native.dequantize_on_gpu(there[0].address, there[1].address, *form, stream(device))
    return node
