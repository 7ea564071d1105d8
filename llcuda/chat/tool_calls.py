"""ToolCall: a call that a model has written, with its arguments as Python's data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a model has written.

    Attributes:
        id: The name of the call, which the message with its result repeats.
        name: The name of the tool.
        arguments: The arguments by name; empty where `problem` says why.
        text: The arguments as the model wrote them.
        problem: Why the arguments cannot be read; None where they can.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    text: str
    problem: str | None = None

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> ToolCall:
        """Return the call of an entry of a message's "tool_calls".

        Args:
            call: The entry, in OpenAI's shape.
        """
        function = call["function"]
        text = function["arguments"]
        arguments: Any = text
        problem = None
        if isinstance(text, str):
            try:
                arguments = json.loads(text or "{}")
            except ValueError as error:
                problem = f"the arguments are no JSON: {error}"
        else:
            text = json.dumps(arguments, ensure_ascii=False)
        if problem is None and not isinstance(arguments, dict):
            problem = "the arguments are no JSON object"
        return cls(
            call.get("id") or "", function["name"], {} if problem else arguments, text, problem
        )

    def __str__(self) -> str:
        return f"{self.name}({self.text})"
