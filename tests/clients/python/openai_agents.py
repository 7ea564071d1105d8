"""OpenAI's Agents SDK, over chats and over responses."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import checks
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel, Field

set_tracing_disabled(True)
MODELS = [OpenAIChatCompletionsModel, OpenAIResponsesModel]
City = Literal["Paris", "Rome", "Oslo"]
ARGUMENTS = ({"city": "Paris"}, {"zone": "CET"})


@function_tool
def get_weather(city: City) -> str:
    """Tell the weather in a city."""
    return f"18 degrees and sunny in {city}"


@function_tool
def get_time(zone: str = Field(max_length=20)) -> str:
    """Tell the time in a zone."""
    return f"14:05 {zone}"


class Person(BaseModel):
    """The form of the answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


TOOLS = [get_weather, get_time]


def call_items(count: int) -> list[dict[str, Any]]:
    """Return a turn with calls and their results."""
    items: list[dict[str, Any]] = [{"role": "user", "content": checks.QUESTION}]
    calls = list(zip(("get_weather", "get_time"), ARGUMENTS, strict=True))[:count]
    for number, (name, arguments) in enumerate(calls):
        text = json.dumps(arguments)
        call = {"type": "function_call", "call_id": f"call_{number}", "name": name}
        items.append({**call, "arguments": text})
    for number in range(count):
        item = {"type": "function_call_output", "call_id": f"call_{number}"}
        items.append({**item, "output": "18 degrees and sunny"})
    return items


def run(question: Any, settings: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """Run an agent once over each API; return the results."""

    async def once(model: type) -> Any:
        async with AsyncOpenAI(
            base_url=f"{checks.URL}/v1", api_key="none", max_retries=0
        ) as client:
            agent = Agent(
                name="agent",
                model=model(checks.MODEL, client),
                model_settings=ModelSettings(temperature=0, max_tokens=40, **(settings or {})),
                tool_use_behavior="stop_on_first_tool",
                **options,
            )
            return await Runner.run(agent, question, max_turns=2)

    return [asyncio.run(once(model)) for model in MODELS]


def calls(results: list[Any], wanted: str | None = None) -> list[str]:
    """Return the calls in the results."""
    return [
        checks.is_call(item.raw_item.name, item.raw_item.arguments, wanted)
        for result in results
        for item in result.new_items
        if item.type == "tool_call_item"
    ]


@checks.check
def chat() -> object:
    return [checks.is_text(result.final_output) for result in run("Say hello.")]


@checks.check
def stream() -> object:
    async def once(model: type) -> object:
        async with AsyncOpenAI(
            base_url=f"{checks.URL}/v1", api_key="none", max_retries=0
        ) as client:
            agent = Agent(
                name="agent",
                model=model(checks.MODEL, client),
                model_settings=ModelSettings(temperature=0, max_tokens=40),
            )
            result = Runner.run_streamed(agent, "Say hello.")
            text = ""
            async for event in result.stream_events():
                if event.type == "raw_response_event" and isinstance(
                    event.data, ResponseTextDeltaEvent
                ):
                    text += event.data.delta
            assert text == result.final_output, (text, result.final_output)
            return checks.is_text(text)

    return [asyncio.run(once(model)) for model in MODELS]


@checks.check
def auto() -> object:
    return calls(run(checks.QUESTION, tools=TOOLS))


@checks.check
def required() -> object:
    found = calls(run(checks.QUESTION, {"tool_choice": "required"}, tools=TOOLS))
    assert len(found) >= 2
    return found


@checks.check
def named() -> object:
    found = calls(run(checks.QUESTION, {"tool_choice": "get_time"}, tools=TOOLS), "get_time")
    assert len(found) >= 2
    return found


@checks.check
def parallel() -> object:
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    assert len(calls(run(checks.QUESTION, settings, tools=TOOLS))) == len(MODELS)
    results = run(call_items(2), {"tool_choice": "none"}, tools=TOOLS)
    return [checks.is_text(result.final_output) for result in results]


@checks.check
def round_trip() -> object:
    results = run(call_items(1), {"tool_choice": "none"}, tools=TOOLS)
    return [checks.is_text(result.final_output) for result in results]


@checks.check
def structured() -> object:
    results = run(checks.PERSON, output_type=Person)
    results += run(checks.PERSON, {"tool_choice": "none"}, output_type=Person, tools=TOOLS)
    return [checks.is_person(result.final_output.model_dump()) for result in results]
