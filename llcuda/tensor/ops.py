"""Operations on nodes: what ggml would end the process for is refused here, or converted.

Every operation checks shapes, types and devices, and makes of its operands what both backends take:
rows without gaps, a type that they compute in. Results have the operands' type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llcuda.errors import ArgumentError, TensorError, UnsupportedError
from llcuda.native import tensor as native
from llcuda.params import check_number
from llcuda.tensor.dtype import DType
from llcuda.tensor.graph import MAX_DIMS, Node, Shape, memory_of, operation
from llcuda.tensor.shape import (
    MOST,
    cast,
    check_axis,
    contiguous,
    floats,
    prepared,
    reshape,
    same,
    small,
    transpose,
)

FLOAT = DType.Float32
HALF = DType.Float16
FLOATS = (FLOAT, HALF, DType.BFloat16)
UNARY = {
    "abs": "ABS", "neg": "NEG", "exp": "EXP", "tanh": "TANH", "relu": "RELU", "sigmoid": "SIGMOID",
    "silu": "SILU", "gelu": "GELU", "gelu_erf": "GELU_ERF",
}  # fmt: skip
UNARY_OWN = {"square": "SQR", "sqrt": "SQRT", "log": "LOG"}


# --- values by values ---


def broadcast(what: str, a: Node, b: Node) -> Shape:
    """Return the shape that two operands have in common, by numpy's rules; TensorError."""
    try:
        return np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise TensorError(
            f"{what}: shapes {list(a.shape)} and {list(b.shape)} do not fit"
        ) from None


def binary(op: str, a: Node, b: Node) -> Node:
    """Return a + b, a - b, a * b or a / b. op: ADD, SUB, MUL or DIV."""
    what = op.lower()
    same(what, a, b)
    dtype = floats(what, a, b)
    shape = broadcast(what, a, b)
    small(what, a, b)
    return operation(op, dtype, shape, [stretch(prepared(a, *FLOATS), shape), prepared(b, *FLOATS)])


def stretch(node: Node, shape: Shape) -> Node:
    """Return the values repeated to `shape`, which they can be broadcast to."""
    if node.shape == shape:
        return node
    dtype = node.dtype
    wide = prepared(node, FLOAT, HALF)
    if math.prod(shape) > MOST:
        raise UnsupportedError(f"shape {list(shape)}: more than 2**31 - 1 values")
    return cast(operation("REPEAT", wide.dtype, shape, [wide]), dtype)


def unary(what: str, node: Node) -> Node:
    """Return a function of each value; `what` is a key of UNARY or UNARY_OWN."""
    dtype = floats(what, node)
    small(what, node)
    inner = prepared(node, FLOAT, HALF)
    if what in UNARY_OWN:
        made = operation(UNARY_OWN[what], inner.dtype, node.shape, [inner])
    else:
        number = native.constant(f"GGML_UNARY_OP_{UNARY[what]}")
        made = operation("UNARY", inner.dtype, node.shape, [inner], [number])
    return cast(made, dtype)


def scale(node: Node, factor: Any, bias: Any = 0.0) -> Node:
    """Return node * factor + bias, computed in Float32."""
    dtype = floats("scale", node)
    check_number("factor", factor, "number", -math.inf)
    check_number("bias", bias, "number", -math.inf)
    small("scale", node)
    values = [_single(factor), _single(bias)]
    return cast(operation("SCALE", FLOAT, node.shape, [prepared(node)], values=values), dtype)


def clamp(node: Node, low: Any, high: Any) -> Node:
    """Return the values, not below `low` nor above `high`."""
    dtype = floats("clamp", node)
    check_number("low", low, "number", -math.inf)
    check_number("high", high, "number", low)
    small("clamp", node)
    inner = prepared(node)
    return cast(
        operation("CLAMP", FLOAT, node.shape, [inner], values=[_single(low), _single(high)]), dtype
    )


def _single(value: Any) -> float:
    """Return a number as the nearest float32, inf where it is too large for one."""
    with np.errstate(over="ignore"):
        return float(np.float32(float(value)))


