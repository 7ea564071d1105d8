"""From bytes of tokens to text, piece by piece.

Plain Python over plain data; knows nothing of models. Objects with decode() and flush(), so
that they compose.
"""

from __future__ import annotations

import codecs


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
