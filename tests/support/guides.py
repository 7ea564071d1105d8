"""Walks of texts through the token masks of structured output."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from llcuda import Model, structured

MAX_ORDERS = 24  # of the names of one value


@lru_cache(maxsize=4)
def _tokens_by_bytes(model: Model) -> dict[bytes, int]:
    return {model.piece_bytes(token): token for token in range(model.vocab_size)}


def fits(model: Model, grammar: structured.CompiledGrammar, text: str) -> bool:
    """Whether a guide lets a text pass, token by token, and end."""
    guide = grammar.guide()

    def allows(tokens: Iterable[int]) -> bool:
        mask = guide.mask()
        return any(mask[token // 32] >> np.uint32(token % 32) & 1 for token in tokens)

    # Of the tokens of a text, as any that spell it are allowed where none is forced.
    raw, place = text.encode(), 0
    pieces = _tokens_by_bytes(model)
    while place < len(raw):
        if forced := guide.forced():
            token = forced[0]
            if token in model.eog_tokens or not raw[place:].startswith(model.piece_bytes(token)):
                return False
        else:
            lengths = range(min(12, len(raw) - place), 0, -1)
            known = [
                pieces[raw[place : place + n]] for n in lengths if raw[place : place + n] in pieces
            ]
            token = next((token for token in known if allows([token])), -1)
            if token < 0:
                return False
        guide.accept(token)
        place += len(model.piece_bytes(token))
    forced = guide.forced()
    return forced[0] in model.eog_tokens if forced else allows(model.eog_tokens)


def texts_of(value: Any) -> Iterator[str]:
    """Return texts of a JSON value without whitespace: names in several orders, with escapes."""
    for ordered in _orders(value):
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)
        yield text
        if not text.isascii():
            yield json.dumps(ordered, separators=(",", ":"))


def _orders(value: Any) -> list[Any]:
    orders: list[Any] = []
    if isinstance(value, dict):
        for names in itertools.islice(itertools.permutations(value), MAX_ORDERS):
            inner = itertools.product(*(_orders(value[name]) for name in names))
            orders += [dict(zip(names, values, strict=True)) for values in inner]
    elif isinstance(value, list):
        inner = itertools.product(*map(_orders, value))
        orders = [list(items) for items in itertools.islice(inner, MAX_ORDERS)]
    else:
        return [value]
    return orders[:MAX_ORDERS]
