"""A tool loop with Qwen2.5-Coder, which calls a function and answers from its result."""

from __future__ import annotations

import asyncio

from llcuda import Engine

ANSWER = "Answer with the result of the tool in one short sentence."


def population(city: str) -> str:
    """Return how many people live in a city.

    Args:
        city: Name of the city.
    """
    return f"{city} has 318,506 inhabitants."


def test_a_call_and_an_answer_from_its_result(engine: Engine) -> None:
    """Two turns, from run and arun alike; the answer has a number that only the tool knows."""
    question = "How many people live in Bonn? Use the tool."
    asked = {"temperature": 0, "max_tokens": 60, "max_turns": 4}
    done = engine.run(question, [population], system=ANSWER, **asked)
    assert [result.call.arguments for result in done.results] == [{"city": "Bonn"}]
    assert "318,506" in done.content
    assert (done.turns, done.finish_reason) == (2, "stop")
    again = asyncio.run(engine.arun(question, [population], system=ANSWER, **asked))
    assert again.content == done.content
