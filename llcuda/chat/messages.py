"""The messages and tools of a conversation, in OpenAI's shapes, checked and as plain data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llcuda.chat.tool_schema import function_schema
from llcuda.errors import ArgumentError

ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TOOL_NAME = re.compile(r"[\w.:/-]{1,128}")
_MOST_DEPTH = 64


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return `value` made of dict, list, str, int, float, bool and None alone.

    A template sees nothing else: objects have methods. Raises ArgumentError for other types, half
    of a surrogate pair, and nesting beyond 64 levels; `where` names the value.
    """
    if depth > _MOST_DEPTH:
        raise ArgumentError(f"{where}: nested more than {_MOST_DEPTH} levels deep", parameter=where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ArgumentError(
                f"{where}: has half of a surrogate pair, which no text has", parameter=where
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
            raise ArgumentError(f"{where}: expected texts as keys", parameter=where)
        return {
            plain(key, where, depth + 1): plain(item, f"{where}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ArgumentError(f"{where}: expected JSON data, not {type(value).__name__}", parameter=where)


def check_messages(messages: Any, roles: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return plain messages; ArgumentError names what is wrong and where.

    roles: what a template knows beyond OpenAI's roles. Reasoning gets every name that templates
    read it by.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ArgumentError(
            f"messages: expected a list, not {type(messages).__name__}", parameter="messages"
        )
    if not messages:
        raise ArgumentError("messages: expected at least one", parameter="messages")
    return [_message(message, f"messages[{i}]", roles) for i, message in enumerate(messages)]


def _message(given: Any, where: str, roles: Collection[str]) -> dict[str, Any]:
    message = plain(given, where)
    if not isinstance(message, dict):
        raise ArgumentError(
            f"{where}: expected an object with role and content, not {given!r}", parameter=where
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in (*ROLES, *roles):
        raise ArgumentError(
            f"{where}.role={role!r}: expected one of {', '.join(ROLES)}", parameter=f"{where}.role"
        )
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    content = message.setdefault("content", None)
    if isinstance(content, list):
        for i, part in enumerate(content):
            _check_part(part, f"{where}.content[{i}]")
    elif content is None:
        if "tool_calls" not in message:
            raise ArgumentError(
                f"{where}.content: expected a text or a list of text parts",
                parameter=f"{where}.content",
            )
    elif not isinstance(content, str):
        raise ArgumentError(
            f"{where}.content: expected a text, not {type(content).__name__}",
            parameter=f"{where}.content",
        )
    for i, call in enumerate(_list(message.get("tool_calls", []), f"{where}.tool_calls")):
        _check_call(call, f"{where}.tool_calls[{i}]")
    for name in ("tool_call_id", "name", *_REASONING):
        if not isinstance(message.get(name, ""), str | None):
            raise ArgumentError(f"{where}.{name}: expected a text", parameter=f"{where}.{name}")
    reasoning = next((message[n] for n in _REASONING if message.get(n) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise ArgumentError(
            f"{where}.type={kind!r}: only parts of type 'text' can be read",
            parameter=f"{where}.type",
        )
    if not isinstance(part.get("text"), str):
        raise ArgumentError(f"{where}.text: expected a text", parameter=f"{where}.text")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentError(
            f"{where}: expected a list, not {type(value).__name__}", parameter=where
        )
    return value


def _check_call(call: Any, where: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise ArgumentError(
            f"{where}: expected an object with a function and its name", parameter=where
        )
    if not isinstance(function.setdefault("arguments", "{}"), str | dict):
        raise ArgumentError(
            f"{where}.function.arguments: expected JSON in a text, or an object",
            parameter=f"{where}.function.arguments",
        )
    if not isinstance(call.get("id", ""), str | None):
        raise ArgumentError(f"{where}.id: expected a text", parameter=f"{where}.id")
    call.setdefault("type", "function")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _TOOL_NAME.fullmatch(name) is not None


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Return tools as OpenAI writes them; a Python function is described by its type hints.

    tools: {"type": "function", "function": {...}}, what is in that alone, or functions. Raises
    ArgumentError for other things, a name twice, and parameters that are no schema of an object.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ArgumentError(
            f"tools: expected a list, not {type(tools).__name__}", parameter="tools"
        )
    found = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"tools: {name!r} is there twice", parameter="tools")
    return found


def _tool(given: Mapping[str, Any] | Callable[..., Any], where: str) -> dict[str, Any]:
    if callable(given) and not isinstance(given, type):
        given = function_schema(given)
    tool: dict[str, Any] = plain(given, where)
    if isinstance(tool, dict) and "function" not in tool and "name" in tool:
        tool = {"type": "function", "function": tool}
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.setdefault("type", "function") != "function":
        raise ArgumentError(f"{where}: expected a function, or an object with one", parameter=where)
    if not _is_name(function.get("name")):
        raise ArgumentError(
            f"{where}.function.name={function.get('name')!r}: expected letters, digits, _ . : / -",
            parameter=f"{where}.function.name",
        )
    if not isinstance(function.get("description", ""), str | None):
        raise ArgumentError(
            f"{where}.function.description: expected a text",
            parameter=f"{where}.function.description",
        )
    if function.get("description") is None:  # templates add it to other texts
        function["description"] = ""
    schema = function.setdefault("parameters", {"type": "object", "properties": {}})
    _check_schema(schema, f"{where}.function.parameters")
    return tool


def _check_schema(schema: Any, where: str) -> None:
    """Raise unless it is the schema of an object, as far as templates look into it."""
    if not isinstance(schema, dict):
        raise ArgumentError(
            f"{where}: expected a JSON schema, not {type(schema).__name__}", parameter=where
        )
    if schema.setdefault("type", "object") != "object":
        raise ArgumentError(
            f"{where}.type={schema['type']!r}: expected 'object'", parameter=f"{where}.type"
        )
    properties = schema.setdefault("properties", {})
    if not isinstance(properties, dict):
        raise ArgumentError(
            f"{where}.properties: expected an object", parameter=f"{where}.properties"
        )
    for name, inner in properties.items():
        if not isinstance(inner, dict | bool):
            raise ArgumentError(
                f"{where}.properties.{name}: expected a JSON schema",
                parameter=f"{where}.properties.{name}",
            )
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ArgumentError(
            f"{where}.required: expected a list of names", parameter=f"{where}.required"
        )
