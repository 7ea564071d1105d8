"""Translation of response formats to grammars for llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from llcuda.errors import ArgumentError
from llcuda.params import wrong_argument, wrong_value
from llcuda.structured.classes import class_schema
from llcuda.structured.cost import UNKNOWN, regex_cost
from llcuda.structured.escaped_lark import START, escaped_rules
from llcuda.structured.gbnf import to_lark
from llcuda.structured.json_schema import MAX_BYTES, PreparedSchema, prepare

# A space, or line breaks and an indentation; without a bound models write blanks for ever.
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
_ANY_TEXT = "(?s:.)*"
# What a token can stand in or beside in Lark: a comment, a text, a regular expression.
_LARK_PART = re.compile(
    r'//[^\n]*|"(?:\\.|[^"\\\n])*+"|/(?:\\.|[^/\\\n])++/|(?P<token><[^<>\s]+>)', re.DOTALL
)


class GrammarSource(NamedTuple):
    """A grammar for llguidance.

    Attributes:
        text: llguidance's Lark, or its JSON with several grammars; tells grammars apart, too.
        cost: What it costs to compile; see `llcuda.structured.cost`.
        trial: A grammar that costs as much and names no tokens of a vocabulary.
        narrowing: See `llcuda.structured.json_schema.PreparedSchema`.
    """

    text: str
    cost: float
    trial: str
    narrowing: ArgumentError | None = None


class HasGrammar(Protocol):
    """A compiled grammar, as far as it becomes a part of another one."""

    @property
    def source(self) -> str:
        """The grammar as llguidance gets it."""

    @property
    def cost(self) -> float:
        """What it costs to compile."""


class HasControlTokens(Protocol):
    """A model, as far as grammars of tool calls need it."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every control token by its name."""

    @property
    def eog_tokens(self) -> frozenset[int]:
        """The tokens that end a text."""

    def piece_bytes(self, token: int, special: bool = False) -> bytes:
        """Return the text of a token; `special`: the name of a control token."""


def grammar_source(
    response_format: Any, model: HasControlTokens, compact: bool, *, closes: bool = True
) -> GrammarSource:
    """Translate a response format.

    Args:
        response_format: See `llcuda.structured.compile`.
        model: Where the control tokens are looked up that tool calls name.
        compact: Whether JSON has no whitespace.
        closes: Whether objects of a JSON schema have no further properties unless it speaks of
            them.

    Raises:
        ArgumentError: The format is unknown, or cannot be honoured.
    """
    if (schema := class_schema(response_format)) is not None:
        return _json(schema, compact, closes)
    if not isinstance(response_format, Mapping):
        given = type(response_format).__name__
        raise _refused(
            f"expected a dict, a Pydantic model, a TypedDict or a dataclass, not {given}",
            _example(response_format),
        )
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        remedy = _SCHEMA if kind in _JSON_TYPES or _SCHEMA_WORDS & response_format.keys() else None
        if kind == "json":
            remedy = _example(kind)
        raise _refused(f"type {kind!r} is not one of {', '.join(_KINDS)}", remedy)
    expected, fields = _FIELDS[kind], response_format.keys() - {"type"}
    if kind == "json_object" and fields == {"schema"}:  # llama-cpp-python's and older servers' form
        return _json(response_format["schema"], compact, closes)
    if fields != expected:
        raise _refused(f"type {kind!r} has the fields {sorted(expected)}, not {sorted(fields)}")
    if kind == "text":
        raise _refused("type 'text' restricts nothing, so that there is no grammar of it")
    if kind == "json_object":
        return _json({"type": "object"}, compact, closes)
    if kind == "json_schema":
        return _json(_schema_of(response_format["json_schema"]), compact, closes)
    if kind == "choice":
        return _choice(response_format["choices"])
    if kind == "tools":
        return _tools(response_format, model, compact)
    if kind == "tools or content":
        return _tools_or_content(response_format, model, compact)
    text = _text(kind, response_format["regex" if kind == "regex" else "grammar"])
    if kind == "regex":
        # The whole text matches anyway, and llguidance knows no anchors.
        text = re.sub(r"(?<!\\)((?:\\\\)*)\$$", r"\1", text.removeprefix("^"))
        source = json.dumps({"grammars": [{"lark_grammar": f"start: {_regex(text)}"}]})
        return GrammarSource(source, regex_cost(text), source)
    lark, cost = to_lark(text) if kind == "gbnf" else (text, UNKNOWN)
    return GrammarSource(lark, cost, _LARK_PART.sub(_without_token, lark))


