"""Copies text to the clipboard: by a program of the desktop, else by the terminal itself."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess

from llcuda.cli.console import draws
from llcuda.errors import ArgumentError

# The variable that a desktop sets, and a program that fills its clipboard from stdin.
PROGRAMS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)
MAX_SEQUENCE = 100_000  # characters of one OSC 52 sequence that terminals take
SECONDS = 5.0  # for the program


def copy(text: str) -> str:
    """Copy a text, and return a line that says how.

    Args:
        text: The text.

    Raises:
        ArgumentError: There is no clipboard, or the text is too long for the terminal's.
    """
    data = text.encode(errors="replace")
    for variable, command in PROGRAMS:
        if os.environ.get(variable) and shutil.which(command[0]) and _run(command, data):
            return f"copied {len(text):,} characters"
    if not draws():
        raise ArgumentError("/copy: no clipboard is here; install wl-copy, xclip or xsel")
    sequence = f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"  # also through ssh
    if len(sequence) > MAX_SEQUENCE:
        raise ArgumentError(
            f"/copy: {len(text):,} characters are too long for the terminal's clipboard; /save FILE"
            " writes the conversation"
        )
    print(sequence, end="", flush=True)
    return f"sent {len(text):,} characters to the terminal, which copies them if it permits OSC 52"


def _run(command: tuple[str, ...], data: bytes) -> bool:
    """Return whether a program took the text."""
    try:
        subprocess.run(
            command,
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True
