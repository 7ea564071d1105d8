"""Scheduler: which sequences the next step computes, and where they lie in the KV cache.

Plain Python over plain data: it knows nothing of llama.cpp. A slot is one sequence of the KV
cache. A free slot keeps its tokens as a cached prefix, so that a prompt that begins alike computes
only the rest. Prefill steps and decode steps alternate: a long prompt delays running sequences by
one chunk at a time, and decode steps keep the same rows in the same order, as graph reuse needs.
Running sequences lie in contiguous slots: llama.cpp computes the rows of a split KV cache in one
batch only as far as their slots have no gap. Several begin at the first slot, because a graph
serves again only for the same slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from llcuda.engine.sequence import Sequence, now

WORTH_COPYING = 64  # tokens; a copy moves the cells of a whole sequence


@dataclass(eq=False, slots=True)
class Slot:
    """One sequence of the KV cache.

    Attributes:
        seq_id: Its number in the KV cache.
        tokens: The tokens in its cells.
        sequence: The sequence that uses it; None for a free slot, whose tokens are a cached prefix.
        last_used: When it became free, on the scheduler's clock.
        stale: Whether its cells hold more than `tokens`, to be removed before the next use.
        adapter_key: The adapters that the tokens were computed with.
        least_prefix: The least number of its tokens that can be reused: a state from a file lacks
            cells that a sliding window hides, so that it can only be continued.
    """

    seq_id: int
    tokens: list[int] = field(default_factory=list)
    sequence: Sequence | None = None
    last_used: int = 0
    stale: bool = False
    adapter_key: object = None
    least_prefix: int = 0

    def keep(self, count: int) -> None:
        """Count on the first `count` tokens only."""
        del self.tokens[count if count >= self.least_prefix else 0 :]
        self.stale = True

    def take_over(self, other: Slot) -> None:
        """Note that the cells of another slot were moved here."""
        self.tokens, self.stale, self.adapter_key = other.tokens, other.stale, other.adapter_key
        self.least_prefix = other.least_prefix
        other.tokens, other.stale, other.least_prefix = [], False, 0


class Truncate(NamedTuple):
    """Remove the cells of a slot beyond its first `length` ones."""

    seq_id: int
    length: int


class CopyPrefix(NamedTuple):
    """Copy the first `length` cells of slot `source`; an earlier change may have put them there."""

    source: int
    seq_id: int
    length: int


class Move(NamedTuple):
    """Move the cells of slot `source` to slot `seq_id`: a running sequence, or a cached prefix."""

    source: int
    seq_id: int
    running: bool


CacheChange = Truncate | CopyPrefix | Move


class Chunk(NamedTuple):
    """Tokens `begin` to `end` of a sequence, to be computed in one step."""

    sequence: Sequence
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: first the changes of the KV cache in their order, then one batch.

    Attributes:
        changes: Changes of the KV cache.
        sequences: The sequences of the batch; for decode steps the same list object as long as
            the members stay.
        chunks: The tokens of each in a prefill step; None for a decode step, which computes the
            last token of each.
    """

    changes: list[CacheChange]
    sequences: list[Sequence]
    chunks: list[Chunk] | None = None

    @property
    def phase(self) -> str:
        """The phase as a StepRecord has it."""
        return "decode" if self.chunks is None else "prefill"

    @property
    def token_count(self) -> int:
        """The tokens of the batch."""
        if self.chunks is None:
            return len(self.sequences)
        return sum(chunk.end - chunk.begin for chunk in self.chunks)


