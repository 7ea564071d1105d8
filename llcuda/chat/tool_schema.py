"""Describes a Python function as a tool, by its name, type hints and docstring."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llcuda.errors import ArgumentError
from llcuda.params import wrong_argument

_TYPES: dict[Any, dict[str, Any]] = {
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
    """Return the definition of a function as a tool, as OpenAI writes it.

    The docstring is the description, and the lines below `Args:` describe the parameters. A
    parameter without a default is required.

    Args:
        function: A function with type hints.

    Raises:
        ArgumentError: A parameter has no type hint, or one that is not a JSON type.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        hints = get_type_hints(function)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise wrong_argument("tools", f"{name} cannot be described: {error}") from None
    description, descriptions = _parse_docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise wrong_argument(
                "tools", f"{name} has *{parameter.name}, which no JSON schema can describe"
            )
        if parameter.name not in hints:
            raise wrong_argument("tools", f"{name}({parameter.name}) has no type hint")
        schema = _schema(hints[parameter.name], f"tools: {name}({parameter.name})")
        if parameter.name in descriptions:
            schema["description"] = descriptions[parameter.name]
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


def call_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as a function takes them, by its type hints.

    Members of an Enum come from their values, tuples from lists, a float from a whole number. What
    has no type hint, or one that `function_schema` does not know, is left as it is.

    Args:
        function: The function.
        given: The arguments, data of JSON, by name.

    Raises:
        ValueError: An argument is missing, unknown or of another type; says so for the model.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return dict(given)
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"{error}; the arguments are: {', '.join(signature.parameters)}") from None
    return {
        name: _convert(hints[name], value, name) if name in hints else value
        for name, value in given.items()
    }


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return data of JSON as a type hint has it; ValueError where it does not fit."""
    origin: Any = get_origin(hint)
    inner = get_args(hint)
    if origin is Union or origin is types.UnionType:
        return _convert_to_one(inner, value, where)
    if origin is Literal:
        if not any(type(value) is type(option) and value == option for option in inner):
            raise ValueError(
                f"{where}: expected one of {', '.join(map(repr, inner))}, not {value!r}"
            )
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        if not isinstance(value, str | int | float) or value not in members:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, members))}")
        return members[value]
    kind: Any = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner or (Any,) * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{where}: expected {len(kinds)} items, not {len(value)}")
        return tuple(
            _convert(kind, item, f"{where}[{i}]")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if kind is Any or not isinstance(kind, type) or kind not in _TYPES:
        return value
    if type(value) is not kind and not (value is None and kind is type(None)):
        raise ValueError(f"{where}: expected {_TYPES[kind]['type']}, not {value!r}")
    data: Any = value
    if kind is list and inner:
        return [_convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    if kind is dict and inner:
        return {key: _convert(inner[1], item, f"{where}.{key}") for key, item in data.items()}
    return data


def _convert_to_one(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """Return a value as the first hint of a union that has its type, or else that takes it."""
    errors = []
    kind: Any = type(value)
    for hint in sorted(hints, key=lambda hint: kind is not (get_origin(hint) or hint)):
        try:
            return _convert(hint, value, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError("; or ".join(errors))


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description, and that of each parameter below `Args:`."""
    parts = _SECTION.split(text)
    description = parts[0].strip()
    descriptions: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title != "Args":
            continue
        depth: int | None = None
        last = ""
        for line in filter(str.strip, body.splitlines()):
            match = _PARAMETER.match(line)
            if match is not None and (depth is None or len(match[1]) <= depth):
                depth, last = len(match[1]), match[2]
                descriptions[last] = match[3].strip()
            elif last:
                descriptions[last] = f"{descriptions[last]} {line.strip()}".strip()
    return description, descriptions


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """Return the JSON schema of a type hint."""
    origin, inner = get_origin(hint), get_args(hint)
    try:
        if hint in _TYPES:
            return dict(_TYPES[hint])
    except TypeError:  # a hint that cannot be hashed
        pass
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum([member.value for member in hint], where)
    if origin is Literal:
        return _enum(list(inner), where)
    if origin is Union or origin is types.UnionType:
        return _union([_schema(arm, where) for arm in inner if arm is not type(None)], inner)
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is tuple and inner[1:] == (...,):
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_schema(item, where) for item in inner]}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _schema(inner[1], where)}
    raise ArgumentError(
        f"{where}: expected int, float, str, bool, list, dict, Literal, an Enum or a union of "
        f"these, not {hint!r}",
        parameter="tools",
        remedy="write the schema of the tool by hand",
    )


def _enum(values: list[Any], where: str) -> dict[str, Any]:
    if not all(type(value) in (int, float, str, bool, type(None)) for value in values):
        raise ArgumentError(f"{where}: expected JSON values, not {values!r}", parameter="tools")
    names = list(dict.fromkeys(_TYPES[type(value)]["type"] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _union(schemas: list[dict[str, Any]], hints: tuple[Any, ...]) -> dict[str, Any]:
    """Return a schema for one of several types; None among them makes it nullable."""
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(set(arm) == {"type"} for arm in schemas):
        schema = {"type": sorted({arm["type"] for arm in schemas})}
    else:
        schema = {"anyOf": schemas}
    if type(None) in hints:
        schema["nullable"] = True
    return schema