_FIELDS: dict[str, set[str]] = {
    "text": set(),
    "json_object": set(),
    "json_schema": {"json_schema"},
    "regex": {"regex"},
    "choice": {"choices"},
    "lark": {"grammar"},
    "gbnf": {"grammar"},
    "tools": {"calls", "trigger", "required", "parallel"},
    "tools or content": {"calls", "parallel", "bare", "free", "content"},
}
_KINDS = [kind for kind in _FIELDS if not kind.startswith("tools")]  # which callers write

_SCHEMA = 'a JSON schema is given as {"type": "json_schema", "json_schema": {"schema": ...}}'
_SCHEMA_WORDS = {"$ref", "allOf", "anyOf", "const", "enum", "items", "oneOf", "properties"}
_JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def _example(response_format: Any) -> str | None:
    """Return what to write in place of a text or a list, which other libraries take."""
    if isinstance(response_format, str):
        if response_format in ("json", "json_object"):
            return 'give {"type": "json_object"}'
        return 'a regular expression is given as {"type": "regex", "regex": "..."}'
    if isinstance(response_format, list | tuple | set | frozenset):
        return 'choices are given as {"type": "choice", "choices": ["...", "..."]}'
    return None


def schemas_of(response_format: Any) -> list[Any]:
    """Return the JSON schemas of a response format that `grammar_source` knows."""
    if (schema := class_schema(response_format)) is not None:
        return [schema]
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "json_schema":
        return [_schema_of(response_format["json_schema"])]
    if kind == "json_object" and "schema" in response_format:
        return [response_format["schema"]]
    calls = response_format["calls"] if kind in ("tools", "tools or content") else []
    return [call["schema"] for call in calls]


def _refused(problem: str, remedy: str | None = None) -> ArgumentError:
    return wrong_argument("response_format", problem, remedy)


def _text(kind: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise _refused(f"type {kind!r} needs a text that is not blank")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _refused(f"the text cannot be encoded as UTF-8: {error}") from None
    if size > MAX_BYTES:
        raise _refused(f"it has {size} bytes; at most {MAX_BYTES} are allowed")
    return text


def _without_token(part: re.Match[str]) -> str:
    return '"."' if part["token"] else part.group()


def _regex(text: str) -> str:
    return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", text).replace("\n", "\\n") + "/"


def _schema_of(json_schema: Any) -> Any:
    if not isinstance(json_schema, Mapping) or "schema" not in json_schema:
        raise _refused("json_schema must be an object with the field schema")
    unknown = json_schema.keys() - {"schema", "name", "description", "strict"}
    if unknown:
        raise _refused(f"json_schema has no field {', '.join(map(repr, unknown))}")
    return json_schema["schema"]


def _json(schema: Any, compact: bool, closes: bool) -> GrammarSource:
    with_spaces, prepared = _with_spaces(schema, compact, closes)
    source = json.dumps({"grammars": [{"json_schema": with_spaces}]})
    return GrammarSource(source, prepared.cost, source, prepared.narrowing)


def _with_spaces(schema: Any, compact: bool, closes: bool) -> tuple[dict[str, Any], PreparedSchema]:
    """Return a schema as llguidance reads it, with its options."""
    spaces = {"whitespace_flexible": False} if compact else {"whitespace_pattern": WHITESPACE}
    prepared = prepare(schema, closes=closes)
    return {**prepared.schema, "x-guidance": spaces | prepared.escapes}, prepared


def _choice(choices: Any) -> GrammarSource:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence) or not choices:
        raise _refused("choices must be a list of texts")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise _refused(f"choices: expected texts that are not empty, not {choice!r}")
    text = " | ".join(_literal(choice) for choice in choices)
    source = _text("choice", f"start: CHOICE\nCHOICE: {text}")
    return GrammarSource(source, len(source), source)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# --- tool calls ---

INPUT_GRAMMAR = "input_grammar"  # the key of a function: the Lark grammar of its only argument


