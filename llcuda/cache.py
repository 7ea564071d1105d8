"""Where llcuda keeps the model files that it made, and room for them; where its state lies."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from llcuda.errors import ModelError

ABANDONED = 3600  # seconds without a change: nobody writes this any more


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
