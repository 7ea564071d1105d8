"""A repository on the Hugging Face Hub: its files, and those of them that are in the cache.

huggingface_hub decides on the cache, tokens, `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`. It is
imported at the first call that needs it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llcuda.errors import ArgumentError, LlcudaError, ModelError, ModelNotFoundError
from llcuda.files import home_folder, is_file, path_exists
from llcuda.hub.download import download, partial_size

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

METADATA_TIMEOUT = 10.0  # seconds; huggingface_hub's own default
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE")
_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class HubUnreachableError(ModelNotFoundError):
    """The hub does not answer, or HF_HUB_OFFLINE forbids to ask it."""


def cache_root() -> Path:
    """Return the folder of the hub's cache on this machine, which may not exist.

    Raises:
        ModelError: The user has no home folder, and no variable names another one.
    """
    if home_folder() is None and not any(os.environ.get(name) for name in _CACHE_VARIABLES):
        raise ModelError("this user has no home folder for models; set HF_HOME to a folder")
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).absolute()


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
        revision: A branch, tag or commit; None is the newest version of the main branch.
    """

    id: str
    revision: str | None = None

    def ask(self, wanted: str | None = None) -> ModelInfo:
        """Return the version of the repository with the names and sizes of its files.

        Args:
            wanted: The file or quantization that the question is for, named in an error.

        Raises:
            HubUnreachableError: The hub does not answer.
            ModelNotFoundError: The repository does not exist, or lacks the revision.
            ModelError: The repository is gated.
            ArgumentError: The hub does not allow this name.
        """
        cache_root()
        from huggingface_hub import HfApi

        name = f"{self.id}:{wanted}" if wanted else self.id
        with hub_errors(name, HubUnreachableError, self.revision):
            return HfApi().model_info(
                self.id, revision=self.revision, files_metadata=True, timeout=METADATA_TIMEOUT
            )

    def cached_path(self, files: Sequence[str], revision: str | None = None) -> Path | None:
        """Return the path of the first of some files, or None unless all are in the cache.

        Args:
            files: Paths in the repository.
            revision: The version; None is the version of this object that was downloaded last.

        Raises:
            ModelError: The cache is damaged or cannot be read.
        """
        snapshot = self.snapshot(revision)
        if snapshot is None:
            return None
        paths = [snapshot / file for file in files]
        return paths[0] if all(is_file(path) for path in paths) else None

    def cached_files(self) -> list[str]:
        """Return the paths of the files in the cache, of the version downloaded last.

        Raises:
            ModelError: The cache is damaged or cannot be read.
        """
        snapshot = self.snapshot()
        if snapshot is None:
            return []
        files = [path for path in snapshot.rglob("*") if is_file(path)]
        return sorted(path.relative_to(snapshot).as_posix() for path in files)

    def snapshot(self, revision: str | None = None) -> Path | None:
        """Return the folder in the cache of a version, or None.

        Args:
            revision: The version; None is the version of this object that was downloaded last. The
                first digits of a commit suffice.

        Raises:
            ModelError: The cache is damaged.
        """
        folder = self.folder()
        revision = revision or self.revision or "main"
        ref = folder / "refs" / revision
        try:
            commit = ref.read_text(encoding="utf-8").strip() if is_file(ref) else revision
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} is damaged: {error}; delete {ref}") from error
        if not re.fullmatch("[0-9a-f]{7,64}", commit):  # nothing that leads to another folder
            return None
        matches = [path for path in folder.glob(f"snapshots/{commit}*") if path_exists(path)]
        return matches[0] if len(matches) == 1 else None

    def folder(self) -> Path:
        """Return the folder of the repository in the cache, which may not exist."""
        return cache_root() / f"models--{self.id.replace('/', '--')}"

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
                path = download(
                    self.id, file.rfilename, revision, branch=self.revision, progress=progress
                )
            paths.append(path)
        return paths

    def _remaining_bytes(self, file: RepoSibling) -> int:
        """Return the size of a file without the bytes of an interrupted download."""
        present = partial_size(self.id, file.lfs.sha256) if file.lfs else 0
        return max(0, (file.size or 0) - present)

    def _check_free_space(self, needed: int) -> None:
        """Raise ModelError if the disk of the cache has fewer than `needed` bytes free."""
        cache = cache_root()
        folder = next(path for path in (cache, *cache.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ModelError(
                f"{self.id}: {needed / 1e9:.2f} GB to download, {free / 1e9:.2f} GB free for"
                f" {cache}; set HF_HOME to a folder on another disk"
            )


@contextmanager
def hub_errors(name: str, failure: type[ModelError], revision: str | None = None) -> Iterator[None]:
    """Translate the exceptions of huggingface_hub into those of llcuda.

    Args:
        name: What the block is for, `repo/id` or `repo/id:file`.
        failure: The exception for a failure without a more exact one.
        revision: The branch, tag or commit that is asked for.
    """
    from huggingface_hub import constants, errors

    if not constants.ENDPOINT:  # which HF_ENDPOINT without a value sets
        raise ModelError("HF_ENDPOINT is empty; unset it, or set it to the address of a hub")
    login = "log in with `hf auth login`, or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{name.split(':')[0]}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(f"{name} is gated: accept its terms at {page} and {login}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"there is no {page}; if it is private, {login}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{page} has no revision {revision!r}; {page}/refs lists its branches and tags"
        ) from error
    except errors.HFValidationError as error:
        raise ArgumentError(f"{name}: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to download it"
        ) from error
    except LlcudaError:
        raise
    except Exception as error:  # httpx, hf_xet and the file system have no common base class
        if remedy := _disk_remedy(error):
            raise ModelError(f"{name} cannot be written to {cache_root()}: {remedy}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "; `llcuda list` shows the models on this machine"
        end = remedy if failure is HubUnreachableError else ""
        raise failure(f"cannot download {name} from {constants.ENDPOINT}: {reason}{end}") from error


def _disk_remedy(error: Exception) -> str | None:
    """Return what the file system refuses and the remedy, or None for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _DISK_FULL:
        return (
            f"{os.strerror(number)}; make room, or set HF_HOME to a folder on another disk; a"
            " further call goes on with what has arrived"
        )
    if number in _CANNOT_WRITE:
        return f"{os.strerror(number)}; set HF_HOME to a folder that this user can write to"
    return None
