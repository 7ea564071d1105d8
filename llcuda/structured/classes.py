"""JSON schemas of classes: Pydantic models, TypedDicts and dataclasses, all read by Pydantic."""

from __future__ import annotations

import dataclasses
from typing import Any

from llcuda.params import wrong_argument


def class_schema(kind: Any) -> dict[str, Any] | None:
    """Return the JSON schema of the texts that a class reads; None for anything else.

    Args:
        kind: A Pydantic model, a TypedDict or a dataclass.

    Raises:
        ArgumentError: Pydantic is missing, or has no schema for the class.
    """
    is_model = isinstance(kind, type) and hasattr(kind, "model_json_schema")
    is_dataclass = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    # typing.is_typeddict does not know those of typing_extensions, which Pydantic asks for.
    is_typed_dict = isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")
    if not is_model and not is_dataclass and not is_typed_dict:
        return None
    try:
        import pydantic
        from pydantic.json_schema import GenerateJsonSchema
    except ImportError:
        remedy = "install pydantic, or give a JSON schema"
        rule = f"the class {kind.__name__} needs pydantic"
        raise wrong_argument("response_format", rule, remedy) from None

    class SchemaOfTexts(GenerateJsonSchema):
        """Leaves out uniqueItems: a set reads a repetition, unless it needs several items."""

        def set_schema(self, schema: Any) -> dict[str, Any]:
            return _readable(super().set_schema(schema))

        def frozenset_schema(self, schema: Any) -> dict[str, Any]:
            return _readable(super().frozenset_schema(schema))

    try:
        schema: dict[str, Any] = pydantic.TypeAdapter(kind).json_schema(
            schema_generator=SchemaOfTexts
        )
    except pydantic.errors.PydanticUserError as error:
        line = str(error).splitlines()[0]
        raise wrong_argument("response_format", f"{kind.__name__}: {line}") from None
    return schema


def _readable(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("minItems", 0) <= 1:
        schema.pop("uniqueItems", None)
    return schema
