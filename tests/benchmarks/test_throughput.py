"""Texts at once through the engine: the demo model on the CPU, and on a GPU where there is one."""

from collections.abc import Iterator
from typing import Any

import pytest

from llcuda import Engine, Model
from llcuda.native import library
from tests.support.waiting import PATIENCE

PROMPT = "Once upon a time, there was a little fox who lived in the forest."
TOKENS = 32


@pytest.fixture(
    params=[
        ("demo", 0),
        pytest.param(("demo", 99), marks=pytest.mark.gpu),
        pytest.param(("gemma-3-1b", 99), marks=[pytest.mark.gpu, pytest.mark.slow]),
    ],
    ids=["demo on the CPU", "demo on a GPU", "Gemma 3 1B's shapes on a GPU"],
    scope="module",
)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """A model and where it computes; the shapes are written to the cache at first."""
    name, layers = request.param
    if layers and not any(device.kind == "gpu" for device in library.devices()):
        pytest.skip("no GPU")
    if name != "demo":
        from llcuda.bench.synthetic import make_synthetic_model

        name = make_synthetic_model(name)
    with Model(name, gpu_layers=layers) as loaded:
        yield loaded


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_texts_at_once(benchmark: Any, model: Model, rows: int) -> None:
    """So many texts of 32 tokens; divide by the time for tokens a second."""
    with Engine(model, n_parallel=rows, ctx_size=256, threads=1) as engine:

        def run() -> int:
            asked: dict[str, Any] = {"max_tokens": TOKENS, "ignore_eos": True}
            requests = [engine.submit(PROMPT, seed=seed, **asked) for seed in range(rows)]
            return sum(len(request.result(PATIENCE).tokens) for request in requests)

        assert benchmark(run) == rows * TOKENS


@pytest.mark.parametrize("rows", [1, 16])
def test_prefill_at_once(benchmark: Any, model: Model, rows: int) -> None:
    """So many prompts of some 200 tokens, one token each: nothing is reused."""
    count = 0
    with Engine(model, n_parallel=rows, ctx_size=256, threads=1) as engine:
        words = model.tokenize(PROMPT, add_special=False)

        def run() -> int:
            nonlocal count
            count += 1
            prompts = [[(count * rows + i) % 500 + 300, *(words * 20)[:200]] for i in range(rows)]
            requests = [engine.submit(prompt, max_tokens=1) for prompt in prompts]
            return sum(request.result(PATIENCE).cached_tokens for request in requests)

        assert benchmark(run) < rows * 200
