"""4-bit weights to floats, and back: `make bench`; `make test` runs each once."""

from typing import Any

import numpy as np
import pytest

from llcuda import nf4

SHAPE = (2048, 4096)


@pytest.fixture(scope="module")
def packed() -> Any:
    """8 million weights, in blocks of 64."""
    weights = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    return nf4.quantize(weights, quant_type="nf4")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "out"])
def test_dequantize(benchmark: Any, packed: Any, dtype: str, fresh: bool) -> None:
    """Into memory that the system must bring first, or into the same again."""
    form: Any = {"quant_type": "nf4", "block_size": 64, "shape": SHAPE, "dtype": dtype}
    out = None if fresh else nf4.dequantize(*packed, **form)
    values = benchmark(nf4.dequantize, *packed, **form, out=out)
    _show_rate(benchmark, values.nbytes)


def test_dequantize_with_numpy(benchmark: Any, packed: Any) -> None:
    """What the formula takes as numpy writes it: a look-up and a product."""
    codes = np.array(nf4.NF4, np.float32)

    def dequantize() -> Any:
        nibbles = np.stack([packed[0] >> 4, packed[0] & 15], axis=1)
        return (codes[nibbles].reshape(-1, 64) * packed[1][:, None]).reshape(SHAPE)

    values = benchmark(dequantize)
    form: Any = {"quant_type": "nf4", "block_size": 64, "shape": SHAPE}
    assert np.array_equal(nf4.dequantize(*packed, **form), values)
    _show_rate(benchmark, values.nbytes)


def test_quantize(benchmark: Any) -> None:
    """8 million weights to 4 bits."""
    weights = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    benchmark(nf4.quantize, weights, quant_type="nf4")
    _show_rate(benchmark, weights.nbytes)


def _show_rate(benchmark: Any, size: int) -> None:
    if benchmark.stats:
        print(f" {size / 1e9 / benchmark.stats.stats.min:.1f} GB/s at best")
