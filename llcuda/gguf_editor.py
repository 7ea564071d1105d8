"""Changing GGUF files: their metadata, and how many files hold a model.

Values and tensors that stay are copied byte for byte. Each file is written whole beside its target,
and replaces it when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llcuda.errors import ArgumentError, GGUFError, LoadCancelledError
from llcuda.files import check_free_space, check_target, local_path, publish, temporary_file
from llcuda.gguf_writer import MAX_FLOAT, type_of_value
from llcuda.native.gguf import mapped
from llcuda.native.gguf.mapped import MappedFile, Pair, Record
from llcuda.native.gguf.metadata import LOSSLESS, Metadata, Texts
from llcuda.native.gguf.parts import model_file, open_parts
from llcuda.native.gguf.types import NUMPY_VALUES, GGUFValueType
from llcuda.params import check_number, wrong_argument, wrong_value

VERSION = 3
ALIGNMENT, DEFAULT_ALIGNMENT = "general.alignment", 32
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = frozenset({SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS})
MAX_PARTS = 2**16 - 1  # llama.cpp has their number in 16 bits
MAX_KEY_BYTES = 2**16 - 1  # GGUF's specification
COPIED_AT_ONCE = 2**24  # bytes

Progress = Callable[[float], bool | None]


class _Tensor(NamedTuple):
    """A tensor and the file that has its bytes."""

    file: MappedFile
    record: Record


@dataclass(slots=True)
class _Layout:
    """The content of a file to write.

    Attributes:
        pairs: The bytes of each key with its value.
        alignment: Alignment of the tensors, in bytes.
        tensors: The tensors.
        info_size: Bytes of their descriptions.
        data_size: Bytes of their values, each aligned.
    """

    pairs: Sequence[bytes]
    alignment: int
    tensors: list[_Tensor]
    info_size: int = 0
    data_size: int = 0

    def size_with(self, tensor: _Tensor | None = None) -> int:
        """Return the bytes of the file, with another tensor."""
        header = 24 + sum(map(len, self.pairs)) + self.info_size
        data = self.data_size
        if tensor is not None:
            header += len(_info(tensor.record, 0))
            data += _aligned(tensor.record.size, self.alignment)
        return _aligned(header, self.alignment) + data

    def add(self, tensor: _Tensor) -> None:
        """Append a tensor."""
        self.tensors.append(tensor)
        self.info_size += len(_info(tensor.record, 0))
        self.data_size += _aligned(tensor.record.size, self.alignment)

    def header(self) -> bytes:
        """Return the bytes before those of the tensors."""
        infos, offset = [], 0
        for _, record in self.tensors:
            infos.append(_info(record, offset))
            offset += _aligned(record.size, self.alignment)
        counts = struct.pack("<4sIQQ", b"GGUF", VERSION, len(self.tensors), len(self.pairs))
        header = b"".join((counts, *self.pairs, *infos))
        return header.ljust(_aligned(len(header), self.alignment), b"\0")


# --- metadata ---


def set_metadata(
    path: str | os.PathLike[str],
    changes: Mapping[str, Any],
    *,
    remove: Collection[str] = (),
    target: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a GGUF file with other metadata.

    Of a split model only the first file has metadata, and is written.

    Args:
        path: The file, or the name of a model.
        changes: Values by key, as `write_gguf` takes them: numpy's values have their type. A plain
            number, text, or list of these keeps the type that the key has, if it has one.
        remove: Keys to leave out.
        target: The file to write; None replaces `path`.
        progress: Called with 0.0 to 1.0. False cancels, an exception cancels and is raised again.

    Returns:
        The path of the file that was written.

    Raises:
        ArgumentError: A key or value is not allowed, or a key to remove is not there.
        ModelNotFoundError: There is no such file.
        GGUFError: The file is damaged.
        FileWriteError: The target cannot be written; it is as it was before.
        LoadCancelledError: `progress` returned False.
    """
    if not isinstance(changes, Mapping):
        raise wrong_value("changes", changes, "expected a mapping of keys to values")
    if isinstance(remove, str) or not isinstance(remove, Collection):
        raise wrong_value("remove", remove, "expected a list of keys")
    source = model_file(path)
    if target is None and not Path(path).is_file():
        rule = f"{path} is the name of a model, whose file is not replaced"
        raise wrong_argument("target", rule, "give the name of a new file")
    written = source if target is None else Path(local_path(target, "target"))
    with contextlib.closing(MappedFile(source)) as file:
        _check_first(file)
        pairs = _edited_pairs(file, changes, remove)
        layout = _Layout(pairs, int(changes.get(ALIGNMENT, _alignment(file, remove))), [])
        for record in file.index.tensors:
            layout.add(_Tensor(file, record))
        if not (written.exists() and written.samefile(source)):
            check_target(written)
        _write([(written, layout)], progress)
    return written


