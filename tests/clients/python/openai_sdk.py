"""OpenAI's package: chats, and responses beside them."""

from __future__ import annotations

import checks
from openai import OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=f"{checks.URL}/v1", api_key="none", max_retries=0)
COMMON = {"model": checks.MODEL, "temperature": 0, "max_tokens": 40}
ASK = [{"role": "user", "content": checks.QUESTION}]


class Person(BaseModel):
    """The form of the answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def calls(**options: object) -> list[str]:
    """Ask with both tools; return the calls."""
    wanted = options.pop("wanted", None)
    answer = client.chat.completions.create(messages=ASK, tools=checks.TOOLS, **COMMON, **options)
    choice = answer.choices[0]
    found = choice.message.tool_calls or []
    assert (choice.finish_reason == "tool_calls") == bool(found), choice
    return [checks.is_call(c.function.name, c.function.arguments, wanted) for c in found]


@checks.check
def chat() -> object:
    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "Say hello."}], **COMMON
    )
    assert answer.usage.completion_tokens > 0
    response = client.responses.create(
        model=checks.MODEL, input="Say hello.", max_output_tokens=30, temperature=0
    )
    checks.is_text(response.output_text)
    return checks.is_text(answer.choices[0].message.content)


@checks.check
def stream() -> object:
    parts = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            messages=[{"role": "user", "content": "Say hello."}], stream=True, **COMMON
        )
        if chunk.choices
    ]
    events = client.responses.create(
        model=checks.MODEL, input="Say hello.", max_output_tokens=30, temperature=0, stream=True
    )
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created", kinds
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds
    return checks.is_text("".join(parts))


@checks.check
def auto() -> object:
    return calls(tool_choice="auto")


@checks.check
def required() -> object:
    found = calls(tool_choice="required")
    assert found
    return found


@checks.check
def named() -> object:
    found = calls(tool_choice=checks.NAMED, wanted="get_time")
    assert found
    return found


@checks.check
def parallel() -> object:
    answer = client.chat.completions.create(
        messages=checks.TWO_CALLS, tools=checks.TOOLS, tool_choice="none", **COMMON
    )
    assert len(calls(tool_choice="required", parallel_tool_calls=False)) == 1
    return checks.is_text(answer.choices[0].message.content)


@checks.check
def round_trip() -> object:
    first = client.chat.completions.create(
        messages=ASK, tools=checks.TOOLS, tool_choice="required", **COMMON
    ).choices[0]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
        for call in first.message.tool_calls
    ]
    answer = client.chat.completions.create(
        messages=[*ASK, first.message, *results], tools=checks.TOOLS, tool_choice="none", **COMMON
    )
    return checks.is_text(answer.choices[0].message.content)


@checks.check
def structured() -> object:
    answer = client.chat.completions.parse(
        messages=[{"role": "user", "content": checks.PERSON}], response_format=Person, **COMMON
    )
    response = client.responses.parse(
        model=checks.MODEL, input=checks.PERSON, text_format=Person, temperature=0
    )
    checks.is_person(response.output_parsed.model_dump())
    return checks.is_person(answer.choices[0].message.parsed.model_dump())
