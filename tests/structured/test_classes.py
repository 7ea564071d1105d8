"""The JSON schemas of classes."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from typing import Any

import pytest

from llcuda.errors import ArgumentError
from llcuda.structured.classes import class_schema


@pytest.mark.parametrize("kind", [set[int], frozenset[int]])
def test_a_set_reads_repetitions(kind: Any) -> None:
    """A text may repeat an item of a set, which Pydantic reads."""
    schema = class_schema(make_dataclass("Numbers", [("numbers", kind)]))
    assert schema is not None
    expected = {"title": "Numbers", "type": "array", "items": {"type": "integer"}}
    assert expected == schema["properties"]["numbers"]


def test_a_set_that_needs_several_items() -> None:
    """A repetition would make it too small."""
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Two", a=(set[int], pydantic.Field(min_length=2)))
    schema = class_schema(model)
    assert schema is not None
    assert (True, 2) == tuple(schema["properties"]["a"][key] for key in ("uniqueItems", "minItems"))


@pytest.mark.parametrize("value", [int, dict, "a", {"type": "object"}, None, list[int]])
def test_other_values_are_not_classes_of_schemas(value: Any) -> None:
    """They are left to whoever asked."""
    assert class_schema(value) is None


def test_a_class_without_a_schema() -> None:
    """Pydantic's reason is one line, with the name of the class."""
    pytest.importorskip("pydantic")
    kind = make_dataclass("Loop", [("field", "NoSuchClass")])
    with pytest.raises(ArgumentError, match="response_format: Loop: ") as caught:
        class_schema(kind)
    assert "\n" not in str(caught.value)


def test_without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, and what to give instead."""
    monkeypatch.setitem(sys.modules, "pydantic", None)
    message = "the class Plain needs pydantic; install pydantic, or give a JSON schema"
    with pytest.raises(ArgumentError, match=message):
        class_schema(make_dataclass("Plain", [("x", int)]))


def test_a_class_has_its_own_fields_and_no_others() -> None:
    """Nested ones too; unless its configuration allows others. Mappings stay open."""
    pydantic = pytest.importorskip("pydantic")
    inner = make_dataclass("Inner", [("x", int)])
    model = pydantic.create_model("Outer", inner=(inner, ...), sizes=(dict[str, int], ...))
    schema = class_schema(model)
    assert schema is not None
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["additionalProperties"] is False
    assert schema["properties"]["sizes"]["additionalProperties"] == {"type": "integer"}
    opened = pydantic.create_model("Open", a=(int, ...), __config__={"extra": "allow"})
    schema = class_schema(opened)
    assert schema is not None
    assert schema["additionalProperties"] is True
