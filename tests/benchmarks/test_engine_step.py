"""The engine on a model that computes nothing: what a step costs in Python.

Two calls of a step are replaced, `Context.decode_batch` and `Rows.sample`; all else is real.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llcuda import Engine, Model, worker

ROWS = 16


class FakeRows:
    """Samples the same tokens for ever."""

    def __init__(self, context: Any, samplers: Sequence[Any]) -> None:
        self._tokens = [300 + i for i in range(len(samplers))]

    def sample(self, indices: Sequence[int] | None = None) -> list[int]:
        """A token a row."""
        return self._tokens


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with Model("demo") as model, Engine(model, n_parallel=ROWS, ctx_size=1024, threads=1) as made:
        monkeypatch.setattr(made.context, "decode_batch", lambda *arguments: None)
        monkeypatch.setattr(worker, "Rows", FakeRows)
        yield made


def test_sixteen_rows_without_a_model(benchmark: Any, engine: Engine) -> None:
    """16 texts of 500 tokens; the time of 500 steps, which decode and sample nothing."""

    def run() -> int:
        asked: dict[str, Any] = {"max_tokens": 500, "temperature": 0}
        requests = [engine.submit("Once upon a time", **asked) for _ in range(ROWS)]
        return sum(len(request.result(60).tokens) for request in requests)

    assert benchmark(run) == ROWS * 500
    batch = engine.metrics.snapshot()["batch"]
    print(f"{batch['seconds'] / batch['steps'] * 1e6:.1f} us of Python a step at {ROWS} rows")
