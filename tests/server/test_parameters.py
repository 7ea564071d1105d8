"""The way of each parameter of a body to the keywords of `Engine.submit`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llcuda.engine.request import request_params
from llcuda.server.protocol import CompletionBody, ModelBody, SamplingBody

# Field -> its value in a body, and the keywords that it becomes.
FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5, "penalty_last_n": 64}),
    "presence_penalty": (0.5, {"presence_penalty": 0.5, "penalty_last_n": 64}),
    "logit_bias": ({"7": -100, "8": 5}, {"logit_bias": {7: -math.inf, 8: 5}}),
    "seed": (-1, {"seed": 2**32 - 2}),
    "response_format": ({"type": "json_object"}, {"response_format": {"type": "json_object"}}),
    "timeout": (3.0, {"timeout": 3.0}),
    **{
        name: (value, {name: value})
        for name, value in {
            "temperature": 0.1, "top_p": 0.2, "stop": ["a", "b"], "top_k": 3, "min_p": 0.4,
            "typical_p": 0.5, "top_n_sigma": 1.5, "xtc_probability": 0.6, "xtc_threshold": 0.3,
            "dynatemp_range": 0.7, "dynatemp_exponent": 2.0, "mirostat": 2, "mirostat_tau": 3.0,
            "mirostat_eta": 0.2, "repeat_penalty": 1.1, "penalty_last_n": 9, "dry_multiplier": 0.8,
            "dry_base": 1.5, "dry_allowed_length": 4, "dry_last_n": 99, "min_keep": 2,
            "ignore_eos": True, "overflow": "shift", "keep": 5,
        }.items()
    },
}  # fmt: skip
FOR_THE_ANSWER = {"n", "stream", "stream_options"}  # no keywords of the engine


def keywords_of(**fields: Any) -> dict[str, Any]:
    """Return the keywords that a body with these fields becomes."""
    body = CompletionBody.model_validate({"prompt": "x", **fields})
    return body.submit_keywords(None, ctx_size=64, vocab_size=300)


def test_every_field_has_a_row() -> None:
    """A new field fails here until the table above moves it."""
    fields = SamplingBody.model_fields.keys() - ModelBody.model_fields.keys()
    assert fields == FIELDS.keys() | FOR_THE_ANSWER


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_becomes_a_keyword(field: str) -> None:
    """With its value and no other; and the engine knows it."""
    value, expected = FIELDS[field]
    keywords = keywords_of(**{field: value})
    assert keywords == expected
    keywords.pop("response_format", None)
    request_params({"overflow": "shift", **keywords})  # with another overflow `keep` has no effect