def full(value: Any, dtype: DType, shape: Shape, device: Any) -> Node:
    """Return a floating-point tensor that holds one value."""
    row = operation("FILL", FLOAT, shape[-1:], [], values=[_single(value)], device=device)
    return stretch(cast(row, dtype), shape)


# --- rows ---


def _rows(node: Node, axis: Any) -> tuple[Node, list[int]]:
    """Return Float32 rows along `axis`, and their shape before there were but rows."""
    dims = len(node.shape)
    axis = check_axis(axis, dims)
    if not dims:
        return reshape(prepared(node), (1, 1)), []
    order = [*(place for place in range(dims) if place != axis), axis]
    moved = prepared(transpose(node, order))
    return reshape(moved, (-1, moved.shape[-1])), list(moved.shape)


def _back(node: Node, shape: list[int], axis: Any) -> Node:
    """Undo what `_rows` did to a result of the same size."""
    dims = len(shape)
    order = list(range(dims - 1))
    order.insert(check_axis(axis, dims), dims - 1)
    return transpose(reshape(node, shape), order) if shape else reshape(node, ())


def softmax(node: Node, axis: Any = -1) -> Node:
    """Return exp(x) / sum(exp(x)) along an axis."""
    dtype = floats("softmax", node)
    small("softmax", node)
    rows, shape = _rows(node, axis)
    return cast(_back(operation("SOFTMAX", FLOAT, rows.shape, [rows]), shape, axis), dtype)


def normalize(op: str, node: Node, weight: Node | None, eps: Any) -> Node:
    """Return rows of the last axis, normalised and times `weight`. op: RMS_NORM or NORM."""
    what = op.lower()
    dtype = floats(what, node)
    check_number("eps", eps, "number", 0, 1e30)
    small(what, node)
    rows, shape = _rows(node, -1)
    made = operation(op, FLOAT, rows.shape, [rows], values=[_single(eps)])
    if weight is not None:
        same(what, node, weight)
        floats(f"{what}, weight", weight)
        if weight.shape != node.shape[-1:]:
            raise TensorError(f"{what}: weight {list(weight.shape)} for {list(node.shape)}")
        made = binary("MUL", made, cast(weight, FLOAT))
    return cast(_back(made, shape, -1), dtype)


def total(node: Node, axis: Any, mean: bool) -> Node:
    """Return sums, or means, along an axis, or of all values; summed in Float32."""
    what = "mean" if mean else "sum"
    dtype = floats(what, node)
    small(what, node)
    rows, shape = _rows(reshape(node, (-1,)) if axis is None else node, 0 if axis is None else axis)
    made = operation("SUM_ROWS", FLOAT, (rows.shape[0], 1), [rows])
    if mean:
        made = scale(made, 1 / rows.shape[1])
    return cast(reshape(made, shape[:-1]), dtype)


def argmax(node: Node, axis: Any) -> Node:
    """Return where the largest value along an axis is, or of all values, as Int32."""
    floats("argmax", node)
    small("argmax", node)
    rows, shape = _rows(reshape(node, (-1,)) if axis is None else node, 0 if axis is None else axis)
    return reshape(operation("ARGMAX", DType.Int32, rows.shape[:1], [rows]), shape[:-1])


# --- parts and positions ---


def concat(nodes: Sequence[Node], axis: Any) -> Node:
    """Return tensors one behind the other along an axis."""
    if not nodes:
        raise ArgumentError("concat: no tensors")
    first = nodes[0]
    same("concat", *nodes)
    dims = len(first.shape)
    if not dims:
        raise TensorError("concat: tensors without axes; reshape them to [1]")
    axis = check_axis(axis, dims)
    before, after = first.shape[:axis], first.shape[axis + 1 :]
    if any(
        len(node.shape) != dims
        or (node.dtype, node.shape[:axis], node.shape[axis + 1 :]) != (first.dtype, before, after)
        for node in nodes
    ):
        shapes = ", ".join(f"{node.dtype.name} {list(node.shape)}" for node in nodes[:4])
        raise TensorError(
            f"concat: types and sizes but for axis {axis} must be equal, got {shapes}"
        )
    if sum(node.numel for node in nodes) > MOST:
        raise UnsupportedError("concat: more than 2**31 - 1 values")
    quantized = first.dtype.is_quantized
    if quantized and (axis > 0 or dims == 1):
        raise TensorError(f"concat: {first.dtype.name} only rows, along the first axis")
    # As matrices: rows below rows, or, which takes any axis, columns beside columns.
    rows, columns = (-1, first.shape[-1]) if quantized else (math.prod(before), -1)
    result, *rest = (reshape(contiguous(node), (rows, columns)) for node in nodes)
    for part in rest:
        down, across = result.shape
        shape = (down + part.shape[0], across) if quantized else (down, across + part.shape[1])
        result = operation("CONCAT", first.dtype, shape, [result, part], [int(quantized)])
    return reshape(result, (*before, sum(node.shape[axis] for node in nodes), *after))


