"""Grammars that are small and take long to compile."""

from __future__ import annotations

from typing import Any


def doubling_rules(count: int) -> str:
    """Return GBNF whose rules contain the next one up to two times."""
    rules = [f"r{i} ::= r{i + 1} r{i + 1}?" for i in range(count)]
    return "\n".join(["root ::= r0", *rules, f'r{count} ::= "b"'])


def endless_format(number: int = 0) -> dict[str, Any]:
    """Return a format that takes minutes to compile without a bound; another for each number."""
    rows = [{"multipleOf": 99_000 + i} for i in range(number, number + 99)]
    return {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "array", "prefixItems": rows}},
    }
