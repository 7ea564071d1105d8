"""Values to and from the host, between devices, and to types that only the host converts to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import ArgumentError, TensorError
from llcuda.native import tensor as native
from llcuda.tensor.dtype import FROM_NUMPY, NUMPY, Device, DType
from llcuda.tensor.graph import Node, Shape, empty, memory_of
from llcuda.tensor.shape import cast, castable, check_room, check_shape, contiguous


def from_array(array: Any, device: Device) -> Node:
    """Return a copy of a numpy array; ArgumentError for types that tensors do not have."""
    values = np.asarray(array)
    dtype = FROM_NUMPY.get(values.dtype)
    if dtype is None:
        known = ", ".join(str(kind) for kind in FROM_NUMPY)
        raise ArgumentError(f"numpy's {values.dtype}: expected one of {known}; use .astype()")
    node = empty(dtype, check_shape(values.shape), device)
    memory_of(node).write(0, _bytes(values))
    return node


def from_bytes(data: Any, dtype: DType, shape: Shape, device: Device) -> Node:
    """Return a copy of a buffer with a tensor's bytes; ArgumentError for another size."""
    view = memoryview(data)
    node = empty(dtype, shape, device)
    if view.nbytes != node.nbytes:
        raise ArgumentError(
            f"{view.nbytes} bytes: {dtype.name} {list(shape)} has {node.nbytes} bytes"
        )
    memory_of(node).write(0, view)
    return node


def write(node: Node, array: Any) -> None:
    """Copy an array of the same shape and type over a tensor's values; TensorError."""
    values = np.asarray(array)
    if not node.is_contiguous:
        raise TensorError("only a tensor whose values lie without gaps can be written")
    if values.shape != node.shape or values.dtype != NUMPY.get(node.dtype):
        raise TensorError(
            f"{values.dtype} {list(values.shape)} does not fit {node.dtype.name} {list(node.shape)}"
        )
    memory = memory_of(node)
    if memory.readonly:
        raise TensorError("this tensor is part of a file, or of another read-only object")
    memory.write(node.offset, _bytes(values))


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def to_array(node: Node) -> NDArray[Any]:
    """Return the values as a new array: BFloat16 and ggml's types as float32."""
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
    found = native.to_float(node.dtype.number, rows, shape[-1] * size)
    return np.moveaxis(found.reshape(*shape[:-1], -1), -1, axis)


def _read(node: Node, kind: np.dtype[Any], shape: Shape, strides: Shape) -> NDArray[Any]:
    """Return a row-major copy of what lies at a node's offset."""
    span = kind.itemsize + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    found = memory_of(node).read(node.offset, span)
    return np.ascontiguousarray(np.ndarray(shape, kind, found, strides=strides)).reshape(shape)


def to_device(node: Node, device: Device) -> Node:
    """Return a copy on another device, or the node itself where it is there."""
    if node.device == device:
        return node
    whole = contiguous(node)
    memory = memory_of(whole)
    made = empty(node.dtype, node.shape, device)
    memory_of(made).copy(0, memory, whole.offset, whole.nbytes)
    return made


def to_dtype(node: Node, dtype: DType, importance: Any = None) -> Node:
    """Return the values as another type; quantised on the host, with `importance` for each column.

    Raises TensorError for shapes that blocks do not fit and values that are not finite,
    UnsupportedError for types that need an importance and get none.
    """
    if dtype.is_quantized and dtype is not node.dtype:
        return _quantized(node, dtype, importance)
    if importance is not None:
        raise ArgumentError("importance= is for quantising")
    if node.dtype is dtype or castable(node.dtype, dtype):
        return cast(node, dtype)
    if {node.dtype, dtype} <= {DType.Float16, DType.BFloat16, DType.Int32}:
        return cast(cast(node, DType.Float32), dtype)
    kind = NUMPY.get(dtype, np.dtype(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):
        values = to_array(node).astype(kind)
    return cast(from_array(values, node.device), dtype) if dtype not in NUMPY else from_array(
        values, node.device
    )  # fmt: skip


def _quantized(node: Node, dtype: DType, importance: Any) -> Node:
    check_room(dtype, node.shape)
    columns = node.shape[-1]
    weights = None
    if importance is not None:
        weights = np.ascontiguousarray(importance, np.float32)
        if weights.shape != (columns,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ArgumentError(f"importance: expected {columns} finite numbers, none below 0")
    values = to_array(node).astype(np.float32, copy=False).reshape(-1, columns)
    if not np.isfinite(values).all():
        raise TensorError(f"{dtype.name}: values that are not finite cannot be quantised")
    rows = native.from_float(dtype.number, values, weights)
    return from_bytes(rows, dtype, node.shape, node.device)
