"""Which files there are in the checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(root: Path = ROOT) -> set[str]:
    """Return the files of a folder that git neither ignores nor misses.

    Outside of a repository, and where git is missing, there are none.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        return set()
    names = result.stdout.decode(errors="surrogateescape").split("\0")
    return {name for name in names if name and os.path.lexists(root / name)}
