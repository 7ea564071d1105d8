"""Upper bounds of the cost of compiling a format by llguidance, from its text alone.

The unit is a character of a regular expression whose repetitions are written out. A format of at
most MAX_SMALL compiles in a few tenths of a second; see docs/decisions.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

MAX_SMALL = 50_000.0
UNKNOWN = float("inf")
PATTERN = 2000  # of each pattern: llguidance looks for a text that it matches

_PART = re.compile(
    r"\\[pPx]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*+\]"
    r"|\{(?P<least>[0-9]{0,9})(?:,(?P<most>[0-9]{0,9}))?\}|.",
    re.DOTALL,
)


def regex_cost(pattern: str) -> float:
    """Return the cost of a regular expression."""
    sums, last = [0.0], 0.0  # of each group that is open; of the part before
    for match in _PART.finditer(pattern):
        text = match.group()
        if text == "(":
            sums.append(0.0)
            last = 0.0
        elif text == ")" and len(sums) > 1:
            last = sums.pop() + 1
            sums[-1] += last
        elif match["least"] is not None:
            times = max(int(match["least"] or 0), int(match["most"] or 0)) + 1
            sums[-1] += last * (times - 1)
            last *= times
        elif text in "*+?":
            sums[-1] += last
            last *= 2
        else:
            last = 1.0
            sums[-1] += last
    return sum(sums)


def schema_cost(size: float, nodes: Iterable[Mapping[str, Any]]) -> float:
    """Return the cost of a JSON schema of `size` characters with these schemas in it."""
    cost = size
    for node in nodes:
        patterns = [node.get("pattern")]
        if isinstance(names := node.get("patternProperties"), Mapping):
            patterns += names
        for pattern in patterns:
            if isinstance(pattern, str):
                cost += PATTERN + regex_cost(pattern)
        multiple = node.get("multipleOf")
        if isinstance(multiple, int | float) and not isinstance(multiple, bool):
            cost += min(remainders(multiple), 10**9)
    return cost


def remainders(multiple: float) -> int:
    """Return how many remainders a multipleOf has: its digits without the point, as a number."""
    value = Decimal(repr(multiple))
    exponent = value.as_tuple().exponent
    return int(abs(value).scaleb(max(0, -exponent if isinstance(exponent, int) else 0)))
