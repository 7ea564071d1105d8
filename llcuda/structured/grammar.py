"""Formats of structured output as grammars for llguidance, each form checked.

`source` gives the grammar's text, by which compiled formats are kept, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from llcuda.errors import ArgumentError
from llcuda.structured.gbnf import to_lark
from llcuda.structured.json_schema import MAX_BYTES, prepare

# A space, or line breaks and what indents the next line: models that may write any number do.
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
_ANY_TEXT = "(?s:.)*"


class Named(Protocol):
    """What grammars of tools need of a model."""

    def pieces(self) -> tuple[list[bytes], list[int]]:
        """Return the texts of all tokens, and those that are names of control tokens."""


def source(response_format: Any, model: Named, compact: bool) -> str:
    """Return the grammar of a format. Raises ArgumentError for what is none."""
    if isinstance(response_format, type) and hasattr(response_format, "model_json_schema"):
        return _json(response_format.model_json_schema(), compact)
    if not isinstance(response_format, Mapping):
        what = type(response_format).__name__
        raise ArgumentError(f"response_format must be a dict or a Pydantic model, not {what}")
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ArgumentError(
            f"response_format: type {kind!r} is not one of {', '.join(_FIELDS)}",
            parameter="response_format",
        )
    fields, given = _FIELDS[kind], response_format.keys() - {"type"}
    if given != fields:
        raise ArgumentError(
            f"response_format: type {kind!r} has the fields {sorted(fields)}, not {sorted(given)}",
            parameter="response_format",
        )
    if kind == "json_object":
        return _json({"type": "object"}, compact)
    if kind == "json_schema":
        return _json(_schema_of(response_format["json_schema"]), compact)
    if kind == "choice":
        return _choice(response_format["choices"])
    if kind == "tools":
        return _tools(response_format, model, compact)
    text = _text(kind, response_format["regex" if kind == "regex" else "grammar"])
    if kind == "regex":
        # The whole text matches anyway, and llguidance knows no anchors.
        text = re.sub(r"(?<!\\)((?:\\\\)*)\$$", r"\1", text.removeprefix("^"))
        return json.dumps({"grammars": [{"lark_grammar": f"start: {_regex(text)}"}]})
    return to_lark(text) if kind == "gbnf" else text


_FIELDS: dict[str, set[str]] = {
    "json_object": set(),
    "json_schema": {"json_schema"},
    "regex": {"regex"},
    "choice": {"choices"},
    "lark": {"grammar"},
    "gbnf": {"grammar"},
    "tools": {"calls", "trigger", "required", "parallel"},
}


def _text(kind: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(
            f"response_format: expected a text that is no blank for type {kind!r}",
            parameter="response_format",
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"response_format: this is no text: {error}", parameter="response_format"
        ) from None
    if size > MAX_BYTES:
        raise ArgumentError(
            f"response_format: {size} bytes, at most {MAX_BYTES} are allowed",
            parameter="response_format",
        )
    return text


def _regex(text: str) -> str:
    return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", text).replace("\n", "\\n") + "/"


def _schema_of(given: Any) -> Any:
    if not isinstance(given, Mapping) or "schema" not in given:
        raise ArgumentError(
            "response_format: json_schema must be a dict with the field schema",
            parameter="response_format",
        )
    unknown = given.keys() - {"schema", "name", "description", "strict"}
    if unknown:
        raise ArgumentError(
            f"response_format: json_schema has no field {', '.join(map(repr, unknown))}",
            parameter="response_format",
        )
    return given["schema"]


def _json(schema: Any, compact: bool) -> str:
    return json.dumps({"grammars": [{"json_schema": _with_spaces(schema, compact)}]})


def _with_spaces(schema: Any, compact: bool) -> dict[str, Any]:
    spaces = {"whitespace_flexible": False} if compact else {"whitespace_pattern": WHITESPACE}
    return {**prepare(schema), "x-guidance": spaces}


def _choice(choices: Any) -> str:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence) or not choices:
        raise ArgumentError(
            "response_format: choices must be a list of texts", parameter="response_format"
        )
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise ArgumentError(
                f"response_format: choices: expected texts, not {choice!r}",
                parameter="response_format",
            )
    text = " | ".join(_literal(choice) for choice in choices)
    return _text("choice", f"start: CHOICE\nCHOICE: {text}")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# --- tool calls ---


def tool_format(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any] = "auto",
    *,
    around: Callable[[str], tuple[str, str]],
    trigger: str = "",
    parallel: bool = True,
) -> dict[str, Any]:
    """Return the response_format of texts whose tool calls follow the tools' schemas.

    tools, tool_choice: OpenAI's; "auto" allows any text until a call begins, "required" and a
    function's name begin with one. around: the text before and behind a function's arguments, by
    its name, control tokens in it by theirs. trigger: what all these begin with, after which a text
    is a call; "" where an object that begins the text is one. parallel: whether several may come.
    Raises ArgumentError.
    """
    named = {_function(tool)["name"]: _function(tool) for tool in tools}
    required = tool_choice != "auto"
    if isinstance(tool_choice, Mapping):
        name = _function(tool_choice)["name"]
        if name not in named:
            raise ArgumentError(f"tool_choice: there is no tool {name!r}", parameter="tool_choice")
        named, parallel = {name: named[name]}, False
    elif tool_choice not in ("auto", "required"):
        raise ArgumentError(
            f"tool_choice={tool_choice!r}: expected 'auto', 'required' or a function",
            parameter="tool_choice",
        )
    if not named:
        raise ArgumentError("tools: expected at least one", parameter="tools")
    calls = []
    for name, function in named.items():
        before, after = around(name)
        if not before.startswith(trigger):
            raise ArgumentError(f"a call of {name!r} does not begin with {trigger!r}")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        calls.append({"before": before, "schema": parameters, "after": after})
    return {
        "type": "tools",
        "calls": calls,
        "trigger": trigger,
        "required": required,
        "parallel": parallel,
    }


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ArgumentError(f"expected a tool of type function with a name, not {tool!r:.200}")
    return function


def _tools(given: Mapping[str, Any], model: Named, compact: bool) -> str:
    pieces, tokens = model.pieces()
    names = {pieces[token].decode(errors="replace"): token for token in tokens if pieces[token]}
    trigger, required = given["trigger"], given["required"]
    lines, grammars = [], []
    lead = 0 if required else len(trigger)
    for i, call in enumerate(given["calls"]):
        before, after = (_parts(text, names) for text in (call["before"][lead:], call["after"]))
        head = "" if required or not trigger else "trigger "
        lines.append(f"call_{i}: {head}{before} @schema_{i} {after}")
        schema = _with_spaces(call["schema"], compact)
        grammars.append({"name": f"schema_{i}", "json_schema": schema})
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(grammars))))
    if required:
        start = "call (BREAK? call)*" if given["parallel"] else "call"
        lines.append("BREAK: /[ \\n]{1,2}/")
    elif not trigger:
        start = 'call | OTHER | ""'
        lines.append(f"OTHER: /[^{{\\s]{_ANY_TEXT}/")
    else:
        start = "call* TEXT" if given["parallel"] else "call | TEXT"
        mark = _parts(trigger, names)
        special = mark.startswith("<[")
        lines.append(f"trigger{'' if special else '[lazy]'}: TEXT {mark}")
        lines.append(f"TEXT: /{_ANY_TEXT}/")
    lark = "\n".join([f"start: {start}", *lines])
    return json.dumps({"grammars": [{"name": "tools", "lark_grammar": lark}, *grammars]})


def _parts(text: str, names: Mapping[str, int]) -> str:
    """Return a text in Lark, with its control tokens as such."""
    found = sorted((name for name in names if name in text), key=len, reverse=True)
    pattern = "|".join(map(re.escape, found))
    parts = re.split(f"({pattern})", text) if found else [text]
    return " ".join(
        f"<[{names[part]}]>" if part in names else _literal(part) for part in parts if part
    )
