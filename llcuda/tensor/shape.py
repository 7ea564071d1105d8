"""Checks of shapes, types and devices, and views and conversions of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llcuda.errors import TensorError, UnsupportedError
from llcuda.params import check_number, wrong_argument, wrong_value
from llcuda.tensor.dtype import DType
from llcuda.tensor.graph import MAX_DIMS, Node, Shape, operation, row_major, view

MAX_VALUES = 2**31 - 1  # ggml's kernels count in int
ALIGNMENT = 16  # bytes that a kernel reads at once
FLOATS = {DType.Float32, DType.Float16, DType.BFloat16}


def check_shape(shape: Any) -> Shape:
    """Return a shape as a tuple; ArgumentError unless it is up to 4 whole numbers above 0."""
    if isinstance(shape, str | bytes) or not hasattr(shape, "__iter__"):
        shape = (shape,)
    sizes = tuple(shape)
    if len(sizes) > MAX_DIMS:
        raise wrong_value("shape", list(sizes), f"at most {MAX_DIMS} axes are allowed")
    for size in sizes:
        check_number("shape", size, "int", 1, 2**62)
    checked = tuple(int(size) for size in sizes)
    if math.prod(checked) > 2**60:
        raise wrong_value("shape", list(checked), "at most 2**60 values are allowed")
    return checked


def check_blocks(dtype: DType, shape: Shape) -> None:
    """Raise TensorError unless a type's blocks fit the last axis."""
    values, _ = dtype.block
    if values > 1 and (not shape or shape[-1] % values):
        raise TensorError(
            f"shape={list(shape)}: {dtype.name} needs a last axis that is a multiple of {values}",
            parameter="shape",
        )


def check_axis(axis: Any, dims: int) -> int:
    """Return an axis counted from the front; ArgumentError."""
    check_number("axis", axis, "int", -max(dims, 1), max(dims, 1) - 1)
    return int(axis) % dims if dims else 0


def check_devices(op: str, *nodes: Node) -> None:
    """Raise TensorError unless nodes are on the same device."""
    if any(node.device != nodes[0].device for node in nodes):
        names = " and ".join(dict.fromkeys(str(node.device) for node in nodes))
        raise TensorError(
            f"{op}: tensors must be on the same device, got {names}", remedy="use .to()"
        )


def float_type(op: str, *nodes: Node) -> DType:
    """Return the one floating-point type of nodes; TensorError for other types, or several."""
    dtypes = list(dict.fromkeys(node.dtype for node in nodes))
    if len(dtypes) > 1 or not dtypes[0].is_float:
        names = " and ".join(dtype.name for dtype in dtypes)
        raise TensorError(
            f"{op}: expected one type of Float32, Float16 or BFloat16, got {names}",
            remedy="use .to()",
        )
    return dtypes[0]


def check_size(op: str, *nodes: Node) -> None:
    """Raise UnsupportedError for more values than ggml's kernels count."""
    if any(node.numel > MAX_VALUES for node in nodes):
        raise UnsupportedError(
            f"{op}: at most 2**31 - 1 values are possible", remedy="compute it in parts"
        )


def transpose(node: Node, axes: Sequence[int] | None = None) -> Node:
    """Return a view with the axes in another order, by default reversed."""
    dims = len(node.shape)
    order = [check_axis(axis, dims) for axis in (range(dims)[::-1] if axes is None else axes)]
    if sorted(order) != list(range(dims)):
        raise wrong_value("axes", order, f"expected each of the {dims} axes once")
    shape = tuple(node.shape[axis] for axis in order)
    return view(node, shape, tuple(node.strides[axis] for axis in order))


def swap(node: Node) -> Node:
    """Return a view with the last two axes swapped."""
    dims = len(node.shape)
    return transpose(node, [*range(dims - 2), dims - 1, dims - 2])


