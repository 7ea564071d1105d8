"""Caches of a `Llama`'s states by the tokens that they hold: in memory, or in a folder."""

from __future__ import annotations

import abc
import hashlib
import io
import os
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llcuda.errors import StateError
from llcuda.files import atomic_write, local_path
from llcuda.params import check_number

DEFAULT_CAPACITY = 2 << 30  # bytes
Key = tuple[int, ...]
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of np.load


@dataclass
class LlamaState:
    """What `Llama.save_state` returns: a text, and the KV cache that holds it.

    Attributes:
        input_ids: The tokens of the text in an array of n_ctx numbers.
        scores: With logits_all=True the logits of each token, else no rows.
        n_tokens: The number of tokens.
        llama_state: The state of the context, as `Context.save_state` returns it.
        llama_state_size: Its bytes.
        seed: The seed that the next call draws from.
    """

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int

    @property
    def size(self) -> int:
        """The bytes that the state takes."""
        return self.llama_state_size + self.scores.nbytes + self.input_ids.nbytes


def longest_token_prefix(a: Iterable[int], b: Iterable[int]) -> int:
    """Return how many tokens two texts have in common at their beginnings."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


class BaseLlamaCache(abc.ABC):
    """Base of the caches; one that is set with `Llama.set_cache` has these methods.

    Args:
        capacity_bytes: The bytes that the states may take; the ones unused for longest are dropped.
    """

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY) -> None:
        check_number("capacity_bytes", capacity_bytes, "int", 0)
        self.capacity_bytes = capacity_bytes

    @property
    @abc.abstractmethod
    def cache_size(self) -> int:
        """The bytes that the states take."""

    @abc.abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """Return the state with the longest beginning of these tokens; KeyError without one."""

    @abc.abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool:
        """Return whether a state has a beginning of these tokens."""

    @abc.abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        """Keep the state of these tokens."""


def _best(keys: Iterable[Key], wanted: Key) -> Key | None:
    """Return the key with the longest beginning in common, None where none has any."""
    best = max(keys, key=lambda key: longest_token_prefix(key, wanted), default=())
    return best if longest_token_prefix(best, wanted) else None


class LlamaRAMCache(BaseLlamaCache):
    """Keeps states in memory; several `Llama` of one model and one n_ctx may share it.

    Args:
        capacity_bytes: As that of `BaseLlamaCache`.

    Attributes:
        cache_state: The states by their tokens, the ones unused for longest first.
    """

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[Key, LlamaState] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def cache_size(self) -> int:
        """The bytes that the states take."""
        return sum(state.size for state in self.cache_state.values())

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        with self._lock:
            best = _best(self.cache_state, tuple(key))
            if best is None:
                raise KeyError("the cache has no beginning of these tokens")
            self.cache_state.move_to_end(best)
            return self.cache_state[best]

    def __contains__(self, key: Sequence[int]) -> bool:
        return _best(list(self.cache_state), tuple(key)) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        with self._lock:
            self.cache_state.pop(tuple(key), None)
            self.cache_state[tuple(key)] = value
            while self.cache_size > self.capacity_bytes and self.cache_state:
                self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """Keeps states in a folder, one file each, for later processes too.

    A file holds arrays of numbers only, so that one from a stranger can do no more than be refused.

    Args:
        cache_dir: The folder, made at the first state.
        capacity_bytes: As that of `BaseLlamaCache`.

    Attributes:
        folder: The folder.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] = ".cache/llama_cache",
        capacity_bytes: int = DEFAULT_CAPACITY,
    ) -> None:
        super().__init__(capacity_bytes)
        self.folder = Path(local_path(cache_dir, "cache_dir"))

    @property
    def cache_size(self) -> int:
        """The bytes of the files."""
        return sum(path.stat().st_size for path in self._files())

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        wanted, paths = tuple(key), self._keys()
        best = _best(paths, wanted)
        if best is None:
            raise KeyError("the cache has no beginning of these tokens")
        state = _read(paths[best])
        os.utime(paths[best])  # used just now
        return state

    def __contains__(self, key: Sequence[int]) -> bool:
        return _best(self._keys(), tuple(key)) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tokens = np.asarray(tuple(key), dtype=np.int32)
        file = io.BytesIO()
        np.savez(
            file,
            key=tokens,
            input_ids=value.input_ids,
            scores=value.scores,
            numbers=np.asarray([value.n_tokens, value.seed], dtype=np.int64),
            llama_state=np.frombuffer(value.llama_state, dtype=np.uint8),
        )
        name = hashlib.sha256(tokens.tobytes()).hexdigest()
        with atomic_write(self.folder / f"{name}.npz") as partial:
            partial.write_bytes(file.getbuffer())
        files = self._files()
        size = sum(path.stat().st_size for path in files)
        for path in files:
            if size <= self.capacity_bytes:
                break
            size -= path.stat().st_size
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Return the files, the ones unused for longest first."""
        return sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)

    def _keys(self) -> dict[Key, Path]:
        """Return the files by their tokens, without those that cannot be read."""
        keys: dict[Key, Path] = {}
        for path in self._files():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    keys[tuple(arrays["key"].tolist())] = path
            except _UNREADABLE:
                continue
        return keys


def _read(path: Path) -> LlamaState:
    """Return the state of a file; StateError for a damaged one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            n_tokens, seed = arrays["numbers"].tolist()
            data = arrays["llama_state"].tobytes()
            input_ids, scores = arrays["input_ids"], arrays["scores"]
    except _UNREADABLE as error:
        problem = f"{path}: it is not a state of LlamaDiskCache: {error}"
        raise StateError(problem, remedy="delete it") from None
    return LlamaState(input_ids, scores, n_tokens, data, len(data), seed)
