"""Keywords that llguidance does not know: kept exactly where that is possible, or refused."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest

from llcuda import Model, structured
from llcuda.errors import ArgumentError
from tests.support.guides import fits, texts_of
from tests.support.schemas import excluding_schema, instances


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


def compact(value: Any) -> str:
    """JSON without whitespace."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


INTEGER: dict[str, Any] = {"type": "integer"}
TEXT: dict[str, Any] = {"type": "string"}


def kind(of: str, **properties: Any) -> dict[str, Any]:
    """Return a schema of objects that a property tells apart."""
    properties = {"kind": {"const": of}, **properties}
    return {"type": "object", "properties": properties, "required": [*properties]}


LOW: dict[str, Any] = {"type": ["integer", "string"], "maxLength": 2, "minimum": 0, "maximum": 9}
CAT, DOG = kind("cat", lives=INTEGER), kind("dog", name=TEXT)
KEPT: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"oneOf": [TEXT, INTEGER, {"type": "null"}]}, ["a", 1, None], [False, 1.5]),
    ({"oneOf": [{"const": 1}, {"enum": [2, "a"]}]}, [1, 2, "a"], [3]),
    ({"oneOf": [CAT, DOG]}, [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": "x"}],
     [{"kind": "cat", "name": "x"}, {"kind": "fox", "name": "x"}]),
    ({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs":
      {"cat": CAT, "dog": DOG}}, [{"kind": "cat", "lives": 9}], [{"kind": "cat", "name": "x"}]),
    ({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
     [{"a": 1}, {"b": 1}, {"b": 1, "c": 2}], [{}, {"a": 1, "b": 1}]),
    ({"oneOf": [{"type": "number", "maximum": 1}, {"type": "number", "exclusiveMinimum": 1}]},
     [1, 1.5, -3], ["a"]),
    ({"oneOf": [{"type": "number", "maximum": 2}, {"type": "number", "minimum": 1}]},
     [0, 3, 0.5], [1, 2, 1.5]),
    ({"oneOf": [TEXT, {"enum": ["a", 1]}]}, ["b", 1, ""], ["a", 2]),
    ({"oneOf": [{"type": "object", "properties": {"a": TEXT}, "required": ["a"],
                 "additionalProperties": False},
                {"type": "object", "properties": {"b": TEXT}, "required": ["b"],
                 "additionalProperties": False}]}, [{"a": "x"}, {"b": "x"}], [{}, {"a": 1}]),
    ({"oneOf": [{"type": "object", "properties": {"a": {"pattern": "^x"}}, "required": ["a"]},
                {"type": "object", "required": ["b"]}]}, [{"a": "x"}, {"b": 1}],
     [{"a": "x", "b": 1}, {"a": "y"}]),
    ({"oneOf": [{"oneOf": [TEXT, INTEGER]}, {"type": "null"}], "anyOf": [TEXT, {"type": "null"}]},
     ["a", None], [1]),
    ({"not": {"type": "object"}}, [1, "a", [], None], [{}, {"a": 1}]),
    ({"type": "string", "not": {"enum": ["", "red", "rot", 5]}}, ["r", "re", "redd", "ro\n", "é"],
     ["", "red", "rot"]),
    ({"type": "integer", "not": {"const": 5}}, [4, 6, -5, 50], [5]),
    ({"type": "boolean", "not": {"const": True}}, [False], [True]),
    ({"type": "object", "not": {"required": ["a", "b"]}}, [{"a": 1}, {"b": 1}, {}],
     [{"a": 1, "b": 1}]),
    ({"type": "string", "not": {"minLength": 3}}, ["", "ab"], ["abc"]),
    ({"not": {"not": TEXT}}, ["a"], [1]),
    ({"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]},
      "else": {"required": ["c"]}, "type": "object"},
     [{"a": 1, "b": 2}, {"a": 2, "c": 1}, {"c": 1}], [{"a": 1}, {"a": 2, "b": 1}, {}]),
    ({"if": TEXT, "then": {"maxLength": 2}}, ["ab", 1, None], ["abc"]),
    ({"if": {"type": "object", "properties": {"k": {"const": "x"}, "n": {"pattern": "y"}},
             "required": ["k"]}, "then": False, "else": True, "type": "object"},
     [{"k": "y"}, {"a": 1}], [{"k": "x"}, {"k": "x", "n": "y"}]),
    ({"if": {"type": "integer", "minimum": 0}, "then": {"type": "null"}, "else": {"type": "null"}},
     [None], [0, -1, "a"]),
    ({"if": INTEGER, "then": {"minimum": 3}}, [3, "a", None], [2]),
    ({"not": {"type": "integer", "minimum": 0}}, [-1, -0.5, "a", None], [0, 1, 7]),
    ({"type": "integer", "not": {"type": "integer", "minimum": 0}}, [-1, -20], [0, 1]),
    ({"not": {"type": ["integer", "string"]}}, [None, [], {}], [1, "a"]),
    ({"oneOf": [LOW, {"enum": [True, 1]}, LOW]}, [True], [3, "a", "abc", 10]),
    ({"oneOf": [INTEGER, {**INTEGER, "minimum": 2}]}, [1, -1], [2, 3]),
    ({"then": False, "else": False, "if": True, "type": "null"}, [], [None]),
    ({"type": "object", "propertyNames": {"type": "string"}}, [{"a": 1}], [1]),
    ({"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER},
     [{"a": 1}, {"b": 2}, {"a": 1, "b": 2}, {}], [{"c": 1}, {"a": "x"}]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-c]+$"}, "properties": {"ab": INTEGER,
      "x": INTEGER}}, [{"ab": 1}, {"ca": []}, {}], [{"x": 1}, {"ab": "x"}, {"d": 1}]),
    ({"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": INTEGER},
     [{"ab": 1}, {"": 1}], [{"abc": 1}, {"a": "x"}]),
    ({"type": "object", "propertyNames": {"not": {"const": "a"}}}, [{"b": 1}], [{"a": 1}]),
    ({"type": "object", "propertyNames": False}, [{}], [{"a": 1}]),
    ({"type": "array", "items": {"enum": ["a", "b", "a", 1]}, "uniqueItems": True},
     [[], ["a"], ["b", 1, "a"]], [["a", "a"], [1, "b", 1], ["c"]]),
    ({"type": ["array", "null"], "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 1},
     [[True], [False, True], None], [[], [True, True]]),
    ({"type": "array", "items": TEXT, "uniqueItems": True, "maxItems": 1}, [[], ["a"]],
     [["a", "b"]]),
    ({"type": "array", "contains": {"const": 1}, "maxItems": 3}, [[1], [2, 1], [[], "a", 1]],
     [[], [2], [2, 2, 2, 1]]),
    ({"type": "array", "contains": TEXT, "minContains": 0, "items": INTEGER}, [[], [1]], [["a"]]),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}],
     [{"a": 1}]),
    ({"type": "object", "dependentSchemas": {"a": {"properties": {"b": INTEGER}}}},
     [{"b": "x"}, {"a": 1, "b": 1}], [{"a": 1, "b": "x"}]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
      "dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
     [{"a": 1, "b": 1}, {"c": 1, "d": 1}], [{"a": 1}, {"c": 1}]),
    ({"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False},
     [{"a": 1}, {}], [{"b": 1}]),
    ({"type": "array", "prefixItems": [TEXT], "unevaluatedItems": False}, [["a"]], [["a", 1]]),
    ({"properties": {"a": {"oneOf": [INTEGER, TEXT]}, "b": {"$ref": "#/properties/a/oneOf/1"}},
      "type": "object"}, [{"a": 1, "b": "x"}], [{"b": 1}]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a":
      {"$ref": "#/definitions/b", "maxLength": 1}}, "type": "object", "definitions": {"b": TEXT}},
     [{"a": "xy"}], [{"a": 1}]),
    ({"type": "string", "format": "path", "minLength": 1.0}, ["/tmp"], [""]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "yes", "no"), KEPT, ids=lambda value: str(value)[:60])
