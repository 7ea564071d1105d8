"""GGUF files: metadata, tensors without a copy, and their values.

A file is mapped, not read. Do not write into it while it is open: a view of a file that became
shorter ends the process when it is read, as with every mapping; everything else says so.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap as memory_map
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Self

from numpy.typing import NDArray

from llcuda.errors import ClosedError, GGUFError, ModelError
from llcuda.native.gguf import mapped as gguf
from llcuda.native.gguf.check import check_tensors, part_names
from llcuda.native.gguf.metadata import Metadata
from llcuda.native.gguf.types import NUMPY_WHOLE, GGMLType


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file.

    shape: rows before columns, as numpy has it. offset: of its bytes in the data section of its
    file, which is `path`. nbytes: its bytes there.
    """

    name: str
    shape: list[int]
    ggml_type: GGMLType
    offset: int
    nbytes: int
    path: Path

    @property
    def n_dims(self) -> int:
        """How many sizes the shape has."""
        return len(self.shape)

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Summary:
    """A file, or all parts of one, in short.

    parameters: values of all tensors; nbytes: their bytes; types: how many tensors of each type.
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


class GGUFReader:
    """A GGUF file, or all files of a split model, of which `path` is one.

    metadata: keys and values, of the first file. tensors: TensorInfo by name, of all files.
    file, mmap: the first file, None after close(). data_offset: where its data section begins.
    Views and the arrays of the metadata that were read survive close().

    split=False: only this file. Raises ModelNotFoundError, a FileNotFoundError; GGUFError, a
    ValueError, for what is damaged or no GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: bool = True) -> None:
        files = _open(Path(os.fspath(path)), split)
        self._first, self.metadata = files[0], Metadata(files[0])
        self._files = {file.path: file for file in files}
        self.path, index = self._first.path, self._first.index
        self.version, self.alignment = index.version, index.alignment
        self.data_offset = index.data_offset
        tensors: dict[str, TensorInfo] = {}
        for info in (info for file in files for info in _tensors(file)):
            if (other := tensors.setdefault(info.name, info)) is not info:
                raise GGUFError(f"{other.path} and {info.path} both have the tensor {info.name!r}")
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; views of their tensors go on living. Calling it again is fine."""
        for file in self._files.values():
            file.close()

    @property
    def file(self) -> BinaryIO | None:
        """The first file; None after close()."""
        return self._first.file

    @property
    def mmap(self) -> memory_map | None:
        """The first file's mapping; None after close()."""
        return self._first.mmap

    def get_tensor_data(self, name: str) -> memoryview:
        """Return a tensor's bytes as they are in the file: a view, no copy. KeyError without it."""
        info, mapping, start = self._find(name)
        return memoryview(mapping)[start : start + info.nbytes]

    def numpy(self, name: str) -> NDArray[Any]:
        """Return a tensor's values as a new array of its shape.

        float32, computed by ggml for quantised types; I8 to I64 and F64 keep their type. Raises
        KeyError, and UnsupportedError for Q8_1 and Q8_K, which only stand for products.
        """
        info, mapping, start = self._find(name)
        if kind := NUMPY_WHOLE.get(info.ggml_type):
            values: NDArray[Any] = gguf.array(mapping, start, info.numel, kind)
        else:
            values = gguf.floats(mapping, start, info.nbytes, info.ggml_type, info.numel)
        return values.reshape(info.shape)

    def summary(self) -> Summary:
        """Return what the file is in short."""
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
        """Read everything, and return what is wrong with it, a sentence each; [] when all is well.

        Looked for: values that are no numbers, types that llama.cpp's kernels refuse, lists of the
        tokenizer that have another length than its tokens, tensors that a split model lacks.
        """
        problems = []
        if not isinstance(self.metadata.get("general.architecture"), str):
            problems.append("general.architecture is missing: llama.cpp has no use for this file")
        tokens = self._count("tokenizer.ggml.tokens")
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            if (count := self._count(key)) is not None and count != tokens:
                problems.append(f"{key} has {count} elements for {tokens or 0} tokens")
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            problems.append(f"{len(self.tensors)} of {expected} tensors are there")
        try:
            check_tensors(self.path)
        except ModelError as error:
            problems.append(str(error))
        for name in self.tensors:
            info, mapping, start = self._find(name)
            if not gguf.has_only_numbers(mapping, start, info.nbytes, info.ggml_type):
                problems.append(f"tensor {name!r} holds infinity, or what is no number")
        return problems

    def _count(self, key: str) -> int | None:
        return self.metadata.count(key) if key in self.metadata else None

    def _find(self, name: str) -> tuple[TensorInfo, memory_map, int]:
        """Return a tensor, its file's mapping and where in it its bytes begin."""
        info = self.tensors[name]
        file = self._files[info.path]
        if file.mmap is None:
            raise ClosedError(f"{info.path} is closed")
        return info, file.mmap, file.index.data_offset + info.offset


def _open(path: Path, split: bool) -> list[gguf.MappedFile]:
    """Return the files of a model, `path` being one of them."""
    named = gguf.MappedFile(path)
    count = Metadata(named).get("split.count", 1) if split else 1
    if count == 1:
        return [named]
    paths = part_names(path)
    if len(paths) != count:
        raise GGUFError(
            f"{path} says that it is one of {count} files, and its name does not;"
            " rename it as it was, or read it alone with split=False"
        )
    return [named if part == path else gguf.MappedFile(part) for part in paths]


def _tensors(file: gguf.MappedFile) -> list[TensorInfo]:
    return [
        TensorInfo(t.name, [*reversed(t.sizes)], GGMLType(t.type), t.offset, t.size, file.path)
        for t in file.index.tensors
    ]
