"""Responses that later requests continue, and the shapes of openai's own types."""

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llcuda import Model, structured
from llcuda.chat.constraint import Constraint
from llcuda.errors import ArgumentError
from llcuda.server.errors import ApiError
from llcuda.server.response_store import ResponseStore, StoredResponse
from tests.server.test_chat import ROME, THOUGHT
from tests.support.server import Served, is_error

ASKED: dict[str, Any] = {"model": "demo", "temperature": 0, "max_output_tokens": 12}
FLAT: Any = {"type": "function", **ROME["function"]}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on(client: openai.OpenAI, stream: bool) -> None:
    """It is the same as with all items sent; instructions are not carried over."""

    def ask(**fields: Any) -> Any:
        answer: Any = client.responses.create(**ASKED, **fields, stream=stream)
        return list(answer)[-1].response if stream else answer

    first = ask(input="Who are you?", instructions="Be kind.")
    second = ask(input="Why?", previous_response_id=first.id)
    third = ask(input=[{"role": "user", "content": "How?"}], previous_response_id=second.id)
    question = {"role": "user", "content": "Who are you?"}
    then = {"role": "user", "content": "Why?"}
    whole = ask(input=[question, *first.output, then, *second.output,
                       {"role": "user", "content": "How?"}])  # fmt: skip
    assert whole.output_text == third.output_text
    assert (second.id, whole.usage.input_tokens) == (
        third.previous_response_id,
        third.usage.input_tokens,
    )
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    referred = ask(input=[question, reference, then])
    assert second.usage.input_tokens == referred.usage.input_tokens


def test_kept_responses(client: openai.OpenAI, server: Served) -> None:
    """They can be read and deleted; one with store: false is not kept."""
    made = client.responses.create(**ASKED, input="Who are you?")
    assert made == client.responses.retrieve(made.id)
    [item] = client.responses.input_items.list(made.id).data
    assert item.content[0].text == "Who are you?"  # type: ignore[union-attr]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    left = client.responses.create(**ASKED, input="Who are you?", store=False)
    assert left.store is False
    answer = server.post("/v1/responses", input="a", previous_response_id=left.id)
    is_error(answer, 400, "previous_response_id")
    is_error(server.client.delete("/v1/responses/a"), 404)


def test_the_oldest_are_forgotten() -> None:
    """There are bounds on the number and on the bytes."""
    store = ResponseStore(3, 100)

    def add(number: int, size: int) -> None:
        output = [{"id": f"item_{number}", "type": "message"}]
        document = {"id": f"resp_{number}", "output": output}
        store.add(StoredResponse(document, [], output, size))

    for number in range(4):
        add(number, 10)
    with pytest.raises(ApiError):
        store.get("resp_0")
    with pytest.raises(ArgumentError, match="no such item"):
        store.item("input[0]", "item_0")
    assert "item_1" == store.item("input[0]", "item_1")["id"]
    add(4, 85)
    with pytest.raises(ApiError):
        store.get("resp_2")
    assert "resp_3" == store.get("resp_3").document["id"]
    add(5, 101)  # more than there is room for
    with pytest.raises(ApiError):
        store.get("resp_4")


def test_shapes_are_openai_s(tool_server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event and every answer has the fields of openai's types, in OpenAI's order."""
    for fields, item_events in (
        (
            {},
            ["content_part.added", "reasoning_text.delta", "reasoning_text.done",
             "content_part.done", "content_part.added", "output_text.delta", "output_text.done",
             "content_part.done"],
        ),
        (
            {"tools": [FLAT], "tool_choice": "required"},
            ["function_call_arguments.delta", "function_call_arguments.done"],
        ),
    ):  # fmt: skip
        monkeypatch.undo()
        if not fields:
            monkeypatch.setattr("llcuda.chat.constraint.chat_guide", _thinks)
        body = {"input": "Who are you?", "temperature": 0, "stream": True, **fields}
        answer = tool_server.post("/v1/responses", **body)
        lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        for event in events:
            parsed = EVENT.validate_python(event)
            assert parsed.type == event["type"]
            further = {name for name in event if name not in type(parsed).model_fields}
            assert further <= {"name"}  # older types of a call's end demand it
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert ["created", "in_progress", "output_item.added"] == kinds[:3]
        assert ["output_item.done", "completed"] == kinds[-2:]
        inner = [kind for kind in kinds[3:-2] if not kind.startswith("output_item")]
        unique = [kind for i, kind in enumerate(inner) if not i or kind != inner[i - 1]]
        assert item_events == unique
        whole = tool_server.post("/v1/responses", **{**body, "stream": False}).json()
        parsed = Response.model_validate(whole)
        assert {"store"} == {name for name in whole if name not in Response.model_fields}
        assert [item.type for item in parsed.output] == [
            event["item"]["type"] for event in events if event["type"].endswith("item.added")
        ]


def _thinks(model: Model, *_: Any, **__: Any) -> Any:
    return Constraint(structured.compile(model, {"type": "choice", "choices": [THOUGHT]}).guide())


def test_tools_that_may_be_called(tool_server: Served) -> None:
    """allowed_tools narrows the list; tools that OpenAI's servers run are ignored and named."""
    other = {**FLAT, "name": "other"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [
        {"type": "function", "name": "get_weather"}]}  # fmt: skip
    tools = [other, {"type": "web_search"}, FLAT]
    answer = tool_server.post("/v1/responses", input="Where?", tools=tools, tool_choice=allowed)
    assert "tools[1]" in answer.headers["x-llcuda-ignored"]
    assert {"get_weather"} == {item["name"] for item in answer.json()["output"]}
    for choice in ({"type": "web_search"}, {**allowed, "tools": []}):
        answer = tool_server.post("/v1/responses", input="a", tools=tools, tool_choice=choice)
        is_error(answer, 400, "tool_choice")
