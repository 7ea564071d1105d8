"""The KV memory of a context: its sequences, cell by cell, and their state as bytes."""

from __future__ import annotations

import struct
import sys
import zlib
from typing import TYPE_CHECKING, Any

from llcuda.errors import ArgumentError, StateError
from llcuda.native import library

if TYPE_CHECKING:
    from llcuda.native.context import Context

_MAGIC = b"LLCUDAST"
_HEADER = struct.Struct("<8sIIiIIQ")  # magic, version, fingerprint, sequence, flags, crc32, length
_VERSION = 1


class Memory:
    """What `Context.memory` is. Positions count from 0; a range is [begin, end), end None = all.

    Raises BatchError for an unknown sequence, UnsupportedError for what this model's memory
    cannot do (part of a recurrent state, part of a text across split KV buffers).
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ffi, self._lib = library.load()

    def _call(self, name: str, *arguments: Any) -> None:
        owner = self._context._handle.owner
        try:
            status = getattr(self._lib, f"llcuda_memory_{name}")(owner.pointer, *arguments)
        except (OverflowError, TypeError) as error:
            raise ArgumentError(f"memory.{name}{arguments}: {error}") from None
        if status:
            last = self._context.params.sequences - 1
            numbers = ", ".join(str(a) for a in arguments if isinstance(a, int))
            library.check(status, lambda: f"memory.{name}({numbers}); sequences are 0 to {last}")

    def range(self, seq: int = 0) -> range:
        """Return the positions that `seq` holds, as a range; empty for an empty sequence.

        Of a recurrent state that is the last one alone.
        """
        first, last = self._ffi.new("int32_t *"), self._ffi.new("int32_t *")
        self._call("range", _sequence(seq), first, last)
        return range(max(first[0], 0), last[0] + 1)

    def remove(self, seq: int = 0, begin: int = 0, end: int | None = None) -> None:
        """Forget the positions of `seq` in the range.

        Raises UnsupportedError where the text could not go on from `begin`: in a recurrent state,
        or with swa_full=False beyond the sliding window; save() and load() go back there.
        """
        begin, end = _range(begin, end)
        self._call("remove", _sequence(seq), begin, end)

    def rollback(self, count: int, seq: int = 0) -> None:
        """Forget the last `count` positions of `seq`."""
        held = self.range(seq)
        if not isinstance(count, int) or not 0 <= count <= held.stop:
            raise ArgumentError(f"rollback({count!r}): sequence {seq} holds {held.stop} tokens")
        if count:
            self.remove(seq, held.stop - count)

    def copy(self, source: int, target: int, begin: int = 0, end: int | None = None) -> None:
        """Make `target` hold what `source` holds in the range (a fork); what it held is forgotten.

        Cells are shared, not copied, with unified KV; with split KV only whole sequences.
        """
        begin, end = _range(begin, end)
        self._call("copy", source, target, begin, end)

    def keep(self, seq: int = 0) -> None:
        """Forget every other sequence."""
        self._call("keep", seq)

    def shift(self, delta: int, seq: int = 0, begin: int = 0, end: int | None = None) -> None:
        """Add `delta` to the positions in the range; the keys are rotated at the next decode."""
        begin, end = _range(begin, end)
        self._call("shift", seq, begin, end, delta)

    def divide(self, divisor: int, seq: int = 0, begin: int = 0, end: int | None = None) -> None:
        """Divide the positions in the range (self-extend)."""
        begin, end = _range(begin, end)
        self._call("divide", seq, begin, end, divisor)

    def clear(self, data: bool = True) -> None:
        """Forget everything; data: also overwrite the cells."""
        self._call("clear", bool(data))

    # --- state ---

    def save(self, seq: int | None = None, partial: bool = False) -> bytes:
        """Return the state of `seq`, None = of the whole context.

        Logits are no part of it: after load(), decode a token before sampling (or roll the last
        one back and decode it again).
        partial: only what removing cells cannot bring back, i.e. sliding-window and recurrent
        state: a cheap checkpoint. To return to it, load() it, then remove() what came after.
        """
        owner = self._context._handle.owner
        number, flags = self._state_arguments(seq, partial)
        size = self._lib.llcuda_state_size(owner.pointer, number, flags)
        library.check(min(size, 0), lambda: f"save(seq={seq})")
        data = self._ffi.new("uint8_t[]", size)
        size = self._lib.llcuda_state_save(owner.pointer, number, flags, data, size)
        library.check(min(size, 0), lambda: f"save(seq={seq})")
        payload = self._ffi.buffer(data, size)
        facts = (_MAGIC, _VERSION, self._fingerprint(seq), number, flags)
        return _HEADER.pack(*facts, _checksum(facts, payload), size) + bytes(payload)

    def load(self, state: bytes, seq: int | None = None) -> None:
        """Restore what `save` returned; a sequence's state may go to another sequence.

        Raises StateError for a state that is damaged, or of another model, KV type or (for a
        whole context) size; the context keeps what it has, unless llama.cpp itself fails.
        """
        owner = self._context._handle.owner
        view = memoryview(state).cast("B")
        if len(view) < _HEADER.size or bytes(view[:8]) != _MAGIC:
            raise StateError("these bytes are no state that save() returned")
        *facts, checksum, size = _HEADER.unpack_from(view)
        _, version, fingerprint, saved, flags = facts
        payload = view[_HEADER.size :]
        known = version == _VERSION and flags in (0, self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        if not known or len(payload) != size or _checksum(tuple(facts), payload) != checksum:
            raise StateError(f"the state is damaged (version {version}, {len(payload)} bytes)")
        # llama.cpp makes room for its first text, of any length, before it looks at the size.
        if saved < 0 and int.from_bytes(payload[:4], sys.byteorder) > len(payload):
            raise StateError("the state is damaged: its first text is longer than the state")
        if (saved < 0) != (seq is None):
            what = "the whole context" if saved < 0 else "one sequence: give seq="
            raise StateError(f"the state is of {what}, load(seq={seq}) asks for another")
        if fingerprint != self._fingerprint(seq):
            raise StateError("the state is of another model, or of a context of another kind")
        number, _ = self._state_arguments(seq, False)
        data = self._ffi.from_buffer("uint8_t[]", payload)
        read = self._lib.llcuda_state_load(owner.pointer, number, flags, data, size)
        if read == self._lib.LLCUDA_EXCEPTION:
            library.fail(StateError, f"llama.cpp cannot restore the state (seq={seq})")
        library.check(min(read, 0), lambda: f"load(seq={seq})")

    def _state_arguments(self, seq: int | None, partial: bool) -> tuple[int, int]:
        flags = self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        if seq is None and partial:
            raise ArgumentError("partial=True is for one sequence: give seq=", parameter="partial")
        return -1 if seq is None else _sequence(seq), flags

    def _fingerprint(self, seq: int | None) -> int:
        """Return a checksum of what must be equal for a state to fit."""
        model, params = self._context.model, self._context.params
        facts: list[Any] = [model.description, model.size, model.vocab_size]
        facts += [params.type_k, params.type_v, params.flash_attention, params.swa_full]
        if seq is None:
            facts += [self._context.cells, params.sequences, params.unified_kv]
        return zlib.crc32(repr(facts).encode())


def _checksum(facts: tuple[Any, ...], payload: Any) -> int:
    """Return the checksum of a state with these facts in its header."""
    return zlib.crc32(payload, zlib.crc32(_HEADER.pack(*facts, 0, 0)))


def _sequence(seq: int) -> int:
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**31:
        raise ArgumentError(f"seq={seq!r}: expected a whole number from 0", parameter="seq")
    return seq


def _range(begin: int, end: int | None) -> tuple[int, int]:
    """Check a range; C writes an open end as -1."""
    for name, value in (("begin", begin), ("end", 0 if end is None else end)):
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise ArgumentError(
                f"{name}={value!r}: expected a position, 0 to {2**31 - 1}", parameter=name
            )
    return begin, -1 if end is None else end
