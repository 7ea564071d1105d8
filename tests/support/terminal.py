"""A command of llcuda, or another program, in a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyte

from tests.support.waiting import PATIENCE

COLUMNS = 120


def visible(text: str) -> str:
    """Return what a terminal shows, in lines filled with spaces."""
    screen = pyte.Screen(COLUMNS, 400)
    pyte.Stream(screen).feed(text)
    return "\n".join(screen.display[: screen.cursor.y + 1])


class Terminal:
    """A process in a terminal of 24 lines.

    Attributes:
        text: What the terminal got since the last keys.
    """

    def __init__(self, *program: str, home: Path, variables: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            program,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                **os.environ,
                "XDG_STATE_HOME": str(home),
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # this terminal does not tell its cursor's place
                **variables,
            },
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def send(self, keys: str) -> None:
        """Type."""
        self.text = ""
        os.write(self._master, keys.encode())

    def waits(self, *expected: str, letters: int = 0) -> str:
        """Return what is shown since the last keys, when it has each text and so many letters."""
        deadline = time.monotonic() + PATIENCE
        while not self._shows(expected, letters):
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += os.read(self._master, 65536).decode(errors="replace")
        return visible(self.text)

    def _shows(self, expected: tuple[str, ...], letters: int) -> bool:
        shown = visible(self.text)
        return all(part in shown for part in expected) and len("".join(shown.split())) >= letters

    def ends(self) -> int:
        """Return the status of the process, and keep what it wrote until its end."""
        with contextlib.suppress(OSError):  # the terminal has gone
            while data := os.read(self._master, 65536):
                self.text += data.decode(errors="replace")
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        """End the process if it runs still."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def terminal(
    home: Path, *arguments: str, **variables: str
) -> contextlib.AbstractContextManager[Terminal]:
    """Run a command of llcuda in a terminal.

    Args:
        home: The folder of its state.
        *arguments: The arguments of llcuda.
        **variables: Environment variables.
    """
    return program_terminal(home, sys.executable, "-m", "llcuda", *arguments, **variables)


@contextlib.contextmanager
def program_terminal(home: Path, *program: str, **variables: str) -> Iterator[Terminal]:
    """Run a program in a terminal.

    Args:
        home: The folder of its state.
        *program: The program and its arguments.
        **variables: Environment variables.
    """
    opened = Terminal(*program, home=home, variables=variables)
    try:
        yield opened
    finally:
        opened.close()
