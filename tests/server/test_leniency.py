"""Unknown fields, hints and other servers' names: answered and reported, refused by --strict."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest

from llcuda.errors import ArgumentError
from llcuda.server import create_app
from llcuda.server.leniency import HEADER, MAX_NOTES, collect_ignored, ignore
from llcuda.server.protocol import ALIASES, CompletionBody
from tests.support.server import Served, demo, is_error, served
from tests.support.waiting import eventually

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
NEEDED: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a", "max_tokens": 1},
    CHAT: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    RESPONSES: {"input": "a", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["a", {"text": "b", "id": 7}]},
    "/tokenize": {"content": "a"},
}
REASONING = "reasoning_effort: this model's chat template does not know it"
# A path, fields of its body, and the header of the answer.
IGNORED: list[tuple[str, dict[str, Any], str | None]] = [
    (COMPLETIONS, {}, None),
    (COMPLETIONS, {"zzz": 1}, "zzz"),
    (COMPLETIONS, {"max_tokn": 5}, "max_tokn: did you mean max_tokens?"),
    (COMPLETIONS, {"gpu_layers": 5}, "gpu_layers: it is set when the server starts"),
    (COMPLETIONS, {"keep_alive": "5m"}, "keep_alive"),
    (COMPLETIONS, {"stop": ""}, "stop: an empty text ends no answer"),
    (COMPLETIONS, {"stop": ["", "x"]}, "stop: an empty text ends no answer"),
    (COMPLETIONS, {"suffix": ""}, None),
    (COMPLETIONS, {"user": 5}, None),
    (COMPLETIONS, {"model": "gpt-4"}, "model: answered by demo"),
    (COMPLETIONS, {"model": ""}, "model: answered by demo"),
    (COMPLETIONS, {"naïve\n": 1}, "na%C3%AFve%0A"),
    (COMPLETIONS, {"temp": 0.5, "temperature": 0}, "temp: this API calls it temperature"),
    (COMPLETIONS, {"stream": True, "stream_options": {"include_obfuscation": True, "x": 1}},
     "stream_options.x; stream_options.include_obfuscation"),
    (CHAT, {"options": {"num_ctx": 1}}, "options: give each option as a field of the request"),
    (CHAT, {"reasoning_effort": "high"}, REASONING),
    (CHAT, {"store": True, "metadata": {"a": "b"}}, "store"),
    (CHAT, {"store": False, "service_tier": "auto", "modalities": ["text"]}, None),
    (CHAT, {"service_tier": "flex"}, "service_tier"),
    (CHAT, {"top_logprobs": 0, "max_tokens": -1, "timeout": 0.2, "stop": ["."]}, None),
    (RESPONSES, {"text": {"verbosity": "low"}}, "text.verbosity"),
    (RESPONSES, {"include": ["reasoning.encrypted_content"]},
     "include[0]: reasoning.encrypted_content is not included"),
    (RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}},
     REASONING.replace("_", ".")),

    ("/v1/embeddings", {"truncate": True}, "truncate"),
    ("/v1/rerank", {}, "documents[1].id"),
    ("/tokenize", {"add_bos": 1}, "add_bos"),
]  # fmt: skip


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    """A strict server."""
    with served(demo(), strict=True) as running:
        yield running


@pytest.mark.parametrize(("path", "fields", "header"), IGNORED, ids=str)
def test_what_is_ignored(
    server: Served, path: str, fields: dict[str, Any], header: str | None
) -> None:
    """The request is answered, and the header names what was ignored."""
    answer = server.post(path, **{**NEEDED[path], **fields})
    assert (400 if path == "/v1/rerank" else 200) == answer.status_code  # no model for reranking
    assert header == answer.headers.get(HEADER)


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/api/chat", {"think": "high", "stream": False}, "think"),
        ("/v1/messages", {"thinking": {"type": "enabled"}}, "thinking"),
        ("/v1/messages", {"output_config": {"effort": "low"}}, "output_config.effort"),
    ],
)
def test_each_api_names_its_own_field(
    server: Served, path: str, fields: dict[str, Any], name: str
) -> None:
    """An effort that the template does not know."""
    answer = server.post(path, **{**NEEDED[CHAT], "max_tokens": 1, **fields})
    notes = answer.headers[HEADER].split("; ")
    assert REASONING.replace("reasoning_effort", name) in notes


@pytest.mark.parametrize(("path", "fields", "header"), [row for row in IGNORED if row[2]], ids=str)
def test_a_strict_server_refuses(
    strict: Served, path: str, fields: dict[str, Any], header: str
) -> None:
    """The same requests are refused by the name of the field; another model is a 404."""
    answer = strict.post(path, **{**NEEDED[path], **fields})
    error = is_error(answer, 404 if "model" in fields else 400)
    assert error["param"] == unquote(header.partition(":")[0].partition(";")[0])


def test_a_strict_server_answers(strict: Served) -> None:
    """Labels, and values that are true here, ask for nothing."""
    labels = {"user": "a", "metadata": {}, "prompt_cache_key": "k", "store": False}
    answer = strict.post(CHAT, **NEEDED[CHAT], **labels)
    assert (200, None) == (answer.status_code, answer.headers.get(HEADER))


@pytest.mark.parametrize(
    ("path", "field", "hint"),
    [
        (COMPLETIONS, "zzz", ""),
        (COMPLETIONS, "max_tokn", "did you mean max_tokens?"),
        (COMPLETIONS, "promt", "did you mean prompt?"),
        (COMPLETIONS, "repetition_penalty", "this API calls it repeat_penalty"),
        (COMPLETIONS, "num_ctx", "it is set when the server starts"),
        (CHAT, "options", "give each option as a field of the request"),
        (CHAT, "prompt", "this API calls it messages"),
        (RESPONSES, "messages", "this API calls it input"),
        ("/v1/embeddings", "texts", "this API calls it input"),
    ],
)
def test_a_missing_field_and_an_unknown_one(
    server: Served, strict: Served, path: str, field: str, hint: str
) -> None:
    """The field that is meant is named; a strict server refuses the unknown field first."""
    missing = {COMPLETIONS: "prompt", CHAT: "messages"}.get(path, "input")
    error = is_error(server.post(path, **{field: 1}), 400, missing)
    assert error["message"] == f"{missing}: missing" + (
        f"; unknown parameter {field}: {hint}" if hint else ""
    )
    error = is_error(strict.post(path, **{field: 1}), 400, field)
    assert error["message"] == f"unknown parameter: {field}{hint and '; '}{hint}"
    assert error["code"] == "unknown_parameter"


def test_other_servers_names() -> None:
    """Each means the field of this server."""
    for field, names in ALIASES.items():
        value: Any = ["x"] if field in ("stop", "dry_breakers") else 1
        for name in (field, *names):
            body = CompletionBody.model_validate({"prompt": "a", name: value})
            assert value == getattr(body, field)
            assert not body.model_extra
    for name in ("n_predict", "num_predict", "max_new_tokens", "max_completion_tokens"):
        assert 7 == CompletionBody.model_validate({"prompt": "a", name: 7}).max_tokens


SCHEMA = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("fields", "response_format"),
    [
        ({"guided_json": SCHEMA}, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
        ({"guided_json": json.dumps(SCHEMA)},
         {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
        ({"json_schema": SCHEMA}, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
        ({"guided_regex": "a+"}, {"type": "regex", "regex": "a+"}),
        ({"guided_choice": ["a"]}, {"type": "choice", "choices": ["a"]}),
        ({"guided_grammar": 'root ::= "a"'}, {"type": "gbnf", "grammar": 'root ::= "a"'}),
        ({"grammar": 'root ::= "a"'}, {"type": "gbnf", "grammar": 'root ::= "a"'}),
        ({"structured_outputs": {"regex": "a+"}}, {"type": "regex", "regex": "a+"}),
        ({"structured_outputs": {}}, None),
    ],
    ids=str,
)  # fmt: skip
def test_other_names_of_response_format(
    fields: dict[str, Any], response_format: dict[str, Any] | None
) -> None:
    """Each of them is followed."""
    assert response_format == CompletionBody(prompt="a", **fields).response_format


def test_two_formats(server: Served) -> None:
    """Only one of them can be followed."""
    answer = server.post(COMPLETIONS, prompt="a", guided_regex="a", guided_choice=["a"])
    says = "cannot be given together: guided_regex, guided_choice; give one of them"
    assert says == is_error(answer, 400, "guided_regex")["message"]


def test_answers_that_the_fields_shape(server: Served) -> None:
    """Another server's name has its effect, not only a place in the body."""
    body = {"prompt": "Once upon a time", "temperature": 0}
    [choice] = server.post(COMPLETIONS, **body, guided_choice=["x y z"]).json()["choices"]
    assert "x y z" == choice["text"]
    whole = server.post(COMPLETIONS, **body, n_predict=8).json()["choices"][0]["text"]
    tokens = server.engine.model.tokenize(whole, add_special=False)
    stopped = server.post(COMPLETIONS, **body, n_predict=8, stop_token_ids=tokens[2:3]).json()
    assert "stop" == stopped["choices"][0]["finish_reason"]
    assert stopped["usage"]["completion_tokens"] < 8
    endless = server.post(COMPLETIONS, **body, max_tokens=-1).json()
    assert 16 < endless["usage"]["completion_tokens"]


