"""NF4 and FP4, the 4-bit weights of bitsandbytes, to floats and back, equal in every bit.

A block of consecutive weights shares a scale, which is its largest absolute value (absmax). A
weight is one of 16 values between -1 and 1, times that scale: a float32 product, rounded once to
the type of the result. bitsandbytes' CUDA kernels and its CPU formula do the same. With double
quantization the scales themselves have 8 bits, in blocks of 256, after their mean was subtracted.
QLoRA (https://arxiv.org/abs/2305.14314) describes both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from llcuda.errors import ArgumentError
from llcuda.native import nf4 as native
from llcuda.params import wrong_argument, wrong_value

Array: TypeAlias = np.ndarray[Any, Any]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# Sign, two bits of exponent, one of mantissa; 8 is a second zero.
FP4 = tuple(
    value / 12
    for value in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)
)  # fmt: skip
CODES = {"nf4": NF4, "fp4": FP4}
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK_SIZE = 256
LARGEST = float(np.finfo(np.float32).max)


def dequantize(
    packed: Bytes,
    absmax: Floats,
    *,
    quant_type: str,
    block_size: int,
    shape: Sequence[int],
    dtype: Any = np.float32,
    code: Floats | None = None,
    out: Array | None = None,
) -> Array:
    """Return the values of packed weights.

    Args:
        packed: uint8, two weights a byte, the first one in the high half; any shape.
        absmax: float32, the scale of each block.
        quant_type: "nf4" or "fp4".
        block_size: Weights that share a scale, one of BLOCK_SIZES.
        shape: Shape of the result.
        dtype: float32, float16 or "bfloat16".
        code: float32 [16], the values of the 16 codes; None takes those of `quant_type`.
        out: A contiguous array of the result's shape and type to write to; None makes one.

    Returns:
        An array of `shape`; uint16 with the bits of the values for "bfloat16", which numpy lacks.

    Raises:
        ArgumentError: The arguments do not fit each other, or a scale is not finite.
    """
    state = QuantState(packed, absmax, quant_type, block_size, _shape(shape), _dtype(dtype))
    return state.dequantize(code=code, out=out)


def quantize(weights: Array, *, quant_type: str, block_size: int = 64) -> tuple[Bytes, Floats]:
    """Quantize weights as bitsandbytes' CPU code does.

    Args:
        weights: float32 or float16, any shape.
        quant_type: "nf4" or "fp4".
        block_size: Weights that share a scale, one of BLOCK_SIZES.

    Returns:
        The packed weights, uint8, two a byte, and the scale of each block, float32. The last half
        byte of an odd number of weights is zero.

    Raises:
        ArgumentError: There are no weights, one is not finite, or an argument is not allowed.
    """
    _check_block_size(block_size)
    table = _table(quant_type)
    if not isinstance(weights, np.ndarray) or weights.dtype not in (np.float32, np.float16):
        raise wrong_argument(
            "weights", f"expected an array of float32 or float16, got {_type_name(weights)}"
        )
    if not weights.size:
        raise wrong_argument("weights", "expected at least one")
    codes = np.argsort(table, kind="stable").astype(np.uint8)
    ordered = table[codes]
    bounds = (ordered[:-1] + ordered[1:]) / np.float32(2)
    values = np.ascontiguousarray(weights, np.float32)
    quantized = native.quantize(values, bounds, codes, block_size)
    if quantized is None:
        raise wrong_argument("weights", "expected finite numbers, got NaN or inf")
    return quantized


def absmax(
    quantized: Bytes,
    code: Floats,
    nested_absmax: Floats,
    nested_block_size: int = NESTED_BLOCK_SIZE,
    offset: float = 0.0,
) -> Floats:
    """Return the scales that double quantization holds in 8 bits.

    Args:
        quantized: uint8, the scale of each block of weights.
        code: float32 [256], the values of the 256 codes; see `dynamic_code`.
        nested_absmax: float32, the scale of each block of scales.
        nested_block_size: Scales that share a scale.
        offset: What was subtracted from all scales.

    Returns:
        float32, the scale of each block of weights.

    Raises:
        ArgumentError: The arguments do not fit each other, or are not finite.
    """
    if not _is_integer(nested_block_size) or nested_block_size < 1:
        raise wrong_value("nested_block_size", nested_block_size, "expected an integer above 0")
    quantized = _array("quantized", quantized, np.uint8)
    blocks = -(-quantized.size // nested_block_size)
    nested_absmax = _floats("nested_absmax", nested_absmax, blocks)
    scales = np.repeat(nested_absmax, min(nested_block_size, quantized.size))
    values: Floats = _floats("code", code, 256)[quantized]
    values *= scales[: values.size]
    values += np.float32(_number("offset", offset))
    return values


def quantize_absmax(
    absmax: Floats, *, offset: float | None = None
) -> tuple[Bytes, Floats, Floats, float]:
    """Quantize scales to 8 bits, in blocks of 256, as bitsandbytes does.

    Args:
        absmax: float32, the scale of each block of weights.
        offset: What is subtracted from all scales; None is their mean, computed in float64 and
            rounded once. torch sums in float32, in an order that depends on its threads.

    Returns:
        `quantized`, `code`, `nested_absmax` and `offset`, which `absmax` takes.

    Raises:
        ArgumentError: There are no scales, or one is not finite.
    """
    absmax = _floats("absmax", absmax)
    if not absmax.size:
        raise wrong_argument("absmax", "expected at least one")
    mean = np.float32(
        absmax.mean(dtype=np.float64) if offset is None else _number("offset", offset)
    )
    blocks = -(-absmax.size // NESTED_BLOCK_SIZE)
    values = np.zeros((blocks, NESTED_BLOCK_SIZE), np.float32)
    values.reshape(-1)[: absmax.size] = absmax - mean
    scales = np.abs(values).max(axis=1)
    with np.errstate(all="ignore"):
        values *= np.float32(1) / scales[:, None]
    # The zeros of a block without larger values, whose inverse scale is infinite, are NaN here:
    # bitsandbytes gives them the code 0.
    values[np.isnan(values)] = -1
    place = (np.clip(values, -1, 1) + np.float32(1)) * np.float32(32767.5) + np.float32(0.5)
    quantized = _nearest()[place.astype(np.int64)].reshape(-1)[: absmax.size]
    return quantized, dynamic_code(), scales, float(mean)


@dataclass(frozen=True, eq=False, slots=True)
class QuantState:
    """A 4-bit tensor of a checkpoint.

    Attributes:
        packed: uint8, two weights a byte, the first one in the high half.
        absmax: float32, the scale of each block.
        quant_type: "nf4" or "fp4".
        block_size: Weights that share a scale, one of BLOCK_SIZES.
        shape: Shape of the weights.
        dtype: Type that the weights had before: "float32", "float16" or "bfloat16".

    Raises:
        ArgumentError: The values do not fit each other, or a scale is not finite.
    """

    packed: Bytes
    absmax: Floats
    quant_type: str
    block_size: int
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _table(self.quant_type)
        _check_block_size(self.block_size)
        count = prod(_shape(self.shape))
        packed = _array("packed", self.packed, np.uint8, (count + 1) // 2)
        object.__setattr__(self, "packed", packed)
        absmax = _floats("absmax", self.absmax, -(-count // self.block_size))
        object.__setattr__(self, "absmax", absmax)
        object.__setattr__(self, "dtype", _dtype(self.dtype))

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Any]) -> QuantState:
        """Read a weight of a checkpoint.

        Args:
            name: Name of the weight, e.g. "model.layers.0.mlp.up_proj.weight".
            tensors: Tensors of the checkpoint by name. Only those of this weight are read.

        Returns:
            The weight; its scales are float32, also where the checkpoint has them in 8 bits.

        Raises:
            ArgumentError: A tensor is missing, or the tensors do not fit each other.
        """
        if not isinstance(name, str):
            raise wrong_value("name", name, "expected a text")
        kinds = [kind for kind in CODES if f"{name}.quant_state.bitsandbytes__{kind}" in tensors]
        if len(kinds) != 1:
            keys = " or ".join(f"{name}.quant_state.bitsandbytes__{kind}" for kind in CODES)
            raise ArgumentError(f"{name} is not a 4-bit weight: expected one tensor {keys}")
        key = f"{name}.quant_state.bitsandbytes__{kinds[0]}"
        facts = _facts(key, _get(tensors, key))
        if facts.get("quant_type") != kinds[0]:
            raise ArgumentError(f"{key}: quant_type is {facts.get('quant_type')!r}")
        table = _floats(f"{name}.quant_map", _get(tensors, f"{name}.quant_map"), 16)
        if not np.allclose(table, _table(kinds[0]), rtol=0, atol=1e-6):
            raise ArgumentError(f"{name}.quant_map holds other values than {kinds[0].upper()}'s")
        scales = _get(tensors, f"{name}.absmax")
        if f"{name}.nested_absmax" in tensors:
            scales = absmax(
                scales,
                _get(tensors, f"{name}.nested_quant_map"),
                _get(tensors, f"{name}.nested_absmax"),
                facts.get("nested_blocksize"),  # type: ignore[arg-type]  # checked there
                facts.get("nested_offset"),  # type: ignore[arg-type]
            )
        packed = _get(tensors, name)
        if packed.dtype != object:
            packed = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
        parts: Any = kinds[0], facts.get("blocksize"), facts.get("shape"), facts.get("dtype")
        try:
            return cls(packed, scales, parts[0], parts[1], _shape(parts[2]), parts[3])
        except ArgumentError as error:
            raise ArgumentError(f"{name}: {error}") from None

    def dequantize(
        self, dtype: Any = None, code: Floats | None = None, out: Array | None = None
    ) -> Array:
        """Return the values of the weights.

        Args:
            dtype: float32, float16 or "bfloat16"; None is the type that they had before.
            code: See `llcuda.nf4.dequantize`.
            out: See `llcuda.nf4.dequantize`.

        Returns:
            An array of `shape`; uint16 with the bits of the values for "bfloat16".

        Raises:
            ArgumentError: An argument does not fit.
        """
        name = self.dtype if dtype is None else _dtype(dtype)
        table = _table(self.quant_type) if code is None else _floats("code", code, 16)
        bits = native.BITS[name]
        if out is None:
            out = np.empty(self.shape, bits)
        elif not isinstance(out, np.ndarray) or out.dtype != bits or out.shape != self.shape:
            raise wrong_argument(
                "out", f"expected an array of {np.dtype(bits)} and shape {self.shape}"
            )
        elif not out.flags.c_contiguous or not out.flags.writeable:
            raise wrong_argument("out", "expected a contiguous array that can be written to")
        address = out.ctypes.data
        native.dequantize(self.packed, self.absmax, table, self.block_size, name, out.size, address)
        return out


@cache
def dynamic_code() -> Floats:
    """Return the 256 values of bitsandbytes' dynamic 8-bit type, rounded as it rounds them.

    They are powers of ten from 1e-6 to 1, each with twice as many steps as the one before it
    (https://arxiv.org/abs/1511.04561).

    Returns:
        float32 [256], ascending, read-only.
    """
    values = [0.0, 1.0]
    for i in range(7):
        steps = np.arange(2**i + 1)
        first, step = np.float64(np.float32(0.1)), np.float64(np.float32(0.9 / 2**i))
        rising = np.where(steps < len(steps) // 2, first + step * steps, 1 - step * steps[::-1])
        edges = rising.astype(np.float32)
        means = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        values += [*means.tolist(), *(-means).tolist()]
    code = np.sort(np.array(values, np.float32))
    code.flags.writeable = False
    return code


@cache
def _nearest() -> Bytes:
    """Return the nearest code of 65,536 values from -1 to 1, as bitsandbytes' table has it."""
    places = (-1 + 2 * np.arange(65536) / 65535).astype(np.float32)
    code = dynamic_code()
    bounds = (code[:-1] + code[1:]) * np.float32(0.5)
    return np.searchsorted(bounds, places).astype(np.uint8)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _table(quant_type: Any) -> Floats:
    if not isinstance(quant_type, str) or quant_type not in CODES:
        raise wrong_value("quant_type", quant_type, "expected 'nf4' or 'fp4'")
    return np.array(CODES[quant_type], np.float32)


def _check_block_size(block_size: Any) -> None:
    if not _is_integer(block_size) or block_size not in BLOCK_SIZES:
        allowed = ", ".join(map(str, BLOCK_SIZES))
        raise wrong_value("block_size", block_size, f"expected one of {allowed}")


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not sizes or not all(_is_integer(size) and size > 0 for size in sizes):
        raise wrong_value("shape", shape, "expected integers above 0")
    return tuple(map(int, sizes))


def _dtype(dtype: Any) -> str:
    name = dtype
    if not isinstance(dtype, str) or dtype != "bfloat16":
        try:
            name = np.dtype(dtype).name
        except (TypeError, ValueError, RecursionError):
            name = None
    if dtype is None or name not in native.BITS:
        raise wrong_value("dtype", dtype, f"expected one of {', '.join(native.BITS)}")
    return str(name)


def _array(parameter: str, values: Any, dtype: Any, size: int | None = None) -> Array:
    """Return `values` contiguous and flat, if they are `size` elements of `dtype` in an array."""
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        raise wrong_argument(
            parameter, f"expected an array of {np.dtype(dtype)}, got {_type_name(values)}"
        )
    if size is not None and values.size != size:
        raise wrong_argument(parameter, f"expected {size} elements, got {values.size}")
    return np.ascontiguousarray(values).reshape(-1)


def _floats(parameter: str, values: Any, size: int | None = None) -> Floats:
    floats: Floats = _array(parameter, values, np.float32, size)
    if not np.isfinite(floats).all():
        raise wrong_argument(parameter, "expected finite numbers, got NaN or inf")
    return floats


def _number(parameter: str, value: Any) -> float:
    numeric = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not numeric or not abs(value) <= LARGEST:
        raise wrong_value(parameter, value, "expected a finite float32")
    return float(value)


def _type_name(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def _get(tensors: Mapping[str, Any], key: str) -> Array:
    if key not in tensors:
        raise ArgumentError(f"the checkpoint has no tensor {key}")
    try:
        return np.asarray(tensors[key])
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{key}: {error}") from None


def _facts(key: str, text: Array) -> dict[str, Any]:
    """Return bitsandbytes' description of a weight, which is JSON in a tensor of bytes."""
    try:
        facts = json.loads(_array(key, text, np.uint8, text.size).tobytes())
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ArgumentError(f"{key}: expected a JSON object as bytes")
    return facts