def get_rows(table: Node, rows: Node) -> Node:
    """Return rows of a matrix by their numbers; of quantised ones the values as Float32.

    The numbers are read on the host, so that none outside the table reaches a device.
    """
    same("get_rows", table, rows)
    if len(table.shape) != 2 or rows.dtype is not DType.Int32:
        raise TensorError(
            f"get_rows: expected a matrix and Int32, got {table.dtype.name} {list(table.shape)} "
            f"and {rows.dtype.name}"
        )
    if table.dtype in (DType.Int64, DType.UInt8):
        raise TensorError(f"get_rows: not for {table.dtype.name}")
    shape = (*rows.shape, table.shape[1])
    if len(shape) > MAX_DIMS:
        raise TensorError(f"get_rows: numbers of shape {list(rows.shape)} have too many axes")
    if math.prod(shape) > MOST:
        raise UnsupportedError("get_rows: more than 2**31 - 1 values")
    numbers = contiguous(rows)
    found = memory_of(numbers).read(numbers.offset, numbers.nbytes).view(np.int32)
    if found.min() < 0 or found.max() >= table.shape[0]:
        wrong = found.min() if found.min() < 0 else found.max()
        raise ArgumentError(f"get_rows: row {wrong} of a table of {table.shape[0]}")
    whole = contiguous(table)
    kind = DType.Int32 if table.dtype is DType.Int32 else FLOAT
    flat = reshape(numbers, (-1,))
    made = operation("GET_ROWS", kind, (flat.shape[0], shape[-1]), [whole, flat])
    target = kind if table.dtype.is_quantized else table.dtype
    return reshape(cast(made, target), shape)


def rope(
    node: Node,
    positions: Node,
    dims: Any,
    base: Any,
    scaling: Any,
    neox: bool,
    factors: Node | None,
) -> Node:
    """Return queries or keys [..., tokens, heads, size] turned by positions, Int32 [tokens]."""
    what = "rope"
    dtype = floats(what, node)
    same(what, node, positions, *([] if factors is None else [factors]))
    small(what, node)
    if len(node.shape) not in (3, 4) or positions.shape != node.shape[-3:-2]:
        raise TensorError(
            f"rope: expected [..., tokens, heads, size] and as many positions, got "
            f"{list(node.shape)} and {list(positions.shape)}"
        )
    if positions.dtype is not DType.Int32:
        raise TensorError(f"rope: positions must be Int32, got {positions.dtype.name}")
    size = node.shape[-1]
    dims = size if dims is None else dims
    check_number("dims", dims, "int", 2, size)
    if dims % 2 or size % 2:
        raise TensorError(f"rope: dims={dims} and the last axis, {size}, must be even")
    check_number("base", base, "number", 1e-6, 1e30)
    check_number("scaling", scaling, "number", 1e-30, 1e30)
    sources = [prepared(node, FLOAT, HALF), contiguous(positions)]
    if factors is not None:
        if factors.dtype is not FLOAT or factors.shape != (dims // 2,):
            raise TensorError(f"rope: factors must be Float32 [{dims // 2}]")
        sources.append(contiguous(factors))
    numbers = [int(dims), native.constant("GGML_ROPE_TYPE_NEOX") if neox else 0, 0]
    values = [_single(base), _single(scaling), 0.0, 1.0, 32.0, 1.0]
    return cast(operation("ROPE", sources[0].dtype, node.shape, sources, numbers, values), dtype)
