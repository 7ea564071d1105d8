"""Importance matrices: how much each column of a model's weights matters."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.errors import DecodeError, ModelError
from llcuda.files import atomic_write, check_target, local_path
from llcuda.native import library
from llcuda.native.context import Context
from llcuda.native.gguf.mapped import MappedFile, array
from llcuda.native.gguf.metadata import Metadata, Texts
from llcuda.native.gguf.types import GGMLType
from llcuda.native.model import Model
from llcuda.params import wrong_value

Float32 = npt.NDArray[np.float32]
Entry = tuple[Float32, Float32]
SUMS, COUNTS = ".in_sum2", ".counts"
MAX_MEAN_SQUARE = 1e30  # beyond, quantization would overflow


@dataclass
class ImportanceMatrix:
    """The squares of what each matrix of weights was multiplied with, summed by column.

    Attributes:
        entries: For each tensor its sums, float32 of shape (matrices, columns), and how many rows
            were added, float32 of shape (matrices,); layers of experts have several matrices.
        datasets: Where the text came from.
        chunks: How many pieces of text.
        chunk_size: Tokens of a piece.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.entries, dict):
            rule = "expected a dict of sums and counts by tensor"
            remedy = "ImportanceMatrix.load(path) reads a file"
            raise wrong_value("entries", self.entries, rule, remedy)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImportanceMatrix:
        """Read a file of llama.cpp's tools or of `save`.

        Args:
            path: The file, GGUF or the older imatrix.dat.

        Raises:
            ModelNotFoundError: The file does not exist.
            ModelError: The file is not an importance matrix, or is damaged.
        """
        path = Path(local_path(path))
        old = path.is_file() and not _begins_as_gguf(path)
        matrix = _load_old(path) if old else _load_gguf(path)
        if not matrix.entries:
            raise ModelError(f"{path} is not an importance matrix: it has no entries")
        if name := matrix.implausible():
            raise ModelError(f"{path}: {name} has values that are not sums of squares")
        return matrix

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a GGUF file that llama.cpp's tools read too.

        The file appears when it is complete, and replaces one of the same name.

        Args:
            path: The file.

        Returns:
            Its path.

        Raises:
            ArgumentError: The path is not that of a file.
            ModelError: The file cannot be written.
        """
        ffi, lib = library.load()
        into = Path(local_path(path))
        check_target(into)
        kept = []  # what the C structs below point to
        rows = []
        for name, entry in self.entries.items():
            arrays = [np.ascontiguousarray(array, np.float32) for array in entry]
            pointers = [ffi.from_buffer("float[]", array) for array in arrays]
            text = ffi.new("char[]", name.encode())
            kept += [text, *pointers]
            rows.append((text, *pointers, arrays[0].size, arrays[1].size))
        datasets = [ffi.new("char[]", dataset.encode()) for dataset in self.datasets]
        with atomic_write(into) as part:
            status = lib.llcuda_imatrix_write(
                os.fsencode(part), ffi.new("struct llcuda_imatrix_entry[]", rows), len(rows),
                ffi.new("char *[]", datasets), len(datasets), self.chunks, self.chunk_size,
            )  # fmt: skip
            if status:
                library.fail(ModelError, f"cannot write {into}")
        return into

    def implausible(self) -> str | None:
        """Return the name of an entry whose values are not sums of squares; None without one."""
        for name, (sums, counts) in self.entries.items():
            if sums.ndim != 2 or counts.shape != sums.shape[:1]:
                return name
            limit = MAX_MEAN_SQUARE * np.maximum(counts, 1, dtype=np.float64)[:, None]
            if not (np.all(counts >= 0) and np.all((sums >= 0) & (sums <= limit))):
                return name
        return None

    def means(self, name: str) -> Float32 | None:
        """Return the mean squares of the columns of a tensor.

        Args:
            name: The tensor.

        Returns:
            float32 of shape (matrices * columns,), 1 for experts that no token used; None for a
            tensor without an entry.
        """
        if name not in self.entries:
            return None
        sums, counts = self.entries[name]
        rows = counts[:, None]
        return np.where(rows > 0, sums / np.maximum(rows, 1), np.float32(1)).ravel()


class Collector:
    """A context whose matrix products are added up.

    Decode with logits for every token: the last layer computes no other rows.

    Args:
        model: The model.
        output: Also add up the products with the output matrix.
        **parameters: The fields of `ContextParams`.

    Attributes:
        context (Context): The context.
    """

    def __init__(self, model: Model, *, output: bool = False, **parameters: Any) -> None:
        _, lib = library.load()
        pointer = lib.llcuda_imatrix_new(bool(output))
        self._handle = library.Handle("matrix", pointer, lib.llcuda_imatrix_free)
        self.context: Context = _CollectingContext(model, self._handle.owner, parameters)

    def entries(self) -> dict[str, Entry]:
        """Return a copy of what was added up, by tensor.

        Raises:
            DecodeError: The sums are not finite.
        """
        ffi, lib = library.load()
        owner = self._handle.owner
        pointer = owner.pointer
        if failure := ffi.string(lib.llcuda_imatrix_failure(pointer)).decode():
            raise DecodeError(f"no importance matrix: {failure}")
        entries, entry = {}, ffi.new("struct llcuda_imatrix_entry *")
        for i in range(lib.llcuda_imatrix_size(pointer)):
            lib.llcuda_imatrix_get(pointer, i, entry)
            sums, counts = (
                np.frombuffer(ffi.buffer(values, 4 * n), np.float32).copy()
                for values, n in ((entry.sums, entry.n_sums), (entry.counts, entry.n_counts))
            )
            entries[ffi.string(entry.name).decode()] = (sums.reshape(len(counts), -1), counts)
        return entries


class _CollectingContext(Context):
    """A context that adds what it computes to a matrix, and keeps the matrix alive."""

    def __init__(self, model: Model, matrix: library.Owner, parameters: dict[str, Any]) -> None:
        self._matrix = matrix
        super().__init__(model, **parameters)

    def c_params(self) -> Any:
        """Return the parameters as llama_context_params, with the matrix as their callback."""
        params = self._ffi.new("struct llama_context_params *", super().c_params())
        self._lib.llcuda_imatrix_collect_into(params, self._matrix.pointer)
        return params[0]


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _load_gguf(path: Path) -> ImportanceMatrix:
    file = MappedFile(path)
    mapping = file.mmap
    by_ending: dict[str, dict[str, Float32]] = {SUMS: {}, COUNTS: {}}
    for tensor in file.index.tensors:
        for end, values in by_ending.items():
            if mapping and tensor.name.endswith(end) and tensor.type == GGMLType.F32:
                start = file.index.data_offset + tensor.offset
                name = tensor.name.removesuffix(end)
                values[name] = array(mapping, start, tensor.size // 4, "f4")
    entries = {}
    for name in sorted({*by_ending[SUMS], *by_ending[COUNTS]}):
        sums, counts = (values.get(name, np.empty(0, np.float32)) for values in by_ending.values())
        if not len(counts) or not len(sums) or len(sums) % len(counts):
            raise ModelError(f"{path}: {name} has {len(sums)} sums and {len(counts)} counts")
        entries[name] = (sums.reshape(len(counts), -1), counts)
    facts = Metadata(file)
    datasets = facts.get("imatrix.datasets")
    names = tuple(datasets) if isinstance(datasets, Texts) else ()
    numbers = [facts.get(f"imatrix.chunk_{key}") for key in ("count", "size")]
    chunks, size = (n if isinstance(n, int) and 0 <= n < 2**32 else 0 for n in numbers)
    file.close()
    return ImportanceMatrix(entries, names, chunks, size)


def _load_old(path: Path) -> ImportanceMatrix:
    """Read the format before GGUF: for each tensor a number of calls, and means times that."""
    with path.open("rb") as file:

        def take(size: int) -> bytes:
            data = file.read(max(size, 0))
            if len(data) != size:
                raise ValueError
            return data

        def number() -> int:
            return int.from_bytes(take(4), "little", signed=True)

        try:
            entries = {}
            for _ in range(number()):
                name, calls = take(number()).decode(), number()
                sums = np.frombuffer(take(4 * number()), np.float32)
                entries[name] = (sums.reshape(1, -1), np.array([max(calls, 1)], np.float32))
            rest = file.read()
        except ValueError:
            raise ModelError(f"{path} is not an importance matrix, or is damaged") from None
    chunks = max(int.from_bytes(rest[:4], "little", signed=True), 0)
    dataset = rest[8:].decode(errors="replace")
    return ImportanceMatrix(entries, (dataset,) if dataset else (), chunks)
