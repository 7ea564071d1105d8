"""Reads text that arrives in pieces, as a parser that waits.

Each reading method is a generator: it yields when it needs more text, and returns what it has read.
The result does not depend on where the text is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
Show: TypeAlias = Callable[[str], None]

_SPACE = re.compile(r"\s*")
_IN_STRING = re.compile(r'[^"\\]+')
_IN_JSON = re.compile(r'[^"{}\[\]]+')
_SCALAR = re.compile(r"[^\s,\]}]+")
_IN_PYTHON = re.compile(r"[^\"'()\[\]{},]+")


def nothing(text: str) -> None:
    """Show nothing."""


class StreamReader:
    """The text that has arrived and is not read yet."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._dropped = 0  # characters before _text
        self._ended = False
        self._recorded: list[str] | None = None
        self._mark: int | None = None

    def feed(self, text: str) -> None:
        """Add a piece of text."""
        begin = self._at if self._mark is None else self._mark
        self._text = self._text[begin:] + text
        self._dropped += begin
        self._at -= begin
        if self._mark is not None:
            self._mark = 0

    def end(self) -> None:
        """Note that no more text comes."""
        self._ended = True

    @property
    def position(self) -> int:
        """The number of characters that were read."""
        return self._dropped + self._at

    @property
    def unread(self) -> str:
        """The text that has arrived and was not read."""
        return self._text[self._at :]

    def rest(self) -> str:
        """Read all that has arrived."""
        return self._read(len(self._text))

    def start_recording(self) -> None:
        """Keep what is read from here on."""
        self._recorded = []

    def stop_recording(self) -> str:
        """Return what was read since `start_recording`."""
        text, self._recorded = "".join(self._recorded or ()), None
        return text

    def mark(self, before: str = "") -> None:
        """Keep the text from here on, or from before what was read last."""
        self._mark = self._at - len(before)

    def unmark(self) -> str:
        """Return the text since `mark`, and keep it no longer."""
        text, self._mark = self._text[self._mark : self._at], None
        return text

    def rewind(self) -> None:
        """Go back to `mark`."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def _read(self, end: int, show: Show = nothing) -> str:
        text = self._text[self._at : end]
        self._at = end
        if self._recorded is not None:
            self._recorded.append(text)
        if text:
            show(text)
        return text

    def until(self, delimiters: tuple[str, ...], show: Show, take: bool = True) -> Reading[str]:
        """Show the text before the first of some delimiters.

        Args:
            delimiters: At one place the longest one counts.
            show: Gets the text, without a partial delimiter at its end.
            take: Read the delimiter too.

        Returns:
            The delimiter, "" at the end of the text.
        """
        whole, partial, longest = _patterns(delimiters)
        while True:
            text, at = self._text, self._at
            match = whole.search(text, at)
            begin = len(text)  # of a partial delimiter
            if not self._ended and (half := partial.search(text, max(at, begin - longest + 1))):
                begin = half.start()
            if match is not None and match.start() < begin:
                self._read(match.start(), show)
                if take:
                    self._read(match.end())
                return match[0]
            self._read(begin, show)
            if self._ended:
                return ""
            yield

    def peek(self) -> Reading[str]:
        """Return the next letter, "" at the end."""
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def skip_space(self) -> Reading[None]:
        """Read white space."""
        while (yield from self.peek()).isspace():
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._read(match.end())

    def skip(self, expected: str, show: Show = nothing) -> Reading[bool]:
        """Read and show `expected` if it comes next; return whether it did."""
        while not self._ended and len(self._text) - self._at < len(expected):
            if not expected.startswith(self._text[self._at :]):
                return False
            yield
        if not expected or not self._text.startswith(expected, self._at):
            return False
        self._read(self._at + len(expected), show)
        return True

    def one_of(self, options: tuple[str, ...]) -> Reading[str]:
        """Read the first of some texts that comes next; "" when none does."""
        for option in options:  # one that cannot be told yet waits for more text
            if (yield from self.skip(option)):
                return option
        return ""

    def word(self, letters: re.Pattern[str]) -> Reading[str]:
        """Read what `letters` matches, "" when nothing does."""
        parts: list[str] = []
        yield from self._run(letters, parts.append)
        return "".join(parts)

    def json_value(self, show: Show) -> Reading[bool]:
        """Show a JSON value as it is written; return whether it is complete."""
        letter = yield from self.peek()
        if letter == '"':
            return (yield from self._string(show))
        if letter not in ("{", "["):
            return (yield from self._run(_SCALAR, show))
        depth = 0
        while letter:
            if letter == '"':
                yield from self._string(show)
            elif letter in "{}[]":
                depth += 1 if letter in "{[" else -1
                self._read(self._at + 1, show)
                if not depth:
                    return True
            else:
                yield from self._run(_IN_JSON, show)
            letter = yield from self.peek()
        return False

    def python_value(self, show: Show) -> Reading[bool]:
        """Show an argument of a call in Python; return whether a comma or `)` stands behind it."""
        depth = 0
        while letter := (yield from self.peek()):
            if letter in "\"'":
                yield from self._python_string(letter, show)
            elif not depth and letter in ",)":
                return True
            elif letter in "()[]{},":
                depth += (letter in "([{") - (letter in ")]}")
                self._read(self._at + 1, show)
            else:
                yield from self._run(_IN_PYTHON, show)
        return False

    def _python_string(self, quote: str, show: Show) -> Reading[None]:
        triple = yield from self.skip(quote * 3, show)
        if triple or (yield from self.skip(quote, show)):
            ends = ("\\\\", f"\\{quote}", quote * 3 if triple else quote)
            while end := (yield from self.until(ends, show, take=False)):
                yield from self.skip(end, show)
                if end == ends[-1]:
                    return

    def _string(self, show: Show) -> Reading[bool]:
        self._read(self._at + 1, show)
        while letter := (yield from self.peek()):
            if letter == '"':
                self._read(self._at + 1, show)
                return True
            if letter == "\\":
                self._read(self._at + 1, show)
                if (yield from self.peek()):
                    self._read(self._at + 1, show)
            else:
                yield from self._run(_IN_STRING, show)
        return False

    def _run(self, letters: re.Pattern[str], show: Show) -> Reading[bool]:
        """Show what `letters` matches; return whether there is any."""
        matched = False
        while (yield from self.peek()) and (match := letters.match(self._text, self._at)):
            self._read(match.end(), show)
            matched = True
        return matched


@lru_cache(maxsize=256)
def _patterns(delimiters: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], int]:
    """Return patterns of a delimiter and of a partial one at the end, and the longest's length."""
    ordered = sorted(delimiters, key=len, reverse=True)
    whole = re.compile("|".join(map(re.escape, ordered)) or "(?!)")
    partial = re.compile(rf"(?:{'|'.join(map(_beginning, ordered)) or '(?!)'})\Z")
    return whole, partial, max(map(len, delimiters), default=0)


def _beginning(delimiter: str) -> str:
    """Return a pattern of one letter or more of a delimiter's beginning, but not of all of it."""
    pattern = ""
    for letter in reversed(delimiter[1:-1]):
        pattern = f"(?:{re.escape(letter)}{pattern})?"
    return re.escape(delimiter[0]) + pattern if len(delimiter) > 1 else "(?!)"
