"""Random JSON schemas, small enough that a text of a few hundred tokens satisfies each."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

WORDS = ("red", "fox", "é", "日本", "a b", 'quote "', "back\\slash", "line\nbreak", "🦊", "")
PATTERNS = (
    "^[a-z]{2,5}$", "^[A-Z][a-z]+ [0-9]{1,3}$", "^(yes|no|maybe)$", "^[^a-z\\n]{1,4}$",
    "^#[0-9a-f]{6}$", "^\\d{3}-\\d{4}$", "^(ab|cd)*x?$", "^[\\w.]{1,8}@x$", "^é+[ü-ÿ]$",
)  # fmt: skip
FORMATS = ("date", "date-time", "time", "ipv4", "ipv6", "uuid")


def random_schema(seed: int) -> Schema:
    """Return the schema of a number: an object or an array, with definitions."""
    rng = random.Random(seed)
    definitions = {name: _scalar(rng) for name in ("one", "two")}
    definitions["three"] = _object(rng, 1, list(definitions))
    names = list(definitions)
    root = _object(rng, 3, names) if rng.random() < 0.8 else _array(rng, 3, names)
    if rng.random() < 0.15:  # a tree of itself
        root = {
            "type": "object",
            "properties": {"value": root, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    return {**root, "$defs": definitions}


JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 5, 2.5, 1e308, 10**400, "", "²", "#", "#/$defs/²", "#/$defs/one", "\ud800",
    "(", [], {}, [1], ["a"], [None], {"a": 1}, {"$ref": "#"}, ["string", "²"], "date", "object",
)  # fmt: skip
KEYWORDS = (
    "type", "properties", "required", "enum", "const", "pattern", "format", "items", "prefixItems",
    "additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "minItems",
    "minimum", "exclusiveMaximum", "multipleOf", "minProperties", "maxLength", "uniqueItems",
    "$defs", "additionalItems", "$id", "$schema", "x-guidance",
)  # fmt: skip


def damaged_schema(seed: int) -> Schema:
    """Return the schema of a number with values of other kinds in some places."""
    rng = random.Random(seed)
    schema = random_schema(seed)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(list(_places(schema)))
        if rng.random() < 0.5 and isinstance(container, dict):
            key = rng.choice(KEYWORDS)
        container[key] = copy.deepcopy(rng.choice(JUNK))
    return schema


def _places(schema: Schema) -> Iterator[tuple[Any, Any]]:
    """Return every list and dict in a schema with each of its indices or keys."""
    unvisited: list[Any] = [schema]
    while unvisited:
        value = unvisited.pop()
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        yield from ((value, key) for key, _ in items)
        unvisited += [inner for _, inner in items if isinstance(inner, dict | list)]


def _schema(rng: random.Random, depth: int, names: list[str]) -> Schema:
    makers = [_scalar] * 4
    if depth:
        compound = (_object, _array, _any_of, _reference, _all_of)
        makers += [lambda rng, make=make: make(rng, depth - 1, names) for make in compound]  # type: ignore[misc]
    return rng.choice(makers)(rng)


def _object(rng: random.Random, depth: int, names: list[str]) -> Schema:
    keys = rng.sample(
        ["name", "age", "tags", "käse", "a b", "id", "x-1", "größe"], rng.randint(0, 4)
    )
    schema: Schema = {"type": "object", "properties": {k: _schema(rng, depth, names) for k in keys}}
    schema["required"] = [key for key in keys if rng.random() < 0.7]
    kind = rng.random()
    if kind < 0.7:
        schema["additionalProperties"] = False
    elif kind < 0.85:
        schema["patternProperties"] = {"^p[0-9]{2}$": _scalar(rng)}
        schema["additionalProperties"] = False
        schema["maxProperties"] = len(keys) + 3
        schema["required"] = keys
    else:
        schema["additionalProperties"] = _scalar(rng)
        schema["maxProperties"] = len(keys) + 2
        schema["required"] = keys
    return schema


def _array(rng: random.Random, depth: int, names: list[str]) -> Schema:
    low = rng.randint(0, 2)
    schema: Schema = {"type": "array", "minItems": low, "maxItems": low + rng.randint(0, 2)}
    if rng.random() < 0.3:
        first = [_schema(rng, depth, names) for _ in range(rng.randint(1, 2))]
        schema["prefixItems"] = first
        schema["minItems"] = schema["maxItems"] = len(first)
        schema["items"] = False
    else:
        schema["items"] = _schema(rng, depth, names)
    if rng.random() < 0.2:
        schema["uniqueItems"] = False
    return schema


def _any_of(rng: random.Random, depth: int, names: list[str]) -> Schema:
    if rng.random() < 0.3:
        return {"oneOf": [{"type": "null"}, _number(rng), _text(rng)]}
    return {"anyOf": [_schema(rng, depth, names) for _ in range(rng.randint(1, 3))]}


def _reference(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"$ref": f"#/$defs/{rng.choice(names)}"}


def _all_of(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"allOf": [{"type": "integer", "minimum": -50}, {"maximum": rng.randint(-50, 2000)}]}


def _scalar(rng: random.Random) -> Schema:
    make = rng.choice([_number, _text, _enum, _plain])
    return {**make(rng), **({"description": "any", "title": "A"} if rng.random() < 0.2 else {})}


def _plain(rng: random.Random) -> Schema:
    kinds: list[Any] = ["boolean", "null", ["integer", "null"], ["boolean", "string"]]
    kind = rng.choice(kinds)
    return {"type": kind, "maxLength": 8} if "string" in kind else {"type": kind, "maximum": 99}


def _enum(rng: random.Random) -> Schema:
    values: list[Any] = [*WORDS, 1, -2.5, None, True, {"a": [1, "b"]}, [], 10**12]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 6))}


def _number(rng: random.Random) -> Schema:
    low = rng.randint(-1000, 1000)
    high = low + rng.randint(1, 5000)
    if rng.random() < 0.6:
        schema: Schema = {"type": "integer"}
        if rng.random() < 0.3:
            schema["multipleOf"] = rng.choice([2, 3, 5, 7, 10, 12])
            high = low + 200
        if rng.random() < 0.3:
            return {**schema, "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
        return {**schema, "minimum": low, "maximum": high}
    low_float, high_float = low / 8, low / 8 + rng.randint(1, 99) / 4
    keys = rng.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
    return {"type": "number", keys[0]: low_float, keys[1]: high_float}


def _text(rng: random.Random) -> Schema:
    kind = rng.random()
    if kind < 0.3:
        return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 20}
    if kind < 0.55:
        return {"type": "string", "format": rng.choice(FORMATS)}
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 12)}


# --- schemas of keywords that exclude something ---

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 1.5, "", "x", "y", "xy", "xyz", [], ["x"], ["x", "y"],
    ["x", "x"], ["x", "y", "x"], [1], [1, 2], [1, 1], [1.5], [None, True], [1, "x"], [[]], [{}],
)  # fmt: skip


def excluding_schema(seed: int) -> Schema:
    """Return the schema of a number, of oneOf, not, if, contains and the like in one another."""
    rng = random.Random(seed)
    schema = _excluding(rng, 3)
    root = schema if isinstance(schema, dict) else {"allOf": [schema]}
    definitions = {"p": _excluding(rng, 2), "q": _excluding(rng, 1)}
    return copy.deepcopy({**root, "$defs": definitions})


def instances(seed: int) -> list[Any]:
    """Return values, some of which satisfy the schema of a number."""
    rng = random.Random(f"instances {seed}")
    inner = [*SCALARS, {}, {"a": 1}, {"b": "x"}]
    names = [rng.sample(["a", "b", "c", "dd"], rng.randint(1, 3)) for _ in range(30)]
    return [*SCALARS, {}, *({name: rng.choice(inner) for name in group} for group in names)]


def _excluding(rng: random.Random, depth: int) -> Any:
    if not depth or rng.random() < 0.2:
        return _excluding_scalar(rng)

    def inner() -> Any:
        return _excluding(rng, depth - 1)

    def names() -> list[str]:
        return rng.sample("abc", rng.randint(1, 2))

    is_object = rng.choice([{}, {"type": "object"}, {"type": "object"}])
    is_array = rng.choice([{}, {"type": "array"}])
    others = rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": inner()}])
    return rng.choice(
        [
            lambda: {"oneOf": [inner() for _ in range(rng.randint(1, 3))]},
            lambda: {"not": inner()},
            lambda: {"if": inner(), "then": inner()},
            lambda: {"if": inner(), "else": inner(), **is_object},
            lambda: {**is_object, "properties": {name: inner() for name in names()}, **others},
            lambda: {**is_object, "properties": {name: inner() for name in names()},
                     "required": names()},
            lambda: {**is_object, "required": names()},
            lambda: {**is_object, "dependentRequired": {rng.choice("abc"): names()}},
            lambda: {**is_object, "dependentSchemas": {rng.choice("abc"): inner()}},
            lambda: {**is_object, "dependencies": {}, "propertyNames": _names(rng), **others},
            lambda: {**is_object, "propertyNames": _names(rng), "properties": {"a": inner()}},
            lambda: {**is_array, "uniqueItems": True, "items": {"enum": ["x", "y", 1]}},
            lambda: {**is_array, "uniqueItems": True, "items": {"type": "boolean"}},
            lambda: {**is_array, "uniqueItems": True, "items": inner(), "maxItems": 1},
            lambda: {**is_array, "contains": inner(), "maxItems": rng.randint(1, 3)},
            lambda: {**is_array, "contains": inner(), "items": inner(), "maxItems": 2},
            lambda: {"allOf": [inner(), inner()]},
            lambda: {"anyOf": [inner(), inner()]},
            lambda: {"$ref": f"#/$defs/{rng.choice('pq')}"},
        ]
    )()  # fmt: skip


def _names(rng: random.Random) -> Any:
    choices: list[Any] = [
        {"enum": ["a", "b"]}, {"const": "a"}, {"maxLength": 1}, {"minLength": 2}, True, False,
        {"pattern": "^[ab]$"}, {"type": "string"}, {"type": "integer"}, {"not": {"enum": ["a"]}},
    ]  # fmt: skip
    return rng.choice(choices)


def _excluding_scalar(rng: random.Random) -> Any:
    scalars = [value for value in SCALARS if not isinstance(value, list)]
    kinds = ["null", "boolean", "string", "number", "array", "object"]
    choices: list[Any] = [
        {"type": rng.choice([*kinds, "integer"])}, {"type": rng.sample(kinds, 2)},
        {"const": rng.choice(scalars)}, {"enum": rng.sample(scalars, rng.randint(1, 4))},
        {"type": "string", "maxLength": rng.randint(0, 2)}, {"minLength": rng.randint(0, 3)},
        {"type": "string", "pattern": rng.choice(["^x", "y$", "^x*$"])}, True, False, {},
        {"type": "number", "minimum": rng.choice([0, 1, 1.5])}, {"maximum": rng.choice([0, 1])},
        {"type": "integer", "exclusiveMaximum": 2}, {"exclusiveMinimum": 1},
    ]  # fmt: skip
    return rng.choice(choices)