def test_the_log_names_what_was_ignored(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    """In the line of the request, and as a list in JSON's fields."""
    caplog.set_level(logging.INFO, "llcuda.server.access")
    answer = server.post(COMPLETIONS, **NEEDED[COMPLETIONS], zzz=1, yyy=2)
    request_id = answer.headers["x-request-id"]
    assert eventually(lambda: request_id in caplog.text)
    [record] = [record for record in caplog.records if request_id in record.getMessage()]
    assert record.getMessage().endswith(", ignored: zzz; yyy")
    assert ["zzz", "yyy"] == record.fields["ignored"]  # type: ignore[attr-defined]


def test_the_header_is_bounded() -> None:
    """A thousand unknown fields are a header of some kilobytes, and says how many."""
    with collect_ignored(False) as ignored:
        for i in range(1000):
            ignore(f"{i}" + "x" * 1000)
        ignore("0" + "x" * 1000)
    assert str(ignored).endswith(f"; and {1000 - MAX_NOTES} more")
    assert len(str(ignored)) < 8000


def test_names_of_models() -> None:
    """Of several models each has its names; another name is a 404 with all of them."""
    specs = (replace(demo("one"), aliases=("gpt-4", "first")), demo("two"))
    with served(*specs) as running:
        models = running.client.get("/v1/models").json()["data"]
        assert ["one", "gpt-4", "first", "two"] == [model["id"] for model in models]
        assert ["one", "one", "one", "two"] == [model["root"] for model in models]
        for name in ("one", "gpt-4", "first"):
            answer = running.post(COMPLETIONS, **NEEDED[COMPLETIONS], model=name)
            assert ("one", None) == (answer.json()["model"], answer.headers.get(HEADER))
        error = is_error(running.post(COMPLETIONS, **NEEDED[COMPLETIONS], model="x"), 404, "model")
        assert error["message"] == "model='x': no such model; expected one, gpt-4, first, two"
        error = is_error(running.post(COMPLETIONS, **NEEDED[COMPLETIONS]), 400, "model")
        assert error["message"] == "model: missing; expected one, gpt-4, first, two"


@pytest.mark.parametrize("aliases", [("demo",), ("a", "a"), ("",), (5,), "a"], ids=str)
def test_wrong_aliases(aliases: Any) -> None:
    """A name is that of one model."""
    with pytest.raises(ArgumentError):
        create_app([replace(demo(), aliases=aliases)], preload=False)
