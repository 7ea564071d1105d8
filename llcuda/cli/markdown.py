"""Answers on stdout while they are written: markdown in a terminal, else the text as it is."""

from __future__ import annotations

import re
import sys
from typing import Any

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# All that moves a cursor, colours or renames: what a model writes does nothing to the terminal.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Return the text without control characters other than line breaks and tabs."""
    return text.translate(_CONTROL)


class Plain:
    """Prints an answer as it comes, and no reasoning: for pipes and files."""

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *exception: object) -> None:
        print(flush=True)

    def add(self, content: str, reasoning: str = "") -> None:
        """Show more of the answer."""
        print(content, end="", flush=True)


class Markdown:
    """Draws an answer's markdown; reasoning before it, dim.

    A paragraph, list or block of code that is complete is printed and stays; what is being written
    is drawn anew with each piece, its end where it is longer than the terminal is high.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._text = ""
        self._reasoning = ""
        self._begun = False  # whether something stands above, with a line between
        self._live = Live(
            console=self._console,
            refresh_per_second=12,
            transient=True,
            get_renderable=self._tail,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Markdown:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_reasoning()
        text, self._text = self._text, ""
        self._live.stop()
        self._print(text)

    def add(self, content: str, reasoning: str = "") -> None:
        """Show more of the answer."""
        self._reasoning += printable(reasoning)
        if content:
            self._end_reasoning()
        self._text += printable(content)
        end = complete(self._text)
        if end:
            whole, self._text = self._text[:end], self._text[end:]
            self._print(whole)

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(*[""] * self._begun, _rendered(text), sep="\n")
            self._begun = True

    def _end_reasoning(self) -> None:
        text, self._reasoning = self._reasoning.strip(), ""
        if text:
            self._console.print(text, style="dim", markup=False)
            self._begun = True

    def _tail(self) -> Any:
        """Return what is unfinished, as many of its last lines as there is room for."""
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.text import Text

        reasoning = self._reasoning.strip()
        parts = [Text(reasoning, "dim")] if reasoning else [Text("")] * self._begun
        lines = self._console.render_lines(Group(*parts, _rendered(self._text)), pad=False)
        last = lines[-max(1, self._console.height - 2) :]
        return Segments([part for line in last for part in (*line, Segment.line())])


def _rendered(text: str) -> Any:
    from rich.markdown import Markdown as Rendered

    # Addresses are shown, not hidden behind a word.
    return Rendered(text, hyperlinks=False, code_theme="ansi_dark")


def complete(text: str) -> int:
    """Return where the last complete block of a markdown text ends, 0 without one.

    A block ends at an empty line outside a block of code, when the next line has begun, and that
    is not indented: so it does not go on with a list.
    """
    found = position = 0
    fence = None
    empty = False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence is None and empty and line.strip() and not line[0].isspace():
            found = position
        if mark and (fence is None or mark[1].startswith(fence)):
            fence = mark[1] if fence is None else None
        empty = fence is None and not line.strip()
        position += len(line)
    return found


def screen() -> Markdown | Plain:
    """Return where an answer goes: markdown where stdout is a terminal."""
    return Markdown() if sys.stdout.isatty() else Plain()
