"""JSON schemas of classes: Pydantic models, TypedDicts and dataclasses, all read by Pydantic."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from llcuda.errors import AnswerError
from llcuda.params import wrong_argument


def is_readable_class(kind: Any) -> bool:
    """Return whether `kind` is a Pydantic model, a TypedDict or a dataclass."""
    if not isinstance(kind, type):
        return False
    # typing.is_typeddict does not know those of typing_extensions, which Pydantic asks for.
    is_typed_dict = issubclass(kind, dict) and hasattr(kind, "__total__")
    is_model = hasattr(kind, "model_json_schema")
    return is_model or dataclasses.is_dataclass(kind) or is_typed_dict


def read_answer(text: str, response_format: Any, finish_reason: str) -> Any:
    """Return what a text that follows a format holds.

    Args:
        text: The text.
        response_format: The format; see `llcuda.structured.compile`.
        finish_reason: Why the text ended, for the error.

    Returns:
        An instance for a class, Python's data for JSON; None for other formats, such as a regular
        expression or a CompiledGrammar.

    Raises:
        AnswerError: The text is cut off, or the class refuses it.
    """
    is_class = is_readable_class(response_format)
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if not is_class and kind not in ("json_object", "json_schema"):
        return None
    try:
        if not is_class:
            return json.loads(text)
        import pydantic

        return pydantic.TypeAdapter(response_format).validate_json(text)
    except ValueError as error:  # pydantic's ValidationError is one
        name = response_format.__name__ if is_class else "JSON"
        if finish_reason == "stop":
            problem = f"the answer is no {name}: {error}"
        else:
            problem = f"the answer is no complete {name}: it ended by {finish_reason!r}"
            problem += "; give a larger max_tokens" if finish_reason == "length" else ""
        raise AnswerError(problem) from error


def class_schema(kind: Any) -> dict[str, Any] | None:
    """Return the JSON schema of the texts that a class reads; None for anything else.

    It has no properties that the class would ignore: a model may write them without end.

    Args:
        kind: A Pydantic model, a TypedDict or a dataclass.

    Raises:
        ArgumentError: Pydantic is missing, or has no schema for the class.
    """
    if not is_readable_class(kind):
        return None
    try:
        import pydantic
        from pydantic.json_schema import GenerateJsonSchema
    except ImportError:
        remedy = "install pydantic, or give a JSON schema"
        rule = f"the class {kind.__name__} needs pydantic"
        raise wrong_argument("response_format", rule, remedy) from None

    class SchemaOfTexts(GenerateJsonSchema):
        """Closes objects, and leaves out uniqueItems.

        A set reads a repetition, unless it needs several items.
        """

        def model_schema(self, schema: Any) -> dict[str, Any]:
            return _closed(super().model_schema(schema))

        def dataclass_schema(self, schema: Any) -> dict[str, Any]:
            return _closed(super().dataclass_schema(schema))

        def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
            return _closed(super().typed_dict_schema(schema))

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


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a class, without further properties unless the class allows them."""
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _readable(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("minItems", 0) <= 1:
        schema.pop("uniqueItems", None)
    return schema
