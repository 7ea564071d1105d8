"""Tools, continued answers and limits of reasoning, as agents' clients send them to Qwen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llcuda import Engine
from tests.conftest import VENDOR_MODELS

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 80}
ANSWER: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "string", "maxLength": 120}},
            "required": ["answer"],
            "additionalProperties": False,
        }
    },
}


def user(text: str) -> dict[str, Any]:
    """A message of a user."""
    return {"role": "user", "content": text}


def tool(**properties: Any) -> dict[str, Any]:
    """A tool whose parameters are all required."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": "get_weather", "description": "Get the weather.", "parameters": schema}
    return {"type": "function", "function": function}


WEATHER = tool(city={"type": "string"})
QUESTION = user("What is the weather in Paris? Use the tool.")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (
            {"type": "array", "items": {"type": "integer"}, "maxItems": 2, "uniqueItems": True},
            "uniqueItems",
        ),
        ({"type": "object", "propertyNames": {"format": "z"}}, "propertyNames"),
        ({"type": "string", "format": "city", "maxLength": 20}, "format"),
        ({"type": "string", "pattern": r"\bParis\b"}, "pattern"),
        ({"type": "string", "not": {"pattern": "Rome"}}, "not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tool_with_a_keyword_that_cannot_be_enforced(
    engine: Engine, schema: dict[str, Any], place: str
) -> None:
    """It is called with arguments of its type, and the chat names what was left out."""
    chat = engine.chat([QUESTION], tools=[tool(city=schema)], tool_choice="required", **GREEDY)
    assert [f"#/properties/city/{place}"] == [part.place for part in chat.relaxed]
    kind = {"array": list, "object": dict, "string": str}[schema["type"]]
    assert isinstance(chat.result().tool_calls[0].arguments["city"], kind)


def test_tools_with_a_format(engine: Engine) -> None:
    """A call for the question, then content in the format behind its result."""
    asked: dict[str, Any] = {"tools": [WEATHER], "response_format": ANSWER, **GREEDY}
    first = engine.chat([QUESTION], **asked).result()
    [call] = first.tool_calls
    assert ("tool_calls", {"city": "Paris"}) == (first.finish_reason, call.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 7 degrees."}
    last = engine.chat([QUESTION, first.message, result], **asked).result()
    assert isinstance(last.parsed["answer"], str)  # and not the same call once more


def test_a_history_with_calls_that_were_cut(engine: Engine) -> None:
    """Agents send back what they got."""
    cut = engine.chat(
        [QUESTION], tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=15
    ).result()
    assert ("length", "") == (cut.finish_reason, cut.content)
    assert cut.tool_calls[0].problem
    result = {"role": "tool", "tool_call_id": cut.tool_calls[0].id, "content": "error: no JSON"}
    assert engine.chat([QUESTION, cut.message, result], tools=[WEATHER], **GREEDY).result()


def test_calls_that_are_cut(engine: Engine) -> None:
    """At every token, and by a stop text; content stays empty."""
    asked: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "temperature": 0}
    whole = engine.chat([QUESTION], **asked, max_tokens=60).result()
    assert "tool_calls" == whole.finish_reason
    for count in range(1, len(whole.completion.tokens)):
        cut = engine.chat([QUESTION], **asked, max_tokens=count).result()
        assert ("length", "") == (cut.finish_reason, cut.content), count
    cut = engine.chat([QUESTION], **asked, stop="Par").result()
    assert ("length", "") == (cut.finish_reason, cut.content)


def test_an_answer_is_continued(engine: Engine) -> None:
    """It goes on amid a sentence, and amid the JSON of its format."""
    begun = {"role": "assistant", "content": "The three colours are: 1. Turquoise, 2."}
    done = engine.chat([user("Name three colours."), begun], **GREEDY).result()
    assert done.content.startswith(" ")
    assert "3." in done.content
    begun = {"role": "assistant", "content": '{"answer": "Once'}
    done = engine.chat([user("Hello"), begun], response_format=ANSWER, **GREEDY).result()
    assert done.content.endswith("}")
    assert done.parsed["answer"].startswith("Once")


@pytest.mark.parametrize("limit", [0, 5])
def test_reasoning_has_a_limit(engine: Engine, limit: int) -> None:
    """With Qwen3's template, which opens the reasoning; calls follow, too."""
    template = Path(VENDOR_MODELS / "templates" / "Qwen3.5-4B.jinja").read_text()
    question = user("What is 17 plus 25? Think step by step.")
    asked: dict[str, Any] = {"template": template, "max_reasoning_tokens": limit, **GREEDY}
    done = engine.chat([question], **asked).result()
    assert done.reasoning_tokens <= limit
    assert done.content
    formed = engine.chat([question], **asked, response_format=ANSWER).result()
    assert set(json.loads(formed.content)) == {"answer"}