def test_what_is_kept(model: Model, schema: Any, yes: list[Any], no: list[Any]) -> None:
    """Every text is one that a validator accepts, and the usual ones are there."""
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    assert [value for value in (*yes, *no) if validator.is_valid(value) != (value in yes)] == []
    if not yes:
        with pytest.raises(ArgumentError):
            structured.compile(model, schema=schema, compact=True)
        return
    grammar = structured.compile(model, schema=schema, compact=True)

    def is_kept(value: Any) -> bool:
        return any(fits(model, grammar, text) for text in texts_of(value))

    assert [value for value in yes if not is_kept(value)] == []
    assert [value for value in no if is_kept(value)] == []


ANY_PATTERN: dict[str, Any] = {"pattern": "x"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf at #: branches 0 and 1 may hold"),
    ({"oneOf": [{**TEXT, "pattern": "^a"}, {**TEXT, "pattern": "b$"}]},
     "oneOf at #: branches 0 and 1 may hold"),
    ({"properties": {"a": {"type": "number", "not": INTEGER}}, "type": "object", "required": ["a"]},
     "not at #/properties/a: the complement of this schema cannot be written; write it with types"),
    ({"properties": {"a": {"oneOf": [ANY_PATTERN, TEXT]}}}, "oneOf at #/properties/a: branches 0"),
    ({"oneOf": 5}, "#/oneOf: expected a list"),
    ({"items": {"not": {"type": "string", "pattern": "x"}}}, "not at #/items: the complement"),
    ({"$defs": {"a": {"not": ANY_PATTERN}}, "$ref": "#/$defs/a"}, "not at #/$defs/a: "),
    ({"if": ANY_PATTERN, "then": False}, "if at #: the complement"),
    ({"uniqueItems": True, "type": "array", "items": TEXT}, "uniqueItems at #: it can be honoured"),
    ({"anyOf": [{"uniqueItems": True, "type": "array"}]}, "uniqueItems at #/anyOf/0: it can be"),
    ({"type": "array", "uniqueItems": True, "items": {"enum": list(range(50))}}, "more than 2000"),
    ({"contains": INTEGER}, "contains at #: it can be honoured with maxItems up to 16"),
    ({"contains": INTEGER, "maxItems": 3, "maxContains": 1}, "minContains and maxContains cannot"),
    ({"propertyNames": {"format": "date"}}, "propertyNames at #: format cannot be honoured"),
    ({"propertyNames": {"pattern": "(?i)a"}, "properties": {"a": {}}}, "property 'a' is not cert"),
    ({"propertyNames": ANY_PATTERN, "patternProperties": {"b": {}}}, "beside patternProperties"),
    ({"propertyNames": ANY_PATTERN, "properties": {"x": {}}, "additionalProperties": TEXT},
     "beside properties and additionalProperties"),
    ({"properties": {"a": {"$dynamicRef": "#x"}}}, "$dynamicRef at #/properties/a: it cannot"),
    ({"items": {"format": "iri"}}, "format at #/items: 'iri' is not one of date-time, date, "),
    ({"dependentRequired": {"a": "b"}}, "dependentRequired at #: expected lists of names"),
    ({"dependentSchemas": 1}, "dependentSchemas at #: expected an object"),
    ({"allOf": [{"properties": {}}], "unevaluatedProperties": False}, "beside other schemas"),
    ({"anyOf": [{"prefixItems": [{}]}], "unevaluatedItems": False}, "beside other schemas"),
    ({"$defs": {f"a{i}": {"not": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 3}} for i in range(9)},
      "$ref": "#/$defs/a0"}, "not at #/$defs/a8: the complement"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "error"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused(model: Model, schema: Any, error: str) -> None:
    """With its place in the schema."""
    with pytest.raises(ArgumentError) as caught:
        structured.compile(model, schema=schema)
    assert error in str(caught.value)
    assert caught.value.parameter == "response_format"


AB: dict[str, Any] = {"type": "object", "properties": {"a": INTEGER}}
NONE: dict[str, Any] = {"type": "integer", "minimum": 5, "maximum": 3}
REFUSED_BY_LLGUIDANCE: list[tuple[dict[str, Any], str]] = [
    ({"properties": {"x": {"type": "strin"}}}, "#/properties/x: Invalid type: strin"),
    ({"properties": {"x": {"allOf": 5}}}, "#/properties/x: allOf must be an array"),
    ({"items": {"multipleOf": 0}}, "#/items: invalid multiple of"),
    ({"items": {"multipleOf": 100_001}}, "#/items: multipleOf=100001: a number of fewer digits"),
    ({"properties": {"x": {**AB, "minProperties": 1}}}, "#/properties/x: min/maxProperties only"),
    ({"properties": {"x": {"pattern": "(a"}}}, "#/properties/x: regex parse error"),
    ({"allOf": [{}, {"items": {"pattern": "(?=a)b"}}]}, "#/allOf/1/items: regex parse error"),
    ({"properties": {"x": {"patternProperties": {"^a": {}, "b$": {}}}}},
     "#/properties/x: patternProperty regexes /^a/ and /b$/ are not disjoint"),
    ({"$ref": "#/$defs/q", "$defs": {"q": {"items": [{"pattern": "("}]}},
      "$schema": "http://json-schema.org/draft-07/schema#"}, "#/$defs/q/items/0: regex parse"),
    ({"properties": {"a": {"$ref": "#"}, "b": {"type": "x"}}}, "#/properties/b: Invalid type: x"),
    ({"properties": {"x": {"$ref": "#/y"}}}, "#/properties/x: Pointer '/y' does not exist"),
    ({"items": {"enum": [2**60]}}, "#/items: enum and const: "),
    ({"properties": {"x/y": 5}}, "#/properties/x/y: schema must be an object or boolean"),
    ({"required": 5}, "#: Expected array for 'required', got 5"),
    ({"properties": {"x": False, "y": {"allOf": [INTEGER, TEXT]}}, "required": ["y"],
      "type": "object"}, "#/properties/y: Unsatisfiable schema: incompatible types"),
    ({"properties": {"a": {"properties": {"b": {"items": NONE, "minItems": 1, "type": "array"}},
      "required": ["b"], "type": "object"}}, "required": ["a"], "type": "object"},
     "#/properties/a/properties/b/items: Unsatisfiable schema: minimum (5) is greater than"),
    ({"prefixItems": [TEXT, NONE], "minItems": 2, "type": "array"},
     "#/prefixItems/1: Unsatisfiable schema: minimum (5)"),
    ({"allOf": [{}, {**TEXT, "minLength": 3, "maxLength": 2}]},
     "#/allOf/1: Unsatisfiable schema: minLength (3) is greater than"),
    ({"type": "boolean", "anyOf": [NONE, TEXT]}, "#: Unsatisfiable schema: incompatible types"),
    ({"properties": {"a": {"enum": []}}, "required": ["a"], "type": "object"},
     "#/properties/a: Unsatisfiable schema: no value is allowed"),
    ({**TEXT, "pattern": "^a$", "minLength": 3},
     "#: Unsatisfiable schema: no text follows its pattern, format and lengths"),
    ({"type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 1, "$defs": {"p": False}},
     "#/$defs/p: Unsatisfiable schema: schema is false"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "error"), REFUSED_BY_LLGUIDANCE, ids=lambda value: str(value)[:60]
)
def test_places_of_what_llguidance_refuses(model: Model, schema: Any, error: str) -> None:
    """The smallest schema that is refused for the same reason is named."""
    with pytest.raises(ArgumentError) as caught:
        structured.compile(model, schema=schema)
    assert str(caught.value).startswith(f"response_format: schema at {error}")
    assert caught.value.parameter == "response_format"


def test_the_place_in_a_schema_of_a_tool(model: Model) -> None:
    """Is named, too."""
    parameters = {"type": "object", "properties": {"x": {"type": "strin"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    tool_format = structured.tool_format(tools, "required", around=lambda name: (name, ""))
    with pytest.raises(ArgumentError, match="schema at #/properties/x: Invalid type: strin"):
        structured.compile(model, tool_format)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, r'{"a":1,"\u0062":2}'),
        ({"not": {"required": ["a"]}}, r'{"\u0061":1}'),
        ({"dependentRequired": {"a": ["b"]}}, r'{"\u0061":1}'),
        ({"propertyNames": {"maxLength": 1}}, r'{"\u0061b":1}'),
        ({"if": {"required": ["k"]}, "then": {"required": ["b"]}}, r'{"\u006b":"x"}'),
        ({"properties": {"a": {"not": {"const": "red"}}}}, r'{"a":"\u0072ed"}'),
        ({"properties": {"a": {"uniqueItems": True, "items": {"enum": ["x", "y"]}}}},
         r'{"a":["x","\u0078"]}'),
        ({"oneOf": [CAT, DOG]}, r'{"kind":"cat","lives":1,"\u006bind":"dog"}'),
    ],
)  # fmt: skip
def test_escapes_exclude_what_they_spell(model: Model, schema: dict[str, Any], text: str) -> None:
    """A name or a text that is escaped is the same one."""
    schema = {"type": "object", **schema}
    assert not jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    assert not fits(model, structured.compile(model, schema=schema, compact=True), text)


def test_definitions_that_nothing_uses_are_not_judged(model: Model) -> None:
    """As llguidance does not read them."""
    assert structured.compile(model, schema={**TEXT, "$defs": {"a": {"not": ANY_PATTERN}}})


def test_schemas_that_are_true_and_false(model: Model) -> None:
    """True allows any JSON, false none."""
    assert fits(model, structured.compile(model, schema=True), '{"a": [1]}')
    with pytest.raises(ArgumentError, match="nothing satisfies"):
        structured.compile(model, schema=False)


def run_excluding_schemas(model: Model, seeds: range) -> None:
    """Walk many values through each schema that is accepted: none passes that is not valid."""
    accepted, passed = 0, 0
    for seed in seeds:
        schema = excluding_schema(seed)
        try:
            grammar = structured.compile(model, schema=schema, compact=True)
        except ArgumentError:
            continue
        accepted += 1
        validator = jsonschema.Draft202012Validator(schema)
        for value in instances(seed):
            is_kept = any(fits(model, grammar, text) for text in texts_of(value))
            assert validator.is_valid(value) or not is_kept, (seed, schema, value)
            passed += is_kept
    assert accepted > 0.6 * len(seeds)
    assert passed > 5 * accepted


def test_schemas_that_exclude_something(model: Model) -> None:
    """In random combinations."""
    run_excluding_schemas(model, range(120))


@pytest.mark.slow
def test_many_schemas_that_exclude_something(model: Model) -> None:
    """The same with 3,000."""
    run_excluding_schemas(model, range(120, 3120))


class Colour(enum.Enum):
    """Names of a dict."""

    RED = "red"
    BLUE = "blue"


def test_classes_of_pydantic(model: Model) -> None:
    """Whose schemas have such keywords: what comes is what the class reads."""
    pydantic = pytest.importorskip("pydantic")
    extensions = pytest.importorskip("typing_extensions")
    needed = Annotated[set[Colour], pydantic.Field(min_length=2)]
    cat = pydantic.create_model("Cat", kind=(Literal["cat"], ...))
    dog = pydantic.create_model("Dog", kind=(Literal["dog"], ...), name=(str, ...))
    either = Annotated[cat | dog, pydantic.Field(discriminator="kind")]
    point = extensions.TypedDict("Point", {"x": int, "path": Path})
    line = dataclasses.make_dataclass("Line", [("length", int), ("data", bytes)])
    for of, yes, no in (
        (set[int], [[1, 2], [1, 1], []], [["a"]]),
        (needed, [["red", "blue"]], [["red"], ["red", "red"]]),
        (dict[Literal["a", "b"], int], [{"a": 1}, {"a": 1, "b": 2}], [{"c": 1}]),
        (dict[Colour, int], [{"blue": 1}], [{"green": 1}]),
        (either, [{"kind": "cat"}, {"kind": "dog", "name": "x"}], [{"kind": "dog"}]),
        (point, [{"x": 1, "path": "/tmp"}], [{"x": 1}]),
        (line, [{"length": 1, "data": "x"}], [{"length": "x", "data": "x"}]),
    ):
        reader = pydantic.create_model("Reader", value=(of, ...))
        grammar = structured.compile(model, reader, compact=True)
        for value in (*yes, *no):
            text = compact({"value": value})
            assert fits(model, grammar, text) == (value in yes)
            if value in yes:
                reader.model_validate_json(text)
    for of in (point, line):
        assert structured.compile(model, of)
    with pytest.raises(ArgumentError, match="uniqueItems at #/properties/value"):
        many = Annotated[set[int], pydantic.Field(min_length=2)]
        structured.compile(model, pydantic.create_model("Reader", value=(many, ...)))
