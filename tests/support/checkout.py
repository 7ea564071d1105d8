"""Which files of the checkout differ from its commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def changes(root: Path = ROOT) -> set[str]:
    """Return `git status`'s lines for a folder.

    A file that git ignores has none. A folder outside of a repository has none, nor has any folder
    where git is missing.
    """
    command = ["git", "status", "--porcelain", "--untracked-files=all", "--", "."]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return set()
    return set(result.stdout.splitlines()) if not result.returncode else set()
