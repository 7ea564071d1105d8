"""The way of each parameter of an engine and a request: from its keyword to what is observed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llcuda import Completion, Engine, Model
from llcuda.engine.config import EngineParams
from llcuda.engine.metrics import StepRecord
from llcuda.engine.request import RequestParams
from llcuda.engine.speculation import Drafter
from llcuda.errors import ArgumentError, QueueFullError
from tests.engine.test_guide import Sequence
from tests.support.waiting import PATIENCE
from tests.test_params import RANGES

START, END, WORD = 2, 3, 756  # tokens of the demo model: <|im_start|>, <|im_end|>, Lena
PROMPT = "Once upon a time"
LONG = list(range(100, 180))  # tokens, more than the context has room for
ASKED: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


def always(token: int, bias: float = 1e6) -> dict[str, Any]:
    """Return the keywords with which every token is this one."""
    return {"logit_bias": {token: bias}}


# Field -> a value that is not its default, the keywords it needs beside it, and what is true of a
# completion with it only.
REQUEST: dict[str, tuple[Any, dict[str, Any], Callable[[Completion], bool]]] = {
    "max_tokens": (3, {}, lambda done: len(done.tokens) == 3),
    "stop": (
        ["Lena L"],
        always(WORD),
        lambda done: (done.finish_reason, done.text) == ("stop", " "),
    ),
    "stop_tokens": (
        [WORD],
        always(WORD),
        lambda done: (done.finish_reason, done.text) == ("stop", ""),
    ),
    "shown_tokens": ([START], always(START), lambda done: done.text == "<|im_start|>" * 12),
    "ignore_eos": (True, always(END), lambda done: len(done.tokens) == 12),
    "logprobs": (
        2,
        {},
        lambda done: [len(report.top) for report in done.logprobs or ()] == [2] * 12,
    ),
    "echo": (True, {}, lambda done: bool(done.prompt_logprobs)),
    "timeout": (0.0, {}, lambda done: done.finish_reason == "timeout"),
    "overflow": ("shift", {"max_tokens": 70, **always(WORD)}, lambda done: len(done.tokens) == 70),
    "keep": (
        8,
        {"prompt": LONG, "overflow": "truncate", "echo": True},
        lambda done: [score.token for score in done.prompt_logprobs or ()][:8] == [*LONG[1:8], 140],
    ),
    "guide": (None, {}, lambda done: done.text == " Tom had"),
    "penalize_prompt": (
        False,
        {"prompt": [START, WORD], "repeat_penalty": 1e6, **always(WORD, 1e3)},
        lambda done: done.tokens[0] == WORD,
    ),
    "min_tokens": (
        5,
        always(END),
        lambda done: (len(done.tokens), done.finish_reason) == (5, "stop"),
    ),
    "logits_processor": (
        lambda tokens, logits: np.where(np.arange(len(logits)) == WORD, logits + 1e3, logits),
        {},
        lambda done: done.tokens == [WORD] * 12,
    ),
    "stopping_criteria": (
        lambda tokens, text: "grumpy" in text,
        {},
        lambda done: done.text.endswith("grumpy") and done.finish_reason == "stop",
    ),
}
OF_THE_QUEUE = {"priority", "cache_prompt", "slot"}  # test_functions.py, test_slots.py

# Fields that have an effect only beside others.
BESIDE: dict[str, dict[str, Any]] = {
    "dry_base": {"dry_multiplier": 1.0}, "dry_allowed_length": {"dry_multiplier": 1.0},
    "dry_last_n": {"dry_multiplier": 1.0}, "mirostat_tau": {"mirostat": 2},
    "mirostat_eta": {"mirostat": 2}, "dynatemp_exponent": {"dynatemp_range": 0.5},
    "xtc_threshold": {"xtc_probability": 1.0}, "adaptive_decay": {"adaptive_target": 0.5},
    "penalty_last_n": {"repeat_penalty": 1.5}, "min_keep": {"top_p": 0.0},
}  # fmt: skip

SMALL: dict[str, int] = {
    "n_parallel": 2, "ctx_size": 96, "batch_size": 32, "ubatch_size": 16, "queue_size": 2,
}  # fmt: skip
REFRAIN = 'root ::= " Tom had a red ball." root'

# Field -> a value that SMALL does not have, and what it changes of `observed`.
ENGINE: dict[str, tuple[int, dict[str, Any]]] = {
    "n_parallel": (3, {"running": 3, "cells": 288, "accepted": 5}),
    "ctx_size": (64, {"full": 64, "cells": 128}),
    "cache_size": (384, {"cells": 384}),
    "batch_size": (24, {"chunk": 24, "batch": 24}),
    "ubatch_size": (8, {"ubatch": 8}),
    "queue_size": (5, {"accepted": 7}),
    "speculation": (3, {"guesses": True}),
}


def observed(model: Model, sizes: dict[str, int]) -> dict[str, Any]:
    """Return what an engine of these sizes does with more requests than it takes, and a refrain."""
    records: list[StepRecord] = []
    prompt = model.tokenize("Tom had a red ball. " * 6)
    with Engine(model, threads=1, on_step=records.append, **sizes) as engine:
        requests = []
        with engine.loop.hold(), pytest.raises(QueueFullError):
            while True:
                requests.append(engine.submit(prompt, max_tokens=3, ignore_eos=True))
        for request in requests:
            request.result(PATIENCE)
        before = engine.metrics.snapshot()["batch"]["decode_steps"]
        refrain: dict[str, Any] = {"max_tokens": 500, "ignore_eos": True, "grammar": REFRAIN}
        full = engine.submit(prompt, **refrain).result(PATIENCE)
        seen = {
            "accepted": len(requests),
            "cells": engine.load().cells,
            "full": full.prompt_tokens + len(full.tokens),
            "batch": engine.context.params.batch_size,
            "ubatch": engine.context.params.ubatch_size,
        }
    steps = engine.metrics.snapshot()["batch"]["decode_steps"] - before
    return {
        **seen,
        "chunk": max(record.tokens for record in records if record.phase == "prefill"),
        "running": max(record.rows for record in records),
        "guesses": len(full.tokens) > 2 * steps,  # more than one token that was guessed
    }


@pytest.fixture(autouse=True)
def no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess at every step, whatever guesses cost on this machine."""
    monkeypatch.setattr(Drafter, "update", lambda *arguments: None)