def tool_format(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any] = "auto",
    *,
    around: Callable[[str], tuple[str, str]],
    trigger: str = "",
    parallel: bool = True,
) -> dict[str, Any]:
    """Return the response_format of texts whose tool calls follow the schemas of the tools.

    Args:
        tools: Tools in OpenAI's form: `{"type": "function", "function": {"name": ...}}`. A function
            whose only argument is a text may have its grammar, in Lark, as `input_grammar`.
        tool_choice: OpenAI's: "auto" allows any text until a call begins; "required", or a tool to
            call, makes the text begin with a call.
        around: Returns the text before and behind the arguments of the function that it is given
            by name; control tokens stand in it by their names.
        trigger: What each call begins with; after it a text is a call. "": a text that begins with
            an object is a call.
        parallel: Whether a text may have several calls.

    Returns:
        A dict for `response_format`.

    Raises:
        ArgumentError: A tool has no name, `tool_choice` names none of them, or a call does not
            begin with `trigger`.
    """
    named = {_function(tool)["name"]: _function(tool) for tool in tools}
    required = tool_choice != "auto"
    if isinstance(tool_choice, Mapping):
        name = _function(tool_choice)["name"]
        if name not in named:
            raise wrong_value("tool_choice", name, f"expected one of {', '.join(named)}")
        named, parallel = {name: named[name]}, False
    elif not isinstance(tool_choice, str) or tool_choice not in ("auto", "required"):
        raise wrong_value("tool_choice", tool_choice, "expected 'auto', 'required' or a function")
    if not named:
        raise wrong_argument("tools", "expected at least one")
    calls = []
    for name, function in named.items():
        before, after = around(name)
        if not before.startswith(trigger):
            raise wrong_value("trigger", trigger, f"a call of {name!r} does not begin with it")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        call = {"name": name, "before": before, "schema": parameters, "after": after}
        if (lark := function.get(INPUT_GRAMMAR)) is not None:
            if not isinstance(lark, str) or len(parameters.get("properties", ())) != 1:
                rule = f"{INPUT_GRAMMAR} of {name!r}: expected a text, and one property"
                raise wrong_argument("tools", rule)
            call["lark"] = lark
        calls.append(call)
    return {
        "type": "tools",
        "calls": calls,
        "trigger": trigger,
        "required": required,
        "parallel": parallel,
    }


def tools_or_content(
    calls: Mapping[str, Any] | None, content: HasGrammar, *, bare: bool, free: Sequence[str]
) -> dict[str, Any]:
    """Return the response_format of texts that are calls, or content in a format of its own.

    Args:
        calls: The format of the calls by `tool_format`; None where they are not JSON.
        content: The compiled format of the content.
        bare: Whether a call may also be an object with name and arguments, without delimiters.
        free: Delimiters behind which a text is free, for calls that are not JSON.

    Raises:
        ArgumentError: The content's format is that of calls itself.
    """
    if _is_of_calls(content.source):
        raise _refused("expected the format of a content, not one of calls")
    return {
        "type": "tools or content",
        "calls": [] if calls is None else calls["calls"],
        "parallel": calls is not None and calls["parallel"],
        "bare": bare,
        "free": list(free),
        "content": content,
    }


def _is_of_calls(source: str) -> bool:
    return source.startswith("{") and len(json.loads(source)["grammars"]) > 1


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise wrong_argument(
            "tools", f"expected tools of type function with a name, not {tool!r:.200}"
        )
    return function


def _names(model: HasControlTokens) -> dict[str, int]:
    """Return the control tokens by their texts, those that end a text included."""
    ends = {model.piece_bytes(end, special=True): end for end in model.eog_tokens}
    names = {**model.control_tokens, **{n.decode(errors="replace"): t for n, t in ends.items()}}
    names.pop("", None)
    return names


def _schemas(calls: Sequence[Mapping[str, Any]], compact: bool) -> list[PreparedSchema]:
    """Return the schemas of calls as llguidance reads them."""
    prepared = []
    for call in calls:
        schema, parts = _with_spaces(call["schema"], compact, True)
        cost = UNKNOWN if "lark" in call else parts.cost
        prepared.append(parts._replace(schema=schema, cost=cost))
    return prepared


def _call_grammars(
    calls: Sequence[Mapping[str, Any]], prepared: Sequence[PreparedSchema]
) -> list[dict[str, Any]]:
    """Return the grammars of calls' arguments: JSON schemas, or of objects with one text."""
    grammars: list[dict[str, Any]] = []
    for i, (call, parts) in enumerate(zip(calls, prepared, strict=True)):
        if "lark" not in call:
            grammars.append({"name": f"schema_{i}", "json_schema": parts.schema})
            continue
        [name] = call["schema"]["properties"]
        begin = f'"{{" SPACE? {_literal(_literal(name))} SPACE? ":" SPACE? "\\""'
        start = f'start: {begin} {START} "\\"" SPACE? "}}"\nSPACE: /{WHITESPACE}/'
        lark = f"{start}\n{escaped_rules(call['lark'])}"
        grammars.append({"name": f"schema_{i}", "lark_grammar": lark})
    return grammars


