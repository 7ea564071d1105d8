"""The product of matrices, by cuBLAS or by ggml.

On a GPU cuBLAS multiplies Float16, BFloat16 and Float32, transposed or not, with sums in Float32.
On the CPU ggml needs the columns of the right operand as rows, so that it is copied unless it is a
transposed view. A quantized matrix is not converted; the other operand becomes Float32.
"""

from __future__ import annotations

import numpy as np

from llcuda.errors import TensorError, UnsupportedError
from llcuda.tensor.dtype import DType
from llcuda.tensor.graph import Node, Shape, operation
from llcuda.tensor.ops import stretch
from llcuda.tensor.shape import (
    MAX_VALUES,
    cast,
    check_devices,
    contiguous,
    float_type,
    reshape,
    swap,
)

Layout = tuple[int, int]  # whether the matrix is transposed, and its leading dimension


def multiply(a: Node, b: Node) -> Node:
    """Return a @ b as in numpy: vectors, matrices, and batches that are broadcast."""
    check_devices("matmul", a, b)
    if not a.shape or not b.shape:
        raise TensorError(
            f"Incompatible dimensions: {list(a.shape)} @ {list(b.shape)}: expected tensors with "
            "an axis",
            remedy="use *, or .item() of the one without an axis",
        )
    if a.dtype.is_quantized and b.dtype.is_quantized:
        raise TensorError(
            f"matmul: only one operand can be quantized, got {a.dtype.name} and {b.dtype.name}",
            remedy="use .to()",
        )
    left = reshape(a, (1, -1)) if len(a.shape) == 1 and not a.dtype.is_quantized else a
    right = reshape(b, (-1, 1)) if len(b.shape) == 1 and not b.dtype.is_quantized else b
    if min(len(left.shape), len(right.shape)) < 2:
        raise TensorError(
            "matmul: a quantized operand must be a matrix, got a vector", remedy="use .to()"
        )
    product = _product(left, right, _batch(a, b, left, right))
    shape = product.shape[:-2]
    shape += () if len(a.shape) == 1 else product.shape[-2:-1]
    shape += () if len(b.shape) == 1 else product.shape[-1:]
    return product if shape == product.shape else reshape(product, shape)


def _batch(a: Node, b: Node, left: Node, right: Node) -> Shape:
    """Return the axes before the matrices; TensorError for operands that do not fit."""
    try:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        batch = None
    if batch is None or left.shape[-1] != right.shape[-2]:
        shapes = f"{list(a.shape)} @ {list(b.shape)}"
        if batch is None:
            rule = "the axes before the last two cannot be broadcast"
            raise TensorError(f"Incompatible dimensions: {shapes}: {rule}", remedy="use .reshape()")
        rule = f"{left.shape[-1]} columns on the left, {right.shape[-2]} rows on the right"
        remedy = "transpose an operand with .T"
        raise TensorError(f"Incompatible dimensions: {shapes}: {rule}", remedy=remedy)
    if max(*left.shape[-2:], right.shape[-1]) > MAX_VALUES:
        raise UnsupportedError("matmul: at most 2**31 - 1 rows and columns are possible")
    return batch


def _product(a: Node, b: Node, batch: Shape) -> Node:
    shape = (*batch, a.shape[-2], b.shape[-1])
    if len(a.shape) > len(b.shape) == 2 and a.is_contiguous:
        rows = _product(reshape(a, (-1, a.shape[-1])), b, ())
        return reshape(rows, shape)
    if a.dtype.is_quantized:
        return swap(_product(swap(b), swap(a), batch))
    if b.dtype.is_quantized:
        dtype, weights = float_type("matmul", a), swap(b)
        if not weights.is_contiguous:
            raise TensorError(
                f"matmul: {b.dtype.name} is multiplied along its rows",
                remedy="write x @ w.T, or w @ x",
            )
        return _by_ggml(cast(a, DType.Float32), weights, shape, dtype)
    dtype = float_type("matmul", a, b)
    if a.device.is_cpu:
        return _by_ggml(a, contiguous(swap(b)), shape, dtype)
    return _by_cublas(a, b, shape)


def _by_ggml(a: Node, rows: Node, shape: Shape, dtype: DType) -> Node:
    """Return a @ rows.T; ggml broadcasts `rows` only."""
    batch = shape[:-2]
    if rows.shape[:-2] and a.shape[:-2] != batch:
        a = stretch(a, (*batch, *a.shape[-2:]))
    return cast(operation("MUL_MAT", DType.Float32, shape, [rows, contiguous(a)]), dtype)


def _by_cublas(a: Node, b: Node, shape: Shape) -> Node:
    operands: list[Node] = []
    numbers: list[int] = []
    for node in (a, b):
        layout = _layout(node)
        if layout is None:
            node = contiguous(node)
            layout = 0, node.shape[-1]
        operands.append(node)
        numbers += layout
    return operation("GEMM", a.dtype, shape, operands, numbers)


def _layout(node: Node) -> Layout | None:
    """Return the layout of the matrices; None where cuBLAS cannot read them as they are."""
    _, size = node.dtype.block
    (rows, columns), (row_stride, column_stride) = node.shape[-2:], node.strides[-2:]
    for transposed, lines, length, step, line_stride in (
        (0, rows, columns, column_stride, row_stride),
        (1, columns, rows, row_stride, column_stride),
    ):
        leading = length if lines == 1 else line_stride // size
        adjacent = step == size or length == 1
        if adjacent and length <= leading <= MAX_VALUES and line_stride % size == 0:
            return transposed, leading
    return None
