"""Files that llcuda writes, whole or not at all, and the folders of its cache and state."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from llcuda.errors import ArgumentError, ModelError

ABANDONED_SECONDS = 3600  # a partial file that did not change for so long has no writer


def check_target(path: Path, *sources: Path) -> None:
    """Raise unless a file can be written to a path.

    Args:
        path: The file to write.
        sources: The files that it is made from, none of which it may replace.

    Raises:
        ArgumentError: `path` is a folder, a device, a pipe or one of `sources`, or its folder
            does not exist.
    """
    if path.is_dir():
        raise ArgumentError(f"{path}: is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise ArgumentError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path}: is a device or a pipe; expected the name of a file")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise ArgumentError(f"{path}: is the source itself; write to another file")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a partial file, which replaces `path` when the block ends without error.

    Args:
        path: The file to write; after an error it is as it was before.

    Raises:
        ModelError: The operating system refuses to write.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Delete the partial files that killed processes left in a folder."""
    for partial in folder.glob(".*.part"):
        if partial.stat().st_mtime < time.time() - ABANDONED_SECONDS:
            partial.unlink(missing_ok=True)


def check_free_space(folder: Path, needed: int, remedy: str) -> None:
    """Raise ModelError, with the remedy, if a folder's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{folder}: {needed / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free; {remedy}"
        )


def data_file(name: str) -> Path:
    """Return the path of a file that ships with the package, in its folder `data`."""
    from importlib.resources import files

    return Path(str(files("llcuda").joinpath("data", name)))


def cache_folder(name: str) -> Path:
    """Return the path of $XDG_CACHE_HOME/llcuda/`name`, without making the folder.

    The default of $XDG_CACHE_HOME is ~/.cache.
    """
    return _folder("XDG_CACHE_HOME", ".cache") / name


def state_folder() -> Path:
    """Return the path of $XDG_STATE_HOME/llcuda, without making the folder.

    The default of $XDG_STATE_HOME is ~/.local/state.
    """
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, default: str) -> Path:
    # The XDG Base Directory Specification ignores an empty or relative path.
    path = Path(os.environ.get(variable, ""))
    return (path if path.is_absolute() else Path.home() / default) / "llcuda"
