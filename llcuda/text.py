"""From bytes of tokens to text, piece by piece.

Plain Python over plain data; knows nothing of models. Objects with decode() and flush(), so
that they compose.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


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
        self._beginnings = {stop[:i] for stop in stops for i in range(1, len(stop))}
        self._longest = max(map(len, stops), default=0)
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
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                self._held = text[-length:]
                return text[:-length], False
        self._held = ""
        return text, False

    def flush(self, text: str = "") -> str:
        """Return what was held back, with `text` after it, as no stop text came."""
        shown, found = self.decode(text)
        rest, self._held = ("" if found else self._held), ""
        return shown + rest
