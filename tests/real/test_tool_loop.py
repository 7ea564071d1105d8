"""A tool loop with Qwen2.5-Coder, which calls a function and answers from its result."""

from __future__ import annotations

import asyncio

from llcuda import Engine


def read_file(path: str) -> str:
    """Return the text of a file."""
    return f"{path} says: the secret word is BANANA."


def test_a_call_and_an_answer_from_its_result(engine: Engine) -> None:
    """Two turns, alike from run and arun; the answer has a word that only the tool knows."""
    question = "Read the file notes.txt. What is the secret word?"
    asked = {"temperature": 0, "max_tokens": 50, "max_turns": 3}
    done = engine.run(question, [read_file], **asked)
    assert [result.call.arguments for result in done.results] == [{"path": "notes.txt"}]
    assert "BANANA" in done.content
    assert (done.turns, done.finish_reason) == (2, "stop")
    again = asyncio.run(engine.arun(question, [read_file], **asked))
    assert again.content == done.content


def test_a_loop_that_does_not_end_by_itself(engine: Engine) -> None:
    """Such a small model repeats a call; max_turns ends that, and the calls were made."""

    def population(city: str) -> str:
        """Return how many people live in a city.

        Args:
            city: Name of the city.
        """
        return f"{city} has 318,506 inhabitants."

    asked = {"temperature": 0, "max_tokens": 40, "max_turns": 2}
    done = engine.run("How many people live in Bonn?", [population], **asked)
    assert done.turns == 2
    assert done.results[0].call.arguments == {"city": "Bonn"}
    assert done.results[0].content == "Bonn has 318,506 inhabitants."
