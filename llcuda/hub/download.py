"""Downloads from the Hugging Face Hub that continue after the process was killed.

huggingface_hub (1.18 and newer) gives each download a file with a random name and deletes it when
the download fails. This module names that file by its SHA-256, fills it under huggingface_hub's own
lock, keeps it when the process ends, and accepts it when the checksum is right. huggingface_hub
makes the rest of the cache entry, and finds the blob in its place.

It uses internals of huggingface_hub (`http_get`, `repo_folder_name`, `are_symlinks_supported`,
`WeakFileLock`) and of hf_xet (the download stream); pyproject.toml bounds their versions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llcuda.files import publish
from llcuda.progress import is_visible

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

_RANGE_NOT_SATISFIABLE = 416  # HTTP status


def download(
    repo: str, file: str, commit: str | None, *, branch: str | None = None, progress: bool
) -> Path:
    """Return the cached path of a version of a file, downloading the bytes that are missing.

    Args:
        repo: The repository, `owner/name`.
        file: The path of the file in the repository.
        commit: The version, if the caller knows it.
        branch: The branch, tag or commit that `commit` is the version of; None is the main branch.
        progress: Whether to draw a bar on stderr, in a terminal and in a notebook.

    Raises:
        Exception: huggingface_hub, hf_xet and the file system raise exceptions of their own.
        OSError: The transfer ended early, or its SHA-256 is not the file's.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """A bar that is drawn in a notebook too, where stderr is not a terminal."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if not progress:
                kwargs["disable"] = True
            elif kwargs.get("disable") is None:
                kwargs["disable"] = not is_visible()
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    plan = hf_hub_download(repo, file, revision=commit or branch, dry_run=True)
    # Without symbolic links huggingface_hub would copy this blob, but it moves its own file.
    if plan.will_download and are_symlinks_supported():
        _fill_blob(repo, file, plan.commit_hash, Bar)
    return Path(hf_hub_download(repo, file, revision=branch, tqdm_class=Bar))


def partial_size(repo: str, sha256: str) -> int:
    """Return the number of bytes that an interrupted download left of a file."""
    try:
        return _partial_path(repo, sha256).stat().st_size
    except OSError:  # missing, or not readable
        return 0


def _partial_path(repo: str, sha256: str) -> Path:
    """Return the path of an unfinished file; `hf cache prune` deletes files with this ending."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo, repo_type="model")
    return Path(HF_HUB_CACHE).absolute() / folder / "blobs" / f"{sha256}.llcuda.incomplete"


def _fill_blob(repo: str, file: str, commit: str, bar: type[tqdm]) -> None:
    """Put a file's bytes where huggingface_hub looks for them, one process at a time.

    A tag that is not a SHA-256 belongs to a small file (the hub keeps those in git) or to another
    kind of server. Nothing could prove that two halves belong together, so huggingface_hub
    downloads such a file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file, revision=commit)
    metadata = get_hf_file_metadata(url)
    sha256 = metadata.etag or ""
    if metadata.size is None or not re.fullmatch("[0-9a-f]{64}", sha256):
        return
    chunked = metadata.xet_file_data
    xet = (chunked.file_hash, chunked.refresh_route) if chunked else None
    source = _Source(file, url, metadata.size, sha256, xet, bar)
    partial = _partial_path(repo, sha256)
    blob = partial.with_name(sha256)
    lock = partial.parents[2] / ".locks" / partial.parents[1].name / f"{sha256}.lock"
    for folder in (partial.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            source.complete(partial)
            publish(partial, blob)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file of one version of a repository, as the hub offers it.

    Attributes:
        file: The path of the file in the repository.
        url: The address of the file.
        size: The size of the file in bytes.
        sha256: The checksum of the file.
        xet: The key of the file in the hub's chunk store and the route to its access tokens, or
            None.
        bar: The class of the progress bar.
    """

    file: str
    url: str
    size: int
    sha256: str
    xet: tuple[str, str] | None
    bar: type[tqdm]

    def complete(self, partial: Path) -> None:
        """Append the missing bytes to `partial`; start again, once, if the checksum is wrong."""
        from huggingface_hub.constants import HF_HUB_DISABLE_XET

        use_xet = not HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet")
        if partial.exists() and partial.stat().st_size > self.size:
            partial.unlink()
        for _ in range(2 if partial.exists() else 1):
            with partial.open("ab") as target:
                if target.tell() == self.size:
                    pass  # the process was killed before it could name the file
                elif self.xet and use_xet:
                    self._append_over_xet(target, *self.xet)
                else:
                    self._append_over_http(target)
            with partial.open("rb") as whole:
                if hashlib.file_digest(whole, "sha256").hexdigest() == self.sha256:
                    return
            partial.unlink()
        raise OSError(f"the SHA-256 of the transfer is not {self.sha256}, which the hub names")

    def _append_over_http(self, target: BinaryIO) -> None:
        """Request the rest by range; a server without ranges sends the whole file again."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        try:
            http_get(
                self.url,
                target,
                resume_size=target.tell(),
                # Some servers ignore a range when they may compress.
                headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                expected_size=self.size,
                displayed_filename=self.file,
                tqdm_class=self.bar,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != _RANGE_NOT_SATISFIABLE:
                raise
        except OSError as error:
            if error.errno is None:  # a complete answer of the wrong size: another file
                target.truncate(0)
            raise

    def _append_over_xet(self, target: BinaryIO, key: str, tokens: str) -> None:
        """Stream the rest from the hub's chunk store."""
        import hf_xet  # type: ignore[import-untyped]
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        start = target.tell()
        headers = build_hf_headers()
        shown = {"desc": self.file[-40:], "unit": "B", "unit_scale": True, "disable": None}
        session = hf_xet.XetSession()
        with self.bar(total=self.size, initial=start, **shown) as bar:
            try:
                group = _in_thread(
                    session.new_download_stream_group,
                    token_refresh_url=tokens,
                    token_refresh_headers=headers,
                    custom_headers={k: v for k, v in headers.items() if k != "authorization"},
                )
                info = hf_xet.XetFileInfo(key, self.size)
                stream = _in_thread(group.download_stream, info, start=start)
                while chunk := _in_thread(next, stream, b""):
                    target.write(chunk)
                    bar.update(len(chunk))
            except BaseException:
                session.sigint_abort()
                raise
        if target.tell() != self.size:
            raise OSError(f"the transfer ended after {target.tell()} of {self.size} bytes")


def _in_thread(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the result of a call in another thread, because Ctrl-C does not interrupt hf_xet.

    The thread is a daemon: the process can end while hf_xet waits.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call(*arguments, **options))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()
