"""Pydantic AI over OpenAI's chats."""

from __future__ import annotations

from typing import Any, Literal

import checks
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

model = OpenAIChatModel(
    checks.MODEL, provider=OpenAIProvider(base_url=f"{checks.URL}/v1", api_key="none")
)
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
QUESTION = ModelRequest([UserPromptPart(checks.QUESTION)])
CALLS = [
    ToolCallPart("get_weather", {"city": "Paris"}, "call_1"),
    ToolCallPart("get_time", {"zone": "CET"}, "call_2"),
]
RETURNS = [
    ToolReturnPart("get_weather", "18 degrees and sunny", "call_1"),
    ToolReturnPart("get_time", "14:05", "call_2"),
]
TOOLS = [
    ToolDefinition(
        name=tool["function"]["name"],
        description=tool["function"]["description"],
        parameters_json_schema=tool["function"]["parameters"],
    )
    for tool in checks.TOOLS
]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def ask(messages: list[Any], **settings: Any) -> ModelResponse:
    """Ask once with both tools."""
    return model_request_sync(
        model,
        messages,
        model_settings={**SETTINGS, **settings},
        model_request_parameters=ModelRequestParameters(function_tools=TOOLS),
    )


def calls(response: ModelResponse, wanted: str | None = None) -> list[str]:
    """Return the calls of an answer."""
    return [
        checks.is_call(part.tool_name, part.args, wanted)
        for part in response.parts
        if isinstance(part, ToolCallPart)
    ]


def text_of(response: ModelResponse) -> object:
    """Return the text of an answer."""
    return checks.is_text(
        "".join(part.content for part in response.parts if isinstance(part, TextPart))
    )


@checks.check
def chat() -> object:
    return checks.is_text(Agent(model, model_settings=SETTINGS).run_sync("Say hello.").output)


@checks.check
def stream() -> object:
    result = Agent(model, model_settings=SETTINGS).run_stream_sync("Say hello.")
    return checks.is_text("".join(result.stream_text(delta=True)))


@checks.check
def auto() -> object:
    return calls(ask([QUESTION], tool_choice="auto"))


@checks.check
def required() -> object:
    found = calls(ask([QUESTION], tool_choice="required"))
    assert found
    return found


@checks.check
def named() -> object:
    found = calls(ask([QUESTION], tool_choice=["get_time"]), "get_time")
    assert found
    return found


@checks.check
def parallel() -> object:
    assert len(calls(ask([QUESTION], tool_choice="required", parallel_tool_calls=False))) == 1
    history = [QUESTION, ModelResponse(CALLS), ModelRequest(RETURNS)]
    return text_of(ask(history, tool_choice="none"))


@checks.check
def round_trip() -> object:
    history = [QUESTION, ModelResponse(CALLS[:1]), ModelRequest(RETURNS[:1])]
    return text_of(ask(history, tool_choice="none"))


@checks.check
def structured() -> object:
    def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
        """Tell the weather in a city."""
        return f"18 degrees in {city}"

    outputs = []
    for output, tools in (
        (NativeOutput(Person), []),
        (NativeOutput(Person), [get_weather]),
        (ToolOutput(Person), []),
    ):
        agent = Agent(model, output_type=output, tools=tools, model_settings=SETTINGS)
        outputs.append(checks.is_person(agent.run_sync(checks.PERSON).output.model_dump()))
    return outputs
