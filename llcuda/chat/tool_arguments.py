"""The arguments of calls as JSON, from the notations in which models write them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

QUOTE = '<|"|>'  # around texts in Gemma's notation
_GEMMA_TOKEN = re.compile(
    r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<sign>[{}\[\],])|(?P<bare>(?:(?!<\|"\|>)[^{}\[\],])+)', re.S
)
_GEMMA_KEY = re.compile(r"\s*([^:\s]+)\s*:\s*")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_LITERALS = {"true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(.)", re.S)
_ESCAPED = "\\'\"abfnrtvxuUN01234567\n"
_MAX_DEPTH = 16  # of references and alternatives in a schema


def to_json(value: Any) -> str:
    """Return JSON in which letters stay letters."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Schema:
    """A place in the schema of a tool's parameters.

    Attributes:
        value: The schema there; None when it is unknown.
        root: The whole schema, to which references refer.
    """

    value: Any
    root: Any

    def types(self) -> frozenset[str]:
        """Return the types that a value may have; nothing when it may have any."""
        types: set[str] = set()
        for branch in self._branches():
            named = branch.get("type")
            if isinstance(named, str):
                types.add(named)
            elif isinstance(named, list) and named:
                types.update(map(str, named))
            elif isinstance(values := branch.get("enum", [branch.get("const")]), list) and (
                "enum" in branch or "const" in branch
            ):
                types.update(map(_type_of, values))
            else:
                return frozenset()
        return frozenset(types)

    def property(self, name: str) -> Schema:
        """Return the schema of a property of an object."""
        for branch in self._branches():
            properties = branch.get("properties")
            if isinstance(properties, dict) and name in properties:
                return Schema(properties[name], self.root)
        return self._first("additionalProperties")

    def items(self) -> Schema:
        """Return the schema of an array's items."""
        return self._first("items")

    def _first(self, key: str) -> Schema:
        values = (branch.get(key) for branch in self._branches())
        return Schema(next((v for v in values if isinstance(v, dict)), None), self.root)

    def _branches(self) -> list[dict[str, Any]]:
        return list(_branches(self.value, self.root, _MAX_DEPTH))


def _branches(schema: Any, root: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the alternatives of a schema, references resolved."""
    if not isinstance(schema, dict) or not depth:
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target = root
        for key in reference[2:].split("/"):
            key = key.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, dict) else None
        yield from _branches(target, root, depth - 1)
        return
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and "type" not in schema:
            for branch in schema[key]:
                yield from _branches(branch, root, depth - 1)
            return
    yield schema


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return names.get(type(value), "null")


def from_text(text: str, schema: Schema, *, quoted: bool = False, padded: bool = False) -> str:
    """Return the JSON of a parameter's value that was written without quotes.

    Args:
        text: The value.
        schema: The schema of the parameter. Text that is JSON counts as JSON when it is unknown.
        quoted: The value is a text whatever the schema says.
        padded: A line break before the value is not part of it, nor is then the one behind it.
    """
    if padded and text.startswith("\n"):
        text = text[1:].removesuffix("\n")
    types = schema.types()
    if quoted or types == {"string"}:
        return to_json(text)
    written = _CONSTANTS.get(text.strip(), text.strip())
    try:
        value = json.loads(written, parse_constant=_no_number)
    except (ValueError, RecursionError):
        is_python = types and "string" not in types and written.startswith(("{", "["))
        return from_python(written) if is_python else to_json(text)
    return to_json(text) if "string" in types and not _is_of_type(value, types) else written


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_of_type(value: Any, types: frozenset[str]) -> bool:
    """Return whether `value` is of one of a schema's types other than string."""
    name = _type_of(value)
    return name != "string" and (name in types or (name == "integer" and "number" in types))


def from_python(text: str) -> str:
    """Return the JSON of a Python literal, in which JSON's constants are known; else of the text.

    Args:
        text: The literal.
    """
    known = _ESCAPE.sub(lambda m: m[0] if m[1] in _ESCAPED else f"\\{m[0]}", text.strip())
    try:
        tree = _Constants().visit(ast.parse(known, mode="eval").body)
        return to_json(ast.literal_eval(tree))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return to_json(text)


class _Constants(ast.NodeTransformer):
    """Replaces the names of JSON's constants by their values."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace a name."""
        return ast.Constant(_LITERALS[node.id]) if node.id in _LITERALS else node


def from_gemma(text: str) -> str:
    r"""Return the JSON of `{city:<|"|>Paris<|"|>,days:1}`; other text as it is."""
    parts: list[str] = []
    opened: list[str] = []
    for token in _GEMMA_TOKEN.finditer(text):
        if token["text"] is not None:
            parts.append(to_json(token["text"]))
            continue
        written = token[0]
        if token["sign"]:
            if written in "{[":
                opened.append(written)
            elif written in "}]" and opened:
                opened.pop()
        else:
            written = written.strip()
            last = parts[-1] if opened[-1:] == ["{"] else ""
            if last in ("{", ",") and (key := _GEMMA_KEY.match(written)) is not None:
                parts.append(f"{to_json(key[1])}:")
                written = written[key.end() :]
            elif last.startswith('"') and written.startswith(":"):  # behind a key in quotes
                parts.append(":")
                written = written[1:].lstrip()
            written = written and from_text(written, Schema(None, None))
        parts.append(written)
    converted = "".join(parts)
    try:
        json.loads(converted)
    except (ValueError, RecursionError):
        return text
    return converted
