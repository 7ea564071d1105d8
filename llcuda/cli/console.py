"""Shared parts of the commands: consoles of rich, the status line, errors, common options."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
PIPE_WIDTH = 120  # columns where stdout is not a terminal, so that tables are not cut

DecodeThreads = Annotated[
    int | None,
    typer.Option(min=1, help="Default: every processor, or 1 for a model below 32 MiB."),
]
CudaGraphMode = Annotated[
    str,
    typer.Option(
        help="CUDA graphs: on, off, checked (first replays are compared) or auto (checked on a T4)."
    ),
]


def stdout_console(pipe_width: int = PIPE_WIDTH, *, quiet: bool = False) -> Console:
    """Return a console on stdout that does not colour values.

    Args:
        pipe_width: Columns where stdout is not a terminal.
        quiet: Whether to print nothing.
    """
    from rich.console import Console

    return Console(quiet=quiet, highlight=False, width=None if sys.stdout.isatty() else pipe_width)


def show_status(activity: str, share: float | None = None) -> None:
    """Replace the status line on stderr, which only a terminal shows.

    Args:
        activity: What the program does now; "" erases the line.
        share: How much of it is done, 0.0 to 1.0.
    """
    if sys.stderr.isatty():
        text = activity if share is None else f"{activity} {share:.0%}"
        print(f"\r{text[:78]:<78}\r", end="", file=sys.stderr, flush=True)


def print_error(message: str) -> None:
    """Print a message on stderr, after the word "error"."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(message)}")
