"""The fields of each body: their ranges, and their way to the keywords of `Engine.submit`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llcuda.engine.request import request_params
from llcuda.keywords import SubmitKeywords
from llcuda.server.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    ModelBody,
    RerankBody,
    ResponsesBody,
    SamplingBody,
    TokenizeBody,
)
from tests.support.server import Served, is_error
from tests.test_params import RANGES

# Field -> its value in a body, and the keywords that it becomes.
FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5, "penalty_last_n": 64}),
    "presence_penalty": (0.5, {"presence_penalty": 0.5, "penalty_last_n": 64}),
    "logit_bias": ({"7": -100, "8": 5}, {"logit_bias": {7: -math.inf, 8: 5}}),
    "seed": (-1, {"seed": 2**32 - 2}),
    "stop_token_ids": ([7, 8], {"stop_tokens": [7, 8]}),
    "response_format": ({"type": "json_object"}, {"response_format": {"type": "json_object"}}),
    "timeout": (3.0, {"timeout": 3.0}),
    "id_slot": (2, {"slot": 2}),
    **{
        name: (value, {name: value})
        for name, value in {
            "temperature": 0.1, "top_p": 0.2, "stop": ["a", "b"], "top_k": 3, "min_p": 0.4,
            "typical_p": 0.5, "top_n_sigma": 1.5, "xtc_probability": 0.6, "xtc_threshold": 0.3,
            "dynatemp_range": 0.7, "dynatemp_exponent": 2.0, "mirostat": 2, "mirostat_tau": 3.0,
            "mirostat_eta": 0.2, "repeat_penalty": 1.1, "penalty_last_n": 9, "dry_multiplier": 0.8,
            "dry_base": 1.5, "dry_allowed_length": 4, "dry_last_n": 99, "dry_breakers": ["x"],
            "adaptive_target": 0.5, "adaptive_decay": 0.7, "min_keep": 2, "ignore_eos": True,
            "overflow": "shift", "keep": 5, "min_tokens": 4, "priority": -3,
            "cache_prompt": False,
        }.items()
    },
}  # fmt: skip
FOR_THE_ANSWER = {"n", "stream", "stream_options"}  # no keywords of the engine
# Other servers' names of response_format, what is refused or checked, what has no effect.
NO_KEYWORDS = {
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "json_schema", "grammar", "allowed_token_ids", "bad_words", "chat_template",
    "use_beam_search", "keep_alive", "lora",
}  # fmt: skip

# Keywords of Python that no body has, and why.
ONLY_IN_PYTHON = {
    "grammar": "response_format, to which the field of this name leads, has its limits",
    "grammar_root": "as grammar",
    "guide": "a Python object",
    "slot": "id_slot has it",
    "stop_tokens": "stop_token_ids has it",
    "logits_processor": "a Python function",
    "stopping_criteria": "a Python function",
    "penalize_prompt": "for llcuda.llama_cpp, whose penalties leave the prompt out",
    "shown_tokens": "a chat shows those that its template needs",
}
RENAMED = {"id_slot", "stop_token_ids"}
OF_ONE_API = {"max_tokens", "logprobs", "echo", "parse_special"}  # not of every API for texts

MESSAGES = [{"role": "user", "content": "a"}]
INT32, INT64 = 2**31 - 1, 2**63
# Body -> its path, what it needs, and its numeric fields with the least and the largest value; None
# where there is no bound.
OPENAI: dict[str, tuple[float | None, float | None]] = {
    "temperature": (0, 2), "top_p": (0, 1), "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2), "seed": (-INT64, INT64 - 1), "n": (1, 128),
}  # fmt: skip
TEXT: dict[str, tuple[float | None, float | None]] = {
    **RANGES, **OPENAI, "timeout": (1e-9, None), "keep": (0, INT32),
    "min_tokens": (0, INT32), "priority": (-INT32 - 1, INT32),
    "id_slot": (-1, 255),
}  # fmt: skip
BODIES: dict[type[Body], tuple[str, dict[str, Any], dict[str, tuple[float | None, float | None]]]]
BODIES = {
    CompletionBody: ("/v1/completions", {"prompt": "a"}, {
        **TEXT, "max_tokens": (-1, INT32), "logprobs": (0, 100), "best_of": (1, 128),
    }),
    ChatBody: ("/v1/chat/completions", {"messages": MESSAGES}, {
        **TEXT, "max_tokens": (1, INT32), "max_completion_tokens": (1, INT32),
        "top_logprobs": (0, 20), "max_reasoning_tokens": (-1, INT32),
    }),
    ResponsesBody: ("/v1/responses", {"input": "a"}, {
        "temperature": (0, 2), "top_p": (0, 1), "max_output_tokens": (1, INT32),
        "top_logprobs": (0, 20), "priority": (-INT32 - 1, INT32),
    }),
    EmbeddingBody: ("/v1/embeddings", {"input": "a"}, {"dimensions": (1, None)}),
    RerankBody: ("/v1/rerank", {"query": "a", "documents": ["b"]}, {"top_n": (1, None)}),
    TokenizeBody: ("/tokenize", {"content": "a"}, {}),
    DetokenizeBody: ("/detokenize", {"tokens": [1]}, {}),
}  # fmt: skip
ROWS = [(kind, field) for kind, (_, _, fields) in BODIES.items() for field in fields]


def numeric_fields(kind: type[Body]) -> dict[str, str]:
    """Return the fields of a body that take a number, with the type of it."""
    schema = kind.model_json_schema()["properties"]
    types = {
        field: {choice.get("type") for choice in entry.get("anyOf", [entry])}
        for field, entry in schema.items()
    }
    return {
        field: "integer" if "integer" in kinds else "number"
        for field, kinds in types.items()
        if kinds & {"integer", "number"} and "array" not in kinds
    }


def keywords_of(**fields: Any) -> dict[str, Any]:
    """Return the keywords that a body with these fields becomes."""
    body = CompletionBody.model_validate({"prompt": "x", **fields})
    return body.submit_keywords(None, ctx_size=64, vocab_size=300)


def test_every_field_has_a_row() -> None:
    """A new field fails here until the tables above have it."""
    fields = SamplingBody.model_fields.keys() - ModelBody.model_fields.keys()
    assert fields == FIELDS.keys() | FOR_THE_ANSWER | NO_KEYWORDS
    for kind, (_, _, ranges) in BODIES.items():
        assert numeric_fields(kind).keys() == ranges.keys()


def test_every_keyword_of_python_has_a_field() -> None:
    """Or a reason for which it has none."""
    known = SubmitKeywords.__annotations__.keys()
    assert known == FIELDS.keys() - RENAMED | ONLY_IN_PYTHON.keys() | OF_ONE_API


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_becomes_a_keyword(field: str) -> None:
    """With its value and no other; and the engine knows it."""
    value, expected = FIELDS[field]
    keywords = keywords_of(**{field: value})
    assert keywords == expected
    keywords.pop("response_format", None)
    request_params({"overflow": "shift", **keywords})  # with another overflow `keep` has no effect


@pytest.mark.parametrize(
    ("kind", "field"), ROWS, ids=lambda value: getattr(value, "__name__", value)
)
def test_the_range_of_a_field(server: Served, kind: type[Body], field: str) -> None:
    """Both ends are accepted; what lies beyond is refused by name before anything is computed."""
    path, needed, ranges = BODIES[kind]
    whole = numeric_fields(kind)[field] == "integer"
    low, high = ranges[field]
    for value in (low, high):
        if value is not None:
            body = kind.model_validate({**needed, field: int(value) if whole else float(value)})
            if field in RANGES:
                assert isinstance(body, SamplingBody | ResponsesBody)
                request_params({field: getattr(body, field)} if field != "seed" else {})
    wrong: list[Any] = [True, "1", [1], {}]
    if low is not None:
        wrong.append(int(low) - 1 if whole else math.nextafter(low, -math.inf) - 1e-9)
    if high is not None:
        wrong.append(int(high) + 1 if whole else high * 1.001)
    if whole:
        wrong.append(1.5)
    given = {"overflow": "shift"} if field == "keep" else {}
    steps = server.engine.metrics.snapshot()["batch"]["steps"]
    for value in wrong:
        answer = server.post(path, **needed, **given, **{field: value})
        error = is_error(answer, 400)
        assert str(error["param"]).startswith(field)
        assert error["message"].startswith(field)
    assert steps == server.engine.metrics.snapshot()["batch"]["steps"]