def _check_first(file: MappedFile) -> None:
    """Raise ArgumentError for a part of a split model that has no metadata."""
    metadata = Metadata(file)
    number = metadata.get(SPLIT_NO, 0)
    if metadata.get(SPLIT_COUNT, 1) > 1 and number:
        raise ArgumentError(
            f"{file.path} is file {number + 1} of a split model: the first one has the metadata"
        )


def _edited_pairs(
    file: MappedFile, changes: Mapping[str, Any], remove: Collection[str]
) -> list[bytes]:
    known = {pair.key: pair for pair in file.index.pairs}
    for key in remove:
        if key not in known:
            raise wrong_value("remove", key, f"{file.path.name} has no such key")
        if key in changes:
            raise wrong_value("remove", key, "is among the changes as well")
    for key in (*changes, *remove):
        if key in SPLIT_KEYS:
            rule = "it says in which of several files it stands"
            raise wrong_argument(str(key), rule, "merge or split the model instead")
    encoded = {key: _encoded(key, value, known.get(key)) for key, value in changes.items()}
    kept = [
        encoded.pop(pair.key) if pair.key in encoded else _pair_bytes(file, pair)
        for pair in file.index.pairs
        if pair.key not in remove
    ]
    return [*kept, *encoded.values()]


def _pair_bytes(file: MappedFile, pair: Pair) -> bytes:
    """Return a key with its value as the file has them."""
    assert file.mmap is not None
    value = mapped.copy(file.mmap, pair.value, pair.size)
    if pair.array:
        head = struct.pack("<IIQ", GGUFValueType.ARRAY, pair.type, pair.count)
    elif pair.type == GGUFValueType.STRING:
        head = struct.pack("<IQ", pair.type, pair.size)
    else:
        head = struct.pack("<I", pair.type)
    return _text(pair.key) + head + value


def _encoded(key: Any, value: Any, before: Pair | None) -> bytes:
    """Return a key with a new value as files have them.

    Args:
        key: The key.
        value: Its value.
        before: The key's old value, whose type a plain one keeps.

    Raises:
        ArgumentError: They are not allowed.
    """
    size = len(key.encode(errors="replace")) if isinstance(key, str) else 0
    if not 0 < size <= MAX_KEY_BYTES or key.encode(errors="ignore").decode() != key:
        raise wrong_value("changes", key, "expected keys of 1 to 65,535 bytes of UTF-8")
    is_array = isinstance(value, list | tuple | np.ndarray | Texts)
    elements = value if is_array else [value]
    if isinstance(elements, np.ndarray) and elements.ndim != 1:
        raise wrong_argument(key, "expected an array of one dimension")
    typed = isinstance(elements, np.ndarray) or any(isinstance(e, np.generic) for e in elements)
    if before is not None and not typed and before.array == is_array:
        kind = GGUFValueType(before.type)
        _check_kind(key, elements, kind)
    elif not len(elements) and not isinstance(elements, np.ndarray):
        raise wrong_argument(key, "the array is empty", "leave it out")
    elif len(elements) and all(isinstance(element, str) for element in elements):
        kind = GGUFValueType.STRING  # numpy's texts too
    else:
        kind = type_of_value(key, elements)
    if key == ALIGNMENT:
        is_power = kind == GGUFValueType.UINT32 and not is_array and value and not value & value - 1
        if not is_power:
            raise wrong_value(key, value, "expected a power of 2 as a uint32")
    if kind == GGUFValueType.STRING:
        try:
            texts = [_text(element) for element in elements]
        except UnicodeEncodeError as error:
            raise wrong_argument(key, str(error)) from None
        data = b"".join(texts)
    else:
        data = np.array(elements, NUMPY_VALUES[kind]).astype(f"<{NUMPY_VALUES[kind]}").tobytes()
    if is_array:
        return _text(key) + struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(elements)) + data
    return _text(key) + struct.pack("<I", kind) + data


