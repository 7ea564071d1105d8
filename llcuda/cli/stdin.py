"""Reads text from stdin, and says what is not text."""

from __future__ import annotations

import sys

from llcuda.errors import ArgumentError


def read_stdin() -> bytes:
    """Return what stdin has, without the line break at its end.

    Raises:
        ArgumentError: It is binary data.
    """
    data = sys.stdin.buffer.read() if sys.stdin is not None else b""  # None: closed
    check_text(data)
    return data.removesuffix(b"\n")


def read_line() -> str:
    """Return the next line of stdin, without its line break.

    Raises:
        EOFError: There is none.
        ArgumentError: It is binary data.
    """
    line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    if not line:
        raise EOFError
    check_text(line)
    return line.decode(errors="replace").rstrip("\r\n")


def check_text(data: bytes) -> None:
    """Raise ArgumentError for data of stdin that is not text; text need not be UTF-8.

    Args:
        data: The data, or a part of it.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ArgumentError("stdin is UTF-16; convert it, e.g.: iconv -f UTF-16 -t UTF-8")
    if b"\0" in data:
        raise ArgumentError("stdin is binary data (it has zero bytes); give a text")
