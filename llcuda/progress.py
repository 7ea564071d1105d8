"""How far the loading of a model is, on stderr, and whether anybody would see it there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

WIDTH = 30
LONGEST_TEXT = 40  # so that the line fits into 80 columns


def seen() -> bool:
    """Whether a bar on stderr is seen: in a terminal, and below a notebook's cell."""
    return sys.stderr is not None and (sys.stderr.isatty() or in_notebook())


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel; IPython in a terminal is none."""
    python = sys.modules.get("IPython") if "ipykernel" in sys.modules else None
    shell = python.get_ipython() if python is not None else None
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def bar(text: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that draws 0.0 to 1.0 in one line, gone at the end; nothing unless `seen`.

    A carriage return is all that it asks of what shows it: notebooks have that without widgets.
    """
    stream, shown = sys.stderr, -1
    visible, text = seen(), text[-LONGEST_TEXT:]

    def draw(fraction: float) -> None:
        nonlocal shown
        percent = int(fraction * 100)
        if visible and percent != shown:
            shown = percent
            full = "#" * (percent * WIDTH // 100)
            stream.write(f"\r{text} [{full:<{WIDTH}}] {percent:3} %")
            stream.flush()

    try:
        yield draw
    finally:
        if shown >= 0:
            stream.write(f"\r{'':{len(text) + WIDTH + 9}}\r")
            stream.flush()
