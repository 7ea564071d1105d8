"""Copies of values to and from the host and between devices, and conversions by the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import TensorError
from llcuda.native.tensor import from_float, to_float
from llcuda.params import wrong_argument
from llcuda.tensor.dtype import FROM_NUMPY, NUMPY, Device, DType
from llcuda.tensor.graph import Node, Shape, empty, memory_of
from llcuda.tensor.shape import cast, castable, check_blocks, check_shape, contiguous


def _as_array(array: Any) -> Any:
    """Return numpy's array of a value; ArgumentError where there is none."""
    try:
        return np.asarray(array)
    except ValueError as error:
        raise wrong_argument("array", str(error)) from None


def from_array(array: Any, device: Device) -> Node:
    """Return a copy of a numpy array; ArgumentError for types that tensors do not have."""
    values = _as_array(array)
    dtype = FROM_NUMPY.get(values.dtype)
    if dtype is None:
        known = ", ".join(map(str, FROM_NUMPY))
        raise wrong_argument(
            "array",
            f"expected one of the types {known}, got {values.dtype}",
            remedy="use .astype()",
        )
    node = empty(dtype, check_shape(values.shape), device)
    memory_of(node).write(0, _bytes(values))
    return node


def from_bytes(data: Any, dtype: DType, shape: Shape, device: Device) -> Node:
    """Return a copy of a buffer with a tensor's bytes; ArgumentError for another size."""
    view = memoryview(data)
    node = empty(dtype, shape, device)
    if view.nbytes != node.nbytes:
        raise wrong_argument(
            "data", f"{dtype.name} {list(shape)} has {node.nbytes} bytes, got {view.nbytes}"
        )
    memory_of(node).write(0, view)
    return node


def write(node: Node, array: Any) -> None:
    """Copy an array of the same shape and type over the values of a tensor; TensorError."""
    values = _as_array(array)
    if not node.is_contiguous:
        raise TensorError(
            "write: the values of the tensor must lie without gaps", remedy="use .contiguous()"
        )
    if values.shape != node.shape or values.dtype != NUMPY.get(node.dtype):
        raise TensorError(
            f"write: an array of {values.dtype} {list(values.shape)} does not fit a tensor of "
            f"{node.dtype.name} {list(node.shape)}"
        )
    memory = memory_of(node)
    if memory.readonly:
        raise TensorError(
            "write: this tensor is part of a file, or of another read-only object",
            remedy="write into a copy",
        )
    memory.write(node.offset, _bytes(values))


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def to_array(node: Node) -> NDArray[Any]:
    """Return the values as a new array: BFloat16 and quantized types as float32."""
    if node.dtype.is_quantized:
        return _dequantized(node)
    values = _read(node, NUMPY.get(node.dtype, np.dtype(np.uint16)), node.shape, node.strides)
    if node.dtype is DType.BFloat16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _dequantized(node: Node) -> NDArray[np.float32]:
    axis = node.strides.index(0)
    size, nbytes = node.dtype.block
    shape, strides = list(node.shape), list(node.strides)
    shape.append(shape.pop(axis) // size)
    strides.append(strides.pop(axis) or nbytes)
    blocks = _read(node, np.dtype((np.void, nbytes)), tuple(shape), tuple(strides))
    rows = blocks.reshape(-1).view(np.uint8)
    values = to_float(node.dtype.ggml_type, rows, shape[-1] * size)
    return np.moveaxis(values.reshape(*shape[:-1], -1), -1, axis)


def _read(node: Node, kind: np.dtype[Any], shape: Shape, strides: Shape) -> NDArray[Any]:
    """Return a row-major copy of the elements at a node's offset."""
    span = kind.itemsize + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    data = memory_of(node).read(node.offset, span)
    return np.ascontiguousarray(np.ndarray(shape, kind, data, strides=strides)).reshape(shape)


def to_device(node: Node, device: Device) -> Node:
    """Return a copy on another device; the node itself if it is on this one."""
    if node.device == device:
        return node
    source = contiguous(node)
    memory = memory_of(source)
    copied = empty(node.dtype, node.shape, device)
    memory_of(copied).copy(0, memory, source.offset, source.nbytes)
    return copied


def to_dtype(node: Node, dtype: DType, importance: Any = None) -> Node:
    """Return the values as another type; the host quantizes, with an importance of each column.

    Raises TensorError for shapes that blocks do not fit and values that are not finite, and
    UnsupportedError for types that need an importance and get none.
    """
    if dtype.is_quantized and dtype is not node.dtype:
        return _quantized(node, dtype, importance)
    if importance is not None:
        raise wrong_argument(
            "importance", "expected None unless the target is another quantized type"
        )
    if node.dtype is dtype or castable(node.dtype, dtype):
        return cast(node, dtype)
    if {node.dtype, dtype} <= {DType.Float16, DType.BFloat16, DType.Int32}:
        return cast(cast(node, DType.Float32), dtype)
    kind = NUMPY.get(dtype, np.dtype(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):
        values = to_array(node).astype(kind)
    converted = from_array(values, node.device)
    return converted if dtype in NUMPY else cast(converted, dtype)


def _quantized(node: Node, dtype: DType, importance: Any) -> Node:
    check_blocks(dtype, node.shape)
    columns = node.shape[-1]
    weights = None
    if importance is not None:
        weights = np.ascontiguousarray(importance, np.float32)
        if weights.shape != (columns,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise wrong_argument("importance", f"expected {columns} finite numbers, none below 0")
    values = to_array(node).astype(np.float32, copy=False).reshape(-1, columns)
    if not np.isfinite(values).all():
        raise TensorError(f"{dtype.name}: values that are not finite cannot be quantized")
    rows = from_float(dtype.ggml_type, values, weights)
    return from_bytes(rows, dtype, node.shape, node.device)
