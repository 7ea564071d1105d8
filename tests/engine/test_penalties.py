"""Penalties and DRY in the engine: the prompt counts, whatever way the tokens take."""

from __future__ import annotations

from typing import Any

import pytest

from llcuda import Context, Engine, Model, Sampler
from tests.support.waiting import PATIENCE

PROMPT = 'Lily said, "I am happy". Lily said, "I am happy". Lily said, "I'
PENALTIES: list[dict[str, Any]] = [
    {"repeat_penalty": 1.5},
    {"repeat_penalty": 1.5, "penalty_last_n": 12},
    {"dry_multiplier": 4.0, "dry_breakers": ()},
    {"frequency_penalty": 0.5, "presence_penalty": 1.0},
    {"repeat_penalty": 1.5, "frequency_penalty": 0.5, "dry_multiplier": 4.0},
]


def by_hand(model: Model, penalties: dict[str, Any], told: bool, count: int = 24) -> list[int]:
    """Return the greedy tokens of a loop whose sampler is told of the prompt, or is not."""
    prompt, tokens = model.tokenize(PROMPT), list[int]()
    with Context(model, ctx_size=128, threads=1) as context:
        sampler = Sampler(temperature=0, model=model, **penalties)
        if told:
            sampler.accept_prompt(prompt)
        context.decode(prompt)
        while len(tokens) < count:
            tokens.append(sampler.sample(context))
            context.decode(tokens[-1:])
    return tokens


@pytest.mark.parametrize(
    "settings", [{}, {"device_logits": True}, {"speculation": 4}], ids=lambda s: "".join(s)
)
@pytest.mark.parametrize("penalties", PENALTIES, ids=repr)
def test_a_request_counts_its_prompt(
    model: Model, penalties: dict[str, Any], settings: dict[str, Any]
) -> None:
    """The tokens are those of a loop that tells its sampler, for each continuation."""
    expected = by_hand(model, penalties, told=True)
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, **penalties}
    with Engine(model, ctx_size=128, threads=1, **settings) as engine:
        for request in engine.submit_n(PROMPT, 2, **asked):
            assert expected == request.result(PATIENCE).tokens


def test_the_prompt_makes_a_difference(model: Model) -> None:
    """With the repetition penalty and DRY, not with those that count the text alone."""
    differs = [by_hand(model, p, told=True) != by_hand(model, p, told=False) for p in PENALTIES]
    assert [True, True, True, False, True] == differs


def test_a_guided_text_counts_the_prompt(model: Model) -> None:
    """Of two words that a format leaves, the one that the prompt does not have."""
    words = {"type": "choice", "choices": [" am", " was"]}
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "response_format": words}
    with Engine(model, ctx_size=128, threads=1) as engine:
        assert " am" == engine.submit(PROMPT, **asked).result(PATIENCE).text
        assert " was" == engine.submit(PROMPT, repeat_penalty=1e6, **asked).result(PATIENCE).text
