"""The engine on a model that computes nothing: what a step costs in Python.

Two calls of a step are replaced, `Context.decode_batch` and `BatchSampler.sample`; all else is
real.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llcuda import Engine, Model
from llcuda.engine import model_runner
from tests.support.waiting import PATIENCE


class FakeBatchSampler:
    """Samples the same tokens for ever."""

    failed, seconds = 0, 0.0

    def __init__(self, context: Any, samplers: Sequence[Any], on_host: Any = ()) -> None:
        self._tokens = [300 + i for i in range(len(samplers))]

    def close(self) -> None:
        """Nothing is held."""

    def sample(self, *arguments: Any) -> list[int]:
        """A token a row."""
        return self._tokens


@pytest.fixture(params=[1, 16, 64])
def rows(request: pytest.FixtureRequest) -> int:
    """Texts at once."""
    return int(request.param)


@pytest.fixture(params=[False, True], ids=["copied logits", "device logits"])
def engine(
    rows: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    with (
        Model("demo") as model,
        Engine(
            model, n_parallel=rows, ctx_size=1024, threads=1, device_logits=request.param
        ) as engine,
    ):
        monkeypatch.setattr(engine.context, "decode_batch", lambda *arguments: None)
        monkeypatch.setattr(model_runner, "BatchSampler", FakeBatchSampler)
        yield engine


def test_steps_without_a_model(benchmark: Any, engine: Engine, rows: int) -> None:
    """Texts of 500 tokens; the time of 500 steps, which decode and sample nothing."""

    def run() -> int:
        asked: dict[str, Any] = {"max_tokens": 500, "temperature": 0}
        with engine.loop.hold():  # or steps of fewer rows come first, as many as chance has it
            requests = [engine.submit("Once upon a time", **asked) for _ in range(rows)]
        return sum(len(request.result(PATIENCE).tokens) for request in requests)

    assert benchmark(run) == rows * 500
    batch = engine.metrics.snapshot()["batch"]
    print(f"{batch['seconds'] / batch['steps'] * 1e6:.1f} us of Python a step at {rows} rows")
