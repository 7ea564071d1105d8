"""A repository on the Hugging Face Hub: its files, and those of them that are in the cache.

huggingface_hub decides on the cache, tokens, `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`. It is
imported at the first call that needs it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.hub.download import download, partial_size
from llcuda.params import wrong_value

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

METADATA_TIMEOUT = 10.0  # seconds; huggingface_hub's own default
REPOSITORY_ID = r"[\w.-]+/[\w.-]+"


class HubUnreachableError(ModelNotFoundError):
    """The hub does not answer, or HF_HUB_OFFLINE forbids to ask it."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub, in its newest version.

    Attributes:
        repo: The repository, `owner/name`.
        file: The path of the file in the repository.
        commit: The version of the repository.
        size: The size of the file in bytes.
    """

    repo: str
    file: str
    commit: str
    size: int


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the hub.

    Attributes:
        id: The name of the repository, `owner/name`.
    """

    id: str

    def ask(self, wanted: str | None = None) -> ModelInfo:
        """Return the newest version of the repository with the names and sizes of its files.

        Args:
            wanted: The file or quantization that the question is for, named in an error.

        Raises:
            HubUnreachableError: The hub does not answer.
            ModelNotFoundError: The repository does not exist.
            ModelError: The repository is gated.
            ArgumentError: The hub does not allow this name.
        """
        from huggingface_hub import HfApi

        with hub_errors(f"{self.id}:{wanted}" if wanted else self.id, HubUnreachableError):
            return HfApi().model_info(self.id, files_metadata=True, timeout=METADATA_TIMEOUT)

    def cached_path(self, files: Sequence[str], revision: str | None = None) -> Path | None:
        """Return the path of the first of some files, or None unless all are in the cache.

        Args:
            files: Paths in the repository.
            revision: The version; None is the newest that was downloaded.
        """
        from huggingface_hub import try_to_load_from_cache

        with hub_errors(self.id, ModelError):
            paths = [try_to_load_from_cache(self.id, file, revision=revision) for file in files]
        return Path(str(paths[0])) if all(isinstance(path, str) for path in paths) else None

    def cached_files(self) -> list[str]:
        """Return the paths of the files in the cache, of the newest version downloaded.

        Raises:
            ModelError: The cache is damaged.
        """
        from huggingface_hub import CacheNotFound, constants, scan_cache_dir

        try:
            repos = scan_cache_dir().repos
        except CacheNotFound:
            return []
        except (OSError, ValueError) as error:  # of any repository in it
            raise ModelError(f"{constants.HF_HUB_CACHE} is damaged: {error}") from error
        return [
            file.file_path.relative_to(revision.snapshot_path).as_posix()
            for cached in repos
            if cached.repo_id == self.id and cached.repo_type == "model"
            for revision in cached.revisions
            if "main" in revision.refs
            for file in revision.files
        ]

    def download(
        self, files: Sequence[RepoSibling], revision: str | None, *, progress: bool
    ) -> list[Path]:
        """Return the paths of files in the cache, downloading those that are missing.

        Args:
            files: Files that `ask` listed.
            revision: The version that `ask` returned.
            progress: Whether to draw a bar on stderr, in a terminal and in a notebook.

        Raises:
            ModelError: A transfer fails, or the disk is too small for what is missing.
        """
        missing = [file for file in files if not self.cached_path([file.rfilename], revision)]
        self._check_free_space(sum(self._remaining_bytes(file) for file in missing))
        paths = []
        for file in files:
            with hub_errors(f"{self.id}:{file.rfilename}", ModelError):
                paths.append(download(self.id, file.rfilename, revision, progress=progress))
        return paths

    def _remaining_bytes(self, file: RepoSibling) -> int:
        """Return the size of a file without the bytes of an interrupted download."""
        present = partial_size(self.id, file.lfs.sha256) if file.lfs else 0
        return max(0, (file.size or 0) - present)

    def _check_free_space(self, needed: int) -> None:
        """Raise ModelError if the disk of the cache has fewer than `needed` bytes free."""
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = Path(HF_HUB_CACHE).absolute()
        folder = next(path for path in (cache, *cache.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ModelError(
                f"{self.id}: {needed / 1e9:.2f} GB to download, {free / 1e9:.2f} GB free for"
                f" {cache}; set HF_HOME to a folder on another disk"
            )


def parse_remote_name(text: str, filename: str | None = None) -> tuple[str, str | None] | None:
    """Return the repository and the file, or quantization, that a name means; None for a path.

    Args:
        text: `repo/id`, `repo/id:file.gguf`, `repo/id:Q4_K_M`, `hf:repo/id` or
            `hf://repo/id/file.gguf`, or a path.
        filename: The file in the repository, if `text` does not name it.

    Raises:
        ArgumentError: `text` and `filename` contradict each other, or name no file in a
            repository.
    """
    prefix = re.match(r"hf:(//)?", text, re.IGNORECASE)
    if prefix:
        match = re.fullmatch(rf"({REPOSITORY_ID})(?:[:/](.+))?", text[prefix.end() :])
        if not match:
            raise ArgumentError(f"{text!r}: expected hf://repo/id/file.gguf or hf:repo/id:Q4_K_M")
    else:
        match = re.fullmatch(rf"({REPOSITORY_ID})(?::(.+))?", text)
        looks_local = text.startswith("./") or (text.lower().endswith(".gguf") and ":" not in text)
        if not match or looks_local or path_exists(Path(text)):
            return None
    repo, inside = match.groups()
    if inside and filename and inside != filename:
        rule = f"{text!r} names another file, {inside!r}"
        raise wrong_value("filename", filename, rule, remedy="give only one")
    file = inside or filename
    if file and (file.startswith("/") or "\\" in file or ".." in file.split("/")):
        raise ArgumentError(f"{file!r}: expected the name of a file in the repository {repo}")
    return repo, file


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False for one that the operating system cannot look up."""
    try:
        return path.exists()
    except OSError:  # too long, or in a folder that is closed to this user
        return False


@contextmanager
def hub_errors(name: str, failure: type[ModelError]) -> Iterator[None]:
    """Translate the exceptions of huggingface_hub into those of llcuda.

    Args:
        name: What the block is for, `repo/id` or `repo/id:file`.
        failure: The exception for a failure without a more exact one.
    """
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{name.split(':')[0]}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(f"{name} is gated: accept its terms at {page} and {login}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"there is no {page}; if it is private, {login}") from error
    except errors.HFValidationError as error:
        raise ArgumentError(f"{name}: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to download it"
        ) from error
    except Exception as error:  # httpx, hf_xet and the file system have no common base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise failure(f"cannot download {name} from {constants.ENDPOINT}: {reason}") from error
