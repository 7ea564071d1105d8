"""Reads text that comes in pieces, as a parser that waits.

Each method is a generator: it yields where it needs more text, and returns what it found. What it
finds does not depend on where the text is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any

Steps = Generator[None, None, Any]
Show = Callable[[str], None]

_SPACE = re.compile(r"\s*")
_STRING = re.compile(r'[^"\\]+')
_BETWEEN = re.compile(r'[^"{}\[\]]+')
_SCALAR = re.compile(r"[^\s,\]}]+")


def nothing(text: str) -> None:
    """Show nothing."""


class Reader:
    """The text that has come and was not read."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._dropped = 0  # characters before _text
        self._ended = False
        self._record: list[str] | None = None

    def put(self, text: str) -> None:
        """Add a piece of text."""
        self._text = self._text[self._at :] + text
        self._dropped += self._at
        self._at = 0

    @property
    def position(self) -> int:
        """The number of characters that were read."""
        return self._dropped + self._at

    def end(self) -> None:
        """Note that no more text comes."""
        self._ended = True

    def record(self) -> None:
        """Keep what is read from here on."""
        self._record = []

    def recorded(self) -> str:
        """Return what was read since record(), and keep no more."""
        record, self._record = self._record or [], None
        return "".join(record)

    def _pass(self, end: int, show: Show = nothing) -> str:
        """Read up to `end`."""
        text = self._text[self._at : end]
        self._at = end
        if self._record is not None:
            self._record.append(text)
        if text:
            show(text)
        return text

    def until(self, marks: tuple[str, ...], show: Show, take: bool = True) -> Steps:
        """Show the text before the first of `marks`, and return that mark; "" at the end.

        take: read the mark too. Of two marks at one place the longer one counts.
        """
        pattern = _any_of(marks)
        while True:
            match = pattern.search(self._text, self._at)
            half = len(self._text) if self._ended else self._half(marks)
            if match is not None and match.start() < half:
                self._pass(match.start(), show)
                if take:
                    self._pass(match.end())
                return match[0]
            self._pass(half, show)
            if self._ended:
                return ""
            yield

    def _half(self, marks: tuple[str, ...]) -> int:
        """Return where the text ends with the beginning of a mark, the first such place."""
        longest = 0
        rest = len(self._text) - self._at
        for mark in marks:
            for size in range(min(len(mark) - 1, rest), longest, -1):
                if self._text.endswith(mark[:size]):
                    longest = size
                    break
        return len(self._text) - longest

    def peek(self) -> Steps:
        """Return the next letter, "" at the end."""
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def blank(self) -> Steps:
        """Read white space."""
        while (yield from self.peek()).isspace():
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._pass(match.end())

    def over(self, mark: str) -> Steps:
        """Read `mark` if it comes next; return whether it did."""
        while not self._ended and len(self._text) - self._at < len(mark):
            if not mark.startswith(self._text[self._at :]):
                return False
            yield
        if not mark or not self._text.startswith(mark, self._at):
            return False
        self._pass(self._at + len(mark))
        return True

    def value(self, show: Show) -> Steps:
        """Show a JSON value as it is written; return whether it is whole."""
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
                self._pass(self._at + 1, show)
                if not depth:
                    return True
            else:
                yield from self._run(_BETWEEN, show)
            letter = yield from self.peek()
        return False

    def _string(self, show: Show) -> Steps:
        self._pass(self._at + 1, show)
        while letter := (yield from self.peek()):
            if letter == '"':
                self._pass(self._at + 1, show)
                return True
            if letter == "\\":
                self._pass(self._at + 1, show)
                if (yield from self.peek()):
                    self._pass(self._at + 1, show)
            else:
                yield from self._run(_STRING, show)
        return False

    def _run(self, letters: re.Pattern[str], show: Show) -> Steps:
        """Show what `letters` matches; return whether that is anything."""
        found = False
        while (yield from self.peek()) and (match := letters.match(self._text, self._at)):
            self._pass(match.end(), show)
            found = True
        return found


@lru_cache(maxsize=256)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of `marks`, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")
