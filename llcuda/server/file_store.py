"""The files that clients upload and that batches write, in a folder and within bounds.

    with store.writer() as writer:
        writer.write(data)
        document = writer.keep("requests.jsonl", "batch")

A file is its data under its id, and a document beside it. A server that is started with the folder
of an earlier one has its files. Results of a batch that runs are data without a document.
"""

from __future__ import annotations

import errno
import fcntl
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llcuda.files import atomic_write, publish, temporary_file, temporary_folder
from llcuda.params import wrong_value
from llcuda.server.chunks import new_id, unix_time
from llcuda.server.errors import ApiError

MAX_FILES = 10_000
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FILE_KEYS = {"id", "object", "bytes", "created_at", "filename", "purpose", "status"}


class FileStore:
    """Keeps files by their ids.

    Args:
        folder: The folder of the files; None = a temporary one, made with the first file.
        max_bytes: Most bytes of all files together, unfinished ones included.

    Attributes:
        is_temporary: Whether the folder ends with the server.
        documents: OpenAI's documents of the files, the oldest first.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._folder = folder
        self.is_temporary = folder is None
        self._max_bytes = max_bytes
        self._stack = ExitStack()
        self._readers: list[tuple[str, str]] = []
        found = [] if folder is None else load_documents(folder, "file-", FILE_KEYS)
        self.documents = {
            document["id"]: document for document in found if self.path(document["id"]).is_file()
        }
        self._bytes = sum(document["bytes"] for document in self.documents.values())

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        if self._folder is None:
            parent = Path(tempfile.gettempdir())
            self._folder = self._stack.enter_context(temporary_folder(parent))
        return self._folder

    def close(self) -> None:
        """Delete a temporary folder."""
        self._stack.close()

    def path(self, name: str) -> Path:
        """Return the path of a file's data.

        Args:
            name: Its id.
        """
        return self.folder / name

    def get(self, name: str, param: str | None = None) -> dict[str, Any]:
        """Return the document of a file.

        Args:
            name: Its id.
            param: The field that names it; None = the path does.

        Raises:
            ApiError: There is no such file.
        """
        if name not in self.documents:
            raise no_such("file", name, param, "upload it to /v1/files")
        return self.documents[name]

    def delete(self, name: str) -> None:
        """Delete a file. Raises ApiError if there is none, or if a batch reads it."""
        size = self.get(name)["bytes"]
        for reader in [reader for file, reader in self._readers if file == name]:
            rule = f"{reader} reads this file; cancel the batch or wait for its end"
            raise ApiError(409, str(wrong_value("file_id", name, rule)), code="file_in_use")
        del self.documents[name]
        self.path(f"{name}.json").unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)
        self._bytes -= size

    @contextmanager
    def reading(self, name: str, reader: str) -> Iterator[None]:
        """Refuse to delete a file for as long as the block runs.

        Args:
            name: Its id.
            reader: What reads it, for an error.
        """
        self._readers.append((name, reader))
        try:
            yield
        finally:
            self._readers.remove((name, reader))

    @contextmanager
    def space(self) -> Iterator[FileSpace]:
        """Yield the bytes that a new file takes; those that it does not keep are given back."""
        space = FileSpace(self)
        try:
            yield space
        finally:
            self._bytes -= space.size

    @contextmanager
    def writer(self, space: FileSpace | None = None) -> Iterator[FileWriter]:
        """Yield a new file, which is deleted after the block unless it is kept.

        Args:
            space: The bytes that were reserved for it; None = none.
        """
        with ExitStack() as stack, disk_errors():
            space = space or stack.enter_context(self.space())
            path = stack.enter_context(temporary_file(self.folder))
            file = stack.enter_context(path.open("wb"))
            yield FileWriter(self, space, path, file)

    @contextmanager
    def appender(self, name: str) -> Iterator[FileWriter]:
        """Yield a file that goes on where it ended; without `keep` it stays as it is.

        Args:
            name: Its id.
        """
        path = self.path(name)
        with self.space() as space, disk_errors(), path.open("ab") as file:
            writer = FileWriter(self, space, path, file)
            writer.size = path.stat().st_size
            if name not in self.documents:  # otherwise they are the store's already
                space.grow(writer.size)
            yield writer

    def reserve(self, size: int) -> None:
        """Take bytes. Raises ApiError where the files would be too large together."""
        if self._bytes + size > self._max_bytes or len(self.documents) >= MAX_FILES:
            rule = f"at most {MAX_FILES:,} files of {self._max_bytes} bytes together"
            message = f"the server has no room for this file: {rule}; delete files"
            raise ApiError(507, message, code="storage_full")
        self._bytes += size


class FileSpace:
    """The bytes of a file that is not kept yet. size: how many."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self.size = 0

    def grow(self, size: int) -> None:
        """Take more. Raises ApiError where there are no more."""
        self._store.reserve(size)
        self.size += size


