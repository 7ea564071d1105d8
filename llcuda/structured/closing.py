"""Closes the objects of a schema that names their properties and says nothing of further ones.

JSON Schema allows further properties there, and small models write them until their tokens end. A
closed object is one that the schema allows. Objects stay open where several schemas describe them
together, because none of these names all properties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llcuda.structured.negation import is_names

# Keywords beside which the properties of an object are not all that it may have.
_OPENERS = (
    "additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties",
    "minProperties", "dependentRequired", "dependentSchemas", "dependencies",
)  # fmt: skip
# Keywords whose schemas describe the value itself, but for `$ref`.
_SAME_VALUE = ("allOf", "anyOf", "oneOf")
_COMPLEMENTS = ("not", "if", "then", "else", "contains")
_DEPENDENT = ("dependentSchemas", "dependencies")
_PARTS = ("items", "additionalItems", "additionalProperties", "unevaluatedItems")
# Keywords beside which an object stays open.
_OPEN = (*_OPENERS, *_SAME_VALUE, *_COMPLEMENTS, "$ref")


def close_objects(root: dict[str, Any], target: Callable[[str], Any]) -> None:
    """Close objects of a schema, in place.

    Args:
        root: The schema.
        target: Returns the schema that a reference names.
    """
    alone: dict[int, dict[str, Any]] = {}
    joined: set[int] = set()  # described together with other schemas, or in a complement
    unvisited: list[tuple[Any, bool]] = [(root, True)]
    while unvisited:
        node, is_alone = unvisited.pop()
        if not isinstance(node, dict) or id(node) in joined or (is_alone and id(node) in alone):
            continue
        if is_alone:
            alone[id(node)] = node
        else:
            joined.add(id(node))
        unvisited += _inner(node, is_alone, target)
    for key, node in alone.items():
        properties, required = node.get("properties"), node.get("required", [])
        if key in joined or not isinstance(properties, dict) or not properties:
            continue
        describes_all = is_names(required) and properties.keys() >= set(required)
        if describes_all and not any(name in node for name in _OPEN):
            node["additionalProperties"] = False


def _inner(
    node: dict[str, Any], is_alone: bool, target: Callable[[str], Any]
) -> list[tuple[Any, bool]]:
    """Return the schemas in a schema, and whether each alone describes its value."""
    same: list[Any] = []
    for key in _SAME_VALUE:
        if isinstance(branches := node.get(key), list):
            same += branches
    kinds = sum(key in node for key in (*_SAME_VALUE, "$ref"))
    if isinstance(reference := node.get("$ref"), str):
        same.append(target(reference))
    others = any(name in node for name in ("properties", *_OPENERS, *_COMPLEMENTS))
    single = is_alone and kinds == 1 and not others
    if isinstance(branches := node.get("allOf"), list) and len(branches) != 1:
        single = False  # the branches describe the value together
    if isinstance(branches := node.get("oneOf"), list) and not _are_tagged(branches, target):
        single = False  # a text that two open branches allow, one closed branch may allow
    inner = [(schema, single) for schema in same]
    inner += [(node.get(key), False) for key in _COMPLEMENTS]
    for key in _DEPENDENT:
        if isinstance(found := node.get(key), dict):
            inner += [(schema, False) for schema in found.values()]
    # The schemas of the parts of the value.
    only = is_alone and not kinds and not any(key in node for key in _COMPLEMENTS)
    for key in ("properties", "patternProperties"):
        if isinstance(found := node.get(key), dict):
            inner += [(schema, only) for schema in found.values()]
    for key in ("prefixItems", "items"):
        if isinstance(found := node.get(key), list):
            inner += [(schema, only) for schema in found]
    return inner + [(node.get(key), only) for key in _PARTS]


def _are_tagged(branches: list[Any], target: Callable[[str], Any]) -> bool:
    """Whether one required property tells the branches of a oneOf apart by its values."""
    schemas = [_resolved(branch, target) for branch in branches]
    names = schemas[0].get("required") if schemas else None
    return isinstance(names, list) and any(
        _tells_apart(name, schemas) for name in names if isinstance(name, str)
    )


def _resolved(schema: Any, target: Callable[[str], Any]) -> Mapping[str, Any]:
    if isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
        schema = target(reference)
    return schema if isinstance(schema, dict) else {}


def _tells_apart(name: str, schemas: list[Mapping[str, Any]]) -> bool:
    seen: list[Any] = []
    for schema in schemas:
        properties, required = schema.get("properties"), schema.get("required")
        tag = properties.get(name) if isinstance(properties, dict) else None
        if not isinstance(tag, dict) or not isinstance(required, list) or name not in required:
            return False
        values = [tag["const"]] if "const" in tag else tag.get("enum")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return False
        seen += values
    return len(seen) == len(set(seen))
