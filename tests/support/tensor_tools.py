"""What the tests of tensors share: the devices of this machine, random tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llcuda.core import DType, Tensor, get_device_count

# Every test runs on the CPU, and on the first GPU where there is one.
DEVICES = ["cpu", *["cuda:0"] * min(get_device_count(), 1)]
on_each_device = pytest.mark.parametrize("device", DEVICES)
FLOATS = [DType.Float32, DType.Float16, DType.BFloat16]
PLAIN = [dtype for dtype in DType if not dtype.is_quantized]
# ggml computes tables for seconds before it quantizes to these.
TABLES = {DType.IQ1_S, DType.IQ1_M, DType.IQ2_S, DType.IQ2_XS, DType.IQ2_XXS}
QUANTIZED = [
    pytest.param(dtype, marks=pytest.mark.slow) if dtype in TABLES else dtype
    for dtype in DType
    if dtype.is_quantized
]
# What a value is rounded to, as a part of it.
ROUNDING = {DType.Float32: 1e-5, DType.Float16: 2e-3, DType.BFloat16: 1.6e-2}

Array = np.ndarray[Any, np.dtype[Any]]


def normal(*shape: int, seed: int = 1, scale: float = 1.0) -> Array:
    """Return normal numbers as float32."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def made(values: Array, device: str, dtype: DType = DType.Float32) -> tuple[Tensor, Array]:
    """Return a tensor of a type, and the values that it really holds."""
    tensor = Tensor.from_numpy(values, device)
    if dtype is not DType.Float32:
        # Where a type needs to know what counts: all columns alike.
        weights = np.ones(values.shape[-1], np.float32) if dtype.is_quantized else None
        tensor = tensor.to(dtype, importance=weights)
    return tensor, tensor.numpy().astype(np.float32)


def close(actual: Tensor, expected: Array, rounding: float) -> bool:
    """Whether values differ by no more than a part of the largest."""
    values = actual.numpy().astype(np.float64)
    assert values.shape == expected.shape
    return bool(np.abs(values - expected).max() <= rounding * max(np.abs(expected).max(), 1e-6))
