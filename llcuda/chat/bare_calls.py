"""Reads answers that are nothing but calls, as JSON without the delimiters of the template.

Small models write `{"name": ..., "arguments": ...}` or a fenced block of it where their template
wants delimiters around it. Such an answer is a call when nothing else stands in it, when it names
tools, and when their schemas admit the arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from llcuda.chat.stream_reader import Reading, StreamReader
from llcuda.chat.tool_arguments import Schema, to_json

BareCall: TypeAlias = tuple[str, str]  # name, arguments as JSON

_NAME, _ARGUMENTS = '"name"', ('"arguments"', '"parameters"')
_FENCE = "```"
_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
_LETTERS = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"[-+.0-9eE]+")
_MAX_DEPTH = 64
_MAX_SCALAR_STEPS = 50  # of comparing a number or a text with its schema before the end
_INVALID = object()


def read_bare_calls(reader: StreamReader, tools: Mapping[str, Schema]) -> Reading[list[BareCall]]:
    """Read an answer of calls, up to the end of the text.

    Waits only as long as the text can still become such an answer: JSON so far, with these keys,
    the beginning of a tool's name, and values of the types in its schema.

    Args:
        reader: The text.
        tools: The schema of each tool's parameters by the tool's name.

    Returns:
        The calls; none for another text, of which nothing is read then.
    """
    reader.mark()
    calls = yield from _read_message(reader, tools)
    if calls:
        reader.unmark()
    else:
        reader.rewind()
    return calls


def _read_message(reader: StreamReader, tools: Mapping[str, Schema]) -> Reading[list[BareCall]]:
    calls: list[BareCall] = []
    yield from reader.skip_space()
    fenced = yield from reader.skip(_FENCE)
    if fenced:
        yield from reader.skip("json")
        yield from reader.skip_space()
    listed = yield from reader.skip("[")
    while True:
        yield from reader.skip_space()
        if (call := (yield from _read_call(reader, tools))) is None:
            return []
        calls.append(call)
        yield from reader.skip_space()
        if not listed or not (yield from reader.skip(",")):
            break
    if listed and not (yield from reader.skip("]")):
        return []
    yield from reader.skip_space()
    if fenced and not (yield from reader.skip(_FENCE)):
        return []
    yield from reader.skip_space()
    return [] if (yield from reader.peek()) else calls


def _read_call(reader: StreamReader, tools: Mapping[str, Schema]) -> Reading[BareCall | None]:
    """Read an object with a name and arguments, in any order; None for another one."""
    names = {form(name): name for name in tools for form in (to_json, json.dumps)}
    name = arguments = ""
    if not (yield from reader.skip("{")):
        return None
    while True:
        yield from reader.skip_space()
        key = yield from reader.one_of(
            (*(() if name else (_NAME,)), *(() if arguments else _ARGUMENTS))
        )
        yield from reader.skip_space()
        if not key or not (yield from reader.skip(":")):
            return None
        yield from reader.skip_space()
        if key == _NAME:
            if not (written := (yield from reader.one_of(tuple(names)))):
                return None
            name = names[written]
        else:
            reader.start_recording()
            schema = tools[name] if name else Schema({"type": "object"}, None)
            complete = yield from _read_value(reader, schema, 0)
            arguments = reader.stop_recording()
            if not complete:
                return None
        yield from reader.skip_space()
        if (yield from reader.skip("}")):
            break
        if not (yield from reader.skip(",")):
            return None
    fits = name and arguments and tools[name].admits(json.loads(arguments))
    return (name, arguments) if fits else None


def _read_value(reader: StreamReader, schema: Schema, depth: int) -> Reading[bool]:
    """Read a JSON value; return whether it is complete, and may be admitted by its schema."""
    kind = _KINDS.get((yield from reader.peek()), "number")
    types = schema.types()
    numbers = kind == "number" and "integer" in types
    if depth > _MAX_DEPTH or (types and kind not in types and not numbers):
        return False
    if kind == "object":
        return (yield from _read_object(reader, schema, depth + 1))
    if kind == "array":
        return (yield from _read_array(reader, schema.items(), depth + 1))
    if kind == "string":
        text = yield from _read_string(reader)
    elif kind == "number":
        text = yield from reader.word(_NUMBER)
    else:
        text = yield from reader.one_of(("true", "false", "null"))
    value = _loads(text)
    return value is not _INVALID and schema.admits(value, _MAX_SCALAR_STEPS, otherwise=True)


def _read_object(reader: StreamReader, schema: Schema, depth: int) -> Reading[bool]:
    seen: set[Any] = set()
    yield from reader.skip("{")
    yield from reader.skip_space()
    if (yield from reader.skip("}")):
        return True
    while True:
        key = _loads((yield from _read_string(reader)))
        if not isinstance(key, str) or key in seen or not schema.allows(key):
            return False
        seen.add(key)
        yield from reader.skip_space()
        if not (yield from reader.skip(":")):
            return False
        yield from reader.skip_space()
        if not (yield from _read_value(reader, schema.property(key), depth)):
            return False
        yield from reader.skip_space()
        if not (yield from reader.skip(",")):
            return (yield from reader.skip("}"))
        yield from reader.skip_space()


def _read_array(reader: StreamReader, items: Schema, depth: int) -> Reading[bool]:
    yield from reader.skip("[")
    yield from reader.skip_space()
    if (yield from reader.skip("]")):
        return True
    while (yield from _read_value(reader, items, depth)):
        yield from reader.skip_space()
        if not (yield from reader.skip(",")):
            return (yield from reader.skip("]"))
        yield from reader.skip_space()
    return False


def _read_string(reader: StreamReader) -> Reading[str]:
    """Read a string as it is written; "" when it is none."""
    parts: list[str] = []
    if not (yield from reader.skip('"', parts.append)):
        return ""
    while not (yield from reader.skip('"', parts.append)):
        parts.append((yield from reader.word(_LETTERS)))
        if (yield from reader.skip("\\", parts.append)):
            letter = yield from reader.peek()
            if not letter or letter not in '"\\/bfnrtu':
                return ""
            yield from reader.skip(letter, parts.append)
        elif not parts[-1]:
            return ""
    return "".join(parts)


def _loads(text: str) -> Any:
    """Return the value of JSON, `_INVALID` for other text."""
    try:
        return json.loads(text)
    except ValueError:
        return _INVALID
