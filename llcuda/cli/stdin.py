"""Reads text from stdin, and refuses what is not text in UTF-8."""

from __future__ import annotations

import sys

from llcuda.errors import ArgumentError


def read_stdin() -> bytes:
    """Return what stdin has, without the line break at its end.

    Raises:
        ArgumentError: It is not text in UTF-8.
    """
    data = sys.stdin.buffer.read() if sys.stdin is not None else b""  # None: closed
    check_text(data)
    return data.removesuffix(b"\n")


def read_line() -> str:
    """Return the next line of stdin, without its line break.

    Raises:
        EOFError: There is none.
        ArgumentError: It is not text in UTF-8.
    """
    line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    if not line:
        raise EOFError
    check_text(line)
    return line.decode().rstrip("\r\n")


def check_text(data: bytes, name: str = "stdin") -> None:
    """Raise ArgumentError for data that is not text in UTF-8.

    Args:
        data: The data, or a part of it that ends with a line.
        name: Where it comes from, for errors.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ArgumentError(f"{name} is UTF-16; convert it, e.g.: iconv -f UTF-16 -t UTF-8")
    if b"\0" in data:
        raise ArgumentError(f"{name} is binary data (it has bytes of value 0); give a text")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{name} is not UTF-8 (byte {error.start:,} is 0x{data[error.start]:02x}); convert it,"
            " e.g.: iconv -f LATIN1 -t UTF-8, or drop these bytes: iconv -c -f UTF-8 -t UTF-8"
        ) from None
