"""batch_invariant=True on real weights in K-quants."""

from __future__ import annotations

from typing import Any

import pytest

from llcuda import Completion, Engine, Model
from tests.support.waiting import PATIENCE

TEXTS = (
    "The capital of France is",
    "Mary had a little lamb. Mary had a little lamb. Mary had a little",
    "one two three four five six one two three four five",
    "Once upon a time there was a fox who lived in a forest, and " * 3,
)


def facts(completion: Completion) -> tuple[Any, ...]:
    """Return what must be equal, bit for bit."""
    return completion.tokens, [score.logprob for score in completion.logprobs or ()]


@pytest.mark.parametrize("name", ["gemma", "qwen"])
def test_company_cache_and_guesses_change_no_bit(name: str, request: pytest.FixtureRequest) -> None:
    """Four texts together, from whole cached prompts and with speculation, as each alone."""
    model: Model = request.getfixturevalue(name)
    sizes: dict[str, Any] = {"ctx_size": 128, "batch_invariant": True}
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 0, "ignore_eos": True, "seed": 5}
    alone = []
    for text in TEXTS:
        with Engine(model, **sizes) as engine:
            alone.append(facts(engine.submit(text, **asked).result(PATIENCE)))
    for speculation in (0, 4):
        with Engine(model, n_parallel=4, speculation=speculation, **sizes) as engine:
            for cached in (False, True):
                with engine.loop.hold():
                    requests = [engine.submit(text, **asked) for text in TEXTS]
                done = [running.result(PATIENCE) for running in requests]
                assert alone == [facts(completion) for completion in done]
                assert cached == any(completion.cached_tokens > 3 for completion in done)
