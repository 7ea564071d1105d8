"""Weights of 4 bits, expanded on the GPU: the CPU's values, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llcuda import core, nf4

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [core.DType.Float32, core.DType.Float16, core.DType.BFloat16])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
def test_values(kind: str, dtype: Any, block_size: int) -> None:
    """Sizes that fill the last store, block and thread, and others; products of any size."""
    for count in (1, 7, 8, 63, 65, 4097, 1_000_003, 2**22):
        random = np.random.default_rng(count)
        packed = random.integers(0, 256, (count + 1) // 2, np.uint8)
        for scale in (1, 1e-6, 1e-39, 1e5):
            absmax = (random.uniform(0.5, 2, -(-count // block_size)) * scale).astype(np.float32)
            name = dtype.name.lower()
            state = nf4.QuantState(packed, absmax, kind, block_size, (count,), name)
            tensor = core.from_nf4(state, device=0)
            assert state.dequantize().tobytes() == tensor.tobytes()


@pytest.mark.sanitizer
def test_order() -> None:
    """What is computed with a tensor that was just expanded waits; freed memory is reused."""
    weights = np.random.default_rng(1).standard_normal((512, 4096)).astype(np.float32)
    state = nf4.QuantState(
        *nf4.quantize(weights, quant_type="nf4"), "nf4", 64, (512, 4096), "float32"
    )
    expected = state.dequantize() * 2
    for _ in range(50):
        assert np.array_equal(expected, (core.from_nf4(state, device=0) * 2).numpy())
