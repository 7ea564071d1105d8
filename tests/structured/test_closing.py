"""Objects of a response format that name their properties have no others; they stay valid."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import jsonschema
import pytest

from llcuda import Model, structured
from llcuda.errors import ArgumentError
from llcuda.structured.closing import close_objects
from llcuda.structured.json_schema import target
from tests.support.guides import fits
from tests.support.schemas import damaged_schema, excluding_schema, instances

INTEGER: dict[str, Any] = {"type": "integer"}
PERSON: dict[str, Any] = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}
OTHER: dict[str, Any] = {"type": "object", "properties": {"b": INTEGER}, "required": ["b"]}


def tagged(kind: str) -> dict[str, Any]:
    properties = {"kind": {"const": kind}, "a": INTEGER}
    return {"type": "object", "properties": properties, "required": ["kind"]}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


def allows(model: Model, value: Any, response_format: Any = None, **keywords: Any) -> bool:
    grammar = structured.compile(model, response_format, compact=True, **keywords)
    return fits(model, grammar, json.dumps(value, separators=(",", ":")))


@pytest.mark.parametrize(
    ("schema", "closed", "open_"),
    [
        (PERSON, {"a": 1}, None),
        ({**PERSON, "required": []}, {}, None),
        ({"properties": {"in": PERSON}}, {"in": {"a": 1}}, None),
        ({"type": "array", "items": PERSON}, [{"a": 1}], None),
        ({"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, {"a": 1}, None),
        ({"allOf": [{"$ref": "#/$defs/p"}], "$defs": {"p": PERSON}}, {"a": 1}, None),
        ({"anyOf": [PERSON, OTHER, {"type": "null"}]}, {"b": 1}, None),
        ({"oneOf": [tagged("x"), tagged("y")]}, {"kind": "x", "a": 1}, None),
        ({**PERSON, "additionalProperties": True}, None, {"a": 1}),
        ({**PERSON, "required": ["a", "more"]}, None, {"a": 1, "more": 2}),
        ({**PERSON, "minProperties": 2}, None, None),
        ({"type": "object"}, None, {}),
        ({"allOf": [PERSON, OTHER]}, None, {"a": 1, "b": 1}),
        ({**PERSON, "allOf": [OTHER]}, None, {"a": 1, "b": 1}),
        ({**PERSON, "$ref": "#/$defs/o", "$defs": {"o": OTHER}}, None, {"a": 1, "b": 1}),
        ({**PERSON, "anyOf": [OTHER, {"required": ["c"]}]}, None, {"a": 1, "b": 1}),
        ({"not": {**OTHER, "properties": {}}, **PERSON}, None, {"a": 1}),
        ({"allOf": [{"properties": {"in": PERSON}}, {"properties": {"in": OTHER}}],
          "type": "object", "required": ["in"]}, None, {"in": {"a": 1, "b": 1}}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_closed(model: Model, schema: dict[str, Any], closed: Any, open_: Any) -> None:
    """An object whose properties are all named is closed, wherever it is; no other one is."""
    schema = {"type": "object", **schema} if "properties" in schema else schema
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    for value, is_closed in ((closed, True), (open_, False)):
        if value is not None:
            assert allows(model, value, response_format)
            further = _with_more(value)
            assert allows(model, further, schema=schema)
            assert is_closed != allows(model, further, response_format)
    if closed is None and open_ is None:
        before = copy.deepcopy(schema)
        close_objects(schema, lambda _: None)
        assert before == schema


def _with_more(value: Any) -> Any:
    """Return a value whose innermost object has one more property."""
    if isinstance(value, list):
        return [_with_more(item) for item in value]
    if value and isinstance(inner := next(iter(value.values())), dict):
        return {next(iter(value)): _with_more(inner)}
    return {**value, "z": 1}


def test_other_forms(model: Model) -> None:
    """A json_object with a schema, as older servers have it, and a schema by itself."""
    assert not allows(model, {"a": 1, "z": 1}, {"type": "json_object", "schema": PERSON})
    assert allows(model, {"a": 1, "z": 1}, schema=PERSON)
    assert allows(model, {"z": 1}, {"type": "json_object"})


def test_it_only_narrows() -> None:
    """What a closed schema allows, the schema allows."""
    closed = 0
    for seed in range(2000):
        schema = excluding_schema(seed)
        narrow = copy.deepcopy(schema)
        close_objects(narrow, partial(target, root=narrow))
        closed += narrow != schema
        validator = jsonschema.Draft202012Validator(schema)
        narrowed = jsonschema.Draft202012Validator(narrow)
        for value in instances(seed) if narrow != schema else ():
            assert not narrowed.is_valid(value) or validator.is_valid(value), (schema, value)
    assert closed > 50


def test_schemas_of_wrong_shapes() -> None:
    """A schema that is none is left to the checks that come later."""
    for seed in range(300):
        schema = damaged_schema(seed)
        with suppress(ArgumentError):  # a reference that leads nowhere
            close_objects(schema, partial(target, root=schema))
