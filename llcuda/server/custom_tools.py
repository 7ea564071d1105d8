"""Custom tools of /v1/responses, whose input is a text: to the model, functions of one argument."""

from __future__ import annotations

import json
from typing import Any

from llcuda.params import wrong_value
from llcuda.server.fields import call_arguments, text_of
from llcuda.structured.grammar import INPUT_GRAMMAR

CUSTOM = "custom"  # the type of such a tool
_INPUT = "input"  # the argument


def custom_function(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    """Return the function that stands for a custom tool.

    Args:
        where: The place of the tool, such as "tools[0]".
        tool: The tool.

    Raises:
        ArgumentError: The tool has another shape, or a format that cannot be kept.
    """
    schema: dict[str, Any] = {"type": "string"}
    function: dict[str, Any] = {"name": text_of(where, tool, "name")}
    if tool.get("description") is not None:
        function["description"] = text_of(where, tool, "description")
    syntax, definition = _grammar_of(f"{where}.format", tool.get("format"))
    if syntax == "regex":
        schema["pattern"] = f"^(?:{definition})$"
    elif syntax == "lark":
        function[INPUT_GRAMMAR] = definition
    parameters = {"type": "object", "properties": {_INPUT: schema}, "required": [_INPUT]}
    return {**function, "parameters": parameters}


def _grammar_of(where: str, given: Any) -> tuple[str, str]:
    """Return the syntax and the definition of a format; "" for texts of any form."""
    if given is None or (kind := text_of(where, given, "type")) == "text":
        return "", ""
    if kind != "grammar":
        raise wrong_value(f"{where}.type", kind, "expected text or grammar")
    syntax, definition = text_of(where, given, "syntax"), text_of(where, given, "definition")
    if syntax not in ("lark", "regex"):
        raise wrong_value(f"{where}.syntax", syntax, "expected lark or regex")
    return syntax, definition


def has_grammar(tool: dict[str, Any]) -> bool:
    """Whether the input of a custom tool, which is checked, follows a grammar.

    Args:
        tool: The tool.
    """
    return bool(tool.get("format")) and tool["format"]["type"] == "grammar"


def arguments_of(text: str) -> str:
    """Return the arguments of the function for an input.

    Args:
        text: The input.
    """
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def input_of(arguments: str) -> str | None:
    """Return the input as far as it has come; None before its beginning.

    Args:
        arguments: The arguments of the function, which may be unfinished.
    """
    text = call_arguments(arguments).get(_INPUT)
    return text if isinstance(text, str) else None
