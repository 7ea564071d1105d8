"""From bytes of tokens to text, piece by piece.

Plain Python over plain data; knows nothing of models. Objects with decode() and flush(), so
that they compose.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import partial


class Utf8Decoder:
    """Turn a stream of byte pieces into text, holding back an unfinished character.

    A token may end inside a UTF-8 character. What can never become valid is replaced by U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, piece: bytes) -> str:
        """Return the characters that `piece` completes."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """Return what is left (U+FFFD for an unfinished character) and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class StopFinder:
    """Cut a stream of text at the first stop text, which may lie across several pieces.

    Text that may be the beginning of a stop text is held back until it is known.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def decode(self, text: str) -> tuple[str, bool]:
        """Return (text to show, whether a stop text was found); what follows it is dropped."""
        if not text:
            return "", False
        text = self._held + text
        begins = [i for stop in self._stops if (i := text.find(stop)) >= 0]
        if begins:
            self._held = ""
            return text[: min(begins)], True
        beginning = min(map(partial(_beginning, text), self._stops), default=len(text))
        self._held = text[beginning:]
        return text[:beginning], False

    def flush(self, text: str = "") -> str:
        """Return what was held back, with `text` after it, as no stop text came."""
        shown, found = self.decode(text)
        rest, self._held = ("" if found else self._held), ""
        return shown + rest


def _beginning(text: str, stop: str) -> int:
    """Return where the end of `text` begins to be `stop`; its length when it does not."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return at if at >= 0 else len(text)
