"""The bytes of a file on the Hugging Face Hub; a later process goes on where a killed one stopped.

huggingface_hub (1.18 and newer) gives each download a file with a random name and deletes it when
the download fails. Here that file is named by its SHA-256, filled under huggingface_hub's own lock,
kept when the process ends, and accepted when its sum is right. The rest of the cache entry is made
by huggingface_hub, which finds the blob in its place.
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

from llcuda.progress import seen

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

_RANGE_NOT_SATISFIABLE = 416


def download(repo: str, file: str, commit: str | None, *, progress: bool) -> Path:
    """Return the cached path of a file's newest version, downloading what is not there yet.

    commit: that version, as far as the caller knows. progress: a bar on stderr, in a terminal and
    in a notebook. Raises what huggingface_hub, hf_xet and the file system raise, and OSError for
    bytes that are not the file's.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Drawn in a notebook too, where stderr is no terminal."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if not progress:
                kwargs["disable"] = True
            elif kwargs.get("disable") is None:
                kwargs["disable"] = not seen()
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    found = hf_hub_download(repo, file, revision=commit, dry_run=True)
    # Without symbolic links huggingface_hub would copy our blob, where it moves a file of its own.
    if found.will_download and are_symlinks_supported():
        _fill_blob(repo, file, found.commit_hash, Bar)
    return Path(hf_hub_download(repo, file, tqdm_class=Bar))


def held(repo: str, sha256: str) -> int:
    """Return how many bytes of a file an earlier download left."""
    try:
        return _partial(repo, sha256).stat().st_size
    except OSError:  # not there, or not to be seen
        return 0


def _partial(repo: str, sha256: str) -> Path:
    """Return the path of an unfinished file; `hf cache prune` deletes what ends like this."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo, repo_type="model")
    return Path(HF_HUB_CACHE).absolute() / folder / "blobs" / f"{sha256}.llcuda.incomplete"


def _fill_blob(repo: str, file: str, commit: str, bar: type[tqdm]) -> None:
    """Put a file's bytes where huggingface_hub looks for them; one process at a time does so.

    A tag that is no SHA-256 belongs to a small file (the hub keeps those in git) or to another
    kind of server: nothing could prove that two halves belong together, so it is left alone.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file, revision=commit)
    facts = get_hf_file_metadata(url)
    sha256 = facts.etag or ""
    if facts.size is None or not re.fullmatch("[0-9a-f]{64}", sha256):
        return
    chunked = facts.xet_file_data
    xet = (chunked.file_hash, chunked.refresh_route) if chunked else None
    source = _Source(file, url, facts.size, sha256, xet, bar)
    partial = _partial(repo, sha256)
    blob = partial.with_name(sha256)
    lock = partial.parents[2] / ".locks" / partial.parents[1].name / f"{sha256}.lock"
    for folder in (partial.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            source.complete(partial)
            partial.replace(blob)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file of one version of a repository, as the hub offers it.

    size: bytes; xet: its key in the hub's chunk store and where the access tokens are, or None.
    """

    file: str
    url: str
    size: int
    sha256: str
    xet: tuple[str, str] | None
    bar: type[tqdm]

    def complete(self, partial: Path) -> None:
        """Append what `partial` lacks; where the whole is not the file, begin anew, once."""
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
        raise OSError(f"the SHA-256 of what came is not {self.sha256}, which the hub names")

    def _append_over_http(self, target: BinaryIO) -> None:
        """Ask for the rest by range; a server that knows no ranges sends the whole anew."""
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
            if error.errno is None:  # an answer that is whole but has the wrong size: another file
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
                group = _apart(
                    session.new_download_stream_group,
                    token_refresh_url=tokens,
                    token_refresh_headers=headers,
                    custom_headers={k: v for k, v in headers.items() if k != "authorization"},
                )
                info = hf_xet.XetFileInfo(key, self.size)
                stream = _apart(group.download_stream, info, start=start)
                while chunk := _apart(next, stream, b""):
                    target.write(chunk)
                    bar.update(len(chunk))
            except BaseException:
                session.sigint_abort()
                raise
        if target.tell() != self.size:
            raise OSError(f"the transfer ended after {target.tell()} of {self.size} bytes")


def _apart(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a call in another thread returns: Ctrl-C does not interrupt hf_xet's waits.

    The thread is a daemon, so that the process can end whatever hf_xet waits for.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call(*arguments, **options))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()
