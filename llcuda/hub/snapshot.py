"""The files of a checkpoint in a repository on the Hugging Face Hub, downloaded as a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from llcuda.errors import ModelError, ModelNotFoundError
from llcuda.hub.names import HubName, parse_hub_name
from llcuda.hub.repository import HubUnreachableError, Repository

CONFIGURATIONS = ("config.json", "adapter_config.json")  # of a checkpoint and of an adapter


def parse_repository(name: str) -> str | None:
    """Return the repository that a name means (`repo/id`, `hf:repo/id`, an address), or None."""
    source = parse_hub_name(name)
    return source.repo if source and source == HubName(source.repo) else None


def download_folder(
    repo: str, choose: Callable[[list[str]], Iterable[str]], *, progress: bool = True
) -> Path:
    """Return the folder with the wanted files of a repository's newest version.

    Without an answer of the hub it is the folder of the files that were downloaded before.

    Args:
        repo: The repository, `owner/name`.
        choose: Takes the paths of the repository's files and returns the wanted ones; it may name
            others, which are ignored.
        progress: Whether to draw a bar on stderr, in a terminal and in a notebook.

    Raises:
        ModelNotFoundError: The repository does not exist or has none of the wanted files, or the
            hub does not answer and nothing is in the cache.
        ModelError: A transfer fails, or the disk is too small.
    """
    repository = Repository(repo)
    try:
        info = repository.ask()
    except HubUnreachableError:
        for configuration in CONFIGURATIONS:
            if path := repository.cached_path([configuration]):
                return path.parent
        raise
    files = info.siblings or []
    wanted = set(choose([file.rfilename for file in files]))
    chosen = [file for file in files if file.rfilename in wanted]
    if not chosen:
        raise ModelNotFoundError(f"{repo} has no files of a checkpoint")
    missing = [file for file in chosen if not repository.cached_path([file.rfilename], info.sha)]
    repository.download(missing, info.sha, progress=progress)
    name = chosen[0].rfilename
    path = repository.cached_path([name], info.sha)
    if path is None:
        raise ModelError(f"{repo} was changed while it was downloaded; try again")
    return path.parents[name.count("/")]
