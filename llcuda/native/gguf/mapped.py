"""What a mapped GGUF file holds, and where; its texts, arrays and weights.

A file that became shorter while it is mapped is an error here; through a view of one's own it ends
the process.
"""

from __future__ import annotations

import mmap
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import GGUFError, ModelError, UnsupportedError
from llcuda.native import library
from llcuda.native.gguf.check import check_file


@dataclass(frozen=True, slots=True)
class Pair:
    """A key and its value: `size` bytes at `value`.

    type: a GGUFValueType; for an array that of its elements.
    """

    key: str
    value: int
    size: int
    count: int
    type: int
    array: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor: its sizes, fastest first; its bytes' offset in the data section."""

    name: str
    sizes: tuple[int, ...]
    type: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """A file's header. data_offset: where the data section begins."""

    version: int
    alignment: int
    data_offset: int
    pairs: list[Pair]
    tensors: list[Record]


class MappedFile:
    """A GGUF file, open and mapped until close(); the mapping lives as long as a view of it."""

    def __init__(self, path: Path) -> None:
        check_file(path)
        self.path = path
        try:
            self.file: BinaryIO | None = path.open("rb")
            self._finalizer = weakref.finalize(self, self.file.close)
            self.mmap: mmap.mmap | None = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # a file system without mappings, or just emptied
            raise ModelError(f"cannot map {path}: {error}") from None
        self.index = read_index(self.mmap, path)

    def close(self) -> None:
        """Let go of the file and of the mapping. Calling it again is fine."""
        self._finalizer()
        self.file = self.mmap = None


def read_index(mapping: mmap.mmap, path: Path) -> Index:
    """Return what a file holds, ggml's parser being the judge of its tensors; GGUFError."""
    ffi, _ = library.load()
    status, index = _read(mapping, len(mapping))
    if status:
        library.fail(GGUFError, f"{path} cannot be read")
    pairs = [
        Pair(
            _name(copy(mapping, pair.key, pair.key_size), path),
            pair.value,
            pair.size,
            pair.count,
            pair.type,
            pair.array,
        )
        for pair in index.pairs[0 : index.n_pairs]
    ]
    tensors = [
        Record(
            _name(ffi.string(tensor.name), path),
            tuple(tensor.ne[0 : tensor.n_dims]),
            tensor.type,
            tensor.offset,
            tensor.size,
        )
        for tensor in index.tensors[0 : index.n_tensors]
    ]
    for what, names in (("key", [p.key for p in pairs]), ("tensor", [t.name for t in tensors])):
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise GGUFError(f"{path} has the {what} {twice!r} twice")
    return Index(index.version, index.alignment, index.data_offset, pairs, tensors)


def holds_header(data: bytearray, file_size: int, name: str) -> bool:
    """Whether the first bytes of a file hold its whole header; GGUFError where it is damaged."""
    _, lib = library.load()
    status, _ = _read(data, file_size)
    if status not in (0, lib.LLCUDA_TRUNCATED):
        library.fail(GGUFError, f"{name} cannot be read")
    return status == 0


def _read(data: mmap.mmap | bytearray, file_size: int) -> tuple[int, Any]:
    ffi, lib = library.load()
    index = ffi.new("struct llcuda_gguf_index **")
    status = lib.llcuda_gguf_read(ffi.from_buffer(data), len(data), file_size, index)
    return status, None if status else ffi.gc(index[0], lib.llcuda_gguf_free)


def _name(name: bytes, path: Path) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise GGUFError(f"{path}: the name {name[:64]!r} is not UTF-8") from None


def copy(mapping: mmap.mmap, start: int, size: int) -> bytes:
    """Return bytes of a file."""
    ffi, lib = library.load()
    found = bytearray(size)
    _check(lib.llcuda_gguf_copy(_at(ffi, mapping, start), size, ffi.from_buffer(found)))
    return bytes(found)


def array(mapping: mmap.mmap, start: int, count: int, kind: str) -> NDArray[Any]:
    """Return `count` numbers of a numpy type as a new array."""
    ffi, lib = library.load()
    found = np.empty(count, kind)
    _check(lib.llcuda_gguf_copy(_at(ffi, mapping, start), found.nbytes, _into(ffi, found)))
    return found


def texts(blob: bytes, count: int) -> NDArray[np.int64]:
    """Return where the first byte of each text lies in a copied array of texts."""
    ffi, lib = library.load()
    starts = np.empty(count, np.int64)
    pointer = ffi.cast("int64_t *", _into(ffi, starts))
    _check(lib.llcuda_gguf_texts(ffi.from_buffer(blob), len(blob), count, pointer))
    return starts


def floats(mapping: mmap.mmap, start: int, size: int, kind: int, numel: int) -> NDArray[np.float32]:
    """Return the values of `size` bytes of a ggml type; UnsupportedError for types without."""
    ffi, lib = library.load()
    found = np.empty(numel, np.float32)
    pointer = ffi.cast("float *", _into(ffi, found))
    status = lib.llcuda_gguf_floats(_at(ffi, mapping, start), size, kind, pointer)
    if status == lib.LLCUDA_UNSUPPORTED:
        raise UnsupportedError("ggml turns no values of this type into floats")
    _check(status)
    return found


def has_only_numbers(mapping: mmap.mmap, start: int, size: int, kind: int) -> bool:
    """Whether ggml finds no infinity and nothing that is no number in a tensor's bytes."""
    ffi, lib = library.load()
    status: int = lib.llcuda_gguf_validate(_at(ffi, mapping, start), size, kind)
    return status == 0


def _at(ffi: Any, mapping: mmap.mmap, start: int) -> Any:
    return ffi.from_buffer(mapping) + start


def _into(ffi: Any, values: NDArray[Any]) -> Any:
    return ffi.from_buffer(values.view(np.uint8).data) if values.size else ffi.NULL


def _check(status: int) -> None:
    if status:
        library.fail(GGUFError, "a GGUF file cannot be read any more")
