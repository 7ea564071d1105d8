"""Commands of llcuda, mostly in the test's own process, which costs less than one for each."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from llcuda.cli.main import main


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit status, and what it wrote."""

    status: int
    stdout: str
    stderr: str


def call(*arguments: str, text: bytes = b"") -> Finished:
    """Run a command, errors and exit status included.

    Args:
        *arguments: The arguments of llcuda.
        text: What stdin has.
    """
    streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (text, b"", b"")]
    status = 0
    with _standard_streams(*streams), mock.patch.object(sys, "argv", ["llcuda", *arguments]):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    outputs = []
    for stream in streams[1:]:
        stream.flush()
        outputs.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Finished(status, *outputs)


def run(*arguments: object, stdin: bytes = b"") -> Finished:
    """Run a command as `call` does, with paths and numbers as arguments.

    Args:
        *arguments: The arguments of llcuda.
        stdin: What stdin has.
    """
    return call(*map(str, arguments), text=stdin)


def documents(*arguments: object, stdin: bytes = b"") -> list[Any]:
    """Return the JSON documents that a command prints, one in each line.

    Args:
        *arguments: The arguments of llcuda.
        stdin: What stdin has.
    """
    return [json.loads(line) for line in run(*arguments, stdin=stdin).stdout.splitlines()]


def tool_folder(folder: Path) -> Path:
    """Make a program `llcuda` of this Python, and return its folder, for PATH.

    Args:
        folder: Where the folder is made.
    """
    tool = folder / "bin" / "llcuda"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m llcuda "$@"\n')
    tool.chmod(0o755)
    return tool.parent


@contextlib.contextmanager
def _standard_streams(stdin: io.TextIOWrapper, *others: io.TextIOWrapper) -> Iterator[None]:
    stdout, stderr = others
    with (
        mock.patch.object(sys, "stdin", stdin),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.dict("os.environ", {"COLUMNS": "300"}),  # typer breaks messages at the width
    ):
        yield
