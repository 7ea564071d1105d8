"""What to compute next. Plain Python over plain data: knows nothing of llama.cpp.

Two queues and four verbs: `add` a job, `plan` the next step, `computed` what the step did, `finish`
a job. A slot is one sequence of the KV cache; a free slot keeps its text, so that a prompt that
begins alike computes only the rest. Prefill steps and decode steps alternate: a long prompt
delays running texts by one chunk at a time, and decode steps keep the same rows in the same
order, which is what graph reuse needs. Running texts lie in neighbouring slots: llama.cpp
computes the rows of a split KV cache in one batch only as far as their sequences have no gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WORTH_COPYING = 64  # tokens; a copy moves a whole sequence's cells


class Job:
    """A text to compute: the scheduler's part of a request.

    tokens: prompt and what was sampled. prompt_size: how many of them are computed in chunks: the
    prompt, and after `extend` all that there were then. done: how many are in the KV cache. reused:
    how many of the prompt were there before. after: a job whose prefill this one waits for, because
    it shares its prompt. fresh: compute the whole prompt.
    """

    __slots__ = (
        "after",
        "done",
        "ended",
        "fresh",
        "prompt_size",
        "request",
        "reused",
        "slot",
        "tokens",
    )

    def __init__(
        self, tokens: Sequence[int], after: Job | None = None, fresh: bool = False
    ) -> None:
        self.tokens = list(tokens)
        self.prompt_size = len(self.tokens)
        self.done = 0
        self.reused = 0
        self.ended = False
        self.slot: Slot | None = None
        self.request: Any = None
        self.after = after
        self.fresh = fresh

    @property
    def seq(self) -> int:
        """The sequence that holds the text; only while it has a slot."""
        assert self.slot is not None
        return self.slot.seq

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the KV cache."""
        return self.done >= self.prompt_size


@dataclass(eq=False, slots=True)
class Slot:
    """A sequence of the KV cache. tokens: what it holds; job: who uses it, None = kept text.

    stale: it holds more than these tokens, which is to be forgotten before it is used again.
    """

    seq: int
    tokens: list[int] = field(default_factory=list)
    job: Job | None = None
    used: int = 0
    stale: bool = False

    def keep(self, count: int) -> None:
        """Count on the first `count` tokens only."""
        del self.tokens[count:]
        self.stale = True


@dataclass(slots=True)
class Plan:
    """One step. First the memory changes, then one batch of `rows` (job, begin, end).

    changes, in this order: ("trim", seq, keep) forgets what is beyond `keep` tokens; ("copy",
    source, target, count) shares the first `count` cells, which an earlier change may have put
    there; ("move", source, target) takes a running text to a free slot, ("save", source, target) a
    kept one. decode: every row is the
    last token of a running text.
    """

    changes: list[tuple[Any, ...]]
    rows: list[tuple[Job, int, int]]
    decode: bool


