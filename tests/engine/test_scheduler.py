"""The scheduler on plain data: a dictionary plays the KV cache, numbers play the tokens."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda.engine.scheduler import Job, Plan, Scheduler, common_prefix


class FakeCache:
    """What the KV cache would hold, and the checks that a real one cannot make."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = defaultdict(list)

    def apply(self, plan: Plan) -> None:
        """Do what a step does to the cache."""
        for kind, *arguments in plan.changes:
            if kind == "copy":
                source, target, count = arguments
                assert len(self.cells[source]) >= count
                self.cells[target] = self.cells[source][:count]
            elif kind in ("move", "save"):
                source, target = arguments
                self.cells[target] = self.cells.pop(source, [])
            else:
                seq, keep = arguments
                assert len(self.cells[seq]) >= keep
                del self.cells[seq][keep:]
        seqs = [job.slot.seq for job, _, _ in plan.rows if job.slot]
        assert len(seqs) == len(set(seqs)) == len(plan.rows)
        for job, begin, end in plan.rows:
            assert job.slot
            assert end > begin == len(self.cells[job.slot.seq])
            self.cells[job.slot.seq] += job.tokens[begin:end]
            assert self.cells[job.slot.seq] == job.tokens[:end]


def run(
    scheduler: Scheduler, lengths: dict[Job, int], cache: FakeCache | None = None
) -> list[Plan]:
    """Run until every job has its number of tokens; a token is the count of those before it.

    Running texts must lie in neighbouring slots, where that is asked for.
    """
    cache = cache or FakeCache()
    plans: list[Plan] = []
    while scheduler.busy:
        assert len(plans) < 10_000
        plan = scheduler.plan()
        assert plan is not None
        plans.append(plan)
        cache.apply(plan)
        if plan.decode and scheduler._dense:
            seqs = [job.seq for job, _, _ in plan.rows]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        scheduler.computed(plan.rows)
        for job, _, end in plan.rows:
            if end < len(job.tokens):
                continue
            job.tokens.append(1000 + len(job.tokens))
            if len(job.tokens) - job.prompt_size >= lengths[job]:
                scheduler.finish(job)
    return plans


jobs = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 12)),
    min_size=1,
    max_size=20,
)


