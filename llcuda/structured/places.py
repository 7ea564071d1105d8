"""Finds the part of a JSON schema that is refused: llguidance names no place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from llcuda.structured.negation import is_names

MAX_SECONDS = 1.0  # of a search, which then names the place found so far
MAX_CHARACTERS = 50_000  # of a schema whose subschemas are judged
UNSATISFIABLE = ("Unsatisfiable schema", "nothing finite satisfies", "no text satisfies")

_IN_MAPPINGS = (
    "properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions",
)  # fmt: skip
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ALONE = (
    "items", "additionalItems", "additionalProperties", "unevaluatedItems",
    "unevaluatedProperties", "contains", "propertyNames", "not", "if", "then", "else",
)  # fmt: skip


def place_of(
    root: Any, target: Callable[[str], Any], problem_of: Callable[[Any], str | None]
) -> tuple[str, str] | None:
    """Find the smallest subschema that is refused for the same reason as the whole schema.

    Subschemas are judged without the references in them, which may lead to what contains them.

    Args:
        root: A JSON schema.
        target: Returns the schema in `root` that a local reference names, True for other ones.
        problem_of: Returns why a schema is refused, None for one that is not.

    Returns:
        The place, such as `#/properties/a`, and why it is refused; None if the schema is too large
        to be searched, or its refusal depends on more than itself.
    """
    try:
        if not isinstance(root, dict) or len(json.dumps(root, allow_nan=False)) > MAX_CHARACTERS:
            return None
    except (TypeError, ValueError, RecursionError):  # which its own error describes
        return None
    problem = problem_of(root)
    if problem is None:
        return None
    targets: dict[str, Any] = {}
    tree = _without_references(root, target, targets)
    base = {"$schema": root["$schema"]} if "$schema" in root else {}
    place, deadline = "#", time.monotonic() + MAX_SECONDS
    unvisited = list(_children(tree, place, problem))
    if not problem.startswith(UNSATISFIABLE):
        unvisited += [(name, _without_references(node, target, {}))
                      for name, node in targets.items()]  # fmt: skip
    while unvisited and time.monotonic() < deadline:
        inner_place, inner = unvisited.pop(0)
        alone = inner if isinstance(inner, dict) else {"allOf": [inner]}
        if problem_of({**base, **alone}) == problem:
            place = inner_place
            unvisited = list(_children(inner, place, problem))
    return place, problem


def _without_references(value: Any, target: Callable[[str], Any], targets: dict[str, Any]) -> Any:
    """Return a copy without the references that lead somewhere, which are added to `targets`."""
    if isinstance(value, list):
        return [_without_references(item, target, targets) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _without_references(item, target, targets) for key, item in value.items()}
    reference = copy.get("$ref")
    if isinstance(reference, str) and (inner := target(reference)) is not True:
        targets[reference] = inner
        del copy["$ref"]
    return copy


def _children(node: Any, place: str, problem: str) -> Iterator[tuple[str, Any]]:
    """Return the schemas that a schema consists of, each with its place.

    A schema is unsatisfiable for what it needs, not for what it may have.
    """
    if not isinstance(node, dict):
        return
    is_empty = problem.startswith(UNSATISFIABLE)
    required = node.get("required")
    needed = set(required) if is_names(required) else set()
    for key in ("properties",) if is_empty else _IN_MAPPINGS:
        if isinstance(inner := node.get(key), dict):
            for name, schema in inner.items():
                if not is_empty or name in needed:
                    yield f"{place}/{key}/{name}", schema
    for key in _IN_LISTS:
        if isinstance(inner := node.get(key), list):
            yield from ((f"{place}/{key}/{i}", schema) for i, schema in enumerate(inner))
    for key in () if is_empty else _ALONE:
        if key in node and not isinstance(node[key], list):
            yield f"{place}/{key}", node[key]
