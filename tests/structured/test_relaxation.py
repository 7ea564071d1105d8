"""The search for the keywords that are taken out of a schema."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from llcuda.errors import ArgumentError
from llcuda.structured.relaxation import relax


def test_no_schema_is_judged_twice() -> None:
    """Each search begins at the root again, and passes the parts that are permitted."""
    judged: Counter[str] = Counter()

    def error_of(schema: Any) -> ArgumentError | None:
        text = json.dumps(schema)
        judged[text] += 1
        return ArgumentError("look-around is not supported") if "(?=" in text else None

    good = {f"good{i}": {"type": "string", "title": f"{i}"} for i in range(4)}
    bad = {f"bad{i}": {"type": "string", "pattern": f"(?=x{i})y"} for i in range(3)}
    schema, left_out = relax({"type": "object", "properties": {**good, **bad}}, error_of)
    assert [place for place, _ in left_out] == [f"#/properties/bad{i}/pattern" for i in range(3)]
    assert schema["properties"] == {**good, **{name: {"type": "string"} for name in bad}}
    assert set(judged.values()) == {1}