def contiguous(node: Node) -> Node:
    """Return the values row by row without gaps, aligned for a GPU; a copy where they are not."""
    storage = node.memory
    address = (storage.address if storage else 0) + node.offset
    aligned = node.device.is_cpu or node.dtype.is_quantized or address % ALIGNMENT == 0
    if node.is_contiguous and aligned:
        return node
    if node.dtype.is_quantized:
        raise UnsupportedError(
            f"{node.dtype.name}: rows with gaps between them cannot be copied", remedy="use .to()"
        )
    if not node.device.is_cpu and node.dtype in (DType.Int64, DType.UInt8):
        raise UnsupportedError(
            f"{node.dtype.name}: a view cannot be copied on a GPU", remedy="use .to('cpu')"
        )
    check_size("copy", node)
    if not node.device.is_cpu and len(node.shape) >= 3 and math.prod(node.shape[:-3]) == 1:
        # ggml recognizes transposed copies by two of three strides, and takes other views for
        # them. Another axis keeps it from that.
        size, (first, *rest) = node.shape[-3], node.strides[-3:]
        whole = view(node, (size, 1, *node.shape[-2:]), (first, first, *rest))
        copied = operation("CAST", node.dtype, whole.shape, [whole])
        return view(copied, node.shape, row_major(node.dtype, node.shape))
    return operation("CAST", node.dtype, node.shape, [node])


def reshape(node: Node, shape: Any, copy: bool = True) -> Node:
    """Return the values in another shape, -1 for one size that follows; a view where possible.

    copy=False: TensorError where a view is not possible.
    """
    sizes = [shape] if not hasattr(shape, "__iter__") else list(shape)
    for size in sizes:
        check_number("shape", size, "int", -1, 2**62)
    unknown = [place for place, size in enumerate(sizes) if size == -1]
    if len(unknown) == 1:
        rest = math.prod(check_shape([size for size in sizes if size != -1]))
        sizes[unknown[0]] = node.numel // rest
    target = check_shape(sizes)
    if math.prod(target) != node.numel:
        raise TensorError(
            f"shape={list(target)}: expected {node.numel} values as in {list(node.shape)}",
            parameter="shape",
        )
    if not node.is_contiguous and not copy:
        raise TensorError("view: the values lie with gaps between them", remedy="use reshape()")
    if node.dtype.is_quantized and target[-1:] != node.shape[-1:]:
        raise TensorError(
            f"shape={list(target)}: the last axis of {node.dtype.name} must stay {node.shape[-1]}",
            parameter="shape",
        )
    flat = node if node.is_contiguous else contiguous(node)
    return view(flat, target, row_major(flat.dtype, target))


def take(node: Node, key: Any) -> Node:
    """Return a view of a part, by whole numbers, slices with positive steps and `...`."""
    keys = list(key) if isinstance(key, tuple) else [key]
    dims = len(node.shape)
    dots = [place for place, index in enumerate(keys) if index is Ellipsis]
    if len(dots) > 1 or len(keys) - len(dots) > dims:
        raise wrong_argument("index", f"{len(keys) - len(dots)} indices for {dims} axes")
    place = dots[0] if dots else len(keys)
    keys[place : place + len(dots)] = [slice(None)] * (dims - len(keys) + len(dots))
    if node.dtype.is_quantized and (not node.is_contiguous or keys[-1] != slice(None)):
        raise TensorError(
            f"index: only whole rows of {node.dtype.name} can be taken",
            parameter="index",
            remedy="use .to()",
        )
    shape, strides, offset = [], [], 0
    for index, size, stride in zip(keys, node.shape, node.strides, strict=True):
        if isinstance(index, slice):
            if index.step is not None:
                check_number("step", index.step, "int", 1, MAX_VALUES)
            start, stop, step = index.indices(size)
            if stop <= start:
                rule = f"nothing is left of {size} values by {start}:{stop}"
                raise wrong_argument("index", rule, "choose at least one value")
            shape.append(-(-(stop - start) // step))
            strides.append(stride * step)
            offset += start * stride
        else:
            check_number("index", index, "int", -size, size - 1)
            offset += int(index) % size * stride
    return view(node, tuple(shape), tuple(strides), offset)


# --- types ---


def cast(node: Node, dtype: DType) -> Node:
    """Return the values as another type that the backends convert to; `node` if it has that."""
    if node.dtype is dtype:
        return node
    check_size("conversion", node)
    return operation("CAST", dtype, node.shape, [contiguous(node)])


def castable(source: DType, target: DType) -> bool:
    """Whether the backends convert from one type to the other."""
    pair = {source, target}
    return pair <= FLOATS or pair == {DType.Float32, DType.Int32}


def prepared(node: Node, *allowed: DType) -> Node:
    """Return the values row by row, as Float32 unless their type is allowed."""
    return contiguous(node if node.dtype in allowed else cast(node, DType.Float32))