@pytest.fixture(scope="module")
def small(model: Model) -> dict[str, Any]:
    """What an engine of the sizes of SMALL does."""
    return observed(model, SMALL)


@pytest.fixture(scope="module")
def engine(model: Model) -> Any:
    """An engine of one short sequence."""
    with Engine(model, ctx_size=64, threads=1) as engine:
        yield engine


def test_every_field_has_a_row() -> None:
    """A new field fails here until a table above moves it."""
    assert {
        field.name for field in dataclasses.fields(RequestParams)
    } == REQUEST.keys() | OF_THE_QUEUE
    assert {field.name for field in dataclasses.fields(EngineParams)} == ENGINE.keys()


@pytest.mark.parametrize("field", REQUEST)
def test_a_keyword_changes_the_completion(field: str, engine: Engine, model: Model) -> None:
    """What it promises is true with it, and only with it."""
    value, beside, holds = REQUEST[field]
    if field == "guide":
        value = Sequence(model, " Tom had")
    without = {"prompt": PROMPT, **ASKED, **beside}
    assert holds(engine.submit(**{**without, field: value}).result(PATIENCE))
    assert not holds(engine.submit(**without).result(PATIENCE))


@pytest.mark.parametrize("field", ENGINE)
def test_a_keyword_changes_the_engine(field: str, model: Model, small: dict[str, Any]) -> None:
    """It changes what its name says, and nothing else."""
    value, changes = ENGINE[field]
    assert observed(model, {**SMALL, field: value}) == {**small, **changes}


@pytest.mark.parametrize("min_tokens", [0, 2])
@pytest.mark.parametrize("forbids", ["logit_bias", "logits_processor"])
def test_a_text_that_may_neither_end_nor_go_on_fails(
    engine: Engine, model: Model, forbids: str, min_tokens: int
) -> None:
    """It says so instead of ending; the text beside it goes on."""
    others = [token for token in range(model.vocab_size) if token not in model.eog_tokens]

    def function(tokens: Any, logits: Any) -> None:
        logits[others] = -np.inf

    given = {"logit_bias": dict.fromkeys(others, -np.inf), "logits_processor": function}
    asked: dict[str, Any] = {"min_tokens": min_tokens, forbids: given[forbids]}
    beside = engine.submit("Once", max_tokens=30, ignore_eos=True)
    with pytest.raises(ArgumentError, match=r"^ignore_eos=True: every token .* permit another"):
        engine.submit(PROMPT, ignore_eos=True, **asked).result(PATIENCE)
    assert engine.submit(PROMPT, **asked).result(PATIENCE).finish_reason == "stop"
    assert len(beside.result(PATIENCE).tokens) == 30


def test_a_grammar_ends_a_text_that_ignores_the_end(engine: Engine) -> None:
    """Where it permits nothing else."""
    for given in (
        {"grammar": 'root ::= "Tom"'},
        {"response_format": {"type": "regex", "regex": "Tom"}},
    ):
        done = engine.submit(PROMPT, ignore_eos=True, **given).result(PATIENCE)
        assert (done.text, done.finish_reason) == ("Tom", "stop")


def test_keep_holds_in_a_shift_too(engine: Engine) -> None:
    """Other tokens before the same ones: after the shift, another text."""
    asked: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    asked |= {"prompt": LONG[:40], "overflow": "shift"}
    short, long = (engine.submit(keep=keep, **asked).result(PATIENCE).tokens for keep in (1, 30))
    assert short[:24] == long[:24]
    assert short != long


@pytest.mark.parametrize("field", RANGES)
def test_both_ends_of_a_range_give_texts(field: str, engine: Engine) -> None:
    """No number that is accepted makes an infinity of which no token can be drawn."""
    for value in RANGES[field]:
        given = {**BESIDE.get(field, {}), field: value}
        done = engine.submit(PROMPT, max_tokens=8, ignore_eos=True, **given).result(PATIENCE)
        assert 8 == len(done.tokens)
