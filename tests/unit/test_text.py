from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llcuda import Utf8Decoder


@given(st.text(), st.lists(st.integers(0, 400)))
def test_any_split_of_any_text_gives_the_text(text: str, cuts: list[int]) -> None:
    """Pieces that end inside characters are put together."""
    raw = text.encode()
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    decoder = Utf8Decoder()
    pieces = [decoder.decode(raw[begin:end]) for begin, end in itertools.pairwise(edges)]
    assert text == "".join(pieces) + decoder.flush()


@given(st.binary())
def test_any_bytes_give_what_decoding_at_once_gives(raw: bytes) -> None:
    """Invalid bytes become U+FFFD, as many as in a decode of the whole."""
    decoder = Utf8Decoder()
    pieces = [decoder.decode(bytes([byte])) for byte in raw]
    assert raw.decode(errors="replace") == "".join(pieces) + decoder.flush()


def test_flush_gives_up_an_unfinished_character_and_starts_anew() -> None:
    """Half a character is U+FFFD at the end; the next text is not touched by it."""
    decoder = Utf8Decoder()
    assert "" == decoder.decode("é".encode()[:1])
    assert "\ufffd" == decoder.flush()
    assert "a" == decoder.decode(b"a")
