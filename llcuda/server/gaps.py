"""Prompts with a gap, of /infill and `suffix`: the answer has room, and a cut is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llcuda.engine.engine import Engine
from llcuda.engine.infill import InfillTokens, infill_prompt
from llcuda.server.leniency import ignore

ANSWER_SHARE = 4  # of the context, for an answer without a limit of its own


class GapFields(NamedTuple):
    """The API's names of the parts of a prompt with a gap."""

    prefix: str
    suffix: str
    files: str = ""


def gap_prompt(
    engine: Engine,
    marks: InfillTokens,
    prefix: str | Sequence[int],
    suffix: str,
    *,
    max_tokens: int,
    overflow: str | None,
    names: GapFields,
    files: Sequence[tuple[str, str]] = (),
    suffix_first: bool = False,
) -> list[int]:
    """Return the tokens of a prompt with a gap, which leaves room for the answer.

    What lies farthest from the gap is left out where the context has no room for it; the notes of
    the request say how much.

    Args:
        engine: The engine that fills the gap.
        marks: The tokens of its model for gaps.
        prefix: The text in front of the gap, or its tokens.
        suffix: The text behind it.
        max_tokens: The most tokens of the answer. It has room for them up to half of the context;
            without a limit below the context, for a quarter of it.
        overflow: "error" leaves nothing out.
        names: The API's names of the parts.
        files: Names and texts of other files.
        suffix_first: Whether the suffix stands before the prefix.
    """
    size = engine.ctx_size
    answer = max(1, min(max_tokens, size // 2)) if max_tokens < size else size // ANSWER_SHARE
    prompt = infill_prompt(
        engine.model,
        marks,
        prefix,
        suffix,
        files=files,
        limit=None if overflow == "error" else size - answer,
        suffix_first=suffix_first,
    )
    for name, side, count in (
        (names.files, "first", prompt.dropped_files),
        (names.prefix, "first", prompt.dropped_prefix),
        (names.suffix, "last", prompt.dropped_suffix),
    ):
        if count:
            ignore(name, f"its {side} {count} tokens do not fit into the context of {size}")
    return prompt.tokens
