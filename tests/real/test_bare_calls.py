"""Qwen writes calls as JSON without the delimiters of its template."""

from __future__ import annotations

import json
from typing import Any

import openai

from llcuda import Engine
from llcuda.server import ModelSpec
from tests.real.conftest import QWEN, file
from tests.support.server import served


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    """A tool whose parameters are required, but for `limit`."""
    schema = {
        "type": "object",
        "properties": {parameter: {"type": kind} for parameter, kind in parameters.items()},
        "required": [parameter for parameter in parameters if parameter != "limit"],
    }
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", "Return the weather of a city.", city="string"),
    tool("add", "Add two numbers.", a="number", b="number"),
    tool("search", "Search the web.", query="string", limit="integer"),
    tool("set_alarm", "Set an alarm.", time="string"),
]
CALLS = {
    "How is the weather in Paris?": ("get_weather", {"city": "Paris"}),
    "What is 17 plus 25?": ("add", {"a": 17, "b": 25}),
    "Search the web for llama.cpp.": ("search", {"query": "llama.cpp"}),  # in a fence
    "Please add 1.5 and 2.": ("add", {"a": 1.5, "b": 2}),
    "Call the tool get_weather for Tokyo.": ("get_weather", {"city": "Tokyo"}),  # in a fence
}
GREEDY: dict[str, Any] = {"tools": TOOLS, "temperature": 0, "max_tokens": 160}


def asked(question: str) -> list[Any]:
    """A conversation of one question."""
    return [{"role": "user", "content": question}]


def test_each_is_a_call(engine: Engine) -> None:
    """Streamed, with nothing left as content."""
    for question, (name, arguments) in CALLS.items():
        chat = engine.chat(asked(question), **GREEDY)
        deltas = list(chat)
        answer = chat.result()
        assert "tool_calls" == answer.finish_reason
        assert "" == "".join(delta.content for delta in deltas)
        [call] = answer.message["tool_calls"]
        given = json.loads(call["function"]["arguments"])
        assert (name, arguments) == (call["function"]["name"], {k: given[k] for k in arguments})


def test_other_answers_are_content(engine: Engine) -> None:
    """A poem, JSON that names no tool, and a call that is cut off."""
    questions = ("Write a haiku about autumn.", "Find three articles about GGUF.", *CALLS)
    for question, max_tokens in zip(questions, (30, 30, 12), strict=False):
        answer = engine.chat(asked(question), **{**GREEDY, "max_tokens": max_tokens}).result()
        assert answer.completion.text == answer.message["content"]


def test_over_http() -> None:
    """The field of a request goes before the option of the server."""
    parameters = {"ctx_size": 2048, "n_parallel": 1, "bare_tool_calls": False}
    spec = ModelSpec("qwen", str(file(QWEN)), parameters=parameters)
    body = {"model": "qwen", "messages": asked("How is the weather in Paris?"), **GREEDY}
    with served(spec) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        create = client.chat.completions.create
        plain = create(**body).choices[0]
        assert ("stop", None) == (plain.finish_reason, plain.message.tool_calls)
        on = {"bare_tool_calls": True}
        whole = create(**body, extra_body=on, parallel_tool_calls=False).choices[0]
        [call] = whole.message.tool_calls
        assert ("tool_calls", None) == (whole.finish_reason, whole.message.content)
        assert {"city": "Paris"} == json.loads(call.function.arguments)
        chunks = [chunk.choices[0] for chunk in create(**body, extra_body=on, stream=True)]
        [[streamed]] = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
        assert call.function.arguments == streamed.function.arguments
        assert "tool_calls" == chunks[-1].finish_reason
        assert "" == "".join(chunk.delta.content or "" for chunk in chunks)
