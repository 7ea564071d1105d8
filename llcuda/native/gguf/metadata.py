"""A GGUF file's metadata: a mapping whose arrays are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from llcuda.errors import ClosedError
from llcuda.native.gguf import mapped
from llcuda.native.gguf.types import NUMPY_VALUES, GGUFValueType

LOSSLESS = "surrogateescape"  # a token may be any bytes
READ_AT_ONCE = 2**16  # bytes of a text, up to which it is read when the file is opened


class Texts(Sequence[str]):
    """An array of texts, decoded one by one; bytes that are not UTF-8 become lone surrogates.

    Args:
        blob: The bytes of the array in the file.
        count: How many texts.
    """

    def __init__(self, blob: bytes, count: int) -> None:
        self._blob = blob
        self._starts = mapped.texts(blob, count)
        self._ends = np.append(self._starts[1:] - 8, len(blob))[:count]  # before the next length

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return list(self._decoded(self._starts[index], self._ends[index]))
        return self._blob[int(self._starts[index]) : int(self._ends[index])].decode(errors=LOSSLESS)

    def __iter__(self) -> Iterator[str]:
        return self._decoded(self._starts, self._ends)

    def _decoded(self, starts: Any, ends: Any) -> Iterator[str]:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield self._blob[start:end].decode(errors=LOSSLESS)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"<{len(self)} texts: {shown}{', ...' if len(self) > 3 else ''}>"


class Metadata(Mapping[str, Any]):
    """The metadata of a file: keys in its order; str, int, float, bool, numpy arrays and `Texts`.

    Arrays, and texts above 64 KiB, are read at their first use, which must come before the file is
    closed.

    Args:
        file: The file.

    Raises:
        ClosedError: From a look-up, if the value was not read before the file was closed.
    """

    def __init__(self, file: mapped.MappedFile) -> None:
        self._file = file
        self._pairs = {pair.key: pair for pair in file.index.pairs}
        self._values: dict[str, Any] = {}
        for key, pair in self._pairs.items():
            if not pair.array and pair.size <= READ_AT_ONCE:
                self._values[key] = self._read(pair)

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._read(self._pairs[key])
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, key: object) -> bool:
        return key in self._pairs

    def __repr__(self) -> str:
        return f"<{len(self)} keys: {', '.join(self)}>"

    def type(self, key: str) -> GGUFValueType:
        """Return the type of a value; for an array that of its elements.

        Args:
            key: The key.
        """
        return GGUFValueType(self._pairs[key].type)

    def count(self, key: str) -> int | None:
        """Return how many elements an array has, without reading it; None for another value.

        Args:
            key: The key.
        """
        pair = self._pairs[key]
        return pair.count if pair.array else None

    def _read(self, pair: mapped.Pair) -> Any:
        mapping = self._file.mmap
        if mapping is None:
            raise ClosedError(f"{self._file.path} is closed, and {pair.key} was not read before")
        if pair.type == GGUFValueType.STRING:
            blob = mapped.copy(mapping, pair.value, pair.size)
            return Texts(blob, pair.count) if pair.array else blob.decode(errors=LOSSLESS)
        values = mapped.array(
            mapping, pair.value, pair.count, NUMPY_VALUES[GGUFValueType(pair.type)]
        )
        if pair.type == GGUFValueType.BOOL:
            values = values != 0
        values.flags.writeable = False
        return values if pair.array else values[0].item()
