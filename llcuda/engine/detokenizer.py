"""Detokenizing: from the bytes of tokens to text, piece by piece.

Plain Python over plain data; it knows nothing of models. The classes have decode() and flush(), so
that they compose.
"""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterable


class Utf8Decoder:
    """Turns a stream of byte pieces into text, holding back an unfinished character.

    A token may end inside a UTF-8 character. Bytes that can never become valid are replaced by
    U+FFFD.
    """

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, piece: bytes) -> str:
        """Return the characters that `piece` completes."""
        piece = self._rest + piece
        text, used = codecs.utf_8_decode(piece, "replace")
        self._rest = piece[used:]
        return text

    def flush(self) -> str:
        """Return the rest, with U+FFFD for an unfinished character, and start anew."""
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")


class StopFinder:
    """Cuts a stream of text at the first stop text, which may lie across several pieces.

    Text that may be the beginning of a stop text is held back until that is known. Thousands of
    stop texts cost little more than one: they are sorted, and none begins with another one. So only
    two neighbours of a text in their order can be its beginning, or begin with it.

    Args:
        stops: The stop texts, none of them empty.

    Attributes:
        found: The stop text that came; None before.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops: list[str] = []
        for stop in sorted(stops):  # what begins with another stop text is never reached
            if not self._stops or not stop.startswith(self._stops[-1]):
                self._stops.append(stop)
        self._first_letters = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def decode(self, text: str) -> tuple[str, bool]:
        """Return the text to show, and whether a stop text was found, which drops the rest."""
        if not text:
            return "", False
        text = self._held + text
        shown = len(text)
        for begin, letter in enumerate(text):
            if letter not in self._first_letters:
                continue
            rest = text[begin : begin + self._longest]
            place = bisect_right(self._stops, rest)
            if place and rest.startswith(self._stops[place - 1]):
                self._held, self.found = "", self._stops[place - 1]
                return text[:begin], True
            begins_stop = place < len(self._stops) and self._stops[place].startswith(rest)
            if shown == len(text) and begins_stop:
                shown = begin
        self._held = text[shown:]
        return text[:shown], False

    def flush(self, text: str = "") -> str:
        """Return the text that was held back, and `text` after it, as far as no stop text comes."""
        shown, stopped = self.decode(text)
        rest, self._held = ("" if stopped else self._held), ""
        return shown + rest
