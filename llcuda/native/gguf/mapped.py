"""A mapped GGUF file: its header, its texts, arrays and weights.

If the file became shorter since it was mapped, the functions here raise an error; reading a view of
the mapping ends the process then.
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
    """A key and its value.

    Attributes:
        key: The key.
        value: Offset of the value in the file.
        size: Bytes of the value.
        count: Elements of an array; 1 for another value.
        type: A GGUFValueType; for an array that of its elements.
        array: Whether the value is an array.
    """

    key: str
    value: int
    size: int
    count: int
    type: int
    array: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor.

    Attributes:
        name: The name.
        sizes: Sizes of the axes, fastest first.
        type: A ggml type.
        offset: Offset of its bytes in the data section.
        size: Its bytes.
    """

    name: str
    sizes: tuple[int, ...]
    type: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """The header of a file.

    Attributes:
        version: Version of the format.
        alignment: Alignment of the tensors, in bytes.
        data_offset: Offset of the data section in the file.
        pairs: Keys and values in their order.
        tensors: Tensors in their order.
    """

    version: int
    alignment: int
    data_offset: int
    pairs: list[Pair]
    tensors: list[Record]


class MappedFile:
    """A GGUF file, open and mapped until `close`; the mapping lives as long as a view of it.

    Args:
        path: The file.

    Attributes:
        path (Path): The file.
        file (BinaryIO | None): The open file; None once closed.
        mmap (mmap.mmap | None): The mapping; None once closed.
        index (Index): The header.

    Raises:
        ModelNotFoundError: The file does not exist.
        GGUFError: The file is not a GGUF file, or is damaged.
        ModelError: The file cannot be read or mapped.
    """

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
        """Let go of the file and of the mapping; calling it again does nothing."""
        self._finalizer()
        self.file = self.mmap = None


def read_index(mapping: mmap.mmap, path: Path) -> Index:
    """Return the header of a file, with the tensors that ggml's parser accepts.

    Args:
        mapping: The mapped file.
        path: Its path, for errors.

    Raises:
        GGUFError: The file is damaged.
    """
    ffi, _ = library.load()
    status, index = _read(mapping, len(mapping))
    if status:
        try:
            library.fail(GGUFError, f"{path} cannot be read")
        except GGUFError as error:
            if "it is truncated" in error.problem:
                error.remedy = "download or copy the file again"
            raise
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
            repeated = Counter(names).most_common(1)[0][0]
            raise GGUFError(f"{path} has the {what} {repeated!r} twice")
    return Index(index.version, index.alignment, index.data_offset, pairs, tensors)


def holds_header(data: bytearray, file_size: int, name: str) -> bool:
    """Return whether the first bytes of a file hold its whole header.

    Args:
        data: The first bytes.
        file_size: Bytes of the whole file.
        name: Its name, for errors.

    Raises:
        GGUFError: The header is damaged.
    """
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
    """Return a copy of bytes of a file.

    Args:
        mapping: The mapped file.
        start: Offset of the first byte.
        size: How many bytes.

    Raises:
        GGUFError: The file became shorter.
    """
    ffi, lib = library.load()
    data = bytearray(size)
    _check(lib.llcuda_gguf_copy(_at(ffi, mapping, start), size, ffi.from_buffer(data)))
    return bytes(data)


def array(mapping: mmap.mmap, start: int, count: int, kind: str) -> NDArray[Any]:
    """Return numbers of a file as a new array.

    Args:
        mapping: The mapped file.
        start: Offset of the first number.
        count: How many numbers.
        kind: Their numpy type.

    Raises:
        GGUFError: The file became shorter.
    """
    ffi, lib = library.load()
    values = np.empty(count, kind)
    _check(lib.llcuda_gguf_copy(_at(ffi, mapping, start), values.nbytes, _into(ffi, values)))
    return values


def texts(blob: bytes, count: int) -> NDArray[np.int64]:
    """Return the offset of the first byte of each text in an array of texts.

    Args:
        blob: The bytes of the array.
        count: How many texts.
    """
    ffi, lib = library.load()
    starts = np.empty(count, np.int64)
    pointer = ffi.cast("int64_t *", _into(ffi, starts))
    _check(lib.llcuda_gguf_texts(ffi.from_buffer(blob), len(blob), count, pointer))
    return starts


def floats(mapping: mmap.mmap, start: int, size: int, kind: int, numel: int) -> NDArray[np.float32]:
    """Return the values of a tensor.

    Args:
        mapping: The mapped file.
        start: Offset of the tensor's first byte.
        size: Bytes of the tensor.
        kind: Its ggml type.
        numel: How many values.

    Returns:
        A new array of shape (numel,).

    Raises:
        UnsupportedError: ggml cannot turn values of this type into floats.
        GGUFError: The file became shorter.
    """
    ffi, lib = library.load()
    values = np.empty(numel, np.float32)
    pointer = ffi.cast("float *", _into(ffi, values))
    status = lib.llcuda_gguf_floats(_at(ffi, mapping, start), size, kind, pointer)
    if status == lib.LLCUDA_UNSUPPORTED:
        raise UnsupportedError("ggml cannot turn values of this type into floats")
    _check(status)
    return values


def has_only_numbers(mapping: mmap.mmap, start: int, size: int, kind: int) -> bool:
    """Return whether a tensor has neither NaN nor infinity, as ggml checks it.

    Args:
        mapping: The mapped file.
        start: Offset of the tensor's first byte.
        size: Bytes of the tensor.
        kind: Its ggml type.
    """
    ffi, lib = library.load()
    status: int = lib.llcuda_gguf_validate(_at(ffi, mapping, start), size, kind)
    return status == 0


def _at(ffi: Any, mapping: mmap.mmap, start: int) -> Any:
    return ffi.from_buffer(mapping) + start


def _into(ffi: Any, values: NDArray[Any]) -> Any:
    return ffi.from_buffer(values.view(np.uint8).data) if values.size else ffi.NULL


def _check(status: int) -> None:
    if status:
        library.fail(GGUFError, "the GGUF file cannot be read any more")
