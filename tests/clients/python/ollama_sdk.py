"""Ollama's package, on ollama's API, which has no tool_choice."""

from __future__ import annotations

import checks
import ollama

client = ollama.Client(host=checks.URL)
OPTIONS = {"temperature": 0, "num_predict": 40}
HELLO = [{"role": "user", "content": "Say hello."}]


def ask(messages: list[object], **options: object) -> ollama.ChatResponse:
    """Ask the server."""
    return client.chat(model=checks.MODEL, messages=messages, options=OPTIONS, **options)


@checks.check
def chat() -> object:
    text = client.generate(model=checks.MODEL, prompt="Say hello.", options=OPTIONS).response
    checks.is_text(text)
    return checks.is_text(ask(HELLO).message.content)


@checks.check
def stream() -> object:
    parts = list(ask(HELLO, stream=True))
    assert parts[-1].done
    return checks.is_text("".join(part.message.content or "" for part in parts))


@checks.check
def auto() -> object:
    message = ask([{"role": "user", "content": checks.QUESTION}], tools=checks.TOOLS).message
    return [
        checks.is_call(call.function.name, dict(call.function.arguments))
        for call in message.tool_calls or []
    ]


@checks.check
def parallel() -> object:
    calls = [
        {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}},
        {"function": {"name": "get_time", "arguments": {"zone": "CET"}}},
    ]
    history = [
        checks.TWO_CALLS[0],
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "get_weather", "content": "18 degrees and sunny"},
        {"role": "tool", "tool_name": "get_time", "content": "14:05"},
    ]
    return checks.is_text(ask(history).message.content)


@checks.check
def round_trip() -> object:
    history = [
        {"role": "user", "content": checks.QUESTION},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "18 degrees and sunny"},
    ]
    message = ask(history, tools=checks.TOOLS).message
    for call in message.tool_calls or []:
        checks.is_call(call.function.name, dict(call.function.arguments))
    return message.tool_calls or checks.is_text(message.content)


@checks.check
def structured() -> object:
    messages = [{"role": "user", "content": checks.PERSON}]
    return checks.is_person(ask(messages, format=checks.PERSON_SCHEMA).message.content)
