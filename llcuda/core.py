"""The tensors that users import; `llcuda.tensor` implements them, ggml computes them.

    from llcuda.core import DType, Tensor

    a = Tensor.from_numpy(array, device="cpu")
    c = (a @ a.T).numpy()

Shapes and broadcasting are numpy's: the values of the last axis are adjacent. A tensor has at most
4 axes, and no axis is empty. Values change by `Tensor.write` only, and through what DLPack shares.

An operation is computed at once. Within `with lazy():` the operations of the block become one
graph. On a GPU either returns before it is computed; reading values waits, and so does
`Device.synchronize`.

Functions of tensors raise TensorError, a RuntimeError, for tensors whose shapes, types or devices
do not fit, ArgumentError for other wrong arguments, UnsupportedError for what the device cannot
compute, and OutOfMemoryError.
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
from llcuda.tensor.matmul import multiply
from llcuda.tensor.nf4 import expand
from llcuda.tensor.tensor import Tensor, node_of, tensor_of

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
    """Return a @ b, as numpy has it for vectors, matrices, and batches that are broadcast.

    On a GPU Float16 and BFloat16 are multiplied on Tensor Cores, with sums in Float32.

    Args:
        a: Left operand, [..., m, k] or [k].
        b: Right operand, [..., k, n] or [k]. Both operands have one floating-point type; or one of
            them is a quantized matrix whose rows lie along k: `x @ w.T` or `w @ x`.

    Returns:
        A tensor [..., m, n] of the floating-point type.

    Raises:
        TensorError: The shapes, types or devices do not fit; a RuntimeError.
    """
    return tensor_of(multiply(node_of(a), node_of(b)))


def exp(x: Tensor) -> Tensor:
    """Return e to the power of each value.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("exp", node_of(x)))


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of each value.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("log", node_of(x)))


def sqrt(x: Tensor) -> Tensor:
    """Return the square root of each value.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("sqrt", node_of(x)))


def square(x: Tensor) -> Tensor:
    """Return the square of each value.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("square", node_of(x)))


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of each value.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("tanh", node_of(x)))


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)).

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("sigmoid", node_of(x)))


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0).

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("relu", node_of(x)))


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x).

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("silu", node_of(x)))


def gelu(x: Tensor) -> Tensor:
    """Return GELU by its tanh formula (https://arxiv.org/abs/1606.08415).

    The CPU looks it up in a table of half precision.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("gelu", node_of(x)))


def gelu_erf(x: Tensor) -> Tensor:
    """Return GELU by the error function, x * (1 + erf(x / sqrt(2))) / 2.

    Args:
        x: A tensor of a floating-point type.
    """
    return tensor_of(ops.unary("gelu_erf", node_of(x)))


def scale(x: Tensor, factor: float, bias: float = 0.0) -> Tensor:
    """Return x * factor + bias, computed in Float32.

    Args:
        x: A tensor of a floating-point type.
        factor: A number.
        bias: A number.
    """
    return tensor_of(ops.scale(node_of(x), factor, bias))


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Return min(max(x, low), high).

    Args:
        x: A tensor of a floating-point type.
        low: Smallest value of the result.
        high: Largest value of the result, not below `low`.
    """
    return tensor_of(ops.clamp(node_of(x), low, high))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Return exp(x) / sum(exp(x)) along an axis.

    Args:
        x: A tensor of a floating-point type.
        axis: Axis to sum along.
    """
    return tensor_of(ops.softmax(node_of(x), axis))


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return x / sqrt(mean(x ** 2) + eps) along the last axis (https://arxiv.org/abs/1910.07467).

    Args:
        x: A tensor of a floating-point type.
        weight: Factors, of the size of the last axis; None multiplies by nothing.
        eps: A small number.
    """
    return tensor_of(ops.normalize("RMS_NORM", node_of(x), _optional_node(weight), eps))


def layer_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return (x - mean(x)) / sqrt(variance(x) + eps) along the last axis.

    https://arxiv.org/abs/1607.06450 describes it.

    Args:
        x: A tensor of a floating-point type.
        weight: Factors, of the size of the last axis; None multiplies by nothing.
        eps: A small number.
    """
    return tensor_of(ops.normalize("NORM", node_of(x), _optional_node(weight), eps))


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return tensors joined along an axis.

    Args:
        tensors: At least one tensor; their types, and the sizes of all other axes, are equal.
        axis: Axis to join along; the first one for quantized types.
    """
    return tensor_of(ops.concat([node_of(tensor) for tensor in tensors], axis))


def get_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a matrix.

    The host reads the numbers of the rows, and checks them.

    Args:
        table: A matrix [n, size], which may be quantized.
        rows: Numbers of rows, Int32 of any shape with up to 3 axes.

    Returns:
        A tensor [*rows.shape, size] of the table's type; Float32 for a quantized table.

    Raises:
        ArgumentError: The table has no such row.
        TensorError: The shapes, types or devices do not fit.
    """
    return tensor_of(ops.get_rows(node_of(table), node_of(rows)))


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
    """Return queries or keys turned by their positions (https://arxiv.org/abs/2104.09864).

    Args:
        x: Queries or keys, [tokens, heads, size] or [batch, tokens, heads, size].
        positions: Positions, Int32 [tokens].
        dims: Number of values of a head that are turned, an even number; None is all.
        base: Base of the frequencies.
        scaling: Factor of the positions.
        neox: Whether the values of a pair are half a head apart, as in Hugging Face's models;
            False: adjacent, as in GGUF files of llama.
        factors: Divisors of the frequencies, Float32 [dims / 2].
    """
    return tensor_of(
        ops.rope(node_of(x), node_of(positions), dims, base, scaling, neox, _optional_node(factors))
    )


def load_tensors(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, device: Any = None
) -> dict[str, Tensor]:
    """Load tensors of a GGUF file.

    On the CPU tensors are read-only views of the mapped file, which must not be written to while
    they live: reading a part that was cut off ends the process. To a GPU they are copied from it
    without a copy in between.

    Args:
        path: The file, or one of the files of a split model; "demo" is the shipped model.
        names: Names of tensors; None loads all.
        device: See `Tensor`.

    Returns:
        Tensors by name, of the types that they have in the file.

    Raises:
        ModelNotFoundError: There is no such file.
        GGUFError: The file is damaged, or not a GGUF file.
        ArgumentError: The file has no tensor of a name, or there is no such device.
        UnsupportedError: A tensor has a type that DType lacks.
        OutOfMemoryError: The device has too little memory.
    """
    nodes = load(path, names, Device(device))
    return {name: tensor_of(node) for name, node in nodes.items()}


def from_nf4(state: QuantState, dtype: DType | None = None, device: Any = None) -> Tensor:
    """Return the values of NF4 or FP4 weights. Only the packed weights are copied to a GPU.

    Args:
        state: The weights, of `llcuda.nf4`.
        dtype: Float32, Float16 or BFloat16; None is the type that they had before.
        device: See `Tensor`.

    Raises:
        ArgumentError: An argument has another type, or the weights have more than 4 axes.
        OutOfMemoryError: The device has too little memory.
    """
    return tensor_of(expand(state, dtype, Device(device)))


def get_device_count() -> int:
    """Return the number of GPUs."""
    return Device.count()


def get_device_properties(device: Any = None) -> DeviceProperties:
    """Return the properties of a device.

    Args:
        device: See `Tensor`.

    Raises:
        ArgumentError: There is no such device.
    """
    return Device.properties(device)


def _optional_node(tensor: Tensor | None) -> Node | None:
    return None if tensor is None else node_of(tensor)
