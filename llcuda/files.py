"""Files that llcuda writes: whole or not at all, and the folders of its cache and state."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from llcuda.errors import ArgumentError, ModelError

ABANDONED = 3600  # seconds without a change: nobody writes this any more


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


def data_file(name: str) -> Path:
    """Return the path of a file that ships with the package, in its folder `data`."""
    from importlib.resources import files

    return Path(str(files("llcuda").joinpath("data", name)))


def cache_folder(name: str) -> Path:
    """Return $XDG_CACHE_HOME/llcuda/`name`, by default ~/.cache/llcuda/`name`; makes nothing."""
    return _folder("XDG_CACHE_HOME", ".cache") / name


def state_folder() -> Path:
    """Return $XDG_STATE_HOME/llcuda, by default ~/.local/state/llcuda; makes nothing."""
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, default: str) -> Path:
    # An empty or relative one counts for nothing (XDG Base Directory Specification).
    given = Path(os.environ.get(variable, ""))
    return (given if given.is_absolute() else Path.home() / default) / "llcuda"


def sweep(folder: Path) -> None:
    """Delete what killed processes left half written."""
    for part in folder.glob(".*.part"):
        if part.stat().st_mtime < time.time() - ABANDONED:
            part.unlink(missing_ok=True)


def check_room(folder: Path, needed: int, advice: str) -> None:
    """Raise ModelError, with the advice, if the disk of `folder` has fewer than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{needed / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free in {folder}; {advice}"
        )
