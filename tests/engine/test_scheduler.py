"""The scheduler on plain data: a dictionary plays the KV cache, numbers play the tokens."""

from collections import defaultdict
from collections.abc import Collection, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda import RequestParams
from llcuda.engine.request import Request
from llcuda.engine.scheduler import (
    Chunk,
    CopyPrefix,
    Move,
    Scheduler,
    SchedulerOutput,
    Truncate,
    common_prefix,
)
from llcuda.engine.sequence import Sequence


class Nobody:
    """Owns requests that nobody waits for."""

    def cancel(self, request: Request) -> None:
        """Nothing."""

    def check_reader(self) -> None:
        """Nothing."""


def new_sequence(
    tokens: Iterable[int], shares_prompt_with: Sequence | None = None, priority: int = 0
) -> Sequence:
    """Return a sequence to schedule."""
    prompt = list(tokens)
    request = Request(RequestParams(priority=priority), Nobody(), prompt_tokens=len(prompt))
    return Sequence(request, prompt, shares_prompt_with=shares_prompt_with)


def chunks_of(scheduled: SchedulerOutput) -> list[Chunk]:
    """Return the tokens of each sequence in a step that was not computed yet."""
    if scheduled.chunks is not None:
        return scheduled.chunks
    return [Chunk(s, s.computed_tokens, s.computed_tokens + 1) for s in scheduled.sequences]


class FakeCache:
    """What the KV cache would hold, and the checks that a real one cannot make."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = defaultdict(list)

    def apply(self, scheduled: SchedulerOutput) -> None:
        """Do what a step does to the cache."""
        for change in scheduled.changes:
            if isinstance(change, CopyPrefix):
                assert len(self.cells[change.source]) >= change.length
                self.cells[change.seq_id] = self.cells[change.source][: change.length]
            elif isinstance(change, Move):
                self.cells[change.seq_id] = self.cells.pop(change.source, [])
            else:
                assert len(self.cells[change.seq_id]) >= change.length
                del self.cells[change.seq_id][change.length :]
        seq_ids = [s.seq_id for s in scheduled.sequences]
        assert None not in seq_ids
        assert len(seq_ids) == len(set(seq_ids)) == len(chunks_of(scheduled))
        assert scheduled.token_count == sum(end - at for _, at, end in chunks_of(scheduled))
        for sequence, begin, end in chunks_of(scheduled):
            assert sequence.seq_id is not None
            assert end > begin == len(self.cells[sequence.seq_id])
            self.cells[sequence.seq_id] += sequence.tokens[begin:end]
            assert self.cells[sequence.seq_id] == sequence.tokens[:end]


def run(
    scheduler: Scheduler,
    lengths: dict[Sequence, int],
    cache: FakeCache | None = None,
    contiguous: bool = False,
    failing_steps: Collection[int] = (),
) -> list[SchedulerOutput]:
    """Run until every sequence has its number of tokens; a token is the count of those before it.

    contiguous: whether running sequences must lie in neighbouring slots. failing_steps: the numbers
    of steps that end their sequences and lose all cells.
    """
    cache = cache or FakeCache()
    steps: list[SchedulerOutput] = []
    while scheduler.busy:
        assert len(steps) < 10_000
        scheduled = scheduler.schedule()
        assert scheduled is not None
        steps.append(scheduled)
        cache.apply(scheduled)
        if contiguous and scheduled.phase == "decode" and scheduled.sequences:
            seq_ids = [s.seq_id for s in scheduled.sequences]
            first = seq_ids[0]
            assert first is not None
            assert seq_ids == list(range(first, first + len(seq_ids)))
        if len(steps) in failing_steps:
            for sequence in scheduled.sequences:
                scheduler.invalidate(sequence)
                scheduler.finish(sequence)
            assert [] == scheduler.forget_cells()
            cache.cells.clear()
            continue
        scheduler.computed(scheduled)
        for sequence in scheduled.sequences:
            if sequence.computed_tokens < len(sequence.tokens):
                continue
            sequence.tokens.append(1000 + len(sequence.tokens))
            if len(sequence.tokens) - sequence.request.prompt_tokens >= lengths[sequence]:
                scheduler.finish(sequence)
    return steps


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 12)),
    min_size=1,
    max_size=20,
)


@given(
    prompts, st.integers(1, 4), st.integers(0, 3), st.integers(1, 16), st.booleans(), st.booleans(),
    st.booleans(), st.sets(st.integers(1, 40), max_size=3),
)  # fmt: skip
def test_every_sequence_is_computed_whole(
    given_prompts: list[tuple[list[int], int]],
    parallel: int,
    kept: int,
    chunk_size: int,
    can_truncate: bool,
    can_copy_prefix: bool,
    late: bool,
    failing_steps: set[int],
) -> None:
    """Whatever comes, each sequence's cells hold its own tokens, and it ends.

    Also where steps fail and lose all cells: what was not in them is computed again.
    """
    scheduler = Scheduler(
        parallel + kept,
        parallel,
        chunk_size,
        can_truncate=can_truncate,
        can_copy_prefix=can_copy_prefix,
        contiguous_slots=late,
        defer_last_prompt_token=late,
    )
    lengths = {new_sequence(prompt): length for prompt, length in given_prompts}
    for sequence in lengths:
        scheduler.add(sequence)
    steps = run(scheduler, lengths, contiguous=late, failing_steps=failing_steps)
    failed = {s for i, step in enumerate(steps, 1) if i in failing_steps for s in step.sequences}
    for sequence, n in lengths.items():
        size = len(sequence.tokens) - sequence.request.prompt_tokens
        assert size == n or (sequence in failed and size < n)
    assert all(len(step.sequences) <= parallel for step in steps)
    limit = max(chunk_size, parallel)  # a row each, where prompts lie between running sequences
    assert all(step.token_count <= limit for step in steps if step.phase == "prefill")


def test_a_long_prompt_delays_running_texts_by_one_chunk() -> None:
    """Between two chunks of a prompt every running text gets its token."""
    scheduler = Scheduler(2, 2, chunk_size=10)
    short, long = new_sequence([1, 2]), new_sequence(range(50))
    scheduler.add(short)
    first = scheduler.schedule()
    assert first
    scheduler.computed(first)
    short.tokens.append(7)
    scheduler.add(long)
    phases = []
    while not long.prefilled:
        scheduled = scheduler.schedule()
        assert scheduled
        phases.append(scheduled.phase)
        scheduler.computed(scheduled)
        if scheduled.phase == "decode":
            short.tokens.append(7)
    assert phases == ["decode", "prefill"] * 5


def test_a_prompt_that_begins_alike_computes_only_the_rest() -> None:
    """A finished text is kept; the next prompt reuses its beginning, but not its own last token."""
    scheduler, cache = Scheduler(2, 1, chunk_size=100), FakeCache()
    first, second, third = (
        new_sequence([1, 2, 3, 4]),
        new_sequence([1, 2, 3, 9]),
        new_sequence([1, 2, 3, 4]),
    )
    for sequence in (first, second, third):
        scheduler.add(sequence)
        run(scheduler, {sequence: 2}, cache)
    assert [sequence.cached_tokens for sequence in (first, second, third)] == [0, 3, 3]


def test_the_least_recently_used_text_is_given_up() -> None:
    """Without a common beginning, the slot that was used longest ago is taken."""
    scheduler, cache = Scheduler(2, 1, chunk_size=100), FakeCache()
    texts = [[1, 1, 1], [2, 2, 2], [1, 1, 1, 5], [3, 3, 3], [1, 1, 1, 6]]
    reused = []
    for text in texts:
        sequence = new_sequence(text)
        scheduler.add(sequence)
        run(scheduler, {sequence: 1}, cache)
        reused.append(sequence.cached_tokens)
    assert reused == [0, 0, 3, 0, 3]


def test_completions_of_one_prompt_share_its_prefill() -> None:
    """Those that share a prompt wait for its prefill and copy it."""
    scheduler = Scheduler(3, 3, chunk_size=4)
    first = new_sequence(range(10))
    rest = [new_sequence(range(10), shares_prompt_with=first) for _ in range(2)]
    for sequence in (first, *rest):
        scheduler.add(sequence)
    steps = run(scheduler, dict.fromkeys((first, *rest), 3))
    assert [sequence.cached_tokens for sequence in rest] == [9, 9]
    assert sum(step.token_count for step in steps if step.phase == "prefill") == 12


def test_recurrent_memory_reuses_only_whole_texts() -> None:
    """What cannot be trimmed serves only a prompt that continues it."""
    scheduler, cache = (
        Scheduler(1, 1, chunk_size=100, can_truncate=False, can_copy_prefix=False),
        FakeCache(),
    )
    first = new_sequence([1, 2, 3])
    scheduler.add(first)
    run(scheduler, {first: 1}, cache)
    continued, other = new_sequence([1, 2, 3, 4, 5]), new_sequence([1, 2, 9])
    for sequence, reused in ((continued, 3), (other, 0)):
        scheduler.add(sequence)
        run(scheduler, {sequence: 1}, cache)
        assert sequence.cached_tokens == reused


def test_one_text_moves_where_another_ends() -> None:
    """A gap is closed at once by the last text; the end of the last one leaves none."""
    scheduler, cache = Scheduler(5, 5, chunk_size=100, contiguous_slots=True), FakeCache()
    ends = {new_sequence([i]): length for i, length in enumerate((30, 3, 30, 10, 30))}
    for sequence in ends:
        scheduler.add(sequence)
    steps = run(scheduler, ends, cache)
    changes = [change for step in steps for change in step.changes]
    moves = [change for change in changes if isinstance(change, Move) and change.running]
    assert moves == [Move(4, 1, running=True)]


def test_a_kept_text_makes_way_to_an_empty_slot() -> None:
    """What a move would overwrite is saved where there is room, and reused from there."""
    scheduler, cache = Scheduler(5, 3, chunk_size=100, contiguous_slots=True), FakeCache()
    first, middle, last = new_sequence([1]), new_sequence(range(2, 30)), new_sequence([2])
    ends = {first: 20, middle: 2, last: 20}
    for sequence in ends:
        scheduler.add(sequence)
    steps = run(scheduler, ends, cache)
    changes = [change for step in steps for change in step.changes]
    assert changes == [Move(1, 3, running=False), Move(2, 1, running=True)]
    again = new_sequence(range(2, 31))
    scheduler.add(again)
    run(scheduler, {again: 1}, cache)
    assert again.cached_tokens == 28


def test_texts_stay_where_gaps_do_not_matter() -> None:
    """Without contiguous_slots nothing moves."""
    scheduler = Scheduler(3, 3, chunk_size=100)
    ends = {new_sequence([i]): length for i, length in enumerate((9, 2, 9))}
    for sequence in ends:
        scheduler.add(sequence)
    changes = []
    while scheduler.busy:
        scheduled = scheduler.schedule()
        assert scheduled
        changes += scheduled.changes
        scheduler.computed(scheduled)
        for sequence in list(scheduler.running):
            sequence.tokens.append(7)
            if len(sequence.tokens) > ends[sequence]:
                scheduler.finish(sequence)
    assert changes == []


@pytest.mark.parametrize("can_truncate", [True, False])
def test_cells_beyond_the_tokens_of_a_slot_are_removed_first(can_truncate: bool) -> None:
    """A slot cut to fewer tokens than its memory holds is truncated before it is used again."""
    scheduler = Scheduler(1, 1, chunk_size=100, can_truncate=can_truncate)
    first = new_sequence([1, 2, 3, 4])
    scheduler.add(first)
    run(scheduler, {first: 1})
    scheduler.slots[0].keep(2)
    changes = []
    for _ in range(2):
        again = new_sequence([1, 2, 3, 4])
        scheduler.add(again)
        scheduled = scheduler.schedule()
        assert scheduled
        changes.append(scheduled.changes)
        scheduler.computed(scheduled)
        scheduler.finish(again)
    # A memory that cannot be cut is emptied; what it holds in the end is what was computed.
    assert changes[0] == [Truncate(0, 2 if can_truncate else 0)]
    assert scheduler.slots[0].tokens == [1, 2, 3, 4]
    assert not scheduler.slots[0].stale


def test_a_requeued_sequence_is_computed_anew() -> None:
    """It is the next one again, and the tokens of its slot count no more."""
    scheduler = Scheduler(2, 1, chunk_size=100)
    first = new_sequence([1, 2, 3, 4])
    scheduler.add(first)
    run(scheduler, {first: 1})
    again, later = new_sequence([1, 2, 3, 9]), new_sequence([5])
    scheduler.add(again)
    scheduler.add(later)
    assert scheduler.schedule()
    assert again.seq_id is not None
    assert again.cached_tokens == 3
    assert scheduler.requeue(again.seq_id) is again
    assert (again.seq_id, again.computed_tokens, again.cached_tokens) == (None, 0, 0)
    assert list(scheduler.waiting) == [again, later]
    scheduled = scheduler.schedule()
    assert scheduled
    assert scheduled.chunks == [Chunk(again, 0, 4)]
    assert scheduled.changes == []  # the other slot was never used
    assert scheduler.slots[0].stale


def test_what_its_tokens_do_not_bring_back_is_lost_with_the_cells() -> None:
    """A sequence with cells of several adapters, and a shifted one; the queue keeps its order."""
    scheduler = Scheduler(4, 4, chunk_size=64)
    sequences = [new_sequence([i, 2, 3, 4, 5, 6]) for i in range(5)]

    def step() -> None:
        scheduled = scheduler.schedule()
        assert scheduled
        scheduler.computed(scheduled)
        for sequence in scheduled.sequences:
            sequence.tokens.append(7)

    mixed, shifted, *others = sequences
    scheduler.add(mixed)
    step()
    scheduler.change_adapters("another")
    scheduler.add(shifted)
    step()
    step()
    scheduler.shift(shifted, 1, 3)
    for sequence in others:
        scheduler.add(sequence)
    scheduler.schedule()
    assert {mixed, shifted} == set(scheduler.forget_cells())
    assert sequences == list(scheduler.waiting)
    assert [0] * 5 == [sequence.computed_tokens for sequence in sequences]
    assert all(not slot.tokens and not slot.stale for slot in scheduler.slots)


def test_finish_takes_a_sequence_out_of_any_queue() -> None:
    """Waiting, prefilling or running: a finished sequence is gone and its slot free."""
    scheduler = Scheduler(1, 1, chunk_size=2)
    running, waiting = new_sequence(range(5)), new_sequence([1])
    scheduler.add(running)
    scheduler.add(waiting)
    scheduled = scheduler.schedule()
    assert scheduled
    scheduler.computed(scheduled)
    scheduler.finish(waiting)
    scheduler.finish(running)
    assert not scheduler.busy
    assert scheduler.slots[0].tokens == [0, 1]


@pytest.mark.parametrize(
    ("a", "b", "limit", "count"),
    [([], [], 5, 0), ([1, 2], [1, 2], 5, 2), ([1, 2, 3], [1, 2, 4], 9, 2), ([1, 2], [1, 2], 1, 1)],
)
def test_common_prefix(a: list[int], b: list[int], limit: int, count: int) -> None:
    """The number of equal first entries, at most the limit."""
    assert common_prefix(a, b, limit) == count


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix_equals_counting(a: list[int], b: list[int]) -> None:
    """Halving finds what counting finds."""
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b, 1000) == expected


@pytest.mark.parametrize("late", [False, True])
def test_forced_tokens_are_a_chunk(late: bool) -> None:
    """A running text with more than one token to compute is computed like a prompt, and goes on."""
    scheduler = Scheduler(2, 2, 8, contiguous_slots=late, defer_last_prompt_token=late)
    first, second = new_sequence([1, 2, 3]), new_sequence([4, 5])
    for sequence in (first, second):
        scheduler.add(sequence)
    cache = FakeCache()

    def step() -> list[Chunk]:
        scheduled = scheduler.schedule()
        assert scheduled is not None
        cache.apply(scheduled)
        chunks = chunks_of(scheduled)
        scheduler.computed(scheduled)
        return chunks

    def computed(sequence: Sequence) -> bool:
        return sequence.computed_tokens == len(sequence.tokens)

    while not (computed(first) and computed(second)):
        step()
    first.tokens += [6, 7, 8, 9, 10]
    second.tokens.append(11)
    scheduler.extend(first)
    assert scheduler.running == [second]
    sizes: dict[Sequence, int] = {}
    while sizes.keys() != {first, second}:
        for sequence, begin, end in step():
            sizes.setdefault(sequence, end - begin)
            if computed(sequence):
                sequence.tokens.append(12)
    assert sizes == {first: 5, second: 1}
    assert scheduler.running == [first, second]
    assert first.seq_id is not None
    assert cache.cells[first.seq_id] == first.tokens[: first.computed_tokens]


def test_a_decode_step_stays_the_same_while_its_members_stay() -> None:
    """The same object, also beside a queue that has no room; another one when a member ends."""
    scheduler = Scheduler(2, 2, chunk_size=100)
    first, second, third = (new_sequence([i]) for i in range(3))
    for sequence in (first, second, third):
        scheduler.add(sequence)

    def step() -> SchedulerOutput:
        scheduled = scheduler.schedule()
        assert scheduled
        scheduler.computed(scheduled)
        for sequence in scheduled.sequences:
            sequence.tokens.append(7)
        return scheduled

    assert step().phase == "prefill"
    steps = [step() for _ in range(3)]
    assert [first, second] == steps[0].sequences
    assert steps[0] is steps[1] is steps[2] is scheduler.decode_step
    scheduler.finish(first)
    assert scheduler.decode_step is None
    assert step().sequences == [third]
    assert set(step().sequences) == {second, third}


@pytest.mark.parametrize("failing", range(4))
def test_moves_are_undone_from_the_one_that_failed(failing: int) -> None:
    """Running sequences are where their cells are, and no slot claims cells that it lacks."""
    scheduler, cache = Scheduler(10, 8, chunk_size=100, contiguous_slots=True), FakeCache()
    sequences = [new_sequence([i, i, i, i]) for i in range(8)]
    for sequence in sequences:
        scheduler.add(sequence)
    while len(scheduler.running) < 8:
        scheduled = scheduler.schedule()
        assert scheduled
        cache.apply(scheduled)
        scheduler.computed(scheduled)
    for sequence in sequences:
        sequence.tokens.append(7)
    scheduler.finish(sequences[2])
    scheduler.finish(sequences[5])
    scheduled = scheduler.schedule()
    assert scheduled
    moves = [change for change in scheduled.changes if isinstance(change, Move)]
    assert {True, False} == {move.running for move in moves}
    assert 4 == len(moves)
    cache.apply(SchedulerOutput(list(moves[:failing]), []))
    for move in reversed(moves[failing:]):
        scheduler.undo_move(move)
    for slot in scheduler.slots:
        cells = cache.cells[slot.seq_id]
        assert slot.tokens == cells or (slot.stale and slot.tokens == cells[: len(slot.tokens)])
        assert slot.sequence is None or (slot.tokens and not slot.stale)


def test_evicted_slots_are_emptied_before_their_next_use() -> None:
    """Removing their cells may fail."""
    scheduler, cache = Scheduler(2, 2, chunk_size=100), FakeCache()
    first = new_sequence(range(10))
    scheduler.add(first)
    run(scheduler, {first: 1}, cache)
    assert [0] == scheduler.evict_cached_prefixes()
    again = new_sequence(range(10))
    scheduler.add(again)
    scheduler.add(other := new_sequence(range(20, 30)))
    scheduled = scheduler.schedule()
    assert scheduled
    assert [Truncate(0, 0)] == scheduled.changes
    assert 0 == again.cached_tokens == other.cached_tokens


def test_nothing_moves_before_a_cached_prefix_is_sure() -> None:
    """A sequence that starts over, because its slot cannot be truncated, is where it was put."""
    scheduler = Scheduler(3, 3, chunk_size=100, contiguous_slots=True, defer_last_prompt_token=True)
    ends = {new_sequence([10 * i, 10 * i + 1, 10 * i + 2]): n for i, n in enumerate((9, 2, 9), 1)}
    for sequence in ends:
        scheduler.add(sequence)
    first, middle, last = ends
    while not middle.ended:
        scheduled = scheduler.schedule()
        assert scheduled
        scheduler.computed(scheduled)
        for sequence in scheduled.sequences:
            if sequence.computed_tokens == len(sequence.tokens):
                sequence.tokens.append(7)
            if len(sequence.tokens) - 3 >= ends[sequence]:
                scheduler.finish(sequence)
    scheduler.finish(first)
    again = new_sequence([10, 11, 12])
    scheduler.add(again)
    scheduled = scheduler.schedule()
    assert scheduled
    assert scheduled.changes == [Truncate(0, 2)]
    assert scheduled.sequences == []
    assert scheduler.requeue(0) is again
    again.skip_prefix_cache = True
    cache = FakeCache()
    for slot in scheduler.slots:
        cache.cells[slot.seq_id] = [*slot.tokens]
    run(scheduler, {again: 2, last: 30}, cache, contiguous=True)
    assert again.cached_tokens == 0


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 3),
)
def test_waiting_by_priority(arrivals: list[tuple[int, bool]], parallel: int) -> None:
    """Slots go to the lowest number, of equal ones to the first: nobody overtakes an equal."""
    scheduler = Scheduler(parallel, parallel, 8)
    order: list[tuple[int, int]] = []
    running: list[Sequence] = []

    def step() -> None:
        scheduled = scheduler.schedule()
        if scheduled is None:
            return
        waiting = [s.params.priority for s in scheduler.waiting]
        for sequence in scheduled.sequences:
            if sequence not in running:
                running.append(sequence)
                order.append((sequence.params.priority, sequence.tokens[0]))
                assert all(priority >= sequence.params.priority for priority in waiting)
        scheduler.computed(scheduled)

    for number, (priority, steps) in enumerate(arrivals):
        scheduler.add(new_sequence([number, -1], priority=priority))
        if steps:
            step()
            for sequence in list(scheduler.running):
                scheduler.finish(sequence)
    while scheduler.busy:
        step()
        for sequence in list(scheduler.running):
            scheduler.finish(sequence)
    assert len(order) == len(arrivals)
    for priority in range(-2, 3):
        numbers = [number for level, number in order if level == priority]
        assert numbers == sorted(numbers)


def test_a_sequence_that_had_a_slot_is_not_overtaken() -> None:
    """After a failure it waits at the head, whatever its priority."""
    scheduler = Scheduler(1, 1, 8)
    first = new_sequence([1, 2], priority=5)
    scheduler.add(first)
    scheduled = scheduler.schedule()
    assert scheduled is not None
    assert first.seq_id is not None
    scheduler.requeue(first.seq_id)
    scheduler.add(new_sequence([3, 4], priority=-1))
    assert scheduler.waiting[0] is first
