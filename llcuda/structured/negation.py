"""Complements of JSON schemas, and whether two schemas have a value in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

TYPES = ("null", "boolean", "number", "string", "array", "object")
MAX_DEPTH = 20  # of schemas in one another
MAX_STEPS = 100_000  # of one schema's answers
MAX_EXCLUDED = 200  # texts that a pattern excludes

# Keywords that restrict values; all others are notes, places of definitions, or unknown.
ASSERTIONS = frozenset((
    "$ref", "$dynamicRef", "$recursiveRef", "type", "enum", "const", "anyOf", "allOf", "oneOf",
    "not", "if", "then", "else", "properties", "patternProperties", "additionalProperties",
    "propertyNames", "required", "minProperties", "maxProperties", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedProperties", "items", "prefixItems",
    "additionalItems", "contains", "minContains", "maxContains", "minItems", "maxItems",
    "uniqueItems", "unevaluatedItems", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "format",
))  # fmt: skip

Resolve = Callable[[str], Any]  # returns the schema of a reference, True for one that is unknown


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_names(names: Any) -> TypeGuard[list[str]]:
    """Whether a JSON value is a list of texts."""
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def type_of(value: Any) -> str:
    """Return the type of a JSON value, "number" for whole ones too."""
    kinds = {type(None): "null", bool: "boolean", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "number")


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and is not true."""
    if type_of(a) != type_of(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """Return the types that the keyword `type` allows, "integer" beside "number" as "number"."""
    names = schema.get("type", list(TYPES))
    names = [names] if isinstance(names, str) else names
    if not is_names(names):
        return set(TYPES)
    return {"number" if name == "integer" else name for name in names}


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values that `const` or `enum` allows, None without them."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


class Logic:
    """Computes complements and disjointness of schemas; after MAX_STEPS all is unknown to it.

    Attributes:
        narrowed: The ids of schemas that were written anew as smaller ones; nothing is known of
            what they exclude.

    Args:
        resolve: Returns the schema of a reference.
    """

    def __init__(self, resolve: Resolve) -> None:
        self.narrowed: set[int] = set()
        self._resolve = resolve
        self._steps = 0

    def disjoint(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Whether no value satisfies both schemas; False where that is not proven.

        Keywords that are not understood are left out, which makes a schema larger.
        """
        self._steps += 1
        if a is False or b is False:
            return True
        if not isinstance(a, dict) or not isinstance(b, dict):
            return False
        if id(a) in self.narrowed or id(b) in self.narrowed:
            return False
        if depth > MAX_DEPTH or self._steps > MAX_STEPS:
            return False
        for one, other in ((a, b), (b, a)):
            reference = one.get("$ref")
            if isinstance(reference, str) and self.disjoint(
                self._resolve(reference), other, depth + 1
            ):
                return True
            for key in ("anyOf", "oneOf"):
                options = one.get(key)
                if isinstance(options, list) and all(
                    self.disjoint(option, other, depth + 1) for option in options
                ):
                    return True
            parts = one.get("allOf")
            if isinstance(parts, list) and any(
                self.disjoint(part, other, depth + 1) for part in parts
            ):
                return True
        return self._plainly_disjoint(a, b, depth)

    def _plainly_disjoint(self, a: dict[str, Any], b: dict[str, Any], depth: int) -> bool:
        """Whether keywords other than those of several schemas exclude each other."""
        for one, other in ((a, b), (b, a)):
            values = values_of(one)
            if values is not None and all(self._excludes(other, value, depth) for value in values):
                return True
        common = types_of(a) & types_of(b)
        return all(self._apart(kind, a, b, depth) for kind in common)

    def _apart(self, kind: str, a: dict[str, Any], b: dict[str, Any], depth: int) -> bool:
        """Whether no value of one type satisfies both."""
        bounds = _BOUNDS.get(kind)
        if bounds is not None and _ranges_apart(bounds, a, b):
            return True
        if kind != "object":
            return False
        required = {
            name for schema in (a, b) if is_names(names := schema.get("required")) for name in names
        }
        return any(
            self.disjoint(property_schema(a, name), property_schema(b, name), depth + 1)
            for name in required
        )

    def _excludes(self, schema: dict[str, Any], value: Any, depth: int) -> bool:
        """Whether a value does certainly not satisfy a schema's own keywords."""
        values = values_of(schema)
        self._steps += 1 if values is None else len(values)
        if self._steps > MAX_STEPS:
            return False
        if type_of(value) not in types_of(schema):
            return True
        if schema.get("type") == "integer" and isinstance(value, float) and value % 1:
            return True
        if values is not None and not any(equal(value, other) for other in values):
            return True
        bounds = _BOUNDS.get(type_of(value))
        size = value if is_number(value) else len(value) if isinstance(value, str | list) else None
        if bounds is not None and size is not None:
            exact = {bounds[0]: size, bounds[1]: size}
            if _ranges_apart(bounds, exact, schema):
                return True
        if isinstance(value, dict):
            required = schema.get("required")
            if is_names(required) and not set(required) <= value.keys():
                return True
            return any(
                self.disjoint({"const": inner}, property_schema(schema, name), depth + 1)
                for name, inner in value.items()
            )
        return False

    def complement(
        self, schema: Any, *, fractions: bool = True, partial: bool = False, depth: int = 0
    ) -> Any:
        """Return a schema of the values that do not satisfy `schema`; None if it is not known.

        Args:
            schema: A JSON schema.
            fractions: Whether numbers that are not whole have to be among them.
            partial: Whether some of these values will do.
            depth: How deep the schema lies in the one that was asked about.
        """
        self._steps += 1
        if isinstance(schema, bool):
            return not schema
        if not isinstance(schema, dict) or id(schema) in self.narrowed:
            return None
        if depth > MAX_DEPTH or self._steps > MAX_STEPS:
            return None

        def inverse(inner: Any) -> Any:
            return self.complement(inner, fractions=fractions, partial=partial, depth=depth + 1)

        parts: list[Any] = []
        for key, value in schema.items():
            if key not in ASSERTIONS:
                continue
            if key == "$ref" and isinstance(value, str):
                target = self._resolve(value)
                part = None if target is True else inverse(target)
            elif key == "type":
                part = _complement_of_types(value, fractions)
            else:
                part = _complement_of(key, value, inverse, partial)
            if part is None and not partial:
                return None
            parts.append(part)
        if any(part is True for part in parts):
            return True
        known = [part for part in parts if part is not None and part is not False]
        if not known:
            return None if any(part is None for part in parts) else False
        return known[0] if len(known) == 1 else {"anyOf": known}


_BOUNDS: dict[str, tuple[str, ...]] = {
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
}


def property_schema(schema: Mapping[str, Any], name: str) -> Any:
    """Return a schema that the value of a property has to satisfy, among others perhaps."""
    properties = schema.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    if schema.get("patternProperties"):
        return True
    return schema.get("additionalProperties", True)


def _ranges_apart(bounds: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    for one, other in ((a, b), (b, a)):
        greatest, smallest = one.get(bounds[1]), other.get(bounds[0])
        if is_number(greatest) and is_number(smallest) and greatest < smallest:
            return True
        for i, j in ((1, 2), (3, 0), (3, 2)) if len(bounds) > 2 else ():
            greatest, smallest = one.get(bounds[i]), other.get(bounds[j])
            if is_number(greatest) and is_number(smallest) and greatest <= smallest:
                return True
    return False


# --- complements ---


def _complement_of(key: str, value: Any, inverse: Callable[[Any], Any], partial: bool) -> Any:
    """Return the complement of one keyword; None where it is not known."""
    if key == "const" or (key == "enum" and isinstance(value, list)):
        return _complement_of_values([value] if key == "const" else value)
    if key == "anyOf" and isinstance(value, list):
        inner = [inverse(item) for item in value]
        return None if any(item is None for item in inner) else {"allOf": inner}
    if key == "allOf" and isinstance(value, list):
        inner = [inverse(item) for item in value]
        known = [item for item in inner if item is not None]
        return {"anyOf": known} if known and (partial or len(known) == len(inner)) else None
    if key == "not":
        return value if isinstance(value, dict | bool) else None
    if key == "required" and is_names(value):
        return _objects([{"properties": {name: False}} for name in value])
    if key == "properties" and isinstance(value, dict):
        others = {name: inverse(item) for name, item in value.items()}
        known = [name for name, item in others.items() if item is not None]
        if len(known) < len(others) and not (partial and known):
            return None
        return _objects(
            [
                {"properties": {name: others[name]}, "required": [name]}
                for name in known
                if others[name] is not False
            ]
        )
    if key in _OPPOSITE and is_number(value):
        kind, opposite, step = _OPPOSITE[key]
        if step and (value != int(value) or value + step < 0):
            return False if value + step < 0 else None
        return {"type": kind, opposite: int(value) + step if step else value}
    return None


_OPPOSITE = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}


def _objects(alternatives: list[Any]) -> Any:
    return {"type": "object", "anyOf": alternatives} if alternatives else False


def _complement_of_types(value: Any, fractions: bool) -> Any:
    """Return a schema of the other types; numbers with a fraction, which are none, are left out."""
    names = [value] if isinstance(value, str) else value
    if not is_names(names):
        return None
    if "integer" in names and "number" not in names:
        if fractions:
            return None
        names = [*names, "number"]
    others = [kind for kind in TYPES if kind not in names]
    return {"type": others} if others else False


def _complement_of_values(values: Sequence[Any]) -> Any:
    """Return a schema of all values but these; None for lists and objects with content."""
    kinds = {type_of(value) for value in values}
    alternatives: list[Any] = [{"type": [kind for kind in TYPES if kind not in kinds]}]
    if not alternatives[0]["type"]:
        alternatives = []
    if "boolean" in kinds:
        missing = [item for item in (False, True) if not any(equal(item, v) for v in values)]
        if missing:
            alternatives.append({"enum": missing})
    numbers = sorted({value for value in values if is_number(value)})
    if numbers:
        low = [-math.inf, *numbers]
        high = [*numbers, math.inf]
        alternatives += [_between(a, b) for a, b in zip(low, high, strict=True)]
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        pattern = pattern_without(texts)
        if pattern is None:
            return None
        alternatives.append({"type": "string", "pattern": pattern})
    for value in values:
        if isinstance(value, list | dict):
            if value or sum(type_of(other) == type_of(value) for other in values) > 1:
                return None
            least = "minItems" if isinstance(value, list) else "minProperties"
            alternatives.append({"type": type_of(value), least: 1})
    return {"anyOf": alternatives}


def _between(low: float, high: float) -> dict[str, Any]:
    bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
    finite = {key: bound for key, bound in bounds.items() if not math.isinf(bound)}
    return {"type": "number", **finite}


def pattern_without(texts: Sequence[str]) -> str | None:
    """Return a regular expression of every text but these; None if they are too many or long."""
    if len(texts) > MAX_EXCLUDED or sum(map(len, texts)) > 20 * MAX_EXCLUDED:
        return None
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    ordered = list(_nodes(tree))
    patterns: dict[int, str] = {}
    for node in reversed(ordered):
        characters = [character for character in node if character]
        excluded = "".join(map(_escaped, characters))
        options = [f"[^{excluded}](?s:.*)" if excluded else "(?s:.+)"]
        options += [_escaped(item) + patterns[id(node[item])] for item in characters]
        end = "" if "" in node else "?"
        patterns[id(node)] = f"(?:{'|'.join(options)}){end}"
        if len(patterns[id(node)]) > 100 * MAX_EXCLUDED:
            return None
    return f"^{patterns[id(tree)]}$"


def _nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    unvisited = [tree]
    for node in unvisited:
        yield node
        unvisited += [child for character, child in node.items() if character]


def _escaped(character: str) -> str:
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{{{ord(character):X}}}"
