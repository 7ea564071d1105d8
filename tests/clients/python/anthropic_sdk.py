"""Anthropic's package, on Anthropic's API."""

from __future__ import annotations

import anthropic
import checks

client = anthropic.Anthropic(base_url=checks.URL, api_key="none", max_retries=0)
COMMON = {"model": checks.MODEL, "max_tokens": 40, "extra_body": {"temperature": 0}}
ASK = [{"role": "user", "content": checks.QUESTION}]
TOOLS = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in checks.TOOLS
]


def calls(choice: dict[str, object], wanted: str | None = None) -> list[str]:
    """Ask with both tools; return the calls."""
    answer = client.messages.create(messages=ASK, tools=TOOLS, tool_choice=choice, **COMMON)
    found = [block for block in answer.content if block.type == "tool_use"]
    assert (answer.stop_reason == "tool_use") == bool(found), answer
    return [checks.is_call(block.name, block.input, wanted) for block in found]


@checks.check
def chat() -> object:
    messages = [{"role": "user", "content": "Say hello."}]
    assert client.messages.count_tokens(model=checks.MODEL, messages=messages).input_tokens
    return checks.is_text(client.messages.create(messages=messages, **COMMON).content[0].text)


@checks.check
def stream() -> object:
    messages = [{"role": "user", "content": "Say hello."}]
    with client.messages.stream(messages=messages, **COMMON) as events:
        text = "".join(events.text_stream)
        assert text == events.get_final_message().content[0].text
    return checks.is_text(text)


@checks.check
def auto() -> object:
    return calls({"type": "auto"})


@checks.check
def required() -> object:
    found = calls({"type": "any"})
    assert found
    return found


@checks.check
def named() -> object:
    found = calls({"type": "tool", "name": "get_time"}, "get_time")
    assert found
    return found


@checks.check
def parallel() -> object:
    assert len(calls({"type": "any", "disable_parallel_tool_use": True})) == 1
    uses = [
        {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "b", "name": "get_time", "input": {"zone": "CET"}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": "18 degrees and sunny"},
        {"type": "tool_result", "tool_use_id": "b", "content": "14:05"},
    ]
    history = [
        checks.TWO_CALLS[0],
        {"role": "assistant", "content": uses},
        {"role": "user", "content": results},
    ]
    answer = client.messages.create(
        messages=history, tools=TOOLS, tool_choice={"type": "none"}, **COMMON
    )
    return checks.is_text(answer.content[0].text)


@checks.check
def round_trip() -> object:
    with client.messages.stream(
        messages=ASK, tools=TOOLS, tool_choice={"type": "any"}, **COMMON
    ) as events:
        first = events.get_final_message()
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "18 degrees and sunny"}
        for block in first.content
        if block.type == "tool_use"
    ]
    assert results
    history = [
        *ASK,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    answer = client.messages.create(
        messages=history, tools=TOOLS, tool_choice={"type": "none"}, **COMMON
    )
    return checks.is_text(answer.content[0].text)


@checks.check
def structured() -> object:
    answer = client.messages.create(
        messages=[{"role": "user", "content": checks.PERSON}],
        output_config={"format": {"type": "json_schema", "schema": checks.PERSON_SCHEMA}},
        **COMMON,
    )
    return checks.is_person(answer.content[0].text)
