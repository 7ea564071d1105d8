"""GGUF files: metadata, tensors without a copy, and their values.

A file is mapped, not read. Do not write into it while it is open: reading a view of a file that
became shorter ends the process, as with every mapping. Everything else raises an error then.
"""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap as memory_map
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from numpy.typing import NDArray

from llcuda._lazy import deprecated
from llcuda._pickling import stays_in_process
from llcuda.errors import ClosedError, GGUFError, MissingTensorError, ModelError
from llcuda.native.gguf import mapped
from llcuda.native.gguf.check import check_tensors
from llcuda.native.gguf.mapped import MappedFile
from llcuda.native.gguf.metadata import Metadata
from llcuda.native.gguf.parts import model_file, open_parts
from llcuda.native.gguf.types import (
    GGML_BLOCK_SIZE,
    GGML_TYPE_SIZE,
    NUMPY_WHOLE,
    GGMLType,
    GGUFValueType,
)
from llcuda.params import check_flag

__all__ = [
    "GGML_BLOCK_SIZE",
    "GGML_TYPE_SIZE",
    "GGMLType",
    "GGUFReader",
    "GGUFTensorInfo",
    "GGUFValueType",
    "Summary",
    "inspect_gguf",
]
SHOWN_TENSORS = 10  # by inspect_gguf
SHOWN_CHARACTERS = 60  # of a value

if not TYPE_CHECKING:  # a checker would take every name for one of this module
    __getattr__ = deprecated(__name__, {"TensorInfo": "GGUFTensorInfo"})


