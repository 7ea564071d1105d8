"""LangChain's ChatOpenAI."""

from __future__ import annotations

from typing import Literal

import checks
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

llm = ChatOpenAI(
    model=checks.MODEL,
    base_url=f"{checks.URL}/v1",
    api_key="none",
    temperature=0,
    max_tokens=40,
    max_retries=0,
)
City = Literal["Paris", "Rome", "Oslo"]


@tool
def get_weather(city: City) -> str:
    """Tell the weather in a city."""
    return f"18 degrees and sunny in {city}"


@tool
def get_time(zone: str = Field(max_length=20)) -> str:
    """Tell the time in a zone."""
    return f"14:05 {zone}"


@tool
def mark_days(days: set[int]) -> str:
    """Mark days; the schema has uniqueItems, which cannot be enforced."""
    return f"{len(days)} days"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


TOOLS = [get_weather, get_time]


def calls(message: AIMessage, wanted: str | None = None) -> list[str]:
    """Return the calls of an answer."""
    assert not message.invalid_tool_calls, message
    return [checks.is_call(call["name"], call["args"], wanted) for call in message.tool_calls]


@checks.check
def chat() -> object:
    return checks.is_text(llm.invoke("Say hello.").content)


@checks.check
def stream() -> object:
    return checks.is_text("".join(part.content for part in llm.stream("Say hello.")))


@checks.check
def auto() -> object:
    checks.is_text(llm.bind_tools([mark_days]).invoke("Say hello.").content)
    return calls(llm.bind_tools(TOOLS).invoke(checks.QUESTION))


@checks.check
def required() -> object:
    found = calls(llm.bind_tools(TOOLS, tool_choice="required").invoke(checks.QUESTION))
    assert found
    return found


@checks.check
def named() -> object:
    bound = llm.bind_tools(TOOLS, tool_choice="get_time")
    found = calls(bound.invoke(checks.QUESTION), "get_time")
    assert found
    return found


@checks.check
def parallel() -> object:
    history = [
        HumanMessage("What are the weather in Paris and the time in CET?"),
        AIMessage(
            "",
            tool_calls=[
                {"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"},
                {"name": "get_time", "args": {"zone": "CET"}, "id": "call_2"},
            ],
        ),
        ToolMessage("18 degrees and sunny", tool_call_id="call_1"),
        ToolMessage("14:05", tool_call_id="call_2"),
    ]
    single = llm.bind_tools(TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert len(calls(single.invoke(checks.QUESTION))) == 1
    return checks.is_text(llm.bind_tools(TOOLS, tool_choice="none").invoke(history).content)


@checks.check
def round_trip() -> object:
    question = HumanMessage(checks.QUESTION)
    first = llm.bind_tools([get_weather], tool_choice="required").invoke([question])
    results = [get_weather.invoke(call) for call in first.tool_calls]
    bound = llm.bind_tools([get_weather], tool_choice="none")
    return checks.is_text(bound.invoke([question, first, *results]).content)


@checks.check
def structured() -> object:
    for method in ("json_schema", "function_calling"):
        person = llm.with_structured_output(Person, method=method).invoke(checks.PERSON)
        checks.is_person(person.model_dump())
    return person
