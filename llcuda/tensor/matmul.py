"""The product of matrices, by the way that suits where they lie and what they are.

On a GPU Float16, BFloat16 and Float32 go to cuBLAS as they lie, transposed or not, with sums in
Float32; on the CPU ggml wants the right operand's columns as rows, so a right operand that is not a
transposed view is copied. A quantised matrix stays as it is, and the other operand is Float32.
"""

from __future__ import annotations

import numpy as np

from llcuda.errors import TensorError, UnsupportedError
from llcuda.tensor.dtype import DType
from llcuda.tensor.graph import Node, Shape, operation
from llcuda.tensor.ops import stretch
from llcuda.tensor.shape import MOST, cast, contiguous, floats, reshape, same, swap

Layout = tuple[int, int]  # whether the matrix lies transposed, its leading dimension


def matmul(a: Node, b: Node) -> Node:
    """Return a @ b as numpy has it: vectors, matrices, and batches that are broadcast."""
    same("matmul", a, b)
    if not a.shape or not b.shape:
        raise TensorError("Incompatible dimensions: matmul wants vectors, matrices or batches")
    if a.dtype.is_quantized and b.dtype.is_quantized:
        raise TensorError(f"matmul: {a.dtype.name} and {b.dtype.name}; use .to() on one of them")
    left = reshape(a, (1, -1)) if len(a.shape) == 1 and not a.dtype.is_quantized else a
    right = reshape(b, (-1, 1)) if len(b.shape) == 1 and not b.dtype.is_quantized else b
    if min(len(left.shape), len(right.shape)) < 2:
        raise TensorError("a quantised vector: quantised operands of matmul are matrices")
    made = _product(left, right, _batch(a, b, left, right))
    shape = made.shape[:-2]
    shape += () if len(a.shape) == 1 else made.shape[-2:-1]
    shape += () if len(b.shape) == 1 else made.shape[-1:]
    return made if shape == made.shape else reshape(made, shape)


def _batch(a: Node, b: Node, left: Node, right: Node) -> Shape:
    """Return the axes before the matrices; TensorError for operands that do not fit."""
    try:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        batch = None
    if batch is None or left.shape[-1] != right.shape[-2]:
        raise TensorError(f"Incompatible dimensions: {list(a.shape)} @ {list(b.shape)}")
    if max(*left.shape[-2:], right.shape[-1]) > MOST:
        raise UnsupportedError("matmul: a matrix with more than 2**31 - 1 rows or columns")
    return batch


def _product(a: Node, b: Node, batch: Shape) -> Node:
    shape = (*batch, a.shape[-2], b.shape[-1])
    if len(a.shape) > len(b.shape) == 2 and a.is_contiguous:
        rows = _product(reshape(a, (-1, a.shape[-1])), b, ())
        return reshape(rows, shape)
    if a.dtype.is_quantized:
        return swap(_product(swap(b), swap(a), batch))
    if b.dtype.is_quantized:
        dtype, weights = floats("matmul", a), swap(b)
        if not weights.is_contiguous:
            raise TensorError(
                f"{b.dtype.name} is multiplied along its rows: write x @ w.T, or w @ x"
            )
        return _by_ggml(cast(a, DType.Float32), weights, shape, dtype)
    dtype = floats("matmul", a, b)
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
    """Return how the matrices lie, if cuBLAS can read them so."""
    _, size = node.dtype.block
    (rows, columns), (down, across) = node.shape[-2:], node.strides[-2:]
    for transposed, lines, line, step, skip in (
        (0, rows, columns, across, down),
        (1, columns, rows, down, across),
    ):
        leading = line if lines == 1 else skip // size
        if (step == size or line == 1) and line <= leading <= MOST and skip % size == 0:
            return transposed, leading
    return None
