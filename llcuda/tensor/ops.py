"""Operations on nodes, whose operands are checked and prepared for ggml.

Every operation checks shapes, types and devices: ggml would end the process. It converts operands
to what both backends take, which is rows without gaps, of a type that they compute in. Results have
the type of the operands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llcuda.errors import TensorError, UnsupportedError
from llcuda.native.tensor import constant
from llcuda.params import check_flag, check_number, wrong_argument
from llcuda.tensor.dtype import DType
from llcuda.tensor.graph import MAX_DIMS, Node, Shape, memory_of, operation
from llcuda.tensor.shape import (
    MAX_VALUES,
    cast,
    check_axis,
    check_devices,
    check_size,
    contiguous,
    float_type,
    prepared,
    reshape,
    transpose,
)

FLOAT = DType.Float32
HALF = DType.Float16
FLOATS = (FLOAT, HALF, DType.BFloat16)
UNARY = {
    "abs": "ABS", "neg": "NEG", "exp": "EXP", "tanh": "TANH", "relu": "RELU", "sigmoid": "SIGMOID",
    "silu": "SILU", "gelu": "GELU", "gelu_erf": "GELU_ERF",
}  # fmt: skip
OWN_OPS = {"square": "SQR", "sqrt": "SQRT", "log": "LOG"}  # functions with an operation of ggml


# --- functions of single values ---


def _broadcast(name: str, a: Node, b: Node) -> Shape:
    """Return the shape that two operands are broadcast to, by numpy's rules; TensorError."""
    try:
        return np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise TensorError(
            f"{name}: shapes {list(a.shape)} and {list(b.shape)} do not fit each other",
            remedy="use .reshape()",
        ) from None


def binary(op: str, a: Node, b: Node) -> Node:
    """Return a + b, a - b, a * b or a / b. op: ADD, SUB, MUL or DIV."""
    name = op.lower()
    check_devices(name, a, b)
    dtype = float_type(name, a, b)
    shape = _broadcast(name, a, b)
    check_size(name, a, b)
    return operation(op, dtype, shape, [stretch(prepared(a, *FLOATS), shape), prepared(b, *FLOATS)])


def stretch(node: Node, shape: Shape) -> Node:
    """Return the values repeated to `shape`, which they can be broadcast to."""
    if node.shape == shape:
        return node
    if math.prod(shape) > MAX_VALUES:
        raise UnsupportedError(
            f"shape={list(shape)}: at most 2**31 - 1 values are possible", parameter="shape"
        )
    source = prepared(node, FLOAT, HALF)
    return cast(operation("REPEAT", source.dtype, shape, [source]), node.dtype)


def unary(name: str, node: Node) -> Node:
    """Return a function of each value. name: a key of UNARY or OWN_OPS."""
    dtype = float_type(name, node)
    check_size(name, node)
    source = prepared(node, FLOAT, HALF)
    if name in OWN_OPS:
        result = operation(OWN_OPS[name], source.dtype, node.shape, [source])
    else:
        function = constant(f"GGML_UNARY_OP_{UNARY[name]}")
        result = operation("UNARY", source.dtype, node.shape, [source], [function])
    return cast(result, dtype)


def scale(node: Node, factor: Any, bias: Any = 0.0) -> Node:
    """Return node * factor + bias, computed in Float32."""
    dtype = float_type("scale", node)
    check_number("factor", factor, "number", -math.inf)
    check_number("bias", bias, "number", -math.inf)
    check_size("scale", node)
    values = [_single(factor), _single(bias)]
    return cast(operation("SCALE", FLOAT, node.shape, [prepared(node)], values=values), dtype)


def clamp(node: Node, low: Any, high: Any) -> Node:
    """Return the values, not below `low` nor above `high`."""
    dtype = float_type("clamp", node)
    check_number("low", low, "number", -math.inf)
    check_number("high", high, "number", low)
    check_size("clamp", node)
    values = [_single(low), _single(high)]
    return cast(operation("CLAMP", FLOAT, node.shape, [prepared(node)], values=values), dtype)


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
    """Return the values as a matrix of Float32 rows along `axis`, and their shape before that."""
    dims = len(node.shape)
    axis = check_axis(axis, dims)
    if not dims:
        return reshape(prepared(node), (1, 1)), []
    order = [*(place for place in range(dims) if place != axis), axis]
    moved = prepared(transpose(node, order))
    return reshape(moved, (-1, moved.shape[-1])), list(moved.shape)


