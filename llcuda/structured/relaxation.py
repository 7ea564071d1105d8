"""Takes what cannot be honoured out of a JSON schema, so that the rest of it holds.

A tool whose schema has one such keyword is still worth calling. A response_format is not relaxed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from llcuda.errors import ArgumentError
from llcuda.structured.json_schema import target
from llcuda.structured.places import place_of, without_references
from llcuda.structured.rewrite import KeywordError

MAX_SECONDS = 2.0  # of a schema, which is then left out as a whole
MAX_RELAXATIONS = 64
ANY_OBJECT: dict[str, Any] = {"type": "object"}

_NO_ASSERTIONS = ("$defs", "$schema", "definitions", "description", "title")
# Keywords that hold most of a schema: the last ones to be left out.
_STRUCTURE = ("type", "$ref", "anyOf", "allOf", "oneOf", "items", "required")


class Relaxation(NamedTuple):
    """A part of a tool's schema that is not enforced.

    Attributes:
        tool: The name of the tool.
        place: The part, such as "#/properties/ids/uniqueItems"; "#" for all of the schema.
        reason: Why it cannot be enforced.
    """

    tool: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"tool {self.tool}: {self.place} is not enforced: {self.reason}"


def relax(
    schema: Any, error_of: Callable[[Any], ArgumentError | None]
) -> tuple[Any, list[tuple[str, str]]]:
    """Return a schema without what cannot be honoured, and the place and reason of each such part.

    Args:
        schema: A JSON schema of objects.
        error_of: Returns why a schema is refused, None for one that is not.
    """
    try:
        root = [json.loads(json.dumps(schema))]
    except (TypeError, ValueError, RecursionError):
        return dict(ANY_OBJECT), [("#", "it is not JSON, or nested too deeply")]
    errors: dict[str, ArgumentError | None] = {}  # each search begins at the root again

    def error_once(schema: Any) -> ArgumentError | None:
        text = json.dumps(schema)
        if text not in errors:
            errors[text] = error_of(schema)
        return errors[text]

    relaxed: list[tuple[str, str]] = []
    deadline = time.monotonic() + MAX_SECONDS
    error = error_once(root[0])
    while error is not None:
        if len(relaxed) >= MAX_RELAXATIONS or time.monotonic() > deadline:
            return dict(ANY_OBJECT), [("#", _reason(error))]
        relaxed.append(_leave_out(root, error, error_once))
        error = error_once(root[0])
    return root[0], relaxed


def _leave_out(
    root: list[Any], error: ArgumentError, error_of: Callable[[Any], ArgumentError | None]
) -> tuple[str, str]:
    """Take the part that an error is about out of a schema; return its place, and the reason."""
    if isinstance(error, KeywordError):
        place, reason = error.path, error.rule
    else:
        place, reason = _search(root[0], error, error_of)
    *outer, (path, container, key) = _walk(root, place)
    if isinstance(error, KeywordError) and path == place and outer:
        del container[key]
        return path, reason
    node = container[key]
    if isinstance(node, dict):
        whole = _judged(root[0], node)
        # Without its properties an object could not have any.
        others = (*_NO_ASSERTIONS, *_STRUCTURE, "properties")
        keys = [name for name in node if name not in others]
        for name in (*keys, *(name for name in _STRUCTURE if name in node)):
            if error_of({key: whole[key] for key in whole if key != name}) is None:
                del node[name]
                return f"{path}/{name}", reason
    container[key] = dict(ANY_OBJECT) if container is root else {}
    return path, reason


def _judged(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as it is judged by itself, without the references in it."""
    if node is root:
        return root
    alone: dict[str, Any] = without_references(node, partial(target, root=root), {})
    return {"$schema": root["$schema"], **alone} if "$schema" in root else alone


def _search(
    root: Any, error: ArgumentError, error_of: Callable[[Any], ArgumentError | None]
) -> tuple[str, str]:
    """Return the place of the smallest schema that is refused, and the reason."""

    def problem_of(schema: Any) -> str | None:
        problem = error_of(schema)
        return None if problem is None else _reason(problem)

    found = place_of(root, _reason(error), partial(target, root=root), problem_of)
    return ("#", _reason(error)) if found is None else found


def _reason(error: ArgumentError) -> str:
    return error.rule if isinstance(error, KeywordError) else error.problem


def _walk(root: list[Any], place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each value on the way to a place, as far as there is one: place, container, key.

    Names stand in a place as they are, also those with a slash.
    """
    path, container, key, rest = "#", root, 0, place.removeprefix("#")
    while True:
        yield path, container, key
        node: Any = container[key]
        keys: list[Any] = list(node) if isinstance(node, dict) else []
        keys = list(range(len(node))) if isinstance(node, list) else keys
        following = [name for name in keys if f"{rest}/".startswith(f"/{name}/")]
        if not following:
            return
        container, key = node, max(following, key=lambda name: len(str(name)))
        path, rest = f"{path}/{key}", rest[len(str(key)) + 1 :]
