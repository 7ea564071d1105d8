"""The header of a GGUF file on the Hugging Face Hub, read by range requests without the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llcuda.errors import GGUFError, ModelError
from llcuda.hub.repository import RemoteFile, hub_errors
from llcuda.native.gguf.mapped import holds_header

FIRST_RANGE = 2**20  # bytes, more than a header without its vocabulary; each range doubles
MAX_HEADER = 2**28  # bytes; 262,144 tokens with their merges take 20 MB


@contextmanager
def header_files(files: Sequence[RemoteFile]) -> Iterator[Path]:
    """Yield the path of the first of some files that have only the headers of those on the hub.

    They lie in a temporary folder. Each has the size of the file on the hub; its weights are a
    hole, which takes no room on the disk and reads as zeros.

    Args:
        files: All parts of a model, the first first.

    Raises:
        GGUFError: A file is not a GGUF file.
        ModelError: A transfer fails.
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
    name, data, step = f"{file.repo}:{file.file}", bytearray(), FIRST_RANGE
    limit = min(file.size, MAX_HEADER)
    while len(data) < limit:
        with hub_errors(name, ModelError):
            _append(data, file, min(len(data) + step, limit))
        if holds_header(data, file.size, name):
            return data
        step *= 2
    raise GGUFError(f"{name} ends within its header, or that has more than {MAX_HEADER >> 20} MiB")


def _append(data: bytearray, file: RemoteFile, end: int) -> None:
    """Append the bytes of a file up to `end`, also from a server that ignores ranges."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    url = hf_hub_url(file.repo, file.file, revision=file.commit or None)
    span = {"Range": f"bytes={len(data)}-{end - 1}", "Accept-Encoding": "identity"}
    request = http_stream_backoff(
        "GET", url, headers={**build_hf_headers(), **span}, timeout=HF_HUB_DOWNLOAD_TIMEOUT
    )
    with request as response:
        hf_raise_for_status(response)
        skip = 0 if response.status_code == 206 else len(data)  # 200: from the file's beginning
        for chunk in response.iter_bytes():
            data += chunk[skip:]
            skip = max(0, skip - len(chunk))
            if len(data) >= end:
                del data[end:]
                return
    raise OSError(f"the transfer ended after {len(data)} bytes")
