"""The KV cache of a context: its sequences, cell by cell, and their state as bytes."""

from __future__ import annotations

import struct
import sys
import zlib
from typing import Any

from llcuda._pickling import stays_in_process
from llcuda.errors import ArgumentError, StateError, UnsupportedError, shown
from llcuda.native import library
from llcuda.native.model import Model
from llcuda.params import INT32_MAX, ContextParams, check_flag, wrong_value

MAGIC = b"LLCUDAST"
VERSION = 1
# MAGIC, VERSION, fingerprint, sequence, flags, checksum, bytes of the payload
HEADER = struct.Struct("<8sIIiIIQ")


@stays_in_process("the bytes of Context.save_state()")
class Memory:
    """The KV cache of a context, as `Context.memory`.

    Positions count from 0. A range is [begin, end); end=None leaves it open.

    Every method raises BatchError for an unknown sequence, and UnsupportedError for what the memory
    of this model cannot do: a part of a recurrent state, or a part of a sequence across split KV
    buffers.
    """

    def __init__(
        self, handle: library.Handle, model: Model, params: ContextParams, cells: int
    ) -> None:
        self._handle = handle
        self._model = model
        self._params = params
        self._cells = cells
        self._ffi, self._lib = library.load()

    def _call(self, name: str, *arguments: Any) -> None:
        owner = self._handle.owner
        try:
            status = getattr(self._lib, f"llcuda_memory_{name}")(owner.pointer, *arguments)
        except (OverflowError, TypeError) as error:
            problem = f"memory.{name}{shown(arguments)}: {error}"
            raise ArgumentError(problem) from None
        if status:
            last = self._params.sequences - 1
            numbers = ", ".join(str(a) for a in arguments if isinstance(a, int))
            library.check(status, lambda: f"memory.{name}({numbers}); sequences are 0 to {last}")

    def range(self, seq: int = 0) -> range:
        """Return the positions that a sequence holds.

        Args:
            seq: The sequence.

        Returns:
            The positions, empty for an empty sequence; the last one alone for a recurrent state.
        """
        first, last = self._ffi.new("int32_t *"), self._ffi.new("int32_t *")
        self._call("range", _sequence(seq), first, last)
        return range(max(first[0], 0), last[0] + 1)

    def remove(self, seq: int = 0, begin: int = 0, end: int | None = None) -> None:
        """Forget positions of a sequence.

        Args:
            seq: The sequence.
            begin: The first position to forget.
            end: The position after the last one to forget.

        Raises:
            UnsupportedError: The sequence could not go on from `begin`: in a recurrent state, or
                where cells of the sliding window are gone: with swa_full=False, and after the
                `load` of one sequence's state. `save` and `load` go back there.
        """
        begin, end = _range(begin, end)
        self._call("remove", _sequence(seq), begin, end)

    def rollback(self, count: int, seq: int = 0) -> None:
        """Forget the last positions of a sequence.

        Args:
            count: How many positions to forget.
            seq: The sequence.

        Raises:
            ArgumentError: The sequence does not hold as many.
            UnsupportedError: As `remove`.
        """
        held = self.range(seq)
        if not isinstance(count, int) or not 0 <= count <= held.stop:
            raise wrong_value("count", count, f"sequence {seq} holds {held.stop} tokens")
        if count:
            self.remove(seq, held.stop - count)

    def copy(self, source: int, target: int, begin: int = 0, end: int | None = None) -> None:
        """Copy positions of one sequence to another, which forgets what it held (a fork).

        With unified KV both share the cells. With split KV cells are copied, and only whole
        sequences can be.

        Args:
            source: The sequence to copy from.
            target: The sequence to copy to.
            begin: The first position to copy.
            end: The position after the last one to copy.
        """
        begin, end = _range(begin, end)
        self._call("copy", source, target, begin, end)

    def keep(self, seq: int = 0) -> None:
        """Forget every other sequence.

        Args:
            seq: The sequence to keep.
        """
        self._call("keep", seq)

    def shift(self, delta: int, seq: int = 0, begin: int = 0, end: int | None = None) -> None:
        """Add a number to positions; the keys are rotated at the next decode.

        A sequence that shares cells with others, see `copy`, first gets cells of its own.

        Args:
            delta: What to add; may be negative.
            seq: The sequence.
            begin: The first position to change.
            end: The position after the last one to change.

        Raises:
            UnsupportedError: The memory cannot, see `can_shift`; or there is no room for a copy of
                shared cells, which a model with a sliding window cannot copy at all.
        """
        begin, end = _range(begin, end)
        self._call("shift", seq, begin, end, delta)

    @property
    def can_shift(self) -> bool:
        """Whether `shift` can change positions: not with M-RoPE, nor with swa_full=False."""
        try:
            self.shift(0)  # moves nothing
        except UnsupportedError:
            return False
        return True

    def divide(self, divisor: int, seq: int = 0, begin: int = 0, end: int | None = None) -> None:
        """Divide positions by a number (self-extend, arXiv:2401.01325); as `shift` otherwise.

        Args:
            divisor: The number.
            seq: The sequence.
            begin: The first position to change.
            end: The position after the last one to change.
        """
        begin, end = _range(begin, end)
        self._call("divide", seq, begin, end, divisor)

    def clear(self, data: bool = True) -> None:
        """Forget every sequence.

        Args:
            data: Also overwrite the cells.
        """
        check_flag("data", data)
        self._call("clear", data)

    # --- state ---

    def save(self, seq: int | None = None, partial: bool = False) -> bytes:
        """Return the state of a sequence, or of the whole context.

        A state holds no logits: after `load`, decode a token before sampling. The state of one
        sequence leaves out the cells that a sliding window hides, so that what follows a `load` may
        round otherwise.

        Args:
            seq: The sequence; None saves the whole context.
            partial: Save only what `remove` cannot bring back, sliding-window and recurrent
                state, as a cheap checkpoint of one sequence. To return to it, `load` it, then
                `remove` what came after.

        Returns:
            The state, with a header that `load` checks.

        Raises:
            ArgumentError: partial=True without `seq`.
        """
        owner = self._handle.owner
        number, flags = self._state_arguments(seq, partial)
        size = self._lib.llcuda_state_size(owner.pointer, number, flags)
        library.check(min(size, 0), lambda: f"save(seq={seq})")
        data = self._ffi.new("uint8_t[]", size)
        size = self._lib.llcuda_state_save(owner.pointer, number, flags, data, size)
        library.check(min(size, 0), lambda: f"save(seq={seq})")
        payload = self._ffi.buffer(data, size)
        facts = (MAGIC, VERSION, self._fingerprint(seq), number, flags)
        return HEADER.pack(*facts, checksum(facts, payload), size) + bytes(payload)

    def load(self, state: bytes, seq: int | None = None) -> None:
        """Restore a state; the state of one sequence may go to another sequence.

        Args:
            state: What `save` returned.
            seq: The sequence to restore; None restores the whole context.

        Raises:
            StateError: The state is damaged, or of another model, KV type or, for a whole context,
                size. The context keeps what it has, unless llama.cpp itself fails.
        """
        owner = self._handle.owner
        view = memoryview(state).cast("B")
        if len(view) < HEADER.size or bytes(view[:8]) != MAGIC:
            problem = "state: these bytes are not one that save() returned"
            raise StateError(problem, parameter="state")
        *facts, digest, size = HEADER.unpack_from(view)
        _, version, fingerprint, saved, flags = facts
        payload = view[HEADER.size :]
        known = version == VERSION and flags in (0, self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        if not known or len(payload) != size or checksum(tuple(facts), payload) != digest:
            problem = f"state: it is damaged (version {version}, {len(payload)} bytes)"
            raise StateError(problem, parameter="state")
        # llama.cpp makes room for its first text, of any length, before it looks at the size.
        if saved < 0 and int.from_bytes(payload[:4], sys.byteorder) > len(payload):
            problem = "state: it is damaged, its first text is longer than the state"
            raise StateError(problem, parameter="state")
        if (saved < 0) != (seq is None):
            what, remedy = (
                ("the whole context", "leave seq out")
                if saved < 0
                else ("one sequence", "give seq=")
            )
            problem = f"seq={shown(seq)}: this is a state of {what}"
            raise StateError(problem, parameter="seq", remedy=remedy)
        if fingerprint != self._fingerprint(seq):
            problem = "state: it is of another model, or of a context of another kind"
            raise StateError(problem, parameter="state")
        number, _ = self._state_arguments(seq, False)
        data = self._ffi.from_buffer("uint8_t[]", payload)
        read = self._lib.llcuda_state_load(owner.pointer, number, flags, data, size)
        if read == self._lib.LLCUDA_EXCEPTION:
            library.fail(StateError, f"llama.cpp cannot restore the state (seq={seq})")
        library.check(min(read, 0), lambda: f"load(seq={seq})")

    def _state_arguments(self, seq: int | None, partial: bool) -> tuple[int, int]:
        check_flag("partial", partial)
        flags = self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        if seq is None and partial:
            rule, remedy = "a checkpoint is of one sequence", "give seq="
            raise wrong_value("partial", partial, rule, remedy)
        return -1 if seq is None else _sequence(seq), flags

    def _fingerprint(self, seq: int | None) -> int:
        """Return a checksum of what must be equal for a state to fit."""
        model, params = self._model, self._params
        facts: list[Any] = [model.description, model.size, model.vocab_size]
        facts += [params.type_k, params.type_v, params.flash_attention, params.swa_full]
        if seq is None:
            facts += [self._cells, params.sequences, params.unified_kv]
        return zlib.crc32(repr(facts).encode())


def checksum(facts: tuple[Any, ...], payload: Any) -> int:
    """Return the checksum of a state with these facts in its header."""
    return zlib.crc32(payload, zlib.crc32(HEADER.pack(*facts, 0, 0)))


def _sequence(seq: int) -> int:
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq <= INT32_MAX:
        raise wrong_value("seq", seq, "expected a whole number from 0")
    return seq


def _range(begin: int, end: int | None) -> tuple[int, int]:
    """Check a range; C writes an open end as -1."""
    for name, value in (("begin", begin), ("end", 0 if end is None else end)):
        if not isinstance(value, int) or not 0 <= value <= INT32_MAX:
            raise wrong_value(name, value, f"expected a position, 0 to {INT32_MAX}")
    return begin, -1 if end is None else end
