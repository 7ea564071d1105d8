from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llcuda import Utf8Decoder
from llcuda.engine.detokenizer import StopFinder

letters = st.text("ab", min_size=1, max_size=5)


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


@given(st.lists(letters, max_size=6), st.lists(st.text("abc", max_size=6), max_size=8))
def test_stop_texts_are_found_as_by_looking_everywhere(stops: list[str], pieces: list[str]) -> None:
    """After each piece what is shown ends where a stop text begins, or might begin."""
    finder, shown, whole = StopFinder(stops), "", ""
    for piece in pieces:
        text, stopped = finder.decode(piece)
        shown, whole = shown + text, whole + piece
        begins = [whole.find(stop) for stop in stops if stop in whole]
        assert stopped == bool(begins)
        if stopped:
            assert shown == whole[: min(begins)]
            return
        held = next(i for i in range(len(whole) + 1) if _may_begin(whole[i:], stops))
        assert shown == whole[:held]
    assert shown + finder.flush() == whole


def _may_begin(text: str, stops: list[str]) -> bool:
    return not text or any(stop.startswith(text) for stop in stops)


def test_ten_thousand_stop_texts_are_looked_up_not_tried() -> None:
    """A text is compared with a few of them, whatever their number."""

    class Counted(str):
        compared = 0

        def __gt__(self, other: str) -> bool:
            Counted.compared += 1
            return str.__gt__(self, other)

    finder = StopFinder(Counted(f"stop {i}") for i in range(10_000))
    Counted.compared = 0
    assert finder.decode("one stop, two stops, stop 33 and on") == ("one stop, two stops, ", True)
    assert 0 < Counted.compared < 300
