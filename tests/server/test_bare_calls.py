"""Calls that a model writes as JSON, without the delimiters of its template, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from llcuda import Model, structured
from llcuda.chat.constraint import Constraint
from tests.support.server import Served, demo, served

ADD = {
    "type": "function",
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    },
}
CALLS = (
    '```json\n[{"name": "add", "arguments": {"x": 1}}, {"name": "add", "arguments": {"x": 2}}]\n```'
)
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}{{ tools | tojson }}"
ASKED: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Add."}],
    "tools": [{"type": "function", "function": {k: v for k, v in ADD.items() if k != "type"}}],
    "max_tokens": 200,
}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """A client of a model that writes CALLS whatever it is asked."""

    def guide(model: Model, *_: Any, **__: Any) -> Any:
        form = {"type": "choice", "choices": [CALLS]}
        return Constraint(structured.compile(model, form).guide())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llcuda.chat.constraint.chat_guide", guide)
        with served(
            demo(template=TEMPLATE), demo("off", template=TEMPLATE, bare_tool_calls=False)
        ) as s:
            yield openai_client(s)


def openai_client(server: Served) -> openai.OpenAI:
    """The official client, which tries nothing twice."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


@pytest.mark.parametrize(("parallel", "expected"), [(True, [1, 2]), (False, [1])])
def test_calls(client: openai.OpenAI, parallel: bool, expected: list[int]) -> None:
    """Whole and streamed; only the first one for a client that takes no parallel calls."""
    create = client.chat.completions.create
    whole = create(**ASKED, parallel_tool_calls=parallel).choices[0]
    assert ("tool_calls", None) == (whole.finish_reason, whole.message.content)
    given = [json.loads(call.function.arguments) for call in whole.message.tool_calls]
    assert [{"x": x} for x in expected] == given
    content, arguments = "", {}
    for chunk in create(**ASKED, parallel_tool_calls=parallel, stream=True):
        content += chunk.choices[0].delta.content or ""
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
    assert ("", given) == (content, [json.loads(text) for text in arguments.values()])


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, stream: bool) -> None:
    """Each call is an item."""
    asked = {"model": "demo", "input": "Add.", "tools": [ADD], "max_output_tokens": 200}
    answer: Any = client.responses.create(**asked, stream=stream)
    output = [*answer][-1].response.output if stream else answer.output
    assert [("function_call", "add", '{"x": 1}'), ("function_call", "add", '{"x": 2}')] == [
        (item.type, item.name, item.arguments) for item in output
    ]


def test_the_field_goes_before_the_option_of_the_server(client: openai.OpenAI) -> None:
    """Both turn it off."""
    create = client.chat.completions.create
    for name, body, found in [
        ("demo", {"bare_tool_calls": False}, False),
        ("off", {}, False),
        ("off", {"bare_tool_calls": True}, True),
    ]:
        choice = create(**{**ASKED, "model": name}, extra_body=body).choices[0]
        assert ("tool_calls" if found else "stop") == choice.finish_reason
        assert (None if found else CALLS) == choice.message.content
