"""The slots of an engine's KV cache: what each holds, and its state in a file."""

from __future__ import annotations

import json
import os
import sys
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcuda.engine.request import Request
from llcuda.engine.scheduler import Scheduler, Slot
from llcuda.errors import ConcurrencyError, LlcudaError, StateError
from llcuda.files import atomic_write, local_path
from llcuda.native.context import Context
from llcuda.params import check_number

MAGIC = b"llcuda slot 1\n"
MAX_HEADER = 2**16  # bytes


@dataclass(frozen=True, slots=True)
class SlotState:
    """What a slot of the KV cache holds at one moment.

    Attributes:
        slot: Its number, as `RequestParams.slot` takes it.
        tokens: How many tokens are in its cells.
        request: The request that it computes; None for a free slot, whose tokens are a cached
            prefix.
    """

    slot: int
    tokens: int
    request: Request | None


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """The state of a slot outside the KV cache.

    Attributes:
        tokens: The tokens in its cells.
        adapters: The names and scales of the LoRA adapters that the cells were computed with.
        state: The cells, as `Memory.save` returns them.
    """

    tokens: array[int]
    adapters: list[list[Any]]
    state: bytes

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write a file, and return its size in bytes.

        Args:
            path: The file; one that exists is replaced when the new one is whole.
        """
        tokens = self.tokens.tobytes()
        facts = {"tokens": len(self.tokens), "byteorder": sys.byteorder, "adapters": self.adapters}
        header = json.dumps({**facts, "crc32": zlib.crc32(tokens)}).encode()
        data = b"".join((MAGIC, header, b"\n", tokens, self.state))
        with atomic_write(Path(local_path(path))) as partial:
            partial.write_bytes(data)
        return len(data)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SavedSlot:
        """Return what `write` has written.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: The file does not exist.
            StateError: The file is damaged, or not one of `write`.
        """
        data = Path(local_path(path)).read_bytes()
        if not data.startswith(MAGIC):
            raise StateError("path: this is not a file that save_slot() wrote", parameter="path")
        begin = data.find(b"\n", len(MAGIC), len(MAGIC) + MAX_HEADER) + 1
        tokens = array("i")
        try:
            header = json.loads(data[len(MAGIC) : begin])
            end = begin + header["tokens"] * tokens.itemsize
            tokens.frombytes(data[begin:end])
            whole = len(tokens) == header["tokens"] and header["byteorder"] == sys.byteorder
            whole = whole and zlib.crc32(data[begin:end]) == header["crc32"]
            adapters = header["adapters"]
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise StateError("path: the file is damaged", parameter="path")
        return cls(tokens, adapters, data[end:])


def slot_states(scheduler: Scheduler) -> list[SlotState]:
    """Return what each slot holds; from any thread."""
    states = []
    for slot in scheduler.slots:
        sequence = slot.sequence
        states.append(
            SlotState(slot.seq_id, len(slot.tokens), None if sequence is None else sequence.request)
        )
    return states


def save_slot(scheduler: Scheduler, context: Context, number: int) -> SavedSlot:
    """Return the state of a free slot; on the engine's thread.

    Args:
        scheduler: The scheduler.
        context: The context.
        number: The slot.

    Raises:
        ArgumentError: There is no such slot.
        ConcurrencyError: A request uses the slot.
    """
    slot = _free_slot(scheduler, number)
    if slot.stale:
        context.memory.remove(number, len(slot.tokens))
        slot.stale = False
    adapters = _adapters(slot.adapter_key)
    return SavedSlot(array("i", slot.tokens), adapters, context.memory.save(number))


def restore_slot(scheduler: Scheduler, context: Context, number: int, saved: SavedSlot) -> None:
    """Put a saved state into a free slot, as a cached prefix; on the engine's thread.

    Args:
        scheduler: The scheduler.
        context: The context.
        number: The slot.
        saved: The state.

    Raises:
        ArgumentError: There is no such slot.
        ConcurrencyError: A request uses the slot.
        StateError: The state is of another model, of a longer context or of other adapters. The
            slot is empty then.
    """
    slot = _free_slot(scheduler, number)
    if saved.adapters != _adapters(context.adapter_key):
        names = ", ".join(str(name) for name, _ in saved.adapters) or "none"
        problem = f"path: the state was computed with other LoRA adapters: {names}"
        raise StateError(problem, parameter="path")
    if len(saved.tokens) > context.ctx_size:
        problem = f"path: the state has {len(saved.tokens)} tokens, ctx_size={context.ctx_size}"
        raise StateError(problem, parameter="path", remedy="give the engine a larger ctx_size")
    erase_slot(scheduler, context, number)
    try:
        context.memory.load(saved.state, number)
        if context.memory.range(number).stop != len(saved.tokens):
            problem = "path: the file is damaged, its tokens are not those of its state"
            raise StateError(problem, parameter="path")
    except LlcudaError:
        slot.stale = True
        raise
    slot.tokens, slot.adapter_key = saved.tokens.tolist(), context.adapter_key
    window = context.model.sliding_window
    slot.least_prefix = len(slot.tokens) if 0 < window < len(slot.tokens) else 0


def erase_slot(scheduler: Scheduler, context: Context, number: int) -> int:
    """Empty a free slot, and return how many tokens it had; on the engine's thread.

    Args:
        scheduler: The scheduler.
        context: The context.
        number: The slot.

    Raises:
        ArgumentError: There is no such slot.
        ConcurrencyError: A request uses the slot.
    """
    slot = _free_slot(scheduler, number)
    count = len(slot.tokens)
    slot.least_prefix = 0
    slot.keep(0)
    context.memory.remove(number)
    slot.stale = False
    return count


def _free_slot(scheduler: Scheduler, number: int) -> Slot:
    check_number("slot", number, "int", 0, len(scheduler.slots) - 1)
    slot = scheduler.slots[number]
    if slot.sequence is not None:
        raise ConcurrencyError(f"slot={number}: a request uses it; wait until it has ended")
    return slot


def _adapters(key: object) -> list[list[Any]]:
    """Return names and scales, as JSON has them."""
    pairs = key if isinstance(key, frozenset) else ()
    return sorted([adapter.path.name, scale] for adapter, scale in pairs)
