"""A progress bar on stderr, and whether anybody would see it there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

BAR_WIDTH = 30  # characters
MAX_LABEL = 40  # characters, so that the line fits into 80 columns


def is_visible() -> bool:
    """Return whether a bar on stderr is visible: in a terminal and below a notebook's cell."""
    return sys.stderr is not None and (sys.stderr.isatty() or in_notebook())


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook; IPython in a terminal is not."""
    python = sys.modules.get("IPython") if "ipykernel" in sys.modules else None
    shell = python.get_ipython() if python is not None else None
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that draws a share from 0.0 to 1.0 as a bar, unless it is not visible.

    The bar is one line, which is erased at the end. It needs only carriage returns, which
    notebooks show without widgets.

    Args:
        label: The text before the bar; only its last 40 characters are shown.
    """
    stream, shown_percent = sys.stderr, -1
    visible, label = is_visible(), label[-MAX_LABEL:]

    def draw(share: float) -> None:
        nonlocal shown_percent
        percent = int(share * 100)
        if visible and percent != shown_percent:
            shown_percent = percent
            filled = "#" * (percent * BAR_WIDTH // 100)
            stream.write(f"\r{label} [{filled:<{BAR_WIDTH}}] {percent:3} %")
            stream.flush()

    try:
        yield draw
    finally:
        if shown_percent >= 0:
            stream.write(f"\r{'':{len(label) + BAR_WIDTH + 9}}\r")
            stream.flush()
