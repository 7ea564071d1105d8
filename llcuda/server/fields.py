"""Reads fields of objects that no model of a body describes, with errors that name the place."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from llcuda.params import wrong_argument, wrong_value


def field_of(where: str, item: Any, name: str) -> Any:
    """Return a field of an object.

    Args:
        where: The place of the object, such as "input[0]"; "" where fields are named alone.
        item: The object.
        name: The name of the field.

    Raises:
        ArgumentError: It is not an object, or the field is missing.
    """
    if not isinstance(item, dict):
        raise wrong_value(where, item, "expected an object")
    if name not in item:
        raise wrong_argument(_place(where, name), "missing")
    return item[name]


def text_of(where: str, item: Any, name: str) -> str:
    """Return a field that is a text; see `field_of`."""
    value = field_of(where, item, name)
    if not isinstance(value, str):
        raise wrong_value(_place(where, name), value, "expected a text")
    return value


def _place(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def call_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call, as far as they have come where a limit cut them.

    Args:
        text: The JSON that the model wrote.
    """
    try:
        value = from_json(text or "{}", allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