def _sources(
    start: str, lines: Sequence[str], grammars: Sequence[Mapping[str, Any]],
    cost: float, prepared: Sequence[PreparedSchema],
) -> GrammarSource:  # fmt: skip
    """Return a grammar of calls, whose trial has the other grammars alone."""
    schemas = " | ".join(f"@{grammar['name']}" for grammar in grammars)
    source, trial = (
        json.dumps({"grammars": [{"name": "tools", "lark_grammar": lark}, *grammars]})
        for lark in ("\n".join([f"start: {start}", *lines]), f"start: {schemas}")
    )
    narrowing = next((parts.narrowing for parts in prepared if parts.narrowing), None)
    return GrammarSource(source, cost + sum(parts.cost for parts in prepared), trial, narrowing)


def _tools_or_content(
    tool_format: Mapping[str, Any], model: HasControlTokens, compact: bool
) -> GrammarSource:
    names, content = _names(model), tool_format["content"]
    prepared = _schemas(tool_format["calls"], compact)
    lines = [f"BREAK: /[ \\n]{{1,2}}/\nSPACE: /{WHITESPACE}/\nTEXT: /{_ANY_TEXT}/"]
    options = ["@content"]
    for i, call in enumerate(tool_format["calls"]):
        before, after = _parts(call["before"], names), _parts(call["after"], names)
        lines.append(f"call_{i}: {before} @schema_{i} {after}")
        if tool_format["bare"]:
            name = _literal(_literal(call["name"]))
            lines.append(
                f'bare_{i}: "{{" SPACE? "\\"name\\"" SPACE? ":" SPACE? {name} SPACE? "," SPACE? '
                f'"\\"arguments\\"" SPACE? ":" SPACE? @schema_{i} SPACE? "}}"'
            )
            options.append(f"bare_{i}")
    if prepared:
        lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(prepared))))
        options.append("call (BREAK? call)*" if tool_format["parallel"] else "call")
    options += [f"{_parts(mark, names)} TEXT" for mark in tool_format["free"]]
    if isinstance(content, Mapping):  # of a compiled grammar that was pickled
        form, cost, *_ = grammar_source(content, model, compact)
    else:
        form, cost = content.source, content.cost
    inner = json.loads(form)["grammars"][0] if form.startswith("{") else {"lark_grammar": form}
    grammars = [
        *_call_grammars(tool_format["calls"], prepared),
        {**inner, "name": "content"},
    ]
    return _sources(" | ".join(options), lines, grammars, cost, prepared)


def _tools(tool_format: Mapping[str, Any], model: HasControlTokens, compact: bool) -> GrammarSource:
    names = _names(model)
    trigger, required = tool_format["trigger"], tool_format["required"]
    prepared = _schemas(tool_format["calls"], compact)
    lines = []
    triggered = 0 if required else len(trigger)
    for i, call in enumerate(tool_format["calls"]):
        before = _parts(call["before"][triggered:], names)
        after = _parts(call["after"], names)
        head = "" if required or not trigger else "trigger "
        lines.append(f"call_{i}: {head}{before} @schema_{i} {after}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(prepared))))
    if required:
        start = "call (BREAK? call)*" if tool_format["parallel"] else "call"
        lines.append("BREAK: /[ \\n]{1,2}/")
    elif not trigger:
        start = 'call | OTHER | ""'
        lines.append(f"OTHER: /[^{{\\s]{_ANY_TEXT}/")
    else:
        start = "call* TEXT" if tool_format["parallel"] else "call | TEXT"
        mark = _parts(trigger, names)
        special = mark.startswith("<[")
        lines.append(f"trigger{'' if special else '[lazy]'}: TEXT {mark}")
        lines.append(f"TEXT: /{_ANY_TEXT}/")
    grammars = _call_grammars(tool_format["calls"], prepared)
    return _sources(start, lines, grammars, 0.0, prepared)


def _parts(text: str, names: Mapping[str, int]) -> str:
    """Translate a text, with the control tokens in it as such."""
    present = sorted((name for name in names if name in text), key=len, reverse=True)
    pattern = "|".join(map(re.escape, present))
    parts = re.split(f"({pattern})", text) if present else [text]
    return " ".join(
        f"<[{names[part]}]>" if part in names else _literal(part) for part in parts if part
    )
