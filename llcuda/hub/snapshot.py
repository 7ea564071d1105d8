"""The files of a repository on the Hugging Face Hub, as a folder: what a checkpoint needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llcuda.errors import ModelError, ModelNotFoundError
from llcuda.hub import registry as hub
from llcuda.hub.download import download


def repository(name: str) -> str | None:
    """Return the repository on the hub that `name` means (`repo/id`, `hf:repo/id`), or None."""
    remote = hub._remote(name, None)
    return remote[0] if remote and remote[1] is None else None


def fetch(repo: str, wanted: Callable[[str], bool], *, progress: bool = True) -> Path:
    """Return the folder of a repository's newest version, with the wanted files of it downloaded.

    wanted: tells by its name whether a file is one of them; only those at the top are asked about.
    Where the hub cannot be reached, it is the folder of what was downloaded before.
    Raises as `resolve` does.
    """
    try:
        info = hub._ask(repo, None)
    except hub._UnreachableError:
        known = hub._cached(repo, ["config.json"]) or hub._cached(repo, ["adapter_config.json"])
        if known is None:
            raise
        return known.parent
    names = [file for file in info.siblings or () if "/" not in file.rfilename]
    chosen = [file for file in names if wanted(file.rfilename)]
    if not chosen:
        raise ModelNotFoundError(f"{repo} has none of the files that a checkpoint consists of")
    lacking = [file for file in chosen if not hub._cached(repo, [file.rfilename], info.sha)]
    hub._check_room(repo, sum(hub._bytes_to_come(repo, file) for file in lacking))
    for file in lacking:
        with hub.explained(f"{repo}:{file.rfilename}", ModelError):
            download(repo, file.rfilename, info.sha, progress=progress)
    path = hub._cached(repo, [chosen[0].rfilename], info.sha)
    if path is None:
        raise ModelError(f"{repo} was changed while it was downloaded; try again")
    return path.parent