def _unrows(node: Node, shape: list[int], axis: Any) -> Node:
    """Reverse `_rows` for a result of the same size."""
    dims = len(shape)
    order = list(range(dims - 1))
    order.insert(check_axis(axis, dims), dims - 1)
    return transpose(reshape(node, shape), order) if shape else reshape(node, ())


def softmax(node: Node, axis: Any = -1) -> Node:
    """Return exp(x) / sum(exp(x)) along an axis."""
    dtype = float_type("softmax", node)
    check_size("softmax", node)
    rows, shape = _rows(node, axis)
    return cast(_unrows(operation("SOFTMAX", FLOAT, rows.shape, [rows]), shape, axis), dtype)


def normalize(op: str, node: Node, weight: Node | None, eps: Any) -> Node:
    """Return rows of the last axis, normalized and times `weight`. op: RMS_NORM or NORM."""
    name = op.lower()
    dtype = float_type(name, node)
    check_number("eps", eps, "number", 0, 1e30)
    check_size(name, node)
    rows, shape = _rows(node, -1)
    result = operation(op, FLOAT, rows.shape, [rows], values=[_single(eps)])
    if weight is not None:
        check_devices(name, node, weight)
        float_type(f"{name}, weight", weight)
        if weight.shape != node.shape[-1:]:
            raise TensorError(
                f"{name}: expected a weight of shape {list(node.shape[-1:])}, got "
                f"{list(weight.shape)}"
            )
        result = binary("MUL", result, cast(weight, FLOAT))
    return cast(_unrows(result, shape, -1), dtype)


def total(node: Node, axis: Any, mean: bool) -> Node:
    """Return sums, or means, along an axis, or of all values; summed in Float32."""
    name = "mean" if mean else "sum"
    dtype = float_type(name, node)
    check_size(name, node)
    rows, shape = _rows(reshape(node, (-1,)) if axis is None else node, 0 if axis is None else axis)
    result = operation("SUM_ROWS", FLOAT, (rows.shape[0], 1), [rows])
    if mean:
        result = scale(result, 1 / rows.shape[1])
    return cast(reshape(result, shape[:-1]), dtype)


def argmax(node: Node, axis: Any) -> Node:
    """Return the index of the largest value along an axis, or of all values, as Int32."""
    float_type("argmax", node)
    check_size("argmax", node)
    rows, shape = _rows(reshape(node, (-1,)) if axis is None else node, 0 if axis is None else axis)
    return reshape(operation("ARGMAX", DType.Int32, rows.shape[:1], [rows]), shape[:-1])


# --- parts and positions ---


def concat(nodes: Sequence[Node], axis: Any) -> Node:
    """Return tensors joined along an axis."""
    if not nodes:
        raise wrong_argument("tensors", "got no tensors, expected at least one")
    first = nodes[0]
    check_devices("concat", *nodes)
    dims = len(first.shape)
    if not dims:
        raise TensorError("concat: expected tensors with an axis", remedy="reshape them to [1]")
    axis = check_axis(axis, dims)
    before, after = first.shape[:axis], first.shape[axis + 1 :]
    if any(
        len(node.shape) != dims
        or (node.dtype, node.shape[:axis], node.shape[axis + 1 :]) != (first.dtype, before, after)
        for node in nodes
    ):
        shapes = ", ".join(f"{node.dtype.name} {list(node.shape)}" for node in nodes[:4])
        raise TensorError(
            f"concat: types, and sizes but for axis {axis}, must be equal, got {shapes}"
        )
    if sum(node.numel for node in nodes) > MAX_VALUES:
        raise UnsupportedError("concat: at most 2**31 - 1 values are possible")
    quantized = first.dtype.is_quantized
    if quantized and (axis > 0 or dims == 1):
        raise TensorError(
            f"concat: {first.dtype.name} can be joined along the first axis only, in whole rows"
        )
    # As matrices: rows below rows, or, which takes any axis, columns beside columns.
    matrix = (-1, first.shape[-1]) if quantized else (math.prod(before), -1)
    result, *rest = (reshape(contiguous(node), matrix) for node in nodes)
    for part in rest:
        rows, columns = result.shape
        shape = (rows + part.shape[0], columns) if quantized else (rows, columns + part.shape[1])
        result = operation("CONCAT", first.dtype, shape, [result, part], [int(quantized)])
    return reshape(result, (*before, sum(node.shape[axis] for node in nodes), *after))


