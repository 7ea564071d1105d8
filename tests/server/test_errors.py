"""Every message of the library that a client may get is in the client's words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llcuda
from llcuda.errors import ArgumentError, ContextLengthError, UnsupportedError
from llcuda.native.prompt_length import too_long
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.errors import translate
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
        (wrong_value("a", 5, "expected True or False", "give a=True"),
         "a=5: expected true or false"),
        (UnsupportedError("rerank() needs a model", parameter=None), "rerank needs a model"),
        (wrong_value("response_format", "json", "expected a dict", 'give {"type": "json_object"}'),
         """response_format='json': expected an object; give {"type": "json_object"}"""),
        (wrong_value("response_format", 5, "expected a dict", "give compact=True"),
         "response_format=5: expected an object"),
        (wrong_argument("template", "demo.gguf has no chat template", "give template="),
         "template: demo.gguf has no chat template; start the server with --chat-template, or use "
         "/v1/completions"),
        (ContextLengthError("prompt: is full", parameter="prompt"),
         "prompt: is full; shorten it, or start the server with a larger --ctx-size"),
    ],
    ids=str,
)  # fmt: skip
def test_words_of_clients(error: ArgumentError | UnsupportedError, message: str) -> None:
    """Values are JSON, types have its names, calls and keywords are left out."""
    assert message == translate(error).message


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