class FileWriter:
    """Writes a new file."""

    def __init__(self, store: FileStore, space: FileSpace, path: Path, file: BinaryIO) -> None:
        self._store = store
        self._space = space
        self._path = path
        self._file = file
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append data. Raises ApiError where there is no room for it."""
        if (missing := self.size + len(data) - self._space.size) > 0:
            self._space.grow(missing)
        with disk_errors():
            self._file.write(data)
        self.size += len(data)

    def flush(self) -> None:
        """Hand the data to the system, which has them also after the end of this process."""
        with disk_errors():
            self._file.flush()

    def keep(self, filename: str, purpose: str, name: str | None = None) -> dict[str, Any]:
        """Keep the file, and return its document.

        Args:
            filename: The client's name of it.
            purpose: OpenAI's word for its use.
            name: Its id; None = a new one.
        """
        document: dict[str, Any] = {
            "id": name or new_id("file-"),
            "object": "file",
            "bytes": self.size,
            "created_at": unix_time(),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        with disk_errors():
            self._file.close()  # which writes the rest
            target = self._store.path(document["id"])
            if target != self._path:
                publish(self._path, target)
            try:
                save_document(self._store.folder, document)
            except BaseException:
                target.unlink()
                raise
        self._store.documents[document["id"]] = document
        self._space.size -= self.size  # they are the store's now
        return document


def save_document(folder: Path, document: Mapping[str, Any]) -> None:
    """Write a document under its id, whole or not at all.

    Args:
        folder: The folder.
        document: The document.
    """
    with atomic_write(folder / f"{document['id']}.json") as partial:
        partial.write_text(json.dumps(document))


def load_documents(folder: Path, prefix: str, keys: set[str]) -> list[dict[str, Any]]:
    """Return the documents of a folder, the oldest first; other files are left alone.

    Args:
        folder: The folder.
        prefix: The beginning of their ids.
        keys: Their keys.
    """
    documents = []
    for path in folder.glob(f"{prefix}*.json"):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(document, dict) and keys <= set(document) and document["id"] == path.stem:
            documents.append(document)
    return sorted(documents, key=lambda document: document["created_at"])


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which ends with the process; the file is deleted after the block.

    Args:
        path: The file. On a file system without locks nothing is locked.

    Raises:
        BlockingIOError: Another process, or another part of this one, holds it.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def no_such(kind: str, name: str, param: str | None, remedy: str) -> ApiError:
    """Return the error of an unknown id.

    Args:
        kind: What it would name.
        name: The id.
        param: The field that has it; None = the path does.
        remedy: What to do.
    """
    error = wrong_value(param or f"{kind}_id", name[:100], f"no such {kind}; {remedy}")
    return ApiError(404 if param is None else 400, str(error), param=param)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise the error of a full disk as the client's."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        message = "the server's disk is full; delete files"
        raise ApiError(507, message, code="storage_full") from error
