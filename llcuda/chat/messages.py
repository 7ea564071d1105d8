"""The messages and tools of a conversation, in OpenAI's shapes, checked and as plain data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llcuda.chat.tool_schema import function_schema
from llcuda.params import wrong_argument, wrong_value

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DEPTH = 64  # levels of nested data
_REASONING = ("reasoning_content", "thinking", "reasoning")
_READ = ("role", "content", "name", "tool_calls", "tool_call_id", *_REASONING)
# Keys without a text for the model, in messages that clients and other servers' answers have.
_NOTES = frozenset(
    [
        "id",
        "object",
        "type",
        "status",
        "phase",
        "index",
        "finish_reason",
        "refusal",
        "annotations",
        "metadata",
        "cache_control",
        "created",
        "created_at",
        "createdAt",
        "timestamp",
        "model",
        "usage",
        "weight",
        "tool_name",
        "reasoning_details",
        "thinking_blocks",
        "signature",
        "provider_specific_fields",
        "extra_content",
        "additional_kwargs",
        "response_metadata",
    ]
)
_MEDIA = frozenset(
    [
        "image",
        "images",
        "image_url",
        "audio",
        "audios",
        "input_audio",
        "video",
        "videos",
        "file",
        "files",
        "attachments",
        "experimental_attachments",
    ]
)
_TOOL_NAME = re.compile(r"[\w.:/-]{1,128}")


def plain_data(value: Any, parameter: str, depth: int = 0) -> Any:
    """Return a copy of `value` of dict, list, str, int, float, bool and None.

    A template sees nothing else, because other objects have methods.

    Args:
        value: JSON data, or objects of pydantic.
        parameter: The name of the value, for errors.
        depth: The level of nesting.

    Raises:
        ArgumentError: The value has another type, half of a surrogate pair, or more than 64 levels.
    """
    if depth > MAX_DEPTH:
        raise wrong_argument(parameter, f"nested more than {MAX_DEPTH} levels deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise wrong_argument(
                parameter, "half of a surrogate pair is not valid Unicode"
            ) from None
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if callable(getattr(value, "model_dump", None)):  # pydantic, as the openai package answers
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise wrong_argument(parameter, "expected strings as keys")
        return {
            plain_data(key, parameter, depth + 1): plain_data(item, f"{parameter}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain_data(item, f"{parameter}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise wrong_argument(parameter, f"expected JSON data, not {type(value).__name__}")


def check_messages(
    messages: Any, roles: Collection[str] = (), keys: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return the messages as plain data.

    Reasoning gets every name by which templates read it.

    Args:
        messages: A list of messages.
        roles: The roles that a template knows, beside OpenAI's.
        keys: The keys of a message that a template reads, beside OpenAI's.

    Raises:
        ArgumentError: A message has another shape; `parameter` names the place.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise wrong_argument("messages", f"expected a list, not {type(messages).__name__}")
    if not messages:
        raise wrong_argument("messages", "expected at least one")
    return [_message(message, f"messages[{i}]", roles, keys) for i, message in enumerate(messages)]


def _message(
    given: Any, where: str, roles: Collection[str], keys: Collection[str]
) -> dict[str, Any]:
    message = plain_data(given, where)
    if not isinstance(message, dict):
        raise wrong_argument(where, f"expected an object with role and content, not {given!r}")
    role = message.get("role")
    if not isinstance(role, str) or role not in (*ROLES, *roles):
        raise wrong_value(f"{where}.role", role, f"expected one of {', '.join(ROLES)}")
    for name, value in message.items():
        same = name == "function_call" and message.get("tool_calls")  # the first call once more
        if value and name not in _READ and name not in _NOTES and not same:
            _check_key(name, where, keys)
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    content = message.setdefault("content", None)
    if isinstance(content, list):
        for i, part in enumerate(content):
            _check_part(part, f"{where}.content[{i}]")
    elif content is None:
        if "tool_calls" not in message:
            raise wrong_argument(f"{where}.content", "expected a string or a list of text parts")
    elif not isinstance(content, str):
        raise wrong_argument(f"{where}.content", f"expected a string, not {type(content).__name__}")
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list):
        raise wrong_argument(f"{where}.tool_calls", f"expected a list, not {type(calls).__name__}")
    for i, call in enumerate(calls):
        _check_call(call, f"{where}.tool_calls[{i}]")
    for name in ("tool_call_id", "name", *_REASONING):
        if not isinstance(message.get(name, ""), str | None):
            raise wrong_argument(f"{where}.{name}", "expected a string")
    reasoning = next((message[n] for n in _REASONING if message.get(n) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _check_key(name: str, where: str, keys: Collection[str]) -> None:
    """Raise for a key with a value that no prompt would show."""
    if name in _MEDIA:
        rule = "unknown key; images and other files cannot be read yet, only text"
    elif name in keys:
        return
    elif name == "function_call":
        rule = "unknown key; write the call in tool_calls"
    else:
        rule = f"unknown key; expected {', '.join(_READ[:-2])}"
    raise wrong_argument(f"{where}.{name}", rule)


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise wrong_value(f"{where}.type", kind, "expected 'text', the only type that is read")
    if not isinstance(part.get("text"), str):
        raise wrong_argument(f"{where}.text", "expected a string")


def _check_call(call: Any, where: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise wrong_argument(where, "expected an object with a function and its name")
    if function.get("arguments") is None:
        function["arguments"] = "{}"
    if not isinstance(function["arguments"], str | dict):
        raise wrong_argument(
            f"{where}.function.arguments", "expected an object, or its JSON in a string"
        )
    if not isinstance(call.get("id", ""), str | None):
        raise wrong_argument(f"{where}.id", "expected a string")
    call.setdefault("type", "function")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _TOOL_NAME.fullmatch(name) is not None


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Return the tools as OpenAI writes them.

    Args:
        tools: A list of {"type": "function", "function": {...}}, of the inner objects alone, or of
            Python functions, which are described by their type hints and docstrings.

    Raises:
        ArgumentError: A tool has another shape, two have one name, or parameters are not described
            by the schema of an object; `parameter` names the place.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise wrong_argument("tools", f"expected a list, not {type(tools).__name__}")
    checked = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = set()
    for tool in checked:
        name = tool["function"]["name"]
        if name in names:
            raise wrong_argument("tools", f"several have the name {name!r}")
        names.add(name)
    return checked


def _tool(given: Mapping[str, Any] | Callable[..., Any], where: str) -> dict[str, Any]:
    if callable(given) and not isinstance(given, type):
        given = function_schema(given)
    tool: dict[str, Any] = plain_data(given, where)
    if isinstance(tool, dict) and "function" not in tool and "name" in tool:
        tool = {"type": "function", "function": tool}
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.setdefault("type", "function") != "function":
        raise wrong_argument(where, "expected a function, or an object with one")
    name, description = function.get("name"), function.get("description")
    if not _is_name(name):
        rule = "expected 1 to 128 letters, digits, _ . : / -"
        raise wrong_value(f"{where}.function.name", name, rule)
    if not isinstance(description, str | None):
        raise wrong_argument(f"{where}.function.description", "expected a string")
    function["description"] = description or ""  # templates add it to other texts
    schema = function.setdefault("parameters", {"type": "object", "properties": {}})
    _check_schema(schema, f"{where}.function.parameters")
    return tool


def _check_schema(schema: Any, where: str) -> None:
    """Raise unless it is the schema of an object, as far as templates look into it."""
    if not isinstance(schema, dict):
        raise wrong_argument(where, f"expected a JSON schema, not {type(schema).__name__}")
    if schema.setdefault("type", "object") != "object":
        raise wrong_value(f"{where}.type", schema["type"], "expected 'object'")
    properties = schema.setdefault("properties", {})
    if not isinstance(properties, dict):
        raise wrong_argument(f"{where}.properties", "expected an object")
    for name, inner in properties.items():
        if not isinstance(inner, dict | bool):
            raise wrong_argument(f"{where}.properties.{name}", "expected a JSON schema")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise wrong_argument(f"{where}.required", "expected a list of names")
