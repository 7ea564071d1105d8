"""Every message of the library that a client may get is in the client's words."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices

import llcuda
import llcuda.server.app
from llcuda.errors import ArgumentError, ContextLengthError, UnsupportedError
from llcuda.native.prompt_length import too_long
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.errors import translate
from llcuda.server.protocol import Body
from tests.support.server import PYTHON, QUOTED, Served, is_error

PACKAGE = Path(llcuda.__file__).parent
# What a request's data go through.
FOLDERS = ("chat", "structured", "embeddings", "server")
FILES = (
    "params.py", "engine/engine.py", "engine/request.py", "engine/sequence.py", "native/model.py",
    "native/prompt_length.py", "native/grammar_check.py", "native/sampler.py", "native/chain.py",
)  # fmt: skip
# Calls that make an error, and how many of their arguments are not its remedy.
MAKERS = {
    "wrong_value": 3, "wrong_argument": 2, "_refused": 1, "ArgumentError": 1, "ApiError": 2,
    "UnsupportedError": 1, "ContextLengthError": 1, "GrammarError": 1, "StateError": 1,
}  # fmt: skip
# Messages that only a caller in Python can cause, and why.
ONLY_IN_PYTHON = {
    "expected a Model": "the server gives it",
    "expected an EngineConfig": "the server gives it",
    "an Embedder chooses that itself": "the server makes it",
    "expected a dict, a Pydantic model, a TypedDict or a dataclass, not x": "a body has an object",
    "x: expected one of chain=, params= and keywords": "no chain in a body",
    "x is not a step of llcuda.steps": "no chain in a body",
    "give it or schema=, not both": "a body has no Python classes",
}


def rules(path: Path) -> Iterator[str]:
    """Yield the texts of a module that become messages of errors; what they insert is `x`."""
    for node in ast.walk(ast.parse(path.read_text())):
        texts: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            texts = node.args[: MAKERS.get(name, 0)]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts = [node.value] * (node.targets[0].id in ("rule", "problem", "message"))
        for text in texts:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.value
            elif isinstance(text, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "x"
                    for part in text.values
                )


def raised(path: Path) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield the parameters that errors of a module name, where they are constants; and remedies."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        function = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        first = function in ("wrong_value", "wrong_argument", "check_number", "check_flag")
        name = given.get("parameter") or given.get("param") or (node.args[0] if first else None)
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            place = MAKERS.get(function, 0) if function.startswith("wrong") else len(node.args)
            yield name.value, given.get("remedy") or next(iter(node.args[place:]), None)


def bodies(kind: type[Body]) -> Iterator[type[Body]]:
    """Yield a kind of bodies and those that are made of it."""
    yield kind
    for other in kind.__subclasses__():
        yield from bodies(other)


def fields_of(kind: type[Body]) -> Iterator[str]:
    """Yield the fields of a body and of those that are made of it, by all of their names."""
    for body in bodies(kind):
        for name, field in body.model_fields.items():
            yield name
            if isinstance(field.validation_alias, AliasChoices):
                yield from map(str, field.validation_alias.choices)


# Parameters of errors that no request can cause, and why.
AT_THE_START = {
    "aliases", "bare_tool_calls", "batch_invariant", "batch_size", "bf16_to_f16", "body_bytes",
    "body_seconds", "config", "deadline", "device_logits", "devices", "drain", "drain_seconds",
    "file_bytes", "flash_attention", "gpu_layers", "host", "idle_seconds", "limits", "main_gpu",
    "memory_budget", "metrics", "models", "otlp_endpoint", "outputs_max", "overrides",
    "parameters", "path", "port", "preload", "progress", "requests", "sequences", "strict",
    "tensor_split", "tls_cert", "tls_key", "total_body_bytes", "total_file_bytes",
    "tracer_provider", "type_v", "ubatch_size", "uds",
}  # fmt: skip
IN_PYTHON = {
    "approve": "the server calls no tools", "max_turns": "the server calls no tools",
    "chain": "no chain in a body", "context": "the server has none of its own",
    "clean_spaces": "a default", "remove_special": "a default", "special": "a default",
    "compact": "a default", "guide": "a body has none", "i": "of a sampler", "logits": "the same",
    "normalize": "a default", "on_error": "the server raises them",
    "params": "the server gives keywords",
    "token": "the engine gives it", "trigger": "the template has it",
}  # fmt: skip
# Of a path, a query, a header, a form, a line of a batch, an object of another field.
ELSEWHERE = {"Host", "action", "after", "body", "custom_id", "file", "file_id", "limit", "method",
             "order", "purpose", "url"}  # fmt: skip


def test_no_field_has_a_word_of_python() -> None:
    """Each `param` is a field of a request, or translated to one; its remedy is not lost."""
    fields, paths = {*fields_of(Body), *ELSEWHERE}, [PACKAGE / name for name in FILES]
    names = {key: name for kind in bodies(Body) for key, name in kind.engine_names.items()}
    paths += [path for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    wrong, lost = {}, {}
    for path in paths:
        for parameter, remedy in raised(path):
            whole = parameter.partition(".")[0]
            if whole in AT_THE_START or whole in IN_PYTHON:
                continue
            error = wrong_argument(parameter, "rule", "give it")
            param = translate(error, names).param or ""
            if param.partition(".")[0] not in fields:
                wrong[parameter] = path.name
            if isinstance(remedy, ast.Constant) and remedy.value is not None:
                error = wrong_argument(parameter, "rule", remedy.value)
                message = translate(error).message
                if message.endswith(": rule") or PYTHON.search(QUOTED.sub("''", message)):
                    lost[parameter] = remedy.value
    assert not wrong
    assert NO_REMEDY.keys() == lost.keys(), lost


# The parameters of remedies that no client needs, and why.
NO_REMEDY = {
    "model": "a body has no sampler",
    "prompt": "an error of the length has the server's own",
    "system": "no API gives it beside the messages",
}


def test_settings_of_the_start_are_the_model_s() -> None:
    """What a server was started with is no field: the error names the model or the option."""
    error = translate(wrong_argument("template", "demo.gguf has no chat template", "give it"))
    assert "model" == error.param
    error = translate(wrong_value("ctx_size", 8, "has no room", "give a larger one"))
    assert ("model", "--ctx-size=8: has no room; start the server with a larger --ctx-size") == (
        error.param, error.message
    )  # fmt: skip


def test_no_message_has_words_of_python() -> None:
    """Each text of an error is translated; a new one that is not, or has no reason, fails here."""
    paths = [PACKAGE / name for name in FILES]
    paths += [path for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    wrong = {}
    for path in paths:
        for rule in rules(path):
            message = translate(ArgumentError(f"field: {rule}", parameter="field")).message
            if PYTHON.search(QUOTED.sub("''", message)):
                wrong[rule] = path.name
    assert ONLY_IN_PYTHON.keys() == wrong.keys(), wrong


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (wrong_value("a", None, "expected a list, not NoneType"),
         "a=null: expected a list, not null"),
        (wrong_value("a", {"b": [True, "x"]}, "expected a string"),
         'a={"b": [true, "x"]}: expected a text'),
        (wrong_value("a", "None", "no None here: 'None'"), "a='None': no null here: 'None'"),
        (wrong_value("a", [None, "None", True, "x" * 200], "no"),
         "a=[null, 'None', true, '" + "x" * 175 + "...: no"),
        (wrong_value("a", 5, "expected True or False", "give a=True"),
         "a=5: expected true or false"),
        (UnsupportedError("rerank() needs a model", parameter=None), "rerank needs a model"),
        (wrong_value("response_format", "json", "expected a dict", 'give {"type": "json_object"}'),
         """response_format='json': expected an object; give {"type": "json_object"}"""),
        (wrong_value("response_format", 5, "expected a dict", "give compact=True"),
         "response_format=5: expected an object"),
        (wrong_argument("template", "demo.gguf has no chat template", "give template="),
         "model: demo.gguf has no chat template; start the server with --chat-template, or use "
         "/v1/completions"),
        (ContextLengthError("prompt: is full", parameter="prompt"),
         "prompt: is full; shorten it, or start the server with a larger --ctx-size"),
    ],
    ids=str,
)  # fmt: skip
def test_words_of_clients(error: ArgumentError | UnsupportedError, message: str) -> None:
    """Values are JSON, types have its names, calls and keywords are left out."""
    assert message == translate(error).message


@pytest.mark.parametrize(
    ("path", "field", "wrong"),
    [
        ("/v1/chat/completions", "response_format", {"messages": [{"role": "user", "content": "a"}],
                                                     "response_format": {"type": "poem"}}),
        ("/v1/responses", "text.format", {"input": "a", "text": {"format": {"type": "poem"}}}),
        ("/v1/responses", "input[0].type", {"input": [{"type": "poem"}]}),
        ("/v1/responses", "input[0].content[0].type",
         {"input": [{"role": "user", "content": [{"type": "poem"}]}]}),
        ("/completion", "samplers", {"prompt": "a", "samplers": ["poem"]}),
    ],
)  # fmt: skip
def test_lists_of_what_is_allowed(
    server: Served, path: str, field: str, wrong: dict[str, Any]
) -> None:
    """Each kind that an error lists is one, and the kinds that are taken are in the list."""
    message = is_error(server.post(path, **wrong), 400, field)["message"]
    listed = re.split(r"(?:is not|expected) (?:one|some) of ", message)[1].split(";")[0].split(", ")
    known = {"text", "item_reference", "json_object", "input_text", "dry"}
    assert known & {*listed}
    for kind in listed:
        right = json.loads(json.dumps(wrong).replace("poem", kind))
        answer = server.post(path, **right, max_tokens=1)
        assert "one of" not in answer.text
        assert "some of" not in answer.text


# As LiteLLM, LangChain and agents look for it, in small letters.
KNOWN = "this model's maximum context length is "


def test_a_prompt_that_is_too_long() -> None:
    """The sentence by which clients know the case, with both numbers."""
    error = translate(too_long(600, 512), {"prompt": "messages"})
    assert (400, "context_length_exceeded") == (error.status, error.code)
    assert error.message == (
        f"messages: has 600 tokens; {KNOWN}512 tokens; "
        'shorten it, give "overflow": "drop", or start the server with a larger --ctx-size'
    )


LONG = "word " * 3000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": LONG}, "prompt"),
        ("/v1/completions", {"prompt": ["a", LONG[:4000]]}, "prompt[1]"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/v1/responses", {"input": LONG}, "input"),
        ("/v1/embeddings", {"input": ["a", LONG]}, "input[1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_overflows(server: Served, path: str, body: dict[str, Any], param: str) -> None:
    """Each API says it in the same words."""
    error = is_error(server.post(path, **body), 400, param)
    assert "context_length_exceeded" == error["code"]
    assert KNOWN in error["message"].lower()


MESSAGES = [{"role": "user", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [None]}, {"messages": [{"role": None}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [None]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": True}]}]},
        {"messages": [{"role": "user", "content": "a", "name": None}, 5]},
        {"messages": [{"role": "assistant", "tool_calls": {}}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": None}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": None}}]}]},
        {"messages": [{"role": "tool", "content": {"a": None}}]},
        {"messages": [{"role": "user", "content": "a", "images": [True]}]},
        {"tools": [{"type": "function", "function": {"name": None}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": True}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": False}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
        {"tool_choice": {}}, {"tool_choice": {"type": "function", "function": None}},
        {"tool_choice": True}, {"tools": [TOOL], "tool_choice": {"function": {"name": None}}},
        {"response_format": {}}, {"response_format": {"type": None}},
        {"response_format": {"type": "object"}}, {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": None}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": None}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": None}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": True}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        {"response_format": {"type": "regex", "regex": None}},
        {"response_format": {"type": "regex", "regex": "("}},
        {"response_format": {"type": "choice", "choices": None}},
        {"response_format": {"type": "choice", "choices": [True]}},
        {"response_format": {"type": "gbnf", "grammar": "root ::="}},
        {"response_format": {"type": "lark", "grammar": "start:"}},
        {"chat_template_kwargs": {"messages": None}}, {"logit_bias": {"a": None}},
        {"stop": [None]}, {"keep": 5}, {"overflow": None, "keep": True},
        {"mirostat": 7}, {"min_p": 9e99}, {"top_k": None, "typical_p": -1}, {"n": 100},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values_of_chats(server: Served, fields: dict[str, Any]) -> None:
    """Whatever a client sends wrong is answered in its words; `is_error` looks for Python's."""
    body = {"messages": MESSAGES, "max_tokens": 1, **fields}
    answer = server.post("/v1/chat/completions", **body)
    if answer.status_code != 200:
        is_error(answer, 400)
