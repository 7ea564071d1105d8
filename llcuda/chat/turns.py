"""Drops the oldest turns of a conversation that is longer than its context.

A turn is a user's message and all messages up to the next one. Knows neither tokens nor templates:
a function that it is given counts the tokens of a conversation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

INSTRUCTIONS = ("system", "developer")  # roles whose messages stay at the beginning


def drop_oldest(
    messages: Sequence[Any],
    count: Callable[[Sequence[Any]], int],
    limit: int,
    step: int,
) -> tuple[list[Any], int]:
    """Return the messages that stay, and how many were dropped.

    Instructions at the beginning, the last question, and the last calls of tools after it with
    their results always stay. Where one turn is dropped, a few more are, so that the beginning of
    the prompt stays the same, and cached, for some turns: the dropped tokens are rounded up to a
    multiple of `step`.

    Args:
        messages: The messages of the conversation.
        count: Returns the tokens of a conversation.
        limit: The most tokens that the conversation may have.
        step: Tokens to drop at once.
    """
    whole = count(messages)
    if whole <= limit:
        return list(messages), 0
    parts = _droppable(messages)

    def rest(number: int) -> list[Any]:
        """Return the messages without the oldest `number` parts."""
        gone = {place for part in parts[:number] for place in part}
        return [message for place, message in enumerate(messages) if place not in gone]

    goal = whole - -(-(whole - limit) // step) * step
    numbers = range(len(parts) + 1)
    number = bisect_left(numbers, True, key=lambda n: count(rest(n)) <= goal)
    if number > len(parts):  # so little cannot be reached
        number = bisect_left(numbers, True, key=lambda n: count(rest(n)) <= limit)
    kept = rest(min(number, len(parts)))
    return kept, len(messages) - len(kept)


def _droppable(messages: Sequence[Any]) -> list[range]:
    """Return the places of each part that may be dropped, oldest first.

    The parts are turns; within the last one, each answer with the results of its calls.
    """
    roles = [role_of(message) for message in messages]
    begin = next((i for i, role in enumerate(roles) if role not in INSTRUCTIONS), len(roles))
    questions = [i for i in range(begin, len(roles)) if roles[i] == "user"]
    last = questions[-1] if questions else begin
    starts = sorted({begin, *questions, last})
    turns = [range(a, b) for a, b in pairwise(starts)]
    answers = [i for i in range(last + 1, len(roles)) if roles[i] == "assistant"]
    return turns + [range(a, b) for a, b in pairwise(answers)]


def role_of(message: Any) -> Any:
    """Return the role of a message, an object or a mapping; None where it has none."""
    return message.get("role") if hasattr(message, "get") else getattr(message, "role", None)
