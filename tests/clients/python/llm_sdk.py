"""Simon Willison's llm; it has no tool_choice."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import checks

folder = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = folder.name
Path(folder.name, "extra-openai-models.yaml").write_text(
    f"- model_id: local\n  model_name: {checks.MODEL}\n  api_base: {checks.URL}/v1\n"
    "  supports_tools: true\n  supports_schema: true\n",
    encoding="utf-8",
)

import llm  # noqa: E402  # it reads the folder

model = llm.get_model("local")
OPTIONS = {"temperature": 0, "max_tokens": 40}


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"18 degrees and sunny in {city}"


def get_time(zone: str) -> str:
    """Tell the time in a zone."""
    return f"14:05 {zone}"


@checks.check
def chat() -> object:
    return checks.is_text(model.prompt("Say hello.", stream=False, **OPTIONS).text())


@checks.check
def stream() -> object:
    return checks.is_text("".join(model.prompt("Say hello.", stream=True, **OPTIONS)))


@checks.check
def auto() -> object:
    response = model.prompt(checks.QUESTION, tools=[get_weather, get_time], stream=False, **OPTIONS)
    calls = response.tool_calls()
    assert all(call.name in ("get_weather", "get_time") for call in calls), calls
    return calls or checks.is_text(response.text())


@checks.check
def round_trip() -> object:
    chain = model.conversation().chain(
        checks.QUESTION, tools=[get_weather, get_time], stream=False, chain_limit=3, options=OPTIONS
    )
    try:
        return checks.is_text(chain.text())
    except ValueError as error:  # the model went on calling
        assert "Chain limit" in str(error), error
        return "calls until the limit"


@checks.check
def structured() -> object:
    response = model.prompt(checks.PERSON, schema=checks.PERSON_SCHEMA, stream=False, **OPTIONS)
    return checks.is_person(response.text())