class Scheduler:
    """Shares `slots` sequences of `ctx_size` tokens among jobs, `parallel` of them at a time.

    chunk: most prompt tokens of one step. trims: whether the memory can forget the end of a text
    (recurrent state cannot); copies: whether part of a sequence can be shared with another;
    dense: whether running texts are to lie in neighbouring slots. late: of several prompts in one
    step none is computed to its last token, which joins the decode steps instead; a fresh one is
    alone in its step, with at most `chunk_fresh` tokens; and the rows of a decode step have no gap.
    """

    def __init__(
        self,
        slots: int,
        parallel: int,
        chunk: int,
        trims: bool = True,
        copies: bool = True,
        dense: bool = False,
        late: bool = False,
        chunk_fresh: int | None = None,
    ) -> None:
        self.slots = [Slot(seq) for seq in range(slots)]
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []  # by slot; prompt whole in the cache
        self.prefilling: list[Job] = []
        self._parallel = parallel
        self._chunk = chunk
        self._trims = trims
        self._copies = copies
        self._dense = dense
        self._late = late
        self._chunk_fresh = chunk_fresh or chunk
        self._clock = 0
        self._decoded_last = True

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.waiting or self.running or self.prefilling)

    def decodes(self, texts: int) -> bool:
        """Whether the next plan decodes so many texts, and nothing else is to be done."""
        return not (self.waiting or self.prefilling) and len(self.running) == texts

    def add(self, job: Job) -> None:
        """Queue a job."""
        self.waiting.append(job)

    def plan(self) -> Plan | None:
        """Return the next step, None when nothing can be computed."""
        changes = self._admit() if self.waiting else []
        if self.prefilling and (self._decoded_last or not self.running):
            self._decoded_last = False
            return Plan(changes, self._prefill_rows(), decode=False)
        self._decoded_last = True
        if not self.running:
            return Plan(changes, [], decode=False) if changes else None
        if self._dense and self.running[-1].seq - self.running[0].seq >= len(self.running):
            changes += self._close_ranks()
        first, last = self.running[0].seq, self.running[-1].seq
        between = [job for job in self.prefilling if first < job.seq < last] if self._late else []
        jobs = sorted(self.running + between, key=lambda job: job.seq) if between else self.running
        # What is still computed between running texts takes part with one token of its prompt.
        rows = [(job, job.done, job.done + 1) for job in jobs]
        return Plan(changes, rows, decode=not between)

    def _close_ranks(self) -> list[tuple[Any, ...]]:
        """Move running texts, from the end with the wider gap, into the free slots between them."""
        changes: list[tuple[Any, ...]] = []
        while True:
            seqs = [job.seq for job in self.running]
            holes = [slot.seq for slot in self.slots[seqs[0] : seqs[-1]] if slot.job is None]
            if not holes:
                return changes
            source = seqs[0] if seqs[1] - seqs[0] > seqs[-1] - seqs[-2] else seqs[-1]
            target = holes[-1] if source == seqs[0] else holes[0]
            changes += self._save(
                self.slots[target], [*self.slots[: seqs[0]], *self.slots[seqs[-1] :]]
            )
            changes.append(("move", source, target))
            self.move(source, target)

    def _save(self, slot: Slot, others: Sequence[Slot]) -> list[tuple[Any, ...]]:
        """Bring a kept text to the free one of `others` that was used longest ago, if before it."""
        spares = [other for other in others if other.job is None]
        spare = min(spares, key=lambda other: (bool(other.tokens), other.used), default=None)
        if not slot.tokens or spare is None or (spare.tokens and spare.used > slot.used):
            return []
        spare.tokens, spare.used, spare.stale = slot.tokens, slot.used, slot.stale
        slot.tokens = []
        return [("save", slot.seq, spare.seq)]

    def move(self, source: int, target: int) -> None:
        """Take the running text of slot `source` to the free slot `target`; `source` is empty."""
        here, there = self.slots[source], self.slots[target]
        job = here.job
        assert job is not None
        assert there.job is None
        there.tokens, there.job, there.stale = here.tokens, job, here.stale
        here.tokens, here.job, here.stale = [], None, False
        job.slot = there
        self.running.sort(key=lambda job: job.seq)

    def _prefill_rows(self) -> list[tuple[Job, int, int]]:
        """Share the chunk among the prompts, the shortest rest first, so that none waits long."""
        rows, budget = [], self._chunk
        jobs = sorted(self.prefilling, key=lambda job: job.prompt_size - job.done)
        if self._late and jobs[0].fresh:
            jobs, budget = jobs[:1], self._chunk_fresh
        elif self._late:
            jobs = [job for job in jobs if not job.fresh]
        late = self._late and len(jobs) > 1
        for i, job in enumerate(jobs):
            whole = job.prompt_size - late
            end = min(whole, job.done + max(1, budget // (len(jobs) - i)))
            if end > job.done and budget:
                rows.append((job, job.done, end))
                budget -= end - job.done
        return rows

    def _ready(self, job: Job) -> bool:
        """Whether a job's next token is a decode step's row."""
        return job.done >= job.prompt_size - (self._late and not job.fresh)

    def _begin_decoding(self) -> None:
        """Take the jobs that are ready among the running ones."""
        arrived = [job for job in self.prefilling if self._ready(job)]
        if arrived:
            self.running += arrived
            self.running.sort(key=lambda job: job.seq)
            self.prefilling = [job for job in self.prefilling if not self._ready(job)]

    def extend(self, job: Job) -> None:
        """Compute what a running text has more than its last token as a chunk, like a prompt."""
        self.running.remove(job)
        job.prompt_size = len(job.tokens)
        self.prefilling.append(job)

    def return_slot(self, seq: int) -> Job:
        """Put the job of a slot back at the queue's head: the slot holds none of its tokens."""
        slot = self.slots[seq]
        job = slot.job
        assert job is not None
        (self.running if job in self.running else self.prefilling).remove(job)
        self.waiting.appendleft(job)
        slot.keep(0)
        slot.job = job.slot = None
        job.done = job.reused = 0
        return job

    def computed(self, rows: Sequence[tuple[Job, int, int]]) -> None:
        """Note that the rows of a step are in the KV cache."""
        for job, begin, end in rows:
            job.done = end
            assert job.slot is not None
            job.slot.tokens += job.tokens[begin:end]
        if self.prefilling:
            self._begin_decoding()

    def finish(self, job: Job) -> None:
        """Take a job out, wherever it is; its slot keeps what it holds."""
        job.ended = True
        if job.slot is None:
            if job in self.waiting:
                self.waiting.remove(job)
            return
        queue = self.running if job in self.running else self.prefilling
        queue.remove(job)
        self._clock += 1
        job.slot.used = self._clock
        job.slot.job = None
        job.slot = None

    # --- admission and prefix reuse ---

    def _admit(self) -> list[tuple[Any, ...]]:
        """Give waiting jobs slots, in order; return the memory changes that this needs."""
        changes: list[tuple[Any, ...]] = []
        room = self._parallel - len(self.running) - len(self.prefilling)
        for job in [job for job in self.waiting if not self._waits(job)][: max(room, 0)]:
            self.waiting.remove(job)
            slot, count, source = self._choose(job)
            if source is not None:
                changes.append(("copy", source.seq, slot.seq, count))
                slot.tokens = source.tokens[:count]
            elif slot.stale or len(slot.tokens) > count:
                changes.append(("trim", slot.seq, count))
                del slot.tokens[count:]
            slot.stale = False
            slot.job, job.slot = job, slot
            job.done = job.reused = count
            self.prefilling.append(job)
        self._begin_decoding()  # what is in the cache but for its last token, if that comes late
        return changes

    def _waits(self, job: Job) -> bool:
        """Whether another computes this job's prompt just now."""
        after = job.after
        return after is not None and not after.prefilled and not after.ended

    def _choose(self, job: Job) -> tuple[Slot, int, Slot | None]:
        """Return the free slot to use, how much of the prompt it will hold, and from where.

        A kept text is used up only when that is most of it, or when no other slot is free;
        otherwise its beginning is copied to the slot that was used longest ago.
        """
        free = [slot for slot in self.slots if slot.job is None]
        count, best = self._best(job, self.slots)
        in_place, kept = self._best(job, free)
        if (
            kept is not None
            and in_place == count
            and (2 * count >= len(kept.tokens) or len(free) == 1)
        ):
            return kept, count, None
        oldest = min(free, key=lambda slot: (bool(slot.tokens), slot.used))
        worth = count >= WORTH_COPYING or job.after is not None
        if self._copies and best is not None and best is not oldest and worth:
            return oldest, count, best
        return oldest, self._best(job, [oldest])[0], None

    def _best(self, job: Job, slots: Sequence[Slot]) -> tuple[int, Slot | None]:
        """Return the longest usable common prefix, and whose it is.

        The last prompt token is always computed: its logits choose the first new token.
        """
        best: tuple[int, Slot | None] = (0, None)
        for slot in () if job.fresh else slots:
            count = common_prefix(slot.tokens, job.tokens, job.prompt_size - 1)
            if not self._trims and (slot.stale or count < len(slot.tokens)):
                continue
            if count > best[0]:
                best = (count, slot)
        return best


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
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
