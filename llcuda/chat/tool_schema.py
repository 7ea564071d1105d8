"""A Python function as a tool: name, description and parameters, by its hints and docstring."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llcuda.errors import ArgumentError

_KINDS: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
    Any: {},
}
_SECTION = re.compile(r"^\s*(Args|Returns|Raises|Yields|Examples?):\s*$", re.M)
_PARAMETER = re.compile(r"^(\s*)(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the tool that `function` is, as OpenAI writes it.

    Its docstring is the description; `name: text` below `Args:` describes a parameter. A parameter
    without a default is required. Raises ArgumentError for one without a type hint, and for hints
    that are no JSON type.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        hints = get_type_hints(function)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"tools: {name} cannot be described: {error}", parameter="tools"
        ) from None
    description, told = _parse_docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ArgumentError(
                f"tools: {name} takes any number of arguments, which no schema has",
                parameter="tools",
            )
        if parameter.name not in hints:
            raise ArgumentError(
                f"tools: {name}({parameter.name}) has no type hint", parameter="tools"
            )
        schema = _schema(hints[parameter.name], f"tools: {name}({parameter.name})")
        if parameter.name in told:
            schema["description"] = told[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description, and what is said of each parameter below `Args:`."""
    parts = _SECTION.split(text)
    description = parts[0].strip()
    told: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title != "Args":
            continue
        depth: int | None = None
        last = ""
        for line in filter(str.strip, body.splitlines()):
            match = _PARAMETER.match(line)
            if match is not None and (depth is None or len(match[1]) <= depth):
                depth, last = len(match[1]), match[2]
                told[last] = match[3].strip()
            elif last:
                told[last] = f"{told[last]} {line.strip()}".strip()
    return description, told


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """Return the JSON schema of a type hint."""
    origin, inner = get_origin(hint), get_args(hint)
    try:
        if hint in _KINDS:
            return dict(_KINDS[hint])
    except TypeError:  # a hint that cannot be hashed
        pass
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum([member.value for member in hint], where)
    if origin is Literal:
        return _enum(list(inner), where)
    if origin is Union or origin is types.UnionType:
        return _union([_schema(kind, where) for kind in inner if kind is not type(None)], inner)
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is tuple and inner[1:] == (...,):
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_schema(kind, where) for kind in inner]}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _schema(inner[1], where)}
    raise ArgumentError(
        f"{where} is {hint!r}, which is no JSON type: give int, float, str, bool, list, dict, "
        "Literal, an Enum or unions of these, or write the tool's schema by hand"
    )


def _enum(values: list[Any], where: str) -> dict[str, Any]:
    if not all(type(value) in (int, float, str, bool, type(None)) for value in values):
        raise ArgumentError(f"{where}: {values!r} are not all JSON values", parameter=where)
    kinds = list(dict.fromkeys(_KINDS[type(value)]["type"] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _union(schemas: list[dict[str, Any]], hints: tuple[Any, ...]) -> dict[str, Any]:
    """Return a schema for one of several types; None among them makes it nullable."""
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(set(one) == {"type"} for one in schemas):
        schema = {"type": sorted({one["type"] for one in schemas})}
    else:
        schema = {"anyOf": schemas}
    if type(None) in hints:
        schema["nullable"] = True
    return schema
