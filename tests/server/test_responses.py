"""Responses that later requests continue, and the shapes of openai's own types."""

import json
import re
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llcuda import Model, structured
from llcuda.chat.constraint import Constraint
from llcuda.errors import ArgumentError
from llcuda.server.errors import ApiError
from llcuda.server.protocol import ResponsesBody
from llcuda.server.response_store import ResponseStore, StoredResponse
from llcuda.server.responses import as_chat
from tests.server.test_chat import ROME, TEMPLATE, THOUGHT
from tests.support.server import Served, demo, is_error, served

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


PATCH: dict[str, Any] = {"type": "custom", "name": "patch", "description": "Edit."}
ROMAN = {"type": "grammar", "syntax": "regex", "definition": '[IVX]{2,3}\\n"(a|b)"'}


LARK = {
    "type": "grammar",
    "syntax": "lark",
    "definition": 'start: /[IVX]{2,3}/ LF "\\"" ("a"|"b") "\\""\n%import common.LF',
}
FORMATS: list[Any] = [None, {"type": "text"}, ROMAN, LARK]


@pytest.mark.parametrize("tool", [{**PATCH, "format": form} for form in FORMATS], ids=str)
def test_custom_tools(tool_server: Served, tool: Any) -> None:
    """A call is an item of its kind with its input as a text, in OpenAI's order of events."""
    choice = {"type": "custom", "name": "patch"}
    body = {"input": "Go.", "temperature": 0, "tools": [{"type": "web_search"}, tool],
            "tool_choice": choice, "max_output_tokens": 100}  # fmt: skip
    answer = tool_server.post("/v1/responses", **body, stream=True)
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    for event in events:
        parsed = EVENT.validate_python(event)
        assert parsed.type == event["type"]
        assert event.keys() <= type(parsed).model_fields.keys()
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert ["created", "in_progress", "output_item.added"] == kinds[:3]
    deltas = [event["delta"] for event in events if event["type"].endswith("input.delta")]
    assert ["custom_tool_call_input.delta"] * len(deltas) == kinds[3 : 3 + len(deltas)]
    last = ["custom_tool_call_input.done", "output_item.done"]
    assert last == kinds[3 + len(deltas) : -1]
    response = Response.model_validate(events[-1]["response"])
    [call] = response.output
    assert ("custom_tool_call", "patch") == (call.type, call.name)  # type: ignore[union-attr]
    text = call.input  # type: ignore[union-attr]
    assert "".join(deltas) == text == events[-3]["input"] == events[-2]["item"]["input"]
    if tool["format"] in (ROMAN, LARK):
        assert "completed" == response.status
        assert re.fullmatch(ROMAN["definition"], text)
    whole = tool_server.post("/v1/responses", **body).json()
    assert text == Response.model_validate(whole).output[0].input  # type: ignore[union-attr]
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Done."}  # type: ignore[union-attr]
    back = [{"role": "user", "content": "Go."}, *whole["output"], {**output, "call_id": "x"}]
    again = tool_server.post("/v1/responses", input=back, tools=[tool], max_output_tokens=1)
    assert 200 == again.status_code
    chat = as_chat(ResponsesBody(input=back, tools=[tool]), (), ResponseStore())
    [call_in_chat] = chat.messages[1]["tool_calls"]
    assert {"input": text} == json.loads(call_in_chat["function"]["arguments"])


@pytest.mark.parametrize(
    ("tool", "place", "words"),
    [
        ({"type": "custom"}, "tools[1].name", "missing"),
        ({**PATCH, "name": "a b"}, "tools[1].name", "expected 1 to 128 letters"),
        ({**PATCH, "description": 5}, "tools[1].description", "expected a text"),
        ({**PATCH, "format": "text"}, "tools[1].format", "expected an object"),
        ({**PATCH, "format": {"type": "xml"}}, "tools[1].format.type", "text or grammar"),
        ({**PATCH, "format": {**ROMAN, "syntax": "ebnf"}}, "tools[1].format.syntax", "expected"),
        ({**PATCH, "format": {**ROMAN, "definition": "("}}, "tools[1].format.definition", "kept"),
        ({**PATCH, "format": {"type": "grammar"}}, "tools[1].format.syntax", "missing"),
        (
            {**PATCH, "format": {**LARK, "definition": "start: %json {}"}},
            "tools[1].format.definition",
            "'%json' cannot be kept",
        ),
        (
            {**PATCH, "format": {**LARK, "definition": "start: other"}},
            "tools[1].format.definition",
            'unknown name: "other"',
        ),
        ({**FLAT, "name": "a b"}, "tools[1].name", "expected 1 to 128 letters"),
    ],
    ids=str,
)
def test_custom_tools_that_are_refused(
    tool_server: Served, tool: Any, place: str, words: str
) -> None:
    """The error names the field of the tool as the client sent it."""
    tools = [{"type": "web_search"}, tool]
    error = is_error(tool_server.post("/v1/responses", input="a", tools=tools), 400, place)
    assert words in error["message"]


def test_custom_tools_of_chats(tool_server: Served) -> None:
    """A chat has none, and its error says which path takes them."""
    tools = [{"type": "custom", "custom": {"name": "patch"}}]
    asked = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
    error = is_error(tool_server.post("/v1/chat/completions", **asked), 400, "tools[0].type")
    assert "/v1/responses takes custom tools" in error["message"]


def test_a_grammar_that_nothing_keeps() -> None:
    """A model that does not write calls as JSON cannot keep it."""
    head, _, rest = TEMPLATE.partition('{"name": "{{ call')
    call = """<function={{ call.function.name }}>
{% for name, value in call.function.arguments.items() %}<parameter={{ name }}>
{{ value }}
</parameter>
{% endfor %}</function>"""
    other = head + call + rest.partition("}}}")[2]
    with served(demo(template=other)) as server:
        asked = {"input": "a", "max_output_tokens": 2}
        assert 200 == server.post("/v1/responses", **asked, tools=[PATCH]).status_code
        tool = {**PATCH, "format": ROMAN}
        is_error(server.post("/v1/responses", **asked, tools=[tool]), 400, "tools[0].format")


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