class Scheduler:
    """Shares the slots of a KV cache among sequences.

    `add` queues a sequence, `schedule` chooses the next step, `computed` notes that it was
    computed, `finish` takes a sequence out.

    Args:
        slots: Sequences of the KV cache.
        parallel: The number of sequences that may run at once.
        chunk_size: The number of prompt tokens that one step may compute.
        can_truncate: Whether the memory can remove the end of a sequence; recurrent state cannot.
        can_copy_prefix: Whether the memory can copy part of a sequence to another one.
        contiguous_slots: Whether running sequences are moved into free slots before them.
        defer_last_prompt_token: Whether the last tokens of several prompts of one step join the
            decode steps instead, and the rows of a decode step have no gap. A prompt with
            skip_prefix_cache is alone in its step then.
        uncached_chunk_size: The chunk size of prompts with skip_prefix_cache; None = chunk_size.

    Attributes:
        slots: The slots, by seq_id.
        waiting: Sequences without a slot: by priority, and in the order of submission.
        prefilling: Sequences whose prompt is not computed yet.
        running: Sequences that decode, by slot.
        decode_step: The decode step that is scheduled again as long as its members stay.
        adapter_key: The adapters of the next steps; see `change_adapters`.
    """

    def __init__(
        self,
        slots: int,
        parallel: int,
        chunk_size: int,
        *,
        can_truncate: bool = True,
        can_copy_prefix: bool = True,
        contiguous_slots: bool = False,
        defer_last_prompt_token: bool = False,
        uncached_chunk_size: int | None = None,
    ) -> None:
        self.slots = [Slot(seq_id) for seq_id in range(slots)]
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.running: list[Sequence] = []
        self.decode_step: SchedulerOutput | None = None
        self.adapter_key: object = None
        self._parallel = parallel
        self._chunk_size = chunk_size
        self._can_truncate = can_truncate
        self._can_copy_prefix = can_copy_prefix
        self._contiguous_slots = contiguous_slots
        self._defer_last_prompt_token = defer_last_prompt_token
        self._uncached_chunk_size = uncached_chunk_size or chunk_size
        self._clock = 0
        self._decoded_last = True

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.running or self.waiting or self.prefilling)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those of its priority; what had a slot before stays in front."""
        waiting, priority = self.waiting, sequence.params.priority
        place = len(waiting)
        while place and not waiting[place - 1].admitted_at:
            if waiting[place - 1].params.priority <= priority:
                break
            place -= 1
        waiting.insert(place, sequence)

    def change_adapters(self, key: object) -> None:
        """Note that cells are computed with other adapters from now on.

        Cached prefixes serve those who have the same adapters. What runs has cells of both, which
        nobody may reuse.

        Args:
            key: The adapters and their scales; equal for equal ones.
        """
        self.adapter_key = key
        for slot in self.slots:
            if slot.sequence is not None:
                slot.adapter_key = object()

    def schedule(self) -> SchedulerOutput | None:
        """Return the next step; None when nothing can be computed."""
        if (
            self.decode_step is not None
            and not self.prefilling
            and (not self.waiting or len(self.running) >= self._parallel)
        ):
            self._decoded_last = True
            return self.decode_step
        changes = self._admit() if self.waiting else []
        if self.prefilling and (self._decoded_last or not self.running):
            self._decoded_last = False
            return _prefill_step(changes, self._prefill_chunks())
        if not self.running:
            return SchedulerOutput(changes, []) if changes else None
        if self._contiguous_slots and _has_gap(self.running):
            if changes:
                return SchedulerOutput(changes, [])  # they may fail: nothing moves before
            changes = self._close_gaps()
        self._decoded_last = True
        between = self._prefilling_between() if self._defer_last_prompt_token else []
        if between:
            # They take part with one token of their prompts, so that the rows have no gap.
            members = sorted(self.running + between, key=_by_slot)
            chunks = [Chunk(s, s.computed_tokens, s.computed_tokens + 1) for s in members]
            return _prefill_step(changes, chunks)
        if self.decode_step is None:
            self.decode_step = SchedulerOutput([], list(self.running))
        return replace(self.decode_step, changes=changes) if changes else self.decode_step

    def computed(self, scheduled: SchedulerOutput) -> None:
        """Note that the tokens of a step are in the KV cache."""
        if scheduled.chunks is None:
            slots = self.slots
            for sequence in scheduled.sequences:
                count = sequence.computed_tokens
                slots[sequence.seq_id].tokens.append(sequence.tokens[count])  # type: ignore[index]
                sequence.computed_tokens = count + 1
            return
        for sequence, begin, end in scheduled.chunks:
            self._slot(sequence).tokens += sequence.tokens[begin:end]
            sequence.computed_tokens = end
        self._begin_decoding()

    def computed_draft(self, sequence: Sequence, draft: list[int]) -> None:
        """Note that the next tokens of a running sequence are in the KV cache already."""
        self._slot(sequence).tokens += draft
        sequence.computed_tokens += len(draft)

    def extend(self, sequence: Sequence) -> None:
        """Compute all tokens that a running sequence was given since as a chunk, like a prompt."""
        self.running.remove(sequence)
        self.decode_step = None
        sequence.prefill_size = len(sequence.tokens)
        self.prefilling.append(sequence)

    def shift(self, sequence: Sequence, begin: int, end: int) -> None:
        """Drop the tokens from `begin` to `end` of a running sequence, whose cells are gone.

        The later cells were computed with the dropped ones: no other sequence may reuse them.
        """
        del sequence.tokens[begin:end], self._slot(sequence).tokens[begin:end]
        sequence.computed_tokens -= end - begin
        sequence.prefill_size = min(sequence.prefill_size, sequence.computed_tokens)
        sequence.valid_prefix = begin

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out; its slot keeps the tokens as a cached prefix."""
        sequence.ended = True
        if sequence.seq_id is None:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return
        slot = self._slot(sequence)
        if sequence.valid_prefix is not None:
            slot.keep(sequence.valid_prefix)
        self._clock += 1
        slot.last_used = self._clock
        self._release(slot, sequence)

    def _release(self, slot: Slot, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
            self.decode_step = None
        else:
            self.prefilling.remove(sequence)
        slot.sequence = sequence.seq_id = None

    def _slot(self, sequence: Sequence) -> Slot:
        assert sequence.seq_id is not None
        return self.slots[sequence.seq_id]

    # --- admission and the prefix cache ---

    def _admit(self) -> list[CacheChange]:
        """Give waiting sequences slots, in order; return the changes that this needs."""
        changes: list[CacheChange] = []
        room = max(0, self._parallel - len(self.running) - len(self.prefilling))
        admitted = [s for s in self.waiting if not _in_prefill(s.shares_prompt_with)]
        for sequence in admitted:
            if not room:
                break
            free = self._free_slots(sequence)
            if not free:
                continue  # the slot that it asks for is in use; a later one may have another
            room -= 1
            self.waiting.remove(sequence)
            slot, count, source = self._choose_slot(sequence, free)
            if source is not None:
                changes.append(CopyPrefix(source.seq_id, slot.seq_id, count))
                slot.tokens, slot.least_prefix = source.tokens[:count], source.least_prefix
            elif slot.stale or len(slot.tokens) > count:
                changes.append(Truncate(slot.seq_id, count))
                del slot.tokens[count:]
            if not count:
                slot.least_prefix = 0
            slot.stale, slot.adapter_key = False, self.adapter_key
            slot.sequence, sequence.seq_id = sequence, slot.seq_id
            sequence.request.slot = slot.seq_id
            sequence.computed_tokens = count
            sequence.cached_tokens = min(count, len(sequence.tokens) - len(sequence.generated))
            sequence.admitted_at = sequence.admitted_at or now()
            self.prefilling.append(sequence)
        self._begin_decoding()  # prompts that are cached but for a last token that is deferred
        return changes

    def _free_slots(self, sequence: Sequence) -> list[Slot]:
        """Return the free slots that a sequence may have."""
        wanted = sequence.params.slot
        slots = self.slots if wanted is None else [self.slots[wanted]]
        return [slot for slot in slots if slot.sequence is None]

    def _choose_slot(self, sequence: Sequence, free: list[Slot]) -> tuple[Slot, int, Slot | None]:
        """Return a free slot, how much of the prompt it will hold, and the slot to copy it from.

        A cached prefix is used up only when most of it is reused, or when no other slot is free.
        Otherwise its beginning is copied to the least recently used slot.
        """
        count, best = self._longest_prefix(sequence, self.slots)
        count_in_place, in_place = self._longest_prefix(sequence, free)
        if (
            in_place is not None
            and count_in_place == count
            and (2 * count >= len(in_place.tokens) or len(free) == 1)
        ):
            return in_place, count, None
        behind = []
        if self._contiguous_slots and self.running:  # where it leaves no gap, nor needs to be moved
            behind = [slot for slot in free if slot.seq_id > _by_slot(self.running[-1])]
        oldest = min(behind or free, key=_by_use)
        worth_copying = count >= WORTH_COPYING or sequence.shares_prompt_with is not None
        if self._can_copy_prefix and best is not None and best is not oldest and worth_copying:
            return oldest, count, best
        return oldest, self._longest_prefix(sequence, [oldest])[0], None

    def _longest_prefix(self, sequence: Sequence, slots: Iterable[Slot]) -> tuple[int, Slot | None]:
        """Return the length of the longest usable prefix, and its slot.

        The last prompt token is always computed: its logits choose the first new token.
        """
        longest: tuple[int, Slot | None] = (0, None)
        for slot in () if sequence.skip_prefix_cache else slots:
            if slot.adapter_key != self.adapter_key:
                continue
            limit = sequence.prefill_size - 1
            if slot.sequence is not None and slot.sequence.valid_prefix is not None:
                limit = min(limit, slot.sequence.valid_prefix)  # a text that was shifted, and runs
            count = common_prefix(slot.tokens, sequence.tokens, limit)
            if not self._can_truncate and (slot.stale or count < len(slot.tokens)):
                continue
            if count < slot.least_prefix:
                continue
            if count > longest[0]:
                longest = (count, slot)
        return longest

    # --- prefill ---

    def _prefill_chunks(self) -> list[Chunk]:
        """Share the chunk among the prompts, the shortest rest first, so that none waits long."""
        chunks, budget = [], self._chunk_size
        sequences = sorted(self.prefilling, key=lambda s: s.prefill_size - s.computed_tokens)
        if self._defer_last_prompt_token and sequences[0].skip_prefix_cache:
            sequences, budget = sequences[:1], self._uncached_chunk_size
        elif self._defer_last_prompt_token:
            sequences = [s for s in sequences if not s.skip_prefix_cache]
        deferred = self._defer_last_prompt_token and len(sequences) > 1
        for i, sequence in enumerate(sequences):
            begin = sequence.computed_tokens
            share = max(1, budget // (len(sequences) - i))
            end = min(sequence.prefill_size - deferred, begin + share)
            if end > begin and budget:
                chunks.append(Chunk(sequence, begin, end))
                budget -= end - begin
        return chunks

    def _prefilling_between(self) -> list[Sequence]:
        """Return the sequences that are still prefilled between running ones."""
        first, last = self.running[0].seq_id, self.running[-1].seq_id
        return [s for s in self.prefilling if first < s.seq_id < last]  # type: ignore[operator]

    def _ready(self, sequence: Sequence) -> bool:
        """Whether the next token of a sequence is a decode step's row."""
        deferred = self._defer_last_prompt_token and not sequence.skip_prefix_cache
        return sequence.computed_tokens >= sequence.prefill_size - deferred

    def _begin_decoding(self) -> None:
        """Let prefilled sequences run."""
        arrived = [sequence for sequence in self.prefilling if self._ready(sequence)]
        if arrived:
            self.running = sorted(self.running + arrived, key=_by_slot)
            self.decode_step = None
            self.prefilling = [s for s in self.prefilling if not self._ready(s)]

    # --- gaps ---

    def _close_gaps(self) -> list[CacheChange]:
        """Move the last running sequences into the free slots before them."""
        changes: list[CacheChange] = []
        while True:
            ids: list[int] = [s.seq_id for s in self.running]  # type: ignore[misc]
            gaps = [slot.seq_id for slot in self.slots[: ids[-1]] if slot.sequence is None]
            if not gaps:
                return changes
            changes += self._save_prefix(self.slots[gaps[0]], self.slots[ids[-1] :])
            changes.append(Move(ids[-1], gaps[0], running=True))
            self._move_running(ids[-1], gaps[0])

    def _save_prefix(self, slot: Slot, others: Iterable[Slot]) -> list[CacheChange]:
        """Move a cached prefix to the least recently used free slot, if that is the older one."""
        spares = [other for other in others if other.sequence is None]
        spare = min(spares, key=_by_use, default=None)
        if not slot.tokens or spare is None or (spare.tokens and spare.last_used > slot.last_used):
            return []
        spare.last_used = slot.last_used
        spare.take_over(slot)
        return [Move(slot.seq_id, spare.seq_id, running=False)]

    def _move_running(self, source: int, target: int) -> None:
        """Take the running sequence of slot `source` to the free slot `target`."""
        here, there = self.slots[source], self.slots[target]
        sequence = here.sequence
        assert sequence is not None
        assert there.sequence is None
        there.take_over(here)
        there.sequence, here.sequence = sequence, None
        sequence.seq_id = sequence.request.slot = target
        self.running.sort(key=_by_slot)
        self.decode_step = None

    # --- when the KV cache cannot do what was scheduled ---

    def requeue(self, seq_id: int) -> Sequence:
        """Put the sequence of a slot at the queue's head; no cell of the slot counts any more."""
        slot = self.slots[seq_id]
        sequence = slot.sequence
        assert sequence is not None
        self._release(slot, sequence)
        self.waiting.appendleft(sequence)
        slot.keep(0)
        sequence.prefill_size = len(sequence.tokens)
        sequence.computed_tokens = sequence.cached_tokens = 0
        return sequence

    def forget_cells(self) -> list[Sequence]:
        """Note that the KV cache is empty; queue the sequences that have a slot again.

        Returns:
            The sequences whose tokens alone do not bring their cells back, to be ended: a shift has
            dropped tokens that they were computed with, or other adapters have computed some.
        """
        active = [slot for slot in self.slots if slot.sequence is not None]
        lost: list[Sequence] = []
        for slot in sorted(active, key=_by_submission, reverse=True):
            sequence = self.requeue(slot.seq_id)
            if sequence.valid_prefix is not None or slot.adapter_key != self.adapter_key:
                lost.append(sequence)
        for slot in self.slots:
            slot.tokens, slot.stale, slot.least_prefix = [], False, 0
        return lost

    def undo_move(self, move: Move) -> None:
        """Note that the cells were not moved, or not wholly: a sequence stays, a prefix is lost.

        Of several moves the last one is undone first.
        """
        if move.running:
            self._move_running(move.seq_id, move.source)
        else:
            self.slots[move.source].keep(0)
        self.slots[move.seq_id].keep(0)

    def invalidate(self, sequence: Sequence) -> None:
        """Note that a step has failed: the cells of a sequence cannot be reused."""
        if sequence.seq_id is not None:
            self._slot(sequence).keep(0)

    def evict_cached_prefixes(self) -> list[int]:
        """Forget all cached prefixes, and return the slots whose cells are to be removed."""
        evicted = [slot for slot in self.slots if slot.sequence is None]
        evicted = [slot for slot in evicted if slot.tokens or slot.stale]
        for slot in evicted:
            slot.keep(0)  # stale until it is used: removing the cells may fail
        return [slot.seq_id for slot in evicted]


def _prefill_step(changes: list[CacheChange], chunks: list[Chunk]) -> SchedulerOutput:
    return SchedulerOutput(changes, [chunk.sequence for chunk in chunks], chunks)


def _by_slot(sequence: Sequence) -> int:
    return sequence.seq_id  # type: ignore[return-value]


def _by_submission(slot: Slot) -> float:
    return slot.sequence.submitted_at  # type: ignore[union-attr]


def _by_use(slot: Slot) -> tuple[bool, int]:
    """Order slots: empty ones first, then by their last use."""
    return bool(slot.tokens), slot.last_used


def _has_gap(running: list[Sequence]) -> bool:
    """Whether a slot before the last one is not in use; one sequence may stay where it is."""
    return len(running) > 1 and _by_slot(running[-1]) >= len(running)


def _in_prefill(leader: Sequence | None) -> bool:
    """Whether the prompt that a sequence shares is still computed by the first to have it."""
    return leader is not None and not leader.prefilled and not leader.ended


def common_prefix(a: list[int], b: list[int], limit: int) -> int:
    """Return how many of the first `limit` entries are equal; by halves, not one by one."""
    low, high = 0, min(len(a), len(b), limit)
    if a[:high] == b[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
