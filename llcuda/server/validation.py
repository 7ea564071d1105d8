"""The error for a body that does not fit its model: pydantic's findings as one sentence of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llcuda.server.errors import ApiError
from llcuda.server.protocol import Body

SHOWN_CHARS = 80  # a longer value is left out of the message

# What pydantic's kinds of errors on a type expect.
_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def from_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """Return the error for a body that pydantic refused: `field=value: rule`.

    The first field at fault is named.

    Args:
        errors: Pydantic's errors.
        body: The body.
    """
    field, alternatives = _deepest(errors, body)
    error = alternatives[0]
    if error["type"] == "unknown_field":
        name, hint = error["ctx"]["name"], error["ctx"]["hint"]
        field = f"{field}.{name}" if field else name
        message = f"unknown parameter: {field}{hint and '; '}{hint}"
        return ApiError(400, message, param=field, code="unknown_parameter")
    if error["type"] == "missing":
        return ApiError(400, f"{field}: missing", param=field, code="missing_parameter")
    if error["type"] == "conflict":
        return ApiError(400, error["msg"], param=error["ctx"]["name"])
    if error["type"] == "unsupported":
        return ApiError(400, f"{field}: {error['msg']}", param=field, code="unsupported_parameter")
    rules = list(dict.fromkeys(_rule(error) for error in alternatives))
    message = f"{field or 'the body'}{_shown(error['input'])}: expected {_either(rules)}"
    return ApiError(400, message, param=field or None)


def with_meant_field(refusal: ApiError, kind: type[Body], body: Any) -> ApiError:
    """Name the unknown field that stands in place of a missing one.

    Args:
        refusal: The error of the body.
        kind: The model of the body.
        body: The body.
    """
    if refusal.code == "missing_parameter" and isinstance(body, dict):
        for name in body:
            if name not in kind.model_fields and (hint := kind.meant(name[:100])):
                refusal.message += f"; unknown parameter {name[:100]}: {hint}"
                break
    return refusal


def _deepest(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the first field at fault, and the rule that it breaks.

    For a field of several types pydantic has errors for each. An error on a bound tells more than
    one on the type, and one on a late element more than one on the whole.
    """
    located = [(_path(error, body), error) for error in errors]
    field = located[0][0][:1]
    own = [(path, error) for path, error in located if path[:1] == field]
    own = [(path, error) for path, error in own if not _is_on_type(error)] or own
    deepest = max((path for path, _ in own), key=_depth)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in deepest)
    return name.removeprefix("."), [error for path, error in own if path == deepest]


def _path(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Return the keys and indices of the value at fault, without the branches of a union."""
    path: list[str | int] = []
    here = body
    for place in error["loc"]:
        if isinstance(place, int):
            if isinstance(here, list) and place < len(here):
                path.append(place)
                here = here[place]
        elif isinstance(here, dict) and (place in here or error["type"] == "missing"):
            path.append(place)
            here = here.get(place)
    return tuple(path)


def _is_on_type(error: Mapping[str, Any]) -> bool:
    return error["type"] in _TYPES or error["type"] == "literal_error"


def _depth(path: Sequence[str | int]) -> tuple[int, list[int]]:
    return len(path), [part for part in path if isinstance(part, int)]


def _rule(error: Mapping[str, Any]) -> str:
    """Return the rule that the value breaks."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _TYPES:
        return _TYPES[kind]
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "").replace("False", "false")
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length") if kind == "too_short" else context.get("max_length")
        side = "at least" if kind == "too_short" else "at most"
        actual = context.get("actual_length")
        rest = "" if actual is None else f", not {actual}"
        return f"{side} {bound} element{'s' * (bound != 1)}{rest}"
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters, not {len(error['input'])}"
    for name, side in (("ge", "at least"), ("le", "at most"), ("gt", "above")):
        if name in context:
            what = "a whole number" if isinstance(context[name], int) else "a number"
            return f"{what} {side} {context[name]:.15g}"
    return str(error["msg"])


def _shown(value: Any) -> str:
    """Return `=value`, or nothing for a long one and for a list or an object with content."""
    if isinstance(value, list | dict) and value:
        return ""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"={text}" if len(text) <= SHOWN_CHARS else ""


def _either(rules: Sequence[str]) -> str:
    *others, last = rules
    if not others:
        return last
    comma = any(" or " in rule for rule in rules)
    return f"{', '.join(others)}{',' * comma} or {last}"
