"""Schemas that say nothing of further properties: what a small model writes; `pytest -s` prints."""

from __future__ import annotations

import json
from typing import Any

from llcuda import Engine, Model, structured
from tests.support.waiting import PATIENCE

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "Person", "schema": SCHEMA}}
NAMES = ("Anna", "Ben", "Cleo", "Dan", "Eve", "Finn")
PEOPLE = [f"Describe {name}, a nurse who is {31 + i} years old." for i, name in enumerate(NAMES)]


def test_open_and_closed(qwen: Model, engine: Engine) -> None:
    """As a response_format every answer ends and has the two members; to the letter, not."""
    counts = {}
    for name, form in (
        ("closed", FORMAT), ("to the letter", structured.compile(qwen, schema=SCHEMA))
    ):  # fmt: skip
        chats = [
            engine.chat(text, response_format=form, temperature=0, max_tokens=100)
            for text in PEOPLE
        ]
        answers = [chat.result(PATIENCE) for chat in chats]
        ended = [answer for answer in answers if answer.finish_reason == "stop"]
        exact = [a for a in ended if json.loads(a.content).keys() == {"name", "age"}]
        tokens = sum(len(answer.completion.tokens) for answer in answers)
        counts[name] = len(ended), len(exact), tokens
        print(f"{name}: {len(ended)} of {len(answers)} ended, {len(exact)} without further "
              f"members, {tokens} tokens")  # fmt: skip
    assert (len(PEOPLE), len(PEOPLE)) == counts["closed"][:2]
    assert counts["closed"][2] <= counts["to the letter"][2]
