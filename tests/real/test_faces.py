"""Anthropic's and ollama's clients, responses that go on, and a batch, on Qwen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from llcuda.server.models import ModelSpec
from tests.real.conftest import QWEN, file
from tests.support.commands import run
from tests.support.server import Served, served

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
ASKED: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    parameters = {"ctx_size": 1024, "n_parallel": 2, "pooling": "mean"}
    with served(ModelSpec("qwen", str(file(QWEN)), parameters=parameters)) as running:
        yield running


def test_anthropic(server: Served) -> None:
    """A call, its result, a prefilled answer, a schema."""
    tools: Any = [{"name": "get_weather", "description": "The weather.", "input_schema": CITY}]
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as client:
        with client.messages.stream(
            model="qwen", max_tokens=60, messages=ASKED, tools=tools, tool_choice={"type": "any"}
        ) as stream:
            message = stream.get_final_message()
        assert "tool_use" == message.stop_reason
        call: Any = message.content[0]
        assert "Rome" in call.input["city"]
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 25 C"}
        then = {"type": "text", "text": "Answer in one sentence."}
        history: Any = [
            *ASKED,
            {"role": "assistant", "content": message.content[:1]},
            {"role": "user", "content": [result, then]},
        ]
        answer = client.messages.create(
            model="qwen",
            max_tokens=60,
            messages=history,
            tools=tools,
            extra_body={"temperature": 0},
        )
        assert "sunny" in answer.content[0].text.lower()  # type: ignore[union-attr]
        prefill: Any = [
            {"role": "user", "content": "Count from one to five in digits."},
            {"role": "assistant", "content": "1, 2,"},
        ]
        counted = client.messages.create(
            model="qwen", max_tokens=20, messages=prefill, extra_body={"temperature": 0}
        )
        assert counted.content[0].text.startswith(" 3, 4")  # type: ignore[union-attr]
        form: Any = {"format": {"type": "json_schema", "schema": CITY}}
        formed = client.messages.create(
            model="qwen", max_tokens=40, messages=ASKED, extra_body={"output_config": form}
        )
        assert "city" in json.loads(formed.content[0].text)  # type: ignore[union-attr]


def test_ollama(server: Served) -> None:
    """A chat with a function of Python, a gap, and vectors."""

    def get_weather(city: str) -> str:
        """Get the weather of a city.

        Args:
            city: The city.
        """
        return city

    options = {"temperature": 0, "num_predict": 60}
    with ollama.Client(host=server.url, trust_env=False) as client:
        answer = client.chat("qwen", messages=ASKED, tools=[get_weather], options=options)
        [call] = answer.message.tool_calls or []
        assert "Rome" in call.function.arguments["city"]
        capabilities = client.show("qwen").capabilities or []
        assert {"completion", "tools", "insert"} == set(capabilities)
        filled = client.generate(
            "qwen", "def add(a, b):\n    return", suffix="\n\nprint(add(1, 2))", options=options
        )
        assert "a + b" in filled.response
        assert 896 == len(client.embed("qwen", ["a text"]).embeddings[0])


def test_responses_go_on(server: Served) -> None:
    """The model knows what the earlier response was about."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        asked: Any = {"model": "qwen", "temperature": 0, "max_output_tokens": 30}
        first = client.responses.create(**asked, input="My name is Ada. Say hello to me.")
        second = client.responses.create(
            **asked, input="What is my name?", previous_response_id=first.id
        )
        assert "Ada" in second.output_text


def test_batch(tmp_path: Path) -> None:
    """Three requests of a file."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [{"prompt": f"{i} + 1 =", "max_tokens": 3, "temperature": 0} for i in range(1, 4)]
    lines = [
        {"custom_id": str(i), "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("batch", source, target, "-m", file(QWEN), "--ctx-size", 64, "--parallel", 3)
    assert 0 == done.status, done.stderr
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert {"0", "1", "2"} == {answer["custom_id"] for answer in answers}
    assert all(answer["response"]["body"]["choices"][0]["text"] for answer in answers)
