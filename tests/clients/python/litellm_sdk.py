"""LiteLLM's completion with the provider openai."""

from __future__ import annotations

import checks
import litellm

ASK = [{"role": "user", "content": checks.QUESTION}]


def complete(**options: object) -> litellm.ModelResponse:
    """Ask the server."""
    return litellm.completion(
        model=f"openai/{checks.MODEL}",
        api_base=f"{checks.URL}/v1",
        api_key="none",
        temperature=0,
        max_tokens=40,
        num_retries=0,
        **options,
    )


def calls(wanted: str | None = None, **options: object) -> list[str]:
    """Ask with both tools; return the calls."""
    choice = complete(messages=ASK, tools=checks.TOOLS, **options).choices[0]
    found = choice.message.tool_calls or []
    return [checks.is_call(c.function.name, c.function.arguments, wanted) for c in found]


@checks.check
def chat() -> object:
    answer = complete(messages=[{"role": "user", "content": "Say hello."}])
    return checks.is_text(answer.choices[0].message.content)


@checks.check
def stream() -> object:
    parts = complete(messages=[{"role": "user", "content": "Say hello."}], stream=True)
    return checks.is_text("".join(part.choices[0].delta.content or "" for part in parts))


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
    found = calls("get_time", tool_choice=checks.NAMED)
    assert found
    return found


@checks.check
def parallel() -> object:
    assert len(calls(tool_choice="required", parallel_tool_calls=False)) == 1
    answer = complete(messages=checks.TWO_CALLS, tools=checks.TOOLS, tool_choice="none")
    return checks.is_text(answer.choices[0].message.content)


@checks.check
def round_trip() -> object:
    first = complete(messages=ASK, tools=checks.TOOLS, tool_choice="required").choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
        for call in first.tool_calls
    ]
    answer = complete(messages=[*ASK, first, *results], tools=checks.TOOLS, tool_choice="none")
    return checks.is_text(answer.choices[0].message.content)


@checks.check
def structured() -> object:
    schema = {"name": "person", "schema": checks.PERSON_SCHEMA, "strict": True}
    answer = complete(
        messages=[{"role": "user", "content": checks.PERSON}],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    return checks.is_person(answer.choices[0].message.content)
