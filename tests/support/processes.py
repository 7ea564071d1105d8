"""The processes that a test started."""

from __future__ import annotations

from pathlib import Path


def children() -> list[str]:
    """Return the ids of the processes that this one started and that run."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return " ".join(lists).split()
