"""Texts that a command takes: as arguments, from files, from stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from llcuda.cli.console import complete_model, is_terminal, print_note
from llcuda.cli.stdin import check_text, read_stdin
from llcuda.errors import ArgumentError, ModelNotFoundError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="GGUF file, short name (llcuda list --all), or repo/id.",
        autocompletion=complete_model,
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="The texts; - or nothing reads stdin.", show_default=False),
]
Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--file", "-f", metavar="FILE", help="File with a text; - is stdin; may be repeated."
    ),
]
Lines = Annotated[
    bool, typer.Option("--lines", help="Each line of a file or of stdin is a text of its own.")
]
Field = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Each line is a JSON object, and this field of it the text; as --lines.",
    ),
]


def check_name(model: str) -> None:
    """Raise ModelNotFoundError for MODEL that is not a model, before a text is read from stdin.

    Args:
        model: The first argument, which may be a text.
    """
    from llcuda.hub.resolver import parse

    try:
        parse(model, notes=False)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; the first argument is MODEL, the next TEXT") from None


def read_file(path: Path) -> bytes:
    """Return the text of a file, or of stdin for -, without the line break at its end.

    Raises:
        ArgumentError: It cannot be read, or is not text in UTF-8.
    """
    return read_stdin() if str(path) == "-" else _text_bytes(path, str(path))


def option_text(option: str, path: Path, content: str = "give a text") -> str:
    """Return the text of the file that an option names.

    Args:
        option: The option, for errors.
        path: The file.
        content: What an empty file should have.

    Raises:
        ArgumentError: It cannot be read, is empty, or is not text in UTF-8.
    """
    name = f"{option} {path}:"
    text = _text_bytes(path, name).decode("utf-8-sig").replace("\r\n", "\n")
    if not text.strip():
        raise ArgumentError(f"{name} is empty; {content}")
    return text


def _text_bytes(path: Path, name: str) -> bytes:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{name} cannot be read: {reason}") from None
    check_text(data, name)
    return data.removesuffix(b"\n")


def given_texts(
    texts: Sequence[str], files: Sequence[Path], *, lines: bool = False, field: str | None = None
) -> list[str | bytes]:
    """Return the texts of a command in the order of its arguments, then of its files.

    Without any of them, and for the argument -, the texts come from stdin.

    Args:
        texts: The arguments.
        files: The files; - is stdin.
        lines: Whether each line of a file is a text.
        field: The field of the JSON object in each line that is the text.

    Raises:
        ArgumentError: There is no text, a file cannot be read, or a line is no such object.
    """
    if not texts and not files:
        if is_terminal(sys.stdin):
            print_note("reading the text from stdin; Ctrl-D ends it")
        files = [Path("-")]
    found: list[str | bytes] = []
    for text in texts:
        if text == "-":
            found += _texts_of(Path("-"), lines, field)
        else:
            found.append(text)
    for file in files:
        found += _texts_of(file, lines, field)
    if not found:
        raise ArgumentError("there is no text; give one as an argument, by --file or on stdin")
    return found


def _texts_of(file: Path, lines: bool, field: str | None) -> Iterator[bytes | str]:
    data = read_file(file)
    name = "stdin" if str(file) == "-" else str(file)
    if field is not None:
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                yield _field_of(line, field, f"{name}, line {number}")
    elif lines:
        yield from (line.removesuffix(b"\r") for line in data.split(b"\n") if data)
    elif data:
        yield data
    else:
        raise ArgumentError(f"{name} is empty; give a text")


def _field_of(line: bytes, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{where}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArgumentError(f"{where}: expected a JSON object, not {type(value).__name__}")
    if not isinstance(value.get(field), str):
        raise ArgumentError(f"{where}: the object has no text {field!r}; --field names its field")
    return str(value[field])


def shown_piece(piece: bytes) -> str:
    r"""Return a token's bytes as text in one line, with escapes such as \n and \xe2."""
    text = piece.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
