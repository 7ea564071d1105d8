"""A rendered conversation as tokens, in which only the template makes control tokens.

Control tokens end turns and begin others, and a message must not do that. The text of a control
token within a message is therefore split by a letter that stands nowhere else, and tokenized in two
parts.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llcuda.native.model import Model
from llcuda.native.prompt_length import check_length, too_long
from llcuda.params import wrong_argument

# Letters that JSON leaves as they are, which templates make of messages; then those of no language.
_BREAKERS = ("\x7f", *map(chr, range(0xFDD0, 0xFDF0)), *map(chr, range(0xF0000, 0xF0400)))
_STEP = 2**16  # characters that are searched without another thread
_BEGINNING = 6  # characters of a control token that are searched for


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text of a conversation, and its tokens.

    Attributes:
        text: The rendered conversation, with control tokens by their texts.
        tokens: Its tokens, with BOS first for a model that wants it.
        begun: The beginning of the answer that the prompt ends with, "" for a new answer.
        begins_reasoning: Whether that is the beginning of the reasoning, not of the content.
    """

    text: str
    tokens: list[int]
    begun: str = ""
    begins_reasoning: bool = False

    @property
    def opening(self) -> str:
        """The text without the beginning of the reasoning; its end shows what comes next."""
        return self.text.removesuffix(self.begun) if self.begins_reasoning else self.text

    @classmethod
    def of(cls, model: Model, text: str, breaker: str = "", limit: int | None = None) -> Prompt:
        """Tokenize a rendered conversation.

        A model that wants BOS before each text gets one, whether the template writes it or not.

        Args:
            model: The model whose vocabulary is used.
            text: The rendered conversation.
            breaker: The letter that splits the texts of control tokens; it is removed.
            limit: Tokens of the context: a text with far more is refused before all of it is
                tokenized. None refuses no text.

        Raises:
            ContextLengthError: The text is far too long.
        """
        tokens: list[int] = []
        for part in text.split(breaker) if breaker else [text]:
            check_length(model, part, limit)
            if limit is not None and len(tokens) > limit:
                raise too_long(f"more than {limit}", limit)
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
            lengths.setdefault(text[:_BEGINNING], set()).add(len(text))
        self._lengths = {beginning: sorted(sizes) for beginning, sizes in lengths.items()}
        longest_first = sorted(lengths, key=len, reverse=True)
        self._beginnings = re.compile("|".join(map(re.escape, longest_first)) or r"\b\B")

    def find(self, text: str, allowed: Collection[str] = ()) -> list[int]:
        """Return the places of control tokens in `text`, without those in `allowed`."""
        return list(self._places(text, allowed))

    def _places(self, text: str, allowed: Collection[str] = ()) -> Iterator[int]:
        search, at = self._beginnings.search, 0
        for end in range(_STEP, len(text) + _STEP, _STEP):
            while (match := search(text, at, end + _BEGINNING - 1)) and match.start() < end:
                at = match.start()
                words = (word for word in self._words(text, at) if word in self._texts)
                if any(word not in allowed for word in words):
                    yield at
                at += 1
            at = max(at, end)

    def _words(self, text: str, at: int) -> Iterator[str]:
        """Return the texts at a place that are as long as a control token."""
        for size in range(2, _BEGINNING + 1):
            for length in self._lengths.get(text[at : at + size], ()):
                yield text[at : at + length]

    def break_up(self, data: list[Any], source: str, allowed: Collection[str]) -> str:
        """Split the text of every control token in plain data, in place.

        Args:
            data: The messages, then other values.
            source: The text of the template.
            allowed: Control tokens that an assistant's message may hold: the delimiters of
                reasoning, which templates take out.

        Returns:
            The letter that splits them, which is not in the data nor in `source`; "" when there is
            no control token.

        Raises:
            ArgumentError: The data hold every letter that is kept for this.
        """
        if not any(self._holds(value) for value in data):
            return ""
        breaker = unused_letter([source, *texts_of(data)])
        for message in data[0]:
            parts = message.get("content")
            if isinstance(parts, list):  # a template may write one behind the other
                whole = "".join(part["text"] for part in parts)
                places, begin = self.find(whole), 0
                for part in parts:
                    end = begin + len(part["text"])
                    first, last = bisect_left(places, begin), bisect_left(places, end)
                    inside = [place - begin for place in places[first:last]]
                    part["text"] = _broken(part["text"], inside, breaker)
                    begin = end
            self._break(message, breaker, allowed if message["role"] == "assistant" else ())
        for value in data[1:]:
            self._break(value, breaker, ())
        return breaker

    def _holds(self, value: Any) -> bool:
        if isinstance(value, dict):
            parts = value.get("content")
            if isinstance(parts, list) and self._occur_in("".join(texts_of(parts))):
                return True
        return any(map(self._occur_in, texts_of(value)))

    def _occur_in(self, text: str) -> bool:
        return next(self._places(text), None) is not None

    def _break(self, value: Any, breaker: str, allowed: Collection[str]) -> None:
        pairs = value.items() if isinstance(value, dict) else ()
        for key, item in [*pairs] or [*enumerate(value if isinstance(value, list) else ())]:
            if isinstance(item, str):
                value[key] = _broken(item, self.find(item, allowed), breaker)
            else:
                self._break(item, breaker, allowed)
            if isinstance(key, str) and (places := self.find(key)):
                value[_broken(key, places, breaker)] = value.pop(key)


def _broken(text: str, places: list[int], breaker: str) -> str:
    """Return `text` with a letter behind the first one of each place."""
    ends = [place + 1 for place in places]
    return breaker.join(
        text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)
    )


def unused_letter(texts: Iterable[str]) -> str:
    """Return a letter that stands in none of the texts, and that templates leave as it is.

    Raises:
        ArgumentError: The texts have every letter that is kept for this.
    """
    used = _letters(texts)
    letter = next((letter for letter in _BREAKERS if letter not in used), "")
    if not letter:
        rule = (
            f"expected a text without one of the {len(_BREAKERS)} letters that split control tokens"
        )
        raise wrong_argument("messages", rule)
    return letter


def _letters(texts: Iterable[str]) -> set[str]:
    """Return the letters of texts, in steps between which other threads run."""
    letters: set[str] = set()
    for text in texts:
        for begin in range(0, len(text), _STEP):
            letters.update(text[begin : begin + _STEP])
    return letters


def texts_of(value: Any) -> list[str]:
    """Return every text in plain data."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in texts_of(item)]
    return [text for item in value for text in texts_of(item)] if isinstance(value, list) else []
