"""The header of a GGUF file on the Hugging Face Hub, by range requests: no weight is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llcuda.errors import GGUFError, ModelError
from llcuda.hub.registry import RemoteFile, explained
from llcuda.native.gguf import mapped as gguf

FIRST_STEP = 2**20  # bytes: more than a header without its vocabulary; each step doubles
MOST = 2**28  # of a header; 262,144 tokens with their merges take 20 MB


@contextmanager
def headers(files: list[RemoteFile]) -> Iterator[Path]:
    """Yield the path of the first of `files` in a folder that exists for the while.

    Each has its size and its header; the rest are holes, which take no room and read as zeros.
    Raises GGUFError for what is no GGUF file, ModelError for a transfer that fails.
    """
    with tempfile.TemporaryDirectory(prefix="llcuda-") as folder:
        paths = [Path(folder) / Path(file.file).name for file in files]
        for file, path in zip(files, paths, strict=True):
            header = _header(file)
            try:
                with path.open("wb") as target:
                    target.write(header)
                    target.truncate(file.size)
            except OSError as error:
                raise ModelError(f"cannot write {path}: {error.strerror}") from error
        yield paths[0]


def _header(file: RemoteFile) -> bytearray:
    """Return the first bytes of a file, at least its header."""
    name, data, step = f"{file.repo}:{file.file}", bytearray(), FIRST_STEP
    most = min(file.size, MOST)
    while len(data) < most:
        with explained(name, ModelError):
            _append(data, file, min(len(data) + step, most))
        if gguf.holds_header(data, file.size, name):
            return data
        step *= 2
    raise GGUFError(f"{name} ends within its header, or that has more than {MOST >> 20} MiB")


def _append(data: bytearray, file: RemoteFile, end: int) -> None:
    """Add the bytes up to `end`; a server that knows no ranges is left when it has sent them."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    url = hf_hub_url(file.repo, file.file, revision=file.commit or None)
    span = {"Range": f"bytes={len(data)}-{end - 1}", "Accept-Encoding": "identity"}
    asked = http_stream_backoff(
        "GET", url, headers={**build_hf_headers(), **span}, timeout=HF_HUB_DOWNLOAD_TIMEOUT
    )
    with asked as answer:
        hf_raise_for_status(answer)
        known = 0 if answer.status_code == 206 else len(data)  # 200: from the file's beginning
        for chunk in answer.iter_bytes():
            data += chunk[known:]
            known = max(0, known - len(chunk))
            if len(data) >= end:
                del data[end:]
                return
    raise OSError(f"the transfer ended after {len(data)} bytes")
