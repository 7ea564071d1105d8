"""A call's arguments, from the notations in which models write them, as JSON."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_GEMMA = re.compile(r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<key>[\w.$-]+)(?=\s*:)', re.S)
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


def dump(value: Any) -> str:
    """Return JSON with letters as they are."""
    return json.dumps(value, ensure_ascii=False)


def typed(text: str, schema: Any, header: str) -> str:
    """Return the JSON of a parameter's value that was written without quotes.

    schema: the parameter's own, None where it is unknown; without it, what is JSON counts as that.
    header: what stood before the value, which may name its type.
    """
    text = text.removeprefix("\n").removesuffix("\n")
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds == ["string"] or 'string="true"' in header or 'type="string"' in header:
        return dump(text)
    try:
        value = json.loads(_CONSTANTS.get(text.strip(), text))
    except (ValueError, RecursionError):
        return dump(text)
    if isinstance(kinds, list) and "string" in kinds and not _is_one_of(value, kinds):
        return dump(text)
    return dump(value)


def _is_one_of(value: Any, kinds: list[Any]) -> bool:
    """Return whether `value` is of one of the kinds besides text."""
    names = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
    }
    return any(names.get(str(kind), False) for kind in kinds)


def from_python(text: str) -> list[tuple[str, str]]:
    """Return names and arguments of `[f(a=1), g(b="x")]`, nothing where it is no such list."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call by keywords")
    values = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
    if len(values) < len(node.keywords):
        raise ValueError("a parameter without a name, or twice")
    return ast.unparse(node.func), dump(values)


def from_gemma(text: str) -> str:
    r"""Return the JSON of `{city:<|"|>Paris<|"|>,days:1}`; what is no such text, as it is."""
    found = _GEMMA.sub(lambda m: dump(m["key"] if m["text"] is None else m["text"]), text)
    try:
        json.loads(found)
    except (ValueError, RecursionError):
        return text
    return found
