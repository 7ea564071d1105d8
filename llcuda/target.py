"""A file that appears when it is whole: what is there before stays until then."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from llcuda.errors import ArgumentError, ModelError


def check_target(path: Path, *sources: Path) -> None:
    """Raise ArgumentError unless a file can be written to `path` that is none of `sources`."""
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(f"{path}: expected the name of a file in a folder that exists")
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path} is a device or a pipe: a file would take its place")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise ArgumentError(f"{path} is the source itself; write to another file")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield the name to write to; it becomes `path` at the end, and is deleted after an error.

    Raises ModelError for what the operating system refuses.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
