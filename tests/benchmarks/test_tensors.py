"""Products of matrices on the CPU, beside numpy's; what an operation costs besides computing."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llcuda.core import DType, Tensor

SIZES = [256, 1024, 2048]
REST = 0.3  # seconds in which numpy's idle threads fall asleep


def seconds(call: Callable[[], Any], enough: float = 0.3) -> float:
    """Return the median time of a call; REST before, one call to warm up."""
    time.sleep(REST)
    call()
    times: list[float] = []
    while sum(times) < enough:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@pytest.mark.parametrize("size", SIZES)
def test_products_beside_numpy(size: int, request: pytest.FixtureRequest) -> None:
    """GFLOP/s of square products in several types, over numpy's float32."""
    if not request.config.getoption("benchmark_enable"):
        size = 64
    values = np.random.default_rng(1).normal(0, 1, (size, size)).astype(np.float32)
    tensor = Tensor.from_numpy(values, "cpu")
    half, blocks = tensor.to(DType.Float16), tensor.to(DType.Q8_0)
    calls: dict[str, Callable[[], Any]] = {
        "numpy": lambda: values @ values,
        "Float32": lambda: tensor @ tensor,
        "Float32, w.T": lambda: tensor @ tensor.T,
        "Float16": lambda: half @ half,
        "Q8_0, w.T": lambda: tensor @ blocks.T,
    }
    taken = {name: seconds(call, 0.3 if size > 64 else 0.001) for name, call in calls.items()}
    for name, duration in taken.items():
        speed, ratio = 2e-9 * size**3 / duration, taken["numpy"] / duration
        print(f"\n{size} {name}: {speed:.0f} GFLOP/s, {ratio:.2f} of numpy", end="")
    assert all(duration > 0 for duration in taken.values())


@pytest.mark.parametrize("what", ["add", "product", "view"])
def test_small_operations(benchmark: Any, what: str) -> None:
    """An operation on 16 values: what Python and the graph cost."""
    x = Tensor.ones([4, 4], device="cpu")
    call = {"add": lambda: x + x, "product": lambda: x @ x.T, "view": lambda: x.T}[what]
    assert benchmark(call).shape == [4, 4]