def get_rows(table: Node, rows: Node) -> Node:
    """Return rows of a matrix by their numbers; those of a quantized one as Float32.

    The host reads and checks the numbers, so that none outside the table reaches a device.
    """
    check_devices("get_rows", table, rows)
    if len(table.shape) != 2 or rows.dtype is not DType.Int32:
        raise TensorError(
            f"get_rows: expected a matrix and Int32 numbers, got {table.dtype.name} "
            f"{list(table.shape)} and {rows.dtype.name}"
        )
    if table.dtype in (DType.Int64, DType.UInt8):
        raise TensorError(f"get_rows: {table.dtype.name} is not possible", remedy="use .to()")
    shape = (*rows.shape, table.shape[1])
    if len(shape) > MAX_DIMS:
        raise TensorError(
            f"get_rows: the numbers have at most {MAX_DIMS - 1} axes, got {list(rows.shape)}"
        )
    if math.prod(shape) > MAX_VALUES:
        raise UnsupportedError("get_rows: at most 2**31 - 1 values are possible")
    source = contiguous(rows)
    numbers = memory_of(source).read(source.offset, source.nbytes).view(np.int32)
    if numbers.min() < 0 or numbers.max() >= table.shape[0]:
        wrong = numbers.min() if numbers.min() < 0 else numbers.max()
        raise wrong_argument("rows", f"got row {wrong} of a table of {table.shape[0]} rows")
    dtype = DType.Int32 if table.dtype is DType.Int32 else FLOAT
    flat = reshape(source, (-1,))
    result = operation("GET_ROWS", dtype, (flat.shape[0], shape[-1]), [contiguous(table), flat])
    return reshape(cast(result, dtype if table.dtype.is_quantized else table.dtype), shape)


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
    dtype = float_type("rope", node)
    check_devices("rope", node, positions, *([] if factors is None else [factors]))
    check_size("rope", node)
    if len(node.shape) not in (3, 4) or positions.shape != node.shape[-3:-2]:
        raise TensorError(
            f"rope: expected [..., tokens, heads, size] and as many positions, got "
            f"{list(node.shape)} and {list(positions.shape)}"
        )
    if positions.dtype is not DType.Int32:
        raise TensorError(f"rope: positions must be Int32, got {positions.dtype.name}")
    check_flag("neox", neox)
    size = node.shape[-1]
    dims = size if dims is None else dims
    check_number("dims", dims, "int", 2, size)
    if dims % 2 or size % 2:
        raise TensorError(
            f"dims={dims}: dims and the last axis, {size}, must be even", parameter="dims"
        )
    check_number("base", base, "number", 1e-6, 1e30)
    check_number("scaling", scaling, "number", 1e-30, 1e30)
    sources = [prepared(node, FLOAT, HALF), contiguous(positions)]
    if factors is not None:
        if factors.dtype is not FLOAT or factors.shape != (dims // 2,):
            raise TensorError(f"rope: factors must be Float32 [{dims // 2}]")
        sources.append(contiguous(factors))
    numbers = [int(dims), constant("GGML_ROPE_TYPE_NEOX") if neox else 0, 0]
    values = [_single(base), _single(scaling), 0.0, 1.0, 32.0, 1.0]
    return cast(operation("ROPE", sources[0].dtype, node.shape, sources, numbers, values), dtype)
