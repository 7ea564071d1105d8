"""A rendered conversation as tokens, in which only the template makes control tokens.

A model ends turns and begins others by control tokens. A message that holds the text of one must
not, so that text is broken by a letter that stands nowhere else, and tokenized in two parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from llcuda.errors import ArgumentError
from llcuda.native.model import Model

# Not written differently in JSON, which templates make of messages; then letters of no language.
_BREAKERS = ("\x7f", *map(chr, range(0xFDD0, 0xFDF0)), *map(chr, range(0xF0000, 0xF0400)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text of a conversation, and its tokens."""

    text: str
    tokens: list[int]

    @classmethod
    def of(cls, model: Model, text: str, breaker: str = "") -> Prompt:
        """Tokenize a rendered conversation. breaker: what no control token may go across.

        A model that wants BOS before each text gets one, whether the template writes it or not.
        """
        tokens: list[int] = []
        for part in text.split(breaker) if breaker else [text]:
            tokens += model.tokenize(part, add_special=False, parse_special=True)
        if model.adds_bos and model.bos is not None and tokens[:1] != [model.bos]:
            tokens.insert(0, model.bos)
        return cls(text.replace(breaker, "") if breaker else text, tokens)


class ControlTexts:
    """The texts of a vocabulary's control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if len(text) > 1)
        lengths: dict[str, set[int]] = {}
        for text in self._texts:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {letter: sorted(found) for letter, found in lengths.items()}

    def places(self, text: str, known: Collection[str] = ()) -> list[int]:
        """Return where control tokens stand in `text`, but for those in `known`."""
        found = []
        for letter, lengths in self._lengths.items():
            at = text.find(letter)
            while at >= 0:
                words = (text[at : at + length] for length in lengths)
                if any(word in self._texts and word not in known for word in words):
                    found.append(at)
                at = text.find(letter, at + 1)
        return sorted(found)

    def break_up(self, given: list[Any], source: str, known: Collection[str]) -> str:
        """Break every control token in plain data, in place; return what breaks them, "" if none.

        given: the messages, then anything. source: the template's text, which cannot have that
        letter. known: what an assistant's message may hold, as templates take its reasoning out.
        """
        if not any(self._holds(value) for value in given):
            return ""
        texts = [source, *_texts(given)]
        breaker = next((b for b in _BREAKERS if not any(b in text for text in texts)), "")
        if not breaker:
            raise ArgumentError(
                "messages: they hold every letter that is kept for marking", parameter="messages"
            )
        for message in given[0]:
            parts = message.get("content")
            if isinstance(parts, list):  # a template may write one behind the other
                whole = "".join(part["text"] for part in parts)
                places, begin = self.places(whole), 0
                for part in parts:
                    end = begin + len(part["text"])
                    inside = [place - begin for place in places if begin <= place < end]
                    part["text"] = _broken(part["text"], inside, breaker)
                    begin = end
            allowed = known if message["role"] == "assistant" else ()
            self._break(message, breaker, allowed)
        for value in given[1:]:
            self._break(value, breaker, ())
        return breaker

    def _holds(self, value: Any) -> bool:
        if isinstance(value, dict):
            parts = value.get("content")
            if isinstance(parts, list) and self.places("".join(_texts(parts))):
                return True
        return any(self.places(text) for text in _texts(value))

    def _break(self, value: Any, breaker: str, known: Collection[str]) -> None:
        pairs = value.items() if isinstance(value, dict) else ()
        for key, item in [*pairs] or [*enumerate(value if isinstance(value, list) else ())]:
            if isinstance(item, str):
                value[key] = _broken(item, self.places(item, known), breaker)
            else:
                self._break(item, breaker, known)
            if isinstance(key, str) and self.places(key):
                value[_broken(key, self.places(key), breaker)] = value.pop(key)


def _broken(text: str, places: list[int], breaker: str) -> str:
    """Return `text` with a letter behind the first one of each place."""
    for place in reversed(places):
        text = text[: place + 1] + breaker + text[place + 1 :]
    return text


def _texts(value: Any) -> list[str]:
    """Return every text in plain data."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []
