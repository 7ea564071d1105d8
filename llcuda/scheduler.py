"""What to compute next. Plain Python over plain data: knows nothing of llama.cpp.

Two queues and four verbs: `add` a job, `plan` the next step, `computed` what the step did, `finish`
a job. A slot is one sequence of the KV cache; a free slot keeps its text, so that a prompt that
begins alike computes only the rest. Prefill steps and decode steps alternate: a long prompt
delays running texts by one chunk at a time, and decode steps keep the same rows in the same
order, which is what graph reuse needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Job:
    """A text to compute: the scheduler's part of a request.

    tokens: prompt and what was sampled. prompt_size: how many of them are the prompt. done: how
    many are in the KV cache. reused: how many of the prompt were there before. after: a job whose
    prefill this one waits for, because it shares its prompt. fresh: compute the whole prompt.
    """

    __slots__ = ("after", "done", "fresh", "prompt_size", "request", "reused", "slot", "tokens")

    def __init__(
        self, tokens: Sequence[int], after: Job | None = None, fresh: bool = False
    ) -> None:
        self.tokens = list(tokens)
        self.prompt_size = len(self.tokens)
        self.done = 0
        self.reused = 0
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
    """A sequence of the KV cache. tokens: what it holds; job: who uses it, None = kept text."""

    seq: int
    tokens: list[int] = field(default_factory=list)
    job: Job | None = None
    used: int = 0


@dataclass(slots=True)
class Plan:
    """One step. First the memory changes, then one batch of `rows` (job, begin, end).

    changes: ("trim", seq, keep) forgets what is beyond `keep` tokens; ("copy", source, target,
    count) shares the first `count` cells. decode: every row is the last token of a running text.
    """

    changes: list[tuple[Any, ...]]
    rows: list[tuple[Job, int, int]]
    decode: bool


class Scheduler:
    """Shares `slots` sequences of `ctx_size` tokens among jobs, `parallel` of them at a time.

    chunk: most prompt tokens of one step. trims: whether the memory can forget the end of a text
    (recurrent state cannot); copies: whether part of a sequence can be shared with another.
    """

    def __init__(
        self, slots: int, parallel: int, chunk: int, trims: bool = True, copies: bool = True
    ) -> None:
        self.slots = [Slot(seq) for seq in range(slots)]
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []  # by slot; prompt whole in the cache
        self.prefilling: list[Job] = []
        self._parallel = parallel
        self._chunk = chunk
        self._trims = trims
        self._copies = copies
        self._clock = 0
        self._decoded_last = True

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.waiting or self.running or self.prefilling)

    def add(self, job: Job) -> None:
        """Queue a job."""
        self.waiting.append(job)

    def plan(self) -> Plan | None:
        """Return the next step, None when nothing can be computed."""
        changes = self._admit()
        if self.prefilling and (self._decoded_last or not self.running):
            self._decoded_last = False
            return Plan(changes, self._prefill_rows(), decode=False)
        self._decoded_last = True
        if not self.running:
            return Plan(changes, [], decode=False) if changes else None
        rows = [(job, job.done, len(job.tokens)) for job in self.running]
        return Plan(changes, rows, decode=True)

    def _prefill_rows(self) -> list[tuple[Job, int, int]]:
        rows, budget = [], self._chunk
        for job in self.prefilling:
            end = min(job.prompt_size, job.done + budget)
            if end > job.done:
                rows.append((job, job.done, end))
                budget -= end - job.done
        return rows

    def computed(self, rows: Sequence[tuple[Job, int, int]]) -> None:
        """Note that the rows of a step are in the KV cache."""
        arrived = False
        for job, begin, end in rows:
            job.done = end
            assert job.slot is not None
            job.slot.tokens.extend(job.tokens[begin:end])
            arrived = arrived or begin < job.prompt_size <= end
        if arrived:
            self.running += [job for job in self.prefilling if job.prefilled]
            self.running.sort(key=lambda job: job.seq)
            self.prefilling = [job for job in self.prefilling if not job.prefilled]

    def finish(self, job: Job) -> None:
        """Take a job out, wherever it is; its slot keeps what it holds."""
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
        active = len(self.running) + len(self.prefilling)
        while self.waiting and active < self._parallel:
            job = self.waiting[0]
            if job.after is not None and not job.after.prefilled and job.after.slot is not None:
                break  # its prompt is being computed by another
            self.waiting.popleft()
            slot, count = self._choose(job)
            if job.after is not None or not count:
                shared, source = self._best(job, [s for s in self.slots if s.job and s is not slot])
                if self._copies and source is not None and shared > count:
                    changes.append(("copy", source.seq, slot.seq, shared))
                    slot.tokens, count = source.tokens[:shared], shared
            if len(slot.tokens) > count:
                changes.append(("trim", slot.seq, count))
                del slot.tokens[count:]
            slot.job, job.slot = job, slot
            job.done = job.reused = count
            self.prefilling.append(job)
            active += 1
        return changes

    def _choose(self, job: Job) -> tuple[Slot, int]:
        """Return the free slot to use, and how many of its tokens serve."""
        free = [slot for slot in self.slots if slot.job is None]
        count, slot = self._best(job, free)
        if slot is not None and count:
            return slot, count
        return min(free, key=lambda s: (bool(s.tokens), s.used)), 0

    def _best(self, job: Job, slots: Sequence[Slot]) -> tuple[int, Slot | None]:
        """Return the longest usable common prefix, and whose it is.

        The last prompt token is always computed: its logits choose the first new token.
        """
        best: tuple[int, Slot | None] = (0, None)
        for slot in () if job.fresh else slots:
            count = common_prefix(slot.tokens, job.tokens, job.prompt_size - 1)
            if not self._trims and count < len(slot.tokens):
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