def _check_kind(key: str, elements: Sequence[Any], kind: GGUFValueType) -> None:
    """Raise ArgumentError unless plain values can have a type."""
    name = kind.name.lower()
    for element in elements:
        if kind in (GGUFValueType.STRING, GGUFValueType.BOOL):
            if not isinstance(element, str if kind == GGUFValueType.STRING else bool):
                raise wrong_value(key, element, f"expected a {name}, as it is now")
        elif kind in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
            bound = MAX_FLOAT if kind == GGUFValueType.FLOAT32 else np.finfo(np.float64).max
            number = isinstance(element, int | float) and not isinstance(element, bool)
            if not number or (np.isfinite(element) and abs(element) > bound):
                raise wrong_value(key, element, f"expected a number of the type {name}")
        else:
            bounds = np.iinfo(name)
            check_number(key, element, "int", int(bounds.min), int(bounds.max))


def _text(text: str) -> bytes:
    data = text.encode(errors=LOSSLESS)
    return struct.pack("<Q", len(data)) + data


def _alignment(file: MappedFile, remove: Collection[str] = ()) -> int:
    return DEFAULT_ALIGNMENT if ALIGNMENT in remove else file.index.alignment


# --- several files ---


def split_gguf(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a model in several files, as llama.cpp names and reads them.

    The names are target-00001-of-00003.gguf and so on. The first file has the metadata. Files of
    these names are replaced when all are complete.

    Args:
        path: The file, or one of the files of a model that is split already, or a
            name.
        target: The beginning of the names, with or without .gguf at its end.
        max_size: Bytes of a file at most.
        max_tensors: Tensors in a file at most.
        progress: Called with 0.0 to 1.0. False cancels, an exception cancels and is raised again.

    Returns:
        The paths of the files.

    Raises:
        ArgumentError: No limit is given, or a limit cannot be kept.
        ModelNotFoundError: There is no such file.
        GGUFError: The file is damaged.
        FileWriteError: A file cannot be written.
        LoadCancelledError: `progress` returned False.
    """
    if max_size is None and max_tensors is None:
        raise wrong_argument("max_size", "a limit is missing", "give max_size or max_tensors")
    for name, value in (("max_size", max_size), ("max_tensors", max_tensors)):
        if value is not None:
            check_number(name, value, "int", 1, 2**63 - 1)
    prefix = local_path(target, "target").removesuffix(".gguf")
    with _opened(path) as files:
        tensors = [_Tensor(file, record) for file in files for record in file.index.tensors]
        layouts = _shared_out(files[0], tensors, max_size, max_tensors)
        count = len(layouts)
        for number, layout in enumerate(layouts):
            layout.pairs = [*layout.pairs[:-3], *_split_pairs(number, count, len(tensors))]
        paths = [Path(f"{prefix}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
        for part in paths:
            check_target(part, *(file.path for file in files))
        _write(list(zip(paths, layouts, strict=True)), progress)
    return paths


def merge_gguf(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Path:
    """Write a split model as one file.

    Args:
        path: One of the files; the others lie beside it.
        target: The file to write. One of this name is replaced when the new one is complete.
        progress: Called with 0.0 to 1.0. False cancels, an exception cancels and is raised again.

    Returns:
        The path of the target.

    Raises:
        ArgumentError: The model is one file already.
        ModelNotFoundError: One of the files does not exist.
        GGUFError: A file is damaged, or does not belong to the others.
        FileWriteError: The target cannot be written; it is as it was before.
        LoadCancelledError: `progress` returned False.
    """
    written = Path(local_path(target, "target"))
    with _opened(path) as files:
        if len(files) == 1:
            raise wrong_argument("path", f"{files[0].path} is a whole model, not one of several")
        layout = _Layout(_pairs_without_split(files[0]), _alignment(files[0]), [])
        for file in files:
            for record in file.index.tensors:
                layout.add(_Tensor(file, record))
        check_target(written, *(file.path for file in files))
        _write([(written, layout)], progress)
    return written


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[list[MappedFile]]:
    """Yield all files of a model.

    Raises:
        GGUFError: They do not belong together.
    """
    files = open_parts(model_file(path))
    try:
        if len(files) > 1:
            _check_parts(files)
        yield files
    finally:
        for file in files:
            file.close()


def _check_parts(files: Sequence[MappedFile]) -> None:
    names: set[str] = set()
    for number, file in enumerate(files):
        metadata = Metadata(file)
        actual = metadata.get(SPLIT_NO), metadata.get(SPLIT_COUNT)
        if actual != (number, len(files)):
            expected = f"{SPLIT_NO}={number} and {SPLIT_COUNT}={len(files)}"
            raise GGUFError(f"{file.path} is another file than its name says: expected {expected}")
        for record in file.index.tensors:
            if record.name in names:
                raise GGUFError(f"{file.path} has the tensor {record.name!r} of another file")
            names.add(record.name)
    expected = Metadata(files[0]).get(SPLIT_TENSORS, len(names))
    if expected != len(names):
        raise GGUFError(f"{files[0].path}: the files have {len(names)} of {expected} tensors")


def _split_pairs(number: int, count: int, tensors: int) -> list[bytes]:
    values = (np.uint16(number), np.uint16(count), np.int32(tensors))
    keys = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)
    return [_encoded(key, value, None) for key, value in zip(keys, values, strict=True)]


def _pairs_without_split(file: MappedFile) -> list[bytes]:
    return [_pair_bytes(file, pair) for pair in file.index.pairs if pair.key not in SPLIT_KEYS]


def _shared_out(
    first: MappedFile, tensors: list[_Tensor], max_size: int | None, max_tensors: int | None
) -> list[_Layout]:
    """Return the tensors of each file, in their order; the last three pairs stand for the split's.

    Raises:
        ArgumentError: A limit cannot be kept, or one file is enough.
    """
    alignment, blank = _alignment(first), _split_pairs(0, 0, 0)
    own = (
        [_encoded(ALIGNMENT, np.uint32(alignment), None)] if alignment != DEFAULT_ALIGNMENT else []
    )

    def too_large(layout: _Layout, tensor: _Tensor | None = None) -> bool:
        return max_size is not None and layout.size_with(tensor) > max_size

    layouts = [_Layout([*_pairs_without_split(first), *blank], alignment, [])]
    if too_large(layouts[0]):
        rule = f"the metadata alone has {layouts[0].size_with():,} bytes"
        raise wrong_value("max_size", max_size, rule, "give a larger one")
    for tensor in tensors:
        layout = layouts[-1]
        if too_large(layout, tensor) or len(layout.tensors) == max_tensors:
            layout = _Layout([*own, *blank], alignment, [])
            if too_large(layout, tensor):
                rule = (
                    f"the tensor {tensor.record.name!r} alone makes a file of "
                    f"{layout.size_with(tensor):,} bytes"
                )
                raise wrong_value("max_size", max_size, rule, "give a larger one")
            layouts.append(layout)
        layout.add(tensor)
    limit = ("max_size", max_size) if max_size is not None else ("max_tensors", max_tensors)
    if len(layouts) == 1:
        raise wrong_value(*limit, "the whole model fits into one file", "give a smaller one")
    if len(layouts) > MAX_PARTS:
        rule = f"that makes {len(layouts):,} files, at most {MAX_PARTS:,} are allowed"
        raise wrong_value(*limit, rule, "give a larger one")
    return layouts


# --- writing ---


def _info(record: Record, offset: int) -> bytes:
    dims = len(record.sizes)
    sizes = struct.pack(f"<I{dims}QIQ", dims, *record.sizes, record.type, offset)
    return _text(record.name) + sizes


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _write(layouts: Sequence[tuple[Path, _Layout]], progress: Progress | None) -> None:
    """Write files, and give them their names when all are complete.

    Raises:
        FileWriteError: The operating system refuses to write; the files are as they were before.
        LoadCancelledError: `progress` returned False.
    """
    folder = layouts[0][0].parent
    total = sum(layout.size_with() for _, layout in layouts)
    check_free_space(folder, total, "free some space, or write to another disk")
    done = 0

    def note(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None and progress(done / total) is False:
            raise LoadCancelledError("progress() returned False")

    with contextlib.ExitStack() as stack:
        finished = []
        for path, layout in layouts:
            partial = stack.enter_context(temporary_file(folder))
            _write_one(partial, layout, note)
            MappedFile(partial).close()  # reads the header back
            finished.append((partial, path))
        for partial, path in reversed(finished):  # without the first file no other is read
            publish(partial, path)


def _write_one(path: Path, layout: _Layout, note: Callable[[int], None]) -> None:
    with path.open("wb") as out:
        header = layout.header()
        out.write(header)
        note(len(header))
        for file, record in layout.tensors:
            source, left = file.file, record.size
            assert source is not None
            source.seek(file.index.data_offset + record.offset)
            while left:
                data = source.read(min(left, COPIED_AT_ONCE))
                if not data:
                    raise GGUFError(f"{file.path} became shorter while it was read")
                out.write(data)
                left -= len(data)
                note(len(data))
            padding = -record.size % layout.alignment
            out.write(bytes(padding))
            note(padding)
