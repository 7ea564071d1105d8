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
    root: Any,
    problem: str,
    target: Callable[[str], Any],
    problem_of: Callable[[Any], str | None],
) -> tuple[str, str] | None:
    """Find the smallest subschema for which the whole schema is refused.

    It is refused for the same reason, or it is a part that a text of an unsatisfiable schema needs,
    and is unsatisfiable itself. Subschemas are judged without the references in them, which may
    lead to what contains them.

    Args:
        root: A JSON schema.
        problem: Why it is refused, as far as the caller knows.
        target: Returns the schema in `root` that a local reference names, True for other ones.
        problem_of: Returns why a schema is refused, None for one that is not.

    Returns:
        The place, such as `#/properties/a`, and why it is refused; None if the schema is too large
        to be searched, or is refused for another reason than `problem`.
    """
    targets: dict[str, Any] = {}
    try:
        if not isinstance(root, dict) or len(json.dumps(root, allow_nan=False)) > MAX_CHARACTERS:
            return None
        tree = without_references(root, target, targets)
    except (TypeError, ValueError, RecursionError):  # which its own error describes
        return None
    if problem_of(root) != problem:
        return None
    base = {"$schema": root["$schema"]} if "$schema" in root else {}
    place, deadline = "#", time.monotonic() + MAX_SECONDS
    unvisited = _inner(tree, place, problem)
    if not problem.startswith(UNSATISFIABLE):
        unvisited += [(name, without_references(node, target, {}), False)
                      for name, node in targets.items()]  # fmt: skip
    while unvisited and time.monotonic() < deadline:
        inner_place, inner, is_needed = unvisited.pop(0)
        alone = inner if isinstance(inner, dict) else {"allOf": [inner]}
        found = problem_of({**base, **alone})
        if found == problem or (found and is_needed and found.startswith(UNSATISFIABLE)):
            place, problem = inner_place, found
            unvisited = _inner(inner, place, problem)
    return place, problem


def _inner(node: Any, place: str, problem: str) -> list[tuple[str, Any, bool]]:
    """Return the schemas in a schema that is refused: place, schema, whether all texts need it."""
    needed = list(_needed(node, place)) if problem.startswith(UNSATISFIABLE) else []
    others = ((*child, False) for child in _children(node, place, problem) if child not in needed)
    return [*((*child, True) for child in needed), *others]


def _needed(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Return the schemas that every text of an object, of an array or of allOf needs."""
    if not isinstance(node, dict):
        return
    properties, required, items = node.get("properties"), node.get("required"), node.get("items")
    if node.get("type") == "object" and isinstance(properties, dict) and is_names(required):
        for name in required:
            if name in properties:
                yield f"{place}/properties/{name}", properties[name]
    least = node.get("minItems")
    if node.get("type") == "array" and isinstance(least, int) and least > 0:
        for key in ("prefixItems", "items"):
            if isinstance(listed := node.get(key), list):
                yield from ((f"{place}/{key}/{i}", listed[i])
                            for i in range(min(least, len(listed))))  # fmt: skip
        if isinstance(items, dict) and "prefixItems" not in node:
            yield f"{place}/items", items
    if isinstance(parts := node.get("allOf"), list):
        yield from ((f"{place}/allOf/{i}", part) for i, part in enumerate(parts))


def without_references(value: Any, target: Callable[[str], Any], targets: dict[str, Any]) -> Any:
    """Return a copy without the references that lead somewhere, which are added to `targets`."""
    if isinstance(value, list):
        return [without_references(item, target, targets) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: without_references(item, target, targets) for key, item in value.items()}
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
