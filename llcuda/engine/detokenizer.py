"""From bytes of tokens to text, piece by piece.

Plain Python over plain data; knows nothing of models. Objects with decode() and flush(), so
that they compose.
"""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterable


class Utf8Decoder:
    """Turn a stream of byte pieces into text, holding back an unfinished character.

    A token may end inside a UTF-8 character. What can never become valid is replaced by U+FFFD.
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
        """Return what is left (U+FFFD for an unfinished character) and start anew."""
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")


class StopFinder:
    """Cut a stream of text at the first stop text, which may lie across several pieces.

    Text that may be the beginning of a stop text is held back until it is known. Thousands of stop
    texts cost little more than one: they are sorted, and none begins with another one, so that only
    two neighbours of a text in their order can be its beginning, or begin with it.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops: list[str] = []
        for stop in sorted(stops):  # what begins with another stop text is never reached
            if not self._stops or not stop.startswith(self._stops[-1]):
                self._stops.append(stop)
        self._first_letters = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def decode(self, text: str) -> tuple[str, bool]:
        """Return (text to show, whether a stop text was found); what follows it is dropped."""
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
                self._held = ""
                return text[:begin], True
            if shown == len(text) and self._begins(place, rest):
                shown = begin
        self._held = text[shown:]
        return text[:shown], False

    def _begins(self, place: int, rest: str) -> bool:
        return place < len(self._stops) and self._stops[place].startswith(rest)

    def flush(self, text: str = "") -> str:
        """Return what was held back, with `text` after it, as no stop text came."""
        shown, found = self.decode(text)
        rest, self._held = ("" if found else self._held), ""
        return shown + rest