@dataclass(frozen=True, slots=True, repr=False)
class GGUFTensorInfo:
    """The description of a tensor in a file.

    Attributes:
        name: Name of the tensor.
        n_dims: Number of axes.
        shape: Sizes of the axes, row-major as in numpy; GGUF itself has them in reverse.
        ggml_type: Type of the values.
        offset: Offset of its bytes in the data section of its file.
        path: The file; None for a description that was not read from one.
    """

    name: str
    n_dims: int
    shape: list[int]
    ggml_type: GGMLType
    offset: int
    path: Path | None = None

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the file."""
        return -(-self.numel // GGML_BLOCK_SIZE[self.ggml_type]) * GGML_TYPE_SIZE[self.ggml_type]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"GGUFTensorInfo({self.name!r}, {shape}, {self.ggml_type.name})"


@dataclass(frozen=True, slots=True)
class Summary:
    """A short description of a file, or of all files of a split model.

    Attributes:
        architecture: `general.architecture`; "" without one.
        name: `general.name`; "" without one.
        version: Version of the format.
        alignment: Alignment of the tensors, in bytes.
        files: Number of files.
        keys: Number of keys of the metadata.
        tensors: Number of tensors.
        parameters: Number of values of all tensors.
        nbytes: Bytes of all tensors.
        types: Number of tensors of each type, the most frequent first.
    """

    architecture: str
    name: str
    version: int
    alignment: int
    files: int
    keys: int
    tensors: int
    parameters: int
    nbytes: int
    types: dict[str, int]


@stays_in_process("its path")
class GGUFReader:
    """A GGUF file, or all files of a split model.

    A reader is a context manager. Views of tensors, and arrays of the metadata that were read,
    survive `close()`.

    Args:
        path: The file, one of the files of a split model, or another name of a model, as
            `llcuda.hub.resolve` takes it.
        split: Whether to read all files of a split model; False reads only this one.

    Attributes:
        path: The first file.
        metadata: Keys and values of the first file, a mapping. Arrays are read when they are asked
            for.
        tensors: GGUFTensorInfo by name, of all files, in their order.
        version: Version of the format.
        alignment: Alignment of the tensors, in bytes.
        data_offset: Offset of the data section in the first file.

    Raises:
        ModelNotFoundError: There is no such file; a FileNotFoundError.
        GGUFError: The file is damaged, or not a GGUF file; a ValueError.
        ModelError: The file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: bool = True) -> None:
        check_flag("split", split)
        self._files = open_parts(model_file(path), split)
        first = self._files[0]
        self.path, self.metadata = first.path, Metadata(first)
        self.version, self.alignment = first.index.version, first.index.alignment
        self.data_offset = first.index.data_offset
        self._file_of: dict[str, MappedFile] = {}  # by a tensor's name
        tensors: dict[str, GGUFTensorInfo] = {}
        for file in self._files:
            for info in _tensors(file):
                if info.name in tensors:
                    other = self._file_of[info.name].path
                    raise GGUFError(f"{other} and {file.path} both have the tensor {info.name!r}")
                tensors[info.name], self._file_of[info.name] = info, file
        self.tensors: Mapping[str, GGUFTensorInfo] = MappingProxyType(tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name, architecture = self._text("general.name"), self._text("general.architecture")
        return (
            f"GGUFReader({self.path.name!r}, name={name!r:.80}, architecture={architecture!r:.80}, "
            f"tensors={len(self.tensors)})"
        )

    def close(self) -> None:
        """Close the files. Views of their tensors stay valid. Closing twice is allowed."""
        for file in self._files:
            file.close()

    @property
    def file(self) -> BinaryIO | None:
        """The first file; None after `close()`."""
        return self._files[0].file

    @property
    def mmap(self) -> memory_map | None:
        """The mapping of the first file; None after `close()`."""
        return self._files[0].mmap

    def list_tensors(self) -> list[str]:
        """Return the names of all tensors, in the order of the files."""
        return list(self.tensors)

    def get_metadata_value(self, key: str, default: Any = None) -> Any:
        """Return a value of the metadata.

        Args:
            key: Key, e.g. "general.name".
            default: What is returned without that key.

        Returns:
            str, int, float or bool; for arrays a numpy array, or a sequence of str.

        Raises:
            ClosedError: The value is an array that was not read before `close()`.
        """
        return self.metadata.get(key, default)

    def get_tensor_data(self, name: str) -> memoryview:
        """Return the bytes of a tensor as they are in the file.

        Args:
            name: Name of the tensor.

        Returns:
            A read-only view of the mapped file, without a copy.

        Raises:
            MissingTensorError: There is no such tensor; a KeyError.
            ClosedError: The reader is closed.
        """
        mapping, start = self._locate(name)
        return memoryview(mapping)[start : start + self.tensors[name].nbytes]

    def numpy(self, name: str) -> NDArray[Any]:
        """Return the values of a tensor.

        Args:
            name: Name of the tensor.

        Returns:
            A new array of the tensor's shape. Its type is float32, computed by ggml for quantized
            types; I8 to I64 and F64 keep their type.

        Raises:
            MissingTensorError: There is no such tensor; a KeyError.
            ClosedError: The reader is closed.
            UnsupportedError: ggml computes no values of this type: Q8_1 and Q8_K, which occur in
                products only.
        """
        mapping, start = self._locate(name)
        info = self.tensors[name]
        if kind := NUMPY_WHOLE.get(info.ggml_type):
            values: NDArray[Any] = mapped.array(mapping, start, info.numel, kind)
        else:
            values = mapped.floats(mapping, start, info.nbytes, info.ggml_type, info.numel)
        return values.reshape(info.shape)

    def summary(self) -> Summary:
        """Return a short description of the file."""
        infos = self.tensors.values()
        return Summary(
            architecture=str(self.metadata.get("general.architecture", "")),
            name=str(self.metadata.get("general.name", "")),
            version=self.version,
            alignment=self.alignment,
            files=len(self._files),
            keys=len(self.metadata),
            tensors=len(self.tensors),
            parameters=sum(info.numel for info in infos),
            nbytes=sum(info.nbytes for info in infos),
            types=dict(Counter(info.ggml_type.name for info in infos).most_common()),
        )

    def validate(self) -> list[str]:
        """Read the whole file, and look for problems.

        Problems are values that are not finite numbers, types that llama.cpp's kernels refuse,
        lists of the tokenizer whose length is not that of its tokens, and tensors that a split
        model lacks.

        Returns:
            A sentence for each problem; an empty list without problems.

        Raises:
            ClosedError: The reader is closed.
        """
        problems = []
        if not isinstance(self.metadata.get("general.architecture"), str):
            problems.append("general.architecture is missing: llama.cpp cannot load this file")
        tokens = self._count("tokenizer.ggml.tokens")
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            if (count := self._count(key)) is not None and count != tokens:
                problems.append(f"{key} has {count} elements for {tokens or 0} tokens")
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            problems.append(f"{len(self.tensors)} of {expected} tensors are present")
        try:
            check_tensors(self.path)
        except ModelError as error:
            problems.append(str(error))
        for name, info in self.tensors.items():
            mapping, start = self._locate(name)
            if not mapped.has_only_numbers(mapping, start, info.nbytes, info.ggml_type):
                problems.append(f"tensor {name!r} has values that are infinite or not a number")
        return problems

    def _text(self, key: str) -> str:
        """Return a text of the metadata; "" for what is none, or was not read before close()."""
        try:
            value = self.metadata.get(key)
        except ClosedError:
            return ""
        return value if isinstance(value, str) else ""

    def _count(self, key: str) -> int | None:
        return self.metadata.count(key) if key in self.metadata else None

    def _locate(self, name: str) -> tuple[memory_map, int]:
        """Return the mapping of a tensor's file, and where in it its bytes begin."""
        if name not in self._file_of:
            near = difflib.get_close_matches(str(name), self._file_of, 1, 0.5)
            raise MissingTensorError(
                f"name={name!r}: {self.path.name} has no such tensor",
                parameter="name",
                remedy=f"did you mean {near[0]!r}?" if near else "list_tensors() names them",
            )
        file = self._file_of[name]
        if file.mmap is None:
            raise ClosedError(f"{file.path} is closed")
        return file.mmap, file.index.data_offset + self.tensors[name].offset


def inspect_gguf(path: str | os.PathLike[str]) -> None:
    """Print a description of a file: its metadata, its types, and its first tensors.

    `GGUFReader.summary()` returns the same figures; `llcuda inspect` also shows what memory the
    model takes.

    Args:
        path: The file, one of the files of a split model, or another name of a model, as
            `llcuda.hub.resolve` takes it.

    Raises:
        ModelNotFoundError: There is no such file; a FileNotFoundError.
        GGUFError: The file is damaged, or not a GGUF file; a ValueError.
    """
    with GGUFReader(path) as reader:
        summary = reader.summary()
        lines = [f"{reader.path}: GGUF version {summary.version}, {summary.files} file(s)"]
        lines += ["", f"Metadata: {summary.keys}"]
        for key in reader.metadata:
            count = reader.metadata.count(key)
            value = reader.metadata[key] if count is None else f"array of {count}"
            lines.append(f"  {_printable(key)}: {_printable(value)}")
        types = ", ".join(f"{count} {name}" for name, count in summary.types.items())
        size = f"{summary.parameters:,} values, {summary.nbytes / 2**20:,.1f} MiB"
        lines += ["", f"Tensors: {summary.tensors}" + (f" ({types}), {size}" if types else "")]
        for info in list(reader.tensors.values())[:SHOWN_TENSORS]:
            lines.append(f"  {_printable(info.name)}: {info.shape} {info.ggml_type.name}")
        if summary.tensors > SHOWN_TENSORS:
            lines.append(f"  ... and {summary.tensors - SHOWN_TENSORS} more")
    print("\n".join(lines))


def _printable(value: Any) -> str:
    """Return a value in one line, such that it cannot drive a terminal."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _tensors(file: MappedFile) -> list[GGUFTensorInfo]:
    return [
        GGUFTensorInfo(
            record.name,
            len(record.sizes),
            [*reversed(record.sizes)],
            GGMLType(record.type),
            record.offset,
            file.path,
        )
        for record in file.index.tensors
    ]
