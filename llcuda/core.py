"""Tensors on the CPU and on GPUs, over ggml's backends.

::

    from llcuda.core import DType, Tensor

    a = Tensor.from_numpy(array, device="cpu")
    c = (a @ a.T).numpy()

Shapes are numpy's: the last axis is the one whose values lie together. A tensor has up to 4 axes,
and no axis is empty. Values change by `write` only, and through what DLPack gives to others.

An operation is computed at once; within `with lazy():` a block's operations become one graph. On a
GPU either returns before it is computed: what reads values waits, and so does `Device.synchronize`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from llcuda.nf4 import QuantState
from llcuda.tensor import ops
from llcuda.tensor.dtype import Device, DeviceProperties, DType
from llcuda.tensor.gguf import load
from llcuda.tensor.graph import Node, lazy
from llcuda.tensor.matmul import matmul as product
from llcuda.tensor.nf4 import from_nf4 as expand
from llcuda.tensor.tensor import Tensor, node_of

__all__ = [
    "DType",
    "Device",
    "DeviceProperties",
    "Tensor",
    "clamp",
    "concat",
    "exp",
    "from_nf4",
    "gelu",
    "gelu_erf",
    "get_device_count",
    "get_device_properties",
    "get_rows",
    "layer_norm",
    "lazy",
    "load_tensors",
    "log",
    "matmul",
    "relu",
    "rms_norm",
    "rope",
    "scale",
    "sigmoid",
    "silu",
    "softmax",
    "sqrt",
    "square",
    "tanh",
]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b: vectors, matrices, and batches that are broadcast, as numpy has it.

    Operands of one floating-point type, which the result has too; or one is quantised, with its
    rows along what is summed: x @ w.T or w @ x. Raises TensorError, a RuntimeError.
    """
    return Tensor._of(product(node_of(a), node_of(b)))


def exp(x: Tensor) -> Tensor:
    """Return e to the power of each value."""
    return Tensor._of(ops.unary("exp", node_of(x)))


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of each value."""
    return Tensor._of(ops.unary("log", node_of(x)))


def sqrt(x: Tensor) -> Tensor:
    """Return the square root of each value."""
    return Tensor._of(ops.unary("sqrt", node_of(x)))


def square(x: Tensor) -> Tensor:
    """Return each value times itself."""
    return Tensor._of(ops.unary("square", node_of(x)))


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of each value."""
    return Tensor._of(ops.unary("tanh", node_of(x)))


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    return Tensor._of(ops.unary("sigmoid", node_of(x)))


def relu(x: Tensor) -> Tensor:
    """Return the values, and 0 for those below."""
    return Tensor._of(ops.unary("relu", node_of(x)))


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    return Tensor._of(ops.unary("silu", node_of(x)))


def gelu(x: Tensor) -> Tensor:
    """Return GELU by its tanh formula; on the CPU from a table of half precision."""
    return Tensor._of(ops.unary("gelu", node_of(x)))


def gelu_erf(x: Tensor) -> Tensor:
    """Return GELU by the error function."""
    return Tensor._of(ops.unary("gelu_erf", node_of(x)))


def scale(x: Tensor, factor: float, bias: float = 0.0) -> Tensor:
    """Return x * factor + bias."""
    return Tensor._of(ops.scale(node_of(x), factor, bias))


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Return the values, not below `low` nor above `high`."""
    return Tensor._of(ops.clamp(node_of(x), low, high))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Return exp(x) / sum(exp(x)) along an axis."""
    return Tensor._of(ops.softmax(node_of(x), axis))


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return x / sqrt(mean(x ** 2) + eps) along the last axis, times `weight`, of that size."""
    return Tensor._of(ops.normalize("RMS_NORM", node_of(x), _maybe(weight), eps))


def layer_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) along the last axis, times `weight`."""
    return Tensor._of(ops.normalize("NORM", node_of(x), _maybe(weight), eps))


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return tensors of one type one behind the other along an axis."""
    return Tensor._of(ops.concat([node_of(tensor) for tensor in tensors], axis))


def get_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a matrix by their numbers, Int32 of any shape; quantised ones as Float32.

    The numbers are read on the host, and checked: ArgumentError.
    """
    return Tensor._of(ops.get_rows(node_of(table), node_of(rows)))


def rope(
    x: Tensor,
    positions: Tensor,
    *,
    dims: int | None = None,
    base: float = 10000.0,
    scaling: float = 1.0,
    neox: bool = False,
    factors: Tensor | None = None,
) -> Tensor:
    """Return queries or keys, [..., tokens, heads, size], turned by positions, Int32 [tokens].

    dims: how many values of a head are turned, all by default. base: of the frequencies; scaling:
    what positions are multiplied by; factors: what frequencies are divided by, Float32 [dims / 2].
    neox: pairs are half a head apart (Hugging Face's order), not neighbours (llama's in GGUF).
    """
    return Tensor._of(
        ops.rope(node_of(x), node_of(positions), dims, base, scaling, neox, _maybe(factors))
    )


def load_tensors(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, device: Any = None
) -> dict[str, Tensor]:
    """Return named tensors of a GGUF file, or all of them, on a device.

    On the CPU they are the file's mapping itself, and read-only; to a GPU they are copied straight
    from it. Raises ModelNotFoundError, GGUFError, ArgumentError, OutOfMemoryError.
    """
    found = load(path, names, Device(device))
    return {name: Tensor._of(node) for name, node in found.items()}


def from_nf4(state: QuantState, dtype: DType | None = None, device: Any = None) -> Tensor:
    """Return weights that llcuda.nf4 read, on a device; only their 4 bits travel there.

    dtype: Float32, Float16 or BFloat16; None = what they were before they were quantised.
    """
    return Tensor._of(expand(state, dtype, Device(device)))


def get_device_count() -> int:
    """Return how many GPUs there are."""
    return Device.count()


def get_device_properties(device: Any = None) -> DeviceProperties:
    """Return what there is to know of a device; ArgumentError where there is none."""
    return Device.properties(device)


def _maybe(tensor: Tensor | None) -> Node | None:
    return None if tensor is None else node_of(tensor)
