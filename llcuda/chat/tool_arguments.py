"""The arguments of calls as JSON, from the notations in which models write them."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from llcuda.structured.json_schema import target
from llcuda.structured.negation import equal

QUOTE = '<|"|>'  # around texts in Gemma's notation
_GEMMA_TOKEN = re.compile(
    r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<sign>[{}\[\],])|(?P<bare>(?:(?!<\|"\|>)[^{}\[\],])+)', re.S
)
_GEMMA_KEY = re.compile(r"\s*([^:\s]+)\s*:\s*")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_LITERALS = {"true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(.)", re.S)
_ESCAPED = "\\'\"abfnrtvxuUN01234567\n"
_PYTHON_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.S)
_MAX_STEPS = 10_000  # of comparing a value with a schema
_MAX_BRANCHES = 64  # alternatives of a schema; one with more may be anything


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
            named = _names(branch.get("type"))
            choices = branch.get("enum", [branch["const"]] if "const" in branch else None)
            if not named and not isinstance(choices, list):
                return frozenset()
            types |= named or set(map(_type_of, choices or ()))
            if branch.get("nullable") is True:
                types.add("null")
        return frozenset(types)

    def property(self, name: str) -> Schema:
        """Return the schema of a property of an object."""
        for branch in self._branches():
            properties = branch.get("properties")
            if isinstance(properties, dict) and name in properties:
                return Schema(properties[name], self.root)
        return self._first("additionalProperties")

    def allows(self, name: str) -> bool:
        """Return whether an object may have a property of this name."""
        branches = self._branches()
        return not branches or any(
            branch.get("additionalProperties") is not False
            or name in (branch.get("properties") or ())
            or "patternProperties" in branch
            for branch in branches
        )

    def admits(self, value: Any, max_steps: int = _MAX_STEPS, otherwise: bool = False) -> bool:
        """Return whether a value follows the schema; `otherwise` when that takes too many steps.

        Looks at types, `enum` and `const`, properties and items, alternatives, references, bounds
        and lengths; not at patterns, formats and rarer keywords.
        """
        try:
            return _Admission(self.root, max_steps).admits(self.value, value)
        except (RecursionError, _TooManyStepsError):
            return otherwise

    def items(self) -> Schema:
        """Return the schema of an array's items."""
        return self._first("items")

    def _first(self, key: str) -> Schema:
        values = (branch.get(key) for branch in self._branches())
        return Schema(next((v for v in values if isinstance(v, dict)), None), self.root)

    def _branches(self) -> list[dict[str, Any]]:
        """Return the alternatives of the schema, each of its parts once."""
        branches: list[dict[str, Any]] = []
        waiting = [self.value]
        seen: set[int] = set()
        while waiting:
            if len(seen) >= _MAX_BRANCHES:
                return []
            schema = waiting.pop()
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            seen.add(id(schema))
            inner = [item for key in ("oneOf", "anyOf", "allOf") for item in _items(schema, key)]
            if "$ref" in schema:
                waiting.append(target(str(schema["$ref"]), self.root))
            elif inner and "type" not in schema:
                waiting += reversed(inner)
            else:
                branches.append(schema)
        return branches


class _TooManyStepsError(Exception):
    """A comparison takes too long."""


class _Admission:
    """Compares a value with a schema: each part of it with each part of the schema once.

    Args:
        root: The whole schema, to which references refer.
        max_steps: Steps after which it gives up.
    """

    def __init__(self, root: Any, max_steps: int) -> None:
        self._root = root
        self._max_steps = max_steps
        self._known: dict[tuple[int, int], bool] = {}

    def admits(self, schema: Any, value: Any) -> bool:
        """Return whether `value` follows `schema`."""
        if not isinstance(schema, dict):
            return schema is not False
        place = (id(schema), id(value))
        if place not in self._known:
            if len(self._known) >= self._max_steps:
                raise _TooManyStepsError
            self._known[place] = True  # while references lead in a circle
            self._known[place] = self._follows(schema, value)
        return self._known[place]

    def _follows(self, schema: dict[str, Any], value: Any) -> bool:
        if value is None and schema.get("nullable") is True:
            return True
        types, choices = _names(schema.get("type")), schema.get("enum")
        if types and not _is_of_type(value, types):
            return False
        if isinstance(choices, list) and not any(equal(value, choice) for choice in choices):
            return False
        if "const" in schema and not equal(value, schema["const"]):
            return False
        if "$ref" in schema and not self.admits(target(str(schema["$ref"]), self._root), value):
            return False
        if not all(self.admits(branch, value) for branch in _items(schema, "allOf")):
            return False
        for key in ("anyOf", "oneOf"):
            count = sum(self.admits(branch, value) for branch in _items(schema, key))
            if key in schema and (not count or (key == "oneOf" and count > 1)):
                return False
        if isinstance(value, dict):
            properties, further = schema.get("properties"), schema.get("additionalProperties")
            properties = properties if isinstance(properties, dict) else {}
            further = None if "patternProperties" in schema else further
            return (
                all(name in value for name in _items(schema, "required"))
                and _is_within(len(value), schema, "minProperties", "maxProperties")
                and all(self.admits(properties.get(k, further), v) for k, v in value.items())
            )
        if isinstance(value, list):
            first, rest = _items(schema, "prefixItems"), schema.get("items")
            schemas = [*first[: len(value)], *[rest] * (len(value) - len(first))]
            return _is_within(len(value), schema, "minItems", "maxItems") and all(
                map(self.admits, schemas, value)
            )
        if isinstance(value, str):
            return _is_within(len(value), schema, "minLength", "maxLength")
        return isinstance(value, bool | None) or (
            _is_within(value, schema, "minimum", "maximum")
            and _is_within(value, schema, "exclusiveMinimum", "exclusiveMaximum")
            and not any(value == schema.get(f"exclusive{end}imum") for end in ("Min", "Max"))
        )


def _items(schema: dict[str, Any], key: str) -> list[Any]:
    """Return a list in a schema, which may hold something else there."""
    items = schema.get(key)
    return items if isinstance(items, list) else []


def _names(types: Any) -> frozenset[str]:
    """Return the names in a schema's "type"."""
    if isinstance(types, str):
        return frozenset({types})
    return frozenset(map(str, types)) if isinstance(types, list) else frozenset()


def _is_within(number: float, schema: dict[str, Any], least: str, most: str) -> bool:
    """Return whether a number is within two bounds that a schema may have."""
    low, high = schema.get(least), schema.get(most)
    return not (
        (isinstance(low, int | float) and number < low)
        or (isinstance(high, int | float) and number > high)
    )


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
    is_text = "string" in types and not _is_of_type(value, types - {"string"})
    return to_json(text) if is_text else written


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_of_type(value: Any, types: frozenset[str]) -> bool:
    """Return whether `value` is of one of a schema's types."""
    name = _type_of(value)
    if name == "number" and value.is_integer() and "integer" in types:
        return True
    return name in types or (name == "integer" and "number" in types)


def from_python(text: str) -> str:
    """Return the JSON of a Python literal, in which JSON's constants are known; else of the text.

    Args:
        text: The literal.
    """
    known = _ESCAPE.sub(lambda m: m[0] if m[1] in _ESCAPED else f"\\{m[0]}", text.strip())
    on_lines = _PYTHON_TEXT.sub(lambda m: m[0].replace("\n", "\\n"), known)
    for written in (known, on_lines):  # models write texts on several lines in single quotes
        try:
            tree = _Constants().visit(ast.parse(written, mode="eval").body)
            return to_json(ast.literal_eval(tree))
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            continue
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
