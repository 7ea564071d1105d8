"""Tells texts that are far too long for a context before all of them is tokenized."""

from __future__ import annotations

from llcuda.errors import ContextLengthError
from llcuda.native.model import Model

_UNITS_PER_TOKEN = 16  # characters or bytes; a text with more in a token is read further
_MIN_UNITS = 2**16
_GROWTH = 4


def is_far_too_long(
    model: Model, text: str | bytes, limit: int, parse_special: bool = True
) -> bool:
    """Return whether a text has more than twice as many tokens as a context.

    Longer and longer beginnings of a long text are tokenized, until one has so many: where a text
    is cut, only a few tokens change. False for a text that costs as much to tokenize whole.

    Args:
        model: The model whose vocabulary is used.
        text: The text, or its UTF-8 bytes.
        limit: Tokens of the context.
        parse_special: Whether control tokens that are written in the text are read as such.
    """
    units = max(_MIN_UNITS, _UNITS_PER_TOKEN * limit)
    while len(text) > 2 * units:
        tokens = model.tokenize(text[:units], add_special=False, parse_special=parse_special)
        if len(tokens) > 2 * limit:
            return True
        units *= _GROWTH
    return False


def check_length(
    model: Model, text: str | bytes, limit: int | None, parse_special: bool = True
) -> None:
    """Check that a prompt is not far too long for a context.

    Args:
        model: The model whose vocabulary is used.
        text: The prompt, or a part of it.
        limit: Tokens of the context; None checks nothing.
        parse_special: Whether control tokens that are written in the text are read as such.

    Raises:
        ContextLengthError: The prompt is far too long. One that is a little too long may pass.
    """
    if limit is not None and is_far_too_long(model, text, limit, parse_special):
        raise too_long(f"more than {2 * limit}", limit)


def too_long(tokens: int | str, limit: int) -> ContextLengthError:
    """Return the error for a prompt of so many tokens."""
    return ContextLengthError(
        f"prompt: has {tokens} tokens, prompt and answer may have {limit}",
        parameter="prompt",
        remedy="give a larger ctx_size, or let overflow='truncate' or 'shift' drop its beginning; "
        "in a chat overflow='drop' drops the oldest turns",
        tokens=tokens,
        limit=limit,
    )
