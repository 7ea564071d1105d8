"""A query and a document as the tokens that a rerank model expects, and texts cut to fit.

A model's file has a template for that, or else marks: BOS query EOS SEP document EOS, of which each
model wants its own. Where the texts stand, control tokens written in them stay text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llcuda.errors import ArgumentError
from llcuda.native.model import Model

TEMPLATE = "tokenizer.chat_template.rerank"
_PLACES = re.compile(r"\{(query|document)\}")


class Pairs:
    """The shape of a model's texts; limit: most tokens of one."""

    def __init__(self, model: Model, limit: int) -> None:
        self._model = model
        self._limit = limit
        # What the tokenizer puts around a text, at the beginning and at the end.
        frame = model.tokenize("")
        begins = len(frame) > 1 or model.adds_bos
        self._opening, self._closing = (frame[:1], frame[1:]) if begins else ([], frame)
        end = model.sep if model.eos is None else model.eos
        marks = ((end, model.adds_eos), (model.sep, model.adds_sep))
        self._between = [token for token, adds in marks if adds and token is not None]
        template = model.metadata.get(TEMPLATE)
        self._parts = [] if template is None else _split(model, template)

    def cut(self, tokens: list[int]) -> list[int]:
        """Return the first `limit` tokens, the last of them what closes a text, if one did."""
        end = self._closing
        if not end or tokens[-len(end) :] != end or self._limit <= len(end):
            return tokens[: self._limit]
        return tokens[: self._limit - len(end)] + end

    def tokens(self, query: str, documents: Sequence[str], truncate: bool) -> list[list[int]]:
        """Return the tokens of `query` with each document; ArgumentError for too many of them."""
        if not isinstance(query, str):
            raise ArgumentError(f"query must be str, not {type(query).__name__}", parameter="query")
        if isinstance(documents, str | bytes) or not hasattr(documents, "__iter__"):
            kind = type(documents).__name__
            raise ArgumentError(
                f"documents must be a list of texts, not {kind}", parameter="documents"
            )
        if not self._parts and not self._between:
            raise ArgumentError(
                f"{self._model.path.name} says neither by a template nor by a token how a query "
                "and a document are put together"
            )
        make = self._by_template if self._parts else self._by_marks
        found = []
        for i, document in enumerate(documents):
            if not isinstance(document, str):
                kind = type(document).__name__
                raise ArgumentError(
                    f"documents[{i}] must be str, not {kind}", parameter=f"documents[{i}]"
                )
            try:
                found.append(make(query, document, truncate))
            except ArgumentError as error:
                raise ArgumentError(
                    f"documents[{i}]: {error.problem}",
                    parameter=f"documents[{i}]",
                    remedy=error.remedy,
                ) from error
        return found

    def _by_marks(self, query: str, document: str, truncate: bool) -> list[int]:
        begin = [*self._opening, *self._model.tokenize(query, add_special=False), *self._between]
        tokens = self._model.tokenize(document, add_special=False)
        room = self._limit - len(begin) - len(self._closing)
        self._check_room(len(tokens), room, truncate)
        return [*begin, *tokens[:room], *self._closing]

    def _by_template(self, query: str, document: str, truncate: bool) -> list[int]:
        tokens = self._filled(query, document)
        if len(tokens) <= self._limit:
            return tokens
        words = self._model.tokenize(document, add_special=False)
        room = len(words) + self._limit - len(tokens)
        self._check_room(len(words), room, truncate)
        while len(tokens) > self._limit:  # cut words may take more tokens than they did
            tokens = self._filled(query, self._model.detokenize(words[: max(room, 0)]))
            self._check_room(0, room if len(tokens) > self._limit else 0, truncate)
            room -= 1
        return tokens

    def _check_room(self, count: int, room: int, truncate: bool) -> None:
        """Raise ArgumentError where `count` tokens of a document find no room and stay uncut."""
        if room < 0:
            raise ArgumentError(f"the query leaves no room: at most {self._limit} tokens fit")
        if count > room and not truncate:
            raise ArgumentError(
                f"has {count} tokens, and {room} fit beside the query",
                remedy="truncate=True drops its end",
            )

    def _filled(self, query: str, document: str) -> list[int]:
        """Return the template's tokens with both texts in their places."""
        texts = {"query": query, "document": document}
        tokens: list[int] = []
        for part, control in self._parts:
            text = part if control else _PLACES.sub(lambda found: texts[found[1]], part)
            tokens += self._model.tokenize(text, add_special=False, parse_special=control)
        return tokens


def _split(model: Model, template: str) -> list[tuple[str, bool]]:
    """Return the template's parts, and whether each is a control token.

    Between two of them text is tokenized as a whole, so a query joins the words beside its place.
    """
    used = model.tokenize(template, add_special=False, parse_special=True)
    names = {
        model.piece_bytes(token, special=True).decode() for token in used if model.is_control(token)
    }
    if not names:
        return [(template, False)]
    longest_first = sorted(names, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", template)
    return [(part, bool(i % 2)) for i, part in enumerate(parts) if part]
