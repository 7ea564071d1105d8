"""What the scripts of the clients in Python share; it needs the standard library only."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ.get("LLCUDA_CLIENTS_URL", "")
MODEL = os.environ.get("LLCUDA_CLIENTS_MODEL", "")
CITIES = ["Paris", "Rome", "Oslo"]
QUESTION = "What is the weather in Paris?"
PERSON = "Describe Anna, a nurse who is 31 years old."
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}},
    "required": ["city"],
}
TIME = {
    "type": "object",
    "properties": {"zone": {"type": "string", "maxLength": 20}},
    "required": ["zone"],
}
PERSON_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
# The same tools, and a turn with two calls, in the shape of OpenAI's chats.
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }
    for name, description, parameters in (
        ("get_weather", "Tell the weather in a city.", WEATHER),
        ("get_time", "Tell the time in a zone.", TIME),
    )
]
NAMED = {"type": "function", "function": {"name": "get_time"}}
TWO_CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "What are the weather in Paris and the time in CET?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            },
            {
                "id": "call_2",
                "type": "function",
                "function": {"name": "get_time", "arguments": '{"zone": "CET"}'},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees and sunny"},
    {"role": "tool", "tool_call_id": "call_2", "content": "14:05"},
]


def check(function: Callable[[], Any]) -> None:
    """Run a check and print its line of JSON; the function's name is the check's."""
    try:
        line = {"check": function.__name__, "ok": True, "detail": str(function())[:200]}
    except Exception as error:
        traceback.print_exc()
        detail = f"{type(error).__name__}: {error}"[:500]
        line = {"check": function.__name__, "ok": False, "detail": detail}
    print(json.dumps(line), flush=True)


def is_text(text: object) -> object:
    """Return a text that has words and no delimiters of calls or turns."""
    assert isinstance(text, str), repr(text)
    assert text.strip(), "the answer is empty"
    assert "<tool_call>" not in text and "<|im_" not in text, text
    return text


def is_call(name: str, arguments: object, wanted: str | None = None) -> str:
    """Return a call whose arguments follow the schema of its tool.

    Args:
        name: The tool that was called.
        arguments: An object, or its JSON.
        wanted: The only tool that may be called; None = each of the two.
    """
    values = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert isinstance(values, dict), values
    assert name in ([wanted] if wanted else ["get_weather", "get_time"]), name
    if name == "get_weather":
        assert set(values) == {"city"} and values["city"] in CITIES, values
    else:
        assert set(values) == {"zone"} and isinstance(values["zone"], str), values
    return f"{name}({json.dumps(values)})"


def is_person(value: object) -> object:
    """Return an object, or its JSON, that follows the schema of a person."""
    values = json.loads(value) if isinstance(value, str) else value
    assert isinstance(values, dict) and set(values) == {"name", "age"}, values
    assert isinstance(values["name"], str) and values["name"], values
    assert isinstance(values["age"], int) and 0 <= values["age"] <= 120, values
    return values
