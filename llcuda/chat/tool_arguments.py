"""The arguments of calls as JSON, from the notations in which models write them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_GEMMA = re.compile(r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<key>[\w.$-]+)(?=\s*:)', re.S)
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


def to_json(value: Any) -> str:
    """Return JSON in which letters stay letters."""
    return json.dumps(value, ensure_ascii=False)


def from_text(text: str, schema: Any, header: str) -> str:
    """Return the JSON of a parameter's value that was written without quotes.

    Args:
        text: The value, which may have a line break around it.
        schema: The schema of the parameter; None when it is unknown. Text that is JSON then counts
            as JSON.
        header: The text before the value, which may name its type.
    """
    text = text.removeprefix("\n").removesuffix("\n")
    types = schema.get("type") if isinstance(schema, dict) else None
    types = [types] if isinstance(types, str) else types
    if types == ["string"] or 'string="true"' in header or 'type="string"' in header:
        return to_json(text)
    try:
        value = json.loads(_CONSTANTS.get(text.strip(), text))
    except (ValueError, RecursionError):
        return to_json(text)
    if isinstance(types, list) and "string" in types and not _is_of_type(value, types):
        return to_json(text)
    return to_json(value)


def _is_of_type(value: Any, types: list[Any]) -> bool:
    """Return whether `value` is of one of a schema's types other than string."""
    matches = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
    }
    return any(matches.get(str(name), False) for name in types)


def from_python(text: str) -> list[tuple[str, str]]:
    """Return names and arguments of `[f(a=1), g(b="x")]`; nothing for other text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keywords")
    values = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
    if len(values) < len(node.keywords):
        raise ValueError("a parameter without a name, or twice")
    return ast.unparse(node.func), to_json(values)


def from_gemma(text: str) -> str:
    r"""Return the JSON of `{city:<|"|>Paris<|"|>,days:1}`; other text as it is."""
    converted = _GEMMA.sub(lambda m: to_json(m["key"] if m["text"] is None else m["text"]), text)
    try:
        json.loads(converted)
    except (ValueError, RecursionError):
        return text
    return converted
