"""Writes answers to stdout as they come: as markdown in a terminal, else as plain text."""

from __future__ import annotations

import re
import sys
from typing import Any

from llcuda.cli.console import draws, is_terminal

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# Control characters and escapes: the text of a model must not control the terminal.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Return the text without control characters other than line breaks and tabs."""
    return text.translate(_CONTROL)


class PlainWriter:
    """Prints a text as it comes, without reasoning: into pipes and files, and continuations."""

    def __init__(self) -> None:
        self._cleans = is_terminal(sys.stdout)

    def __enter__(self) -> PlainWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        print(flush=True)

    def add(self, content: str, reasoning: str = "") -> None:
        """Show more of the answer."""
        print(printable(content) if self._cleans else content, end="", flush=True)


class MarkdownWriter:
    """Draws the markdown of an answer, with its reasoning dimmed before it.

    A complete paragraph, list or code block is printed once. The unfinished one is drawn again
    with each piece; if it is higher than the terminal, its last lines are shown.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._text = ""
        self._reasoning = ""
        self._begun = False  # whether a block was printed, from which a line separates the next
        self._live = Live(
            console=self._console,
            refresh_per_second=12,
            transient=True,
            get_renderable=self._tail,
            vertical_overflow="crop",
        )

    def __enter__(self) -> MarkdownWriter:
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
        end = complete_length(self._text)
        if end:
            whole, self._text = self._text[:end], self._text[end:]
            self._print(whole)

    def _print(self, text: str) -> None:
        from rich.segment import Segments

        if text.strip():
            lines = [*[[]] * self._begun, *self._lines(text)]
            self._console.print(Segments(_joined(lines)), end="")
            self._begun = True

    def _lines(self, text: str) -> list[list[Any]]:
        """Return the lines of a block as segments, without empty ones before it."""
        lines: list[list[Any]] = self._console.render_lines(_rendered(text), pad=False)
        first = next((i for i, line in enumerate(lines) if _has_text(line)), len(lines))
        return lines[first:]

    def _end_reasoning(self) -> None:
        text, self._reasoning = self._reasoning.strip(), ""
        if text:
            self._console.print(text, style="dim", markup=False)
            self._begun = True

    def _tail(self) -> Any:
        """Return the last lines of the unfinished block, as many as the terminal shows."""
        from rich.segment import Segments
        from rich.text import Text

        reasoning = self._reasoning.strip()
        before: list[list[Any]] = [[]] * self._begun
        if reasoning:
            before = self._console.render_lines(Text(reasoning, "dim"), pad=False)
        lines = [*before, *self._lines(self._text)]
        return Segments(_joined(lines[-max(1, self._console.height - 2) :]))


def _has_text(line: list[Any]) -> bool:
    return any(segment.text.strip() for segment in line)


def _joined(lines: list[list[Any]]) -> list[Any]:
    """Return the segments of lines with their line breaks."""
    from rich.segment import Segment

    return [part for line in lines for part in (*line, Segment.line())]


def _rendered(text: str) -> Any:
    from rich.markdown import Markdown

    # Addresses are shown, not hidden behind a word.
    return Markdown(text, hyperlinks=False, code_theme="ansi_dark")


def complete_length(text: str) -> int:
    """Return where the last complete block of a markdown text ends, 0 without one.

    A block ends at an empty line outside a code block, when the next line has begun and is not
    indented, so that it does not continue a list.
    """
    end = position = 0
    fence = None
    empty = False
    for line in text.splitlines(keepends=True):
        match = _FENCE.match(line)
        if fence is None and empty and line.strip() and not line[0].isspace():
            end = position
        if match and (fence is None or match[1].startswith(fence)):
            fence = match[1] if fence is None else None
        empty = fence is None and not line.strip()
        position += len(line)
    return end


def answer_writer() -> MarkdownWriter | PlainWriter:
    """Return the writer of an answer: markdown in a terminal that can redraw, else plain text."""
    return MarkdownWriter() if draws() else PlainWriter()