@given(
    jobs, st.integers(1, 4), st.integers(0, 3), st.integers(1, 16), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_every_job_is_computed_whole(
    given_jobs: list[tuple[list[int], int]],
    parallel: int,
    kept: int,
    chunk: int,
    trims: bool,
    copies: bool,
    late: bool,
) -> None:
    """Whatever comes, each job's cells hold its own text, and it ends."""
    scheduler = Scheduler(parallel + kept, parallel, chunk, trims, copies, late, late)
    lengths = {Job(prompt): length for prompt, length in given_jobs}
    for job in lengths:
        scheduler.add(job)
    plans = run(scheduler, lengths)
    assert all(len(job.tokens) == job.prompt_size + n for job, n in lengths.items())
    assert all(len(plan.rows) <= parallel for plan in plans)
    most = max(chunk, parallel)  # a row each, where prompts lie between running texts
    assert all(sum(end - begin for _, begin, end in p.rows) <= most for p in plans if not p.decode)


def test_a_long_prompt_delays_running_texts_by_one_chunk() -> None:
    """Between two chunks of a prompt every running text gets its token."""
    scheduler = Scheduler(2, 2, chunk=10)
    short, long = Job([1, 2]), Job(range(50))
    scheduler.add(short)
    first = scheduler.plan()
    assert first
    scheduler.computed(first.rows)
    short.tokens.append(7)
    scheduler.add(long)
    kinds = []
    while not long.prefilled:
        plan = scheduler.plan()
        assert plan
        kinds.append(plan.decode)
        scheduler.computed(plan.rows)
        if plan.decode:
            short.tokens.append(7)
    assert kinds == [True, False] * 5


def test_a_prompt_that_begins_alike_computes_only_the_rest() -> None:
    """A finished text is kept; the next prompt reuses its beginning, but not its own last token."""
    scheduler, cache = Scheduler(2, 1, chunk=100), FakeCache()
    first, second, third = Job([1, 2, 3, 4]), Job([1, 2, 3, 9]), Job([1, 2, 3, 4])
    for job in (first, second, third):
        scheduler.add(job)
        run(scheduler, {job: 2}, cache)
    assert [job.reused for job in (first, second, third)] == [0, 3, 3]


def test_the_least_recently_used_text_is_given_up() -> None:
    """Without a common beginning, the slot that was used longest ago is taken."""
    scheduler, cache = Scheduler(2, 1, chunk=100), FakeCache()
    texts = [[1, 1, 1], [2, 2, 2], [1, 1, 1, 5], [3, 3, 3], [1, 1, 1, 6]]
    reused = []
    for text in texts:
        job = Job(text)
        scheduler.add(job)
        run(scheduler, {job: 1}, cache)
        reused.append(job.reused)
    assert reused == [0, 0, 3, 0, 3]


def test_completions_of_one_prompt_share_its_prefill() -> None:
    """Jobs after another wait for its prefill and copy it."""
    scheduler = Scheduler(3, 3, chunk=4)
    first = Job(range(10))
    rest = [Job(range(10), after=first) for _ in range(2)]
    for job in (first, *rest):
        scheduler.add(job)
    plans = run(scheduler, dict.fromkeys((first, *rest), 3))
    assert [job.reused for job in rest] == [9, 9]
    assert sum(end - begin for p in plans if not p.decode for _, begin, end in p.rows) == 12


def test_recurrent_memory_reuses_only_whole_texts() -> None:
    """What cannot be trimmed serves only a prompt that continues it."""
    scheduler, cache = Scheduler(1, 1, chunk=100, trims=False, copies=False), FakeCache()
    first = Job([1, 2, 3])
    scheduler.add(first)
    run(scheduler, {first: 1}, cache)
    continued, other = Job([1, 2, 3, 4, 5]), Job([1, 2, 9])
    for job, reused in ((continued, 3), (other, 0)):
        scheduler.add(job)
        run(scheduler, {job: 1}, cache)
        assert job.reused == reused


def test_the_fewest_texts_move_where_one_ends() -> None:
    """A gap is closed by one move, at once, from the end that lies further off."""
    scheduler, cache = Scheduler(5, 5, chunk=100, dense=True), FakeCache()
    ends = {Job([i]): length for i, length in enumerate((30, 3, 30, 10, 30))}
    for job in ends:
        scheduler.add(job)
    plans = run(scheduler, ends, cache)
    changes = [change for plan in plans for change in plan.changes]
    assert [change for change in changes if change[0] == "move"] == [("move", 0, 1), ("move", 4, 3)]


def test_a_kept_text_makes_way_to_an_empty_slot() -> None:
    """What a move would overwrite is saved where there is room, and reused from there."""
    scheduler, cache = Scheduler(5, 3, chunk=100, dense=True), FakeCache()
    first, middle, last = Job([1]), Job(range(2, 30)), Job([2])
    ends = {first: 20, middle: 2, last: 20}
    for job in ends:
        scheduler.add(job)
    plans = run(scheduler, ends, cache)
    changes = [change for plan in plans for change in plan.changes]
    assert changes == [("save", 1, 3), ("move", 2, 1)]
    again = Job(range(2, 31))
    scheduler.add(again)
    run(scheduler, {again: 1}, cache)
    assert again.reused == 28


def test_texts_stay_where_gaps_do_not_matter() -> None:
    """Without dense nothing moves."""
    scheduler = Scheduler(3, 3, chunk=100)
    ends = {Job([i]): length for i, length in enumerate((9, 2, 9))}
    for job in ends:
        scheduler.add(job)
    changes = []
    while scheduler.busy:
        plan = scheduler.plan()
        assert plan
        changes += plan.changes
        scheduler.computed(plan.rows)
        for job in list(scheduler.running):
            job.tokens.append(7)
            if len(job.tokens) > ends[job]:
                scheduler.finish(job)
    assert changes == []


@pytest.mark.parametrize("trims", [True, False])
def test_what_a_slot_holds_beyond_its_tokens_is_forgotten_first(trims: bool) -> None:
    """A slot cut to fewer tokens than its memory holds is trimmed before it is used again."""
    scheduler = Scheduler(1, 1, chunk=100, trims=trims)
    first = Job([1, 2, 3, 4])
    scheduler.add(first)
    run(scheduler, {first: 1})
    scheduler.slots[0].keep(2)
    changes = []
    for _ in range(2):
        again = Job([1, 2, 3, 4])
        scheduler.add(again)
        plan = scheduler.plan()
        assert plan
        changes.append(plan.changes)
        scheduler.computed(plan.rows)
        scheduler.finish(again)
    # A memory that cannot be cut is emptied; what it holds in the end is what was computed.
    assert changes[0] == [("trim", 0, 2 if trims else 0)]
    assert scheduler.slots[0].tokens == [1, 2, 3, 4]
    assert not scheduler.slots[0].stale


def test_a_returned_slot_is_used_anew() -> None:
    """Its job is the next one again, and what the slot held counts no more."""
    scheduler = Scheduler(2, 1, chunk=100)
    first = Job([1, 2, 3, 4])
    scheduler.add(first)
    run(scheduler, {first: 1})
    again, later = Job([1, 2, 3, 9]), Job([5])
    scheduler.add(again)
    scheduler.add(later)
    assert scheduler.plan()
    assert again.slot
    assert again.reused == 3
    assert scheduler.return_slot(again.seq) is again
    assert (again.slot, again.done, again.reused) == (None, 0, 0)
    assert list(scheduler.waiting) == [again, later]
    plan = scheduler.plan()
    assert plan
    assert plan.rows == [(again, 0, 4)]
    assert plan.changes == []  # the other slot was never used
    assert scheduler.slots[0].stale


def test_finish_takes_a_job_out_of_any_queue() -> None:
    """Waiting, prefilling or running: a finished job is gone and its slot free."""
    scheduler = Scheduler(1, 1, chunk=2)
    running, waiting = Job(range(5)), Job([1])
    scheduler.add(running)
    scheduler.add(waiting)
    plan = scheduler.plan()
    assert plan
    scheduler.computed(plan.rows)
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
    scheduler = Scheduler(2, 2, 8, dense=late, late=late)
    first, second = Job([1, 2, 3]), Job([4, 5])
    for job in (first, second):
        scheduler.add(job)
    cache = FakeCache()

    def step() -> Plan:
        plan = scheduler.plan()
        assert plan is not None
        cache.apply(plan)
        scheduler.computed(plan.rows)
        return plan

    while not (first.done == len(first.tokens) and second.done == len(second.tokens)):
        step()
    first.tokens += [6, 7, 8, 9, 10]
    second.tokens.append(11)
    scheduler.extend(first)
    assert scheduler.running == [second]
    sizes: dict[Job, int] = {}
    while first.done < len(first.tokens) or second.done < len(second.tokens):
        for job, begin, end in step().rows:
            sizes.setdefault(job, end - begin)
    assert sizes == {first: 5, second: 1}
    assert scheduler.running == [first, second]
    assert cache.cells[first.seq] == first.tokens
