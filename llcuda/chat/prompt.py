"""A rendered conversation as tokens, in which only the template makes control tokens.

Control tokens end turns and begin others, and a message must not do that. The text of a control
token within a message is therefore split by a letter that stands nowhere else, and tokenized in two
parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from llcuda.native.model import Model
from llcuda.native.prompt_length import check_length, too_long
from llcuda.params import wrong_argument

# Letters that JSON leaves as they are, which templates make of messages; then those of no language.
_BREAKERS = ("\x7f", *map(chr, range(0xFDD0, 0xFDF0)), *map(chr, range(0xF0000, 0xF0400)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text of a conversation, and its tokens.

    Attributes:
        text: The rendered conversation, with control tokens by their texts.
        tokens: Its tokens, with BOS first for a model that wants it.
    """

    text: str
    tokens: list[int]

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
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {letter: sorted(sizes) for letter, sizes in lengths.items()}

    def find(self, text: str, allowed: Collection[str] = ()) -> list[int]:
        """Return the places of control tokens in `text`, without those in `allowed`."""
        places = []
        for letter, lengths in self._lengths.items():
            at = text.find(letter)
            while at >= 0:
                words = (text[at : at + length] for length in lengths)
                if any(word in self._texts and word not in allowed for word in words):
                    places.append(at)
                at = text.find(letter, at + 1)
        return sorted(places)

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
        texts = [source, *_texts(data)]
        breaker = next((b for b in _BREAKERS if not any(b in text for text in texts)), "")
        if not breaker:
            raise wrong_argument(
                "messages",
                f"expected a text without one of the {len(_BREAKERS)} letters that split "
                "control tokens",
            )
        for message in data[0]:
            parts = message.get("content")
            if isinstance(parts, list):  # a template may write one behind the other
                whole = "".join(part["text"] for part in parts)
                places, begin = self.find(whole), 0
                for part in parts:
                    end = begin + len(part["text"])
                    inside = [place - begin for place in places if begin <= place < end]
                    part["text"] = _broken(part["text"], inside, breaker)
                    begin = end
            self._break(message, breaker, allowed if message["role"] == "assistant" else ())
        for value in data[1:]:
            self._break(value, breaker, ())
        return breaker

    def _holds(self, value: Any) -> bool:
        if isinstance(value, dict):
            parts = value.get("content")
            if isinstance(parts, list) and self.find("".join(_texts(parts))):
                return True
        return any(self.find(text) for text in _texts(value))

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
