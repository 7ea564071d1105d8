"""The engine's step: plan, decode, sample, deliver.

Runs on one thread, the engine's. Knows the library through Context and Rows, the caller through
Request, and decides nothing: that is the scheduler's part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from llcuda.errors import DecodeError, LlcudaError, NoRoomError, UnsupportedError
from llcuda.metrics import Metrics, RequestRecord, StepRecord
from llcuda.native.context import Context
from llcuda.native.rows import Rows
from llcuda.request import Completion, Request, RequestParams, TokenLogprob, wake
from llcuda.scheduler import Job, Plan, Scheduler
from llcuda.speculation import Drafter

logger = logging.getLogger("llcuda.engine")


class Worker:
    """Computes requests on `context`, at most `parallel` at a time.

    chunk: most prompt tokens of one step. speculation: most tokens guessed per step. on_admit:
    called when a request leaves the queue. on_step, on_request: see Engine.
    """

    def __init__(
        self,
        context: Context,
        parallel: int,
        chunk: int,
        speculation: int,
        metrics: Metrics,
        on_admit: Callable[[], None],
        on_step: Callable[[StepRecord], None] | None = None,
        on_request: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self.context = context
        self.model = context.model
        self.requests: set[Request] = set()
        self._limit = context.ctx_size
        self._metrics = metrics
        self._on_admit, self._on_step, self._on_request = on_admit, on_step, on_request
        can_trim = not (self.model.is_recurrent or self.model.is_hybrid)
        self._speculation = speculation if can_trim else 0
        self._scheduler = Scheduler(
            context.params.sequences,
            parallel,
            chunk,
            trims=can_trim,
            copies=can_trim,
        )
        self._ends = self.model.eog_tokens
        self._with_deadline: list[Request] = []
        # Each running text's share of sampling and of delivery, summed over decode steps.
        self._sample_share = self._deliver_share = 0.0
        self._rows: Rows | None = None
        self._rows_of: list[Job] = []

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return self._scheduler.busy

    def accept(self, request: Request) -> None:
        """Take a request into the queue."""
        self.requests.add(request)
        if request.params.timeout is not None:
            self._with_deadline.append(request)
        if self._speculation:
            request.drafter = Drafter(self._speculation)
        self._scheduler.add(request.job)

    def cancel(self, request: Request) -> None:
        """End a request with what it has; nothing when it has ended."""
        self._finish(request, "cancelled")

    def fail_all(self, error: BaseException) -> None:
        """End every request with an exception."""
        for request in list(self.requests):
            self._fail(request, error)

    def step(self) -> None:
        """Plan, decode, sample, deliver: once."""
        if self._with_deadline:
            self._end_overdue()
        plan = self._scheduler.plan()
        if plan is None:
            return
        started = time.perf_counter()
        sampled = 0.0
        try:
            undone = [change for change in plan.changes if not self._change(*change)]
            if undone or not plan.rows:
                return  # what could not be reused is computed from the start: plan again
            sampled = self._decode(plan) if plan.decode else self._prefill(plan)
        except Exception as error:
            if not isinstance(error, DecodeError):
                logger.exception("a step of the engine failed")
            self._drop(plan, error)
        self._record_step(plan, time.perf_counter() - started, sampled)

    def _change(self, kind: str, *arguments: int) -> bool:
        """Make a change of the plan; False when this memory cannot, and the slot is empty now."""
        memory = self.context.memory
        seq, keep = arguments[-2:]
        try:
            if kind == "copy":
                memory.copy(arguments[0], seq)  # whole: split KV shares no part of a sequence
            memory.remove(seq, keep)
        except UnsupportedError:
            memory.remove(seq)
            job = self._scheduler.slots[seq].job
            if job is not None:
                self._scheduler.restart(job)
            return False
        return True

    def _prefill(self, plan: Plan) -> float:
        """Compute a chunk of prompts; sample for those that are whole now."""
        tokens: list[int] = []
        seqs: list[int] = []
        flags: list[int] = []
        ready: list[tuple[Job, int]] = []
        now = time.perf_counter()
        for job, begin, end in plan.rows:
            request: Request = job.request
            if not request.times.admitted:
                request.times.admitted = now
                request.shares = (self._sample_share, self._deliver_share)
                self._on_admit()
            tokens += job.tokens[begin:end]
            seqs += [job.seq] * (end - begin)
            flags += [int(request.params.echo)] * (end - begin)
            if end == job.prompt_size:
                flags[-1] = 1
                ready.append((job, len(tokens) - 1))
        self._compute(tokens, seqs, flags)
        self._scheduler.computed(plan.rows)
        row = 0
        for job, begin, end in plan.rows:
            if job.request.params.echo:
                self._echo(job, begin, end, row)
            row += end - begin
        started = time.perf_counter()
        if ready:
            rows = Rows(self.context, [job.request.sampler for job, _ in ready])
            chosen = rows.sample([index for _, index in ready])
            taken = time.perf_counter() - started
            for (job, index), token in zip(ready, chosen, strict=True):
                self._take(job, token, index)
            self._wake_readers(job for job, _ in ready)
            return taken
        return 0.0

    def _decode(self, plan: Plan) -> float:
        """Compute one token of each running text, and what is guessed to follow it."""
        jobs = [job for job, _, _ in plan.rows]
        if self._speculation:
            drafts = [job.request.drafter.draft(job.tokens)[: self._room(job)] for job in jobs]
            if any(drafts):
                return self._decode_drafts(jobs, drafts)
        self._compute([job.tokens[-1] for job in jobs], [job.seq for job in jobs], None)
        self._scheduler.computed(plan.rows)
        if self._rows is None or jobs != self._rows_of:
            self._rows = Rows(self.context, [job.request.sampler for job in jobs])
            self._rows_of = jobs
        started = time.perf_counter()
        chosen = self._rows.sample()
        taken = time.perf_counter() - started
        for i, (job, token) in enumerate(zip(jobs, chosen, strict=True)):
            self._take(job, token, i)
        self._wake_readers(jobs)
        self._share(taken, time.perf_counter() - started - taken, len(jobs))
        return taken

    def _share(self, sampled: float, delivered: float, rows: int) -> None:
        self._sample_share += sampled / rows
        self._deliver_share += delivered / rows

    def _room(self, job: Job) -> int:
        left: int = job.request.params.max_tokens - len(job.request.tokens) - 1
        return max(0, min(left, self._limit - len(job.tokens) - 1))

    def _decode_drafts(self, jobs: Sequence[Job], drafts: Sequence[list[int]]) -> float:
        """Compute the rows of guesses too; keep those that sampling confirms."""
        tokens: list[int] = []
        seqs: list[int] = []
        for job, draft in zip(jobs, drafts, strict=True):
            tokens += [job.tokens[-1], *draft]
            seqs += [job.seq] * (1 + len(draft))
        self._compute(tokens, seqs, None)
        taken, row, entered = 0.0, 0, time.perf_counter()
        for job, draft in zip(jobs, drafts, strict=True):
            begin = job.done
            seq = job.seq
            right = 0
            while True:
                started = time.perf_counter()
                try:
                    token: Any = job.request.sampler.sample(self.context, row + right)
                except Exception as error:
                    token = error
                taken += time.perf_counter() - started
                confirmed = right < len(draft) and token == draft[right]
                self._scheduler.computed([(job, job.done, job.done + 1)])
                self._take(job, token, row + right)
                if not confirmed or job.slot is None:
                    break
                right += 1
            row += 1 + len(draft)
            job.request.drafter.judge(len(draft), right, len(job.tokens))
            if right < len(draft) or job.slot is None:
                self.context.memory.remove(seq, begin + 1 + right)
        self._wake_readers(jobs)
        self._share(taken, time.perf_counter() - entered - taken, len(jobs))
        return taken

    def _compute(self, tokens: list[int], seqs: list[int], flags: list[int] | None) -> None:
        """Decode; when the cache is full, give up the kept texts and try once more."""
        try:
            self.context.decode_batch(tokens, seqs, None, flags)  # type: ignore[arg-type]
        except NoRoomError:
            for slot in self._scheduler.slots:
                if slot.job is None and slot.tokens:
                    self.context.memory.remove(slot.seq)
                    slot.tokens.clear()
            self.context.decode_batch(tokens, seqs, None, flags)  # type: ignore[arg-type]

    def _take(self, job: Job, token: Any, index: int) -> None:
        """Add a sampled token to its request, and end the request where it ends."""
        request: Request = job.request
        if isinstance(token, BaseException):
            self._fail(request, token)
            return
        params = request.params
        if not request.times.first_token:
            request.times.first_token = time.perf_counter()
        if token in self._ends or token in params.stop_tokens:
            self._finish(request, "stop")
            return
        request.tokens.append(token)
        job.tokens.append(token)
        if params.logprobs is not None:
            request.logprobs.append(self._logprob(token, index, params.logprobs))
        if request.deliver(self.model.piece_bytes(token)):
            self._finish(request, "stop", stopped=True)
        elif len(request.tokens) >= params.max_tokens:
            self._finish(request, "length")
        elif len(job.tokens) >= self._limit and not self._shift(job, params):
            self._finish(request, "context")

    def _shift(self, job: Job, params: RequestParams) -> bool:
        """Drop the older half of a full text, if asked for; the positions close up."""
        if params.overflow != "shift" or job.slot is None:
            return False
        request: Request = job.request
        keep = min(max(params.keep, int(self.model.adds_bos)), self._limit // 2)
        drop = (job.done - keep) // 2
        memory, seq = self.context.memory, job.slot.seq
        try:
            memory.remove(seq, keep, keep + drop)
            memory.shift(-drop, seq, keep + drop)
        except LlcudaError as error:
            self._fail(request, error)
            return True
        del job.tokens[keep : keep + drop], job.slot.tokens[keep : keep + drop]
        job.done -= drop
        job.prompt_size = min(job.prompt_size, job.done)
        request.shifted_keep = keep
        return True

    def _logprob(self, token: int, index: int, n: int) -> TokenLogprob:
        [(value, top)] = self.context.logprobs([token], [index], n)
        return TokenLogprob(token, value, top)

    def _echo(self, job: Job, begin: int, end: int, row: int) -> None:
        """Report the prompt's own tokens: each by the logits of the one before."""
        request: Request = job.request
        tokens = job.tokens[begin + 1 : min(end + 1, job.prompt_size)]
        indices = range(row, row + len(tokens))
        found = self.context.logprobs(tokens, indices, request.params.logprobs or 0)
        for token, (value, top) in zip(tokens, found, strict=True):
            request.prompt_logprobs.append(TokenLogprob(token, value, top))

    # --- ends ---

    def _wake_readers(self, jobs: Any) -> None:
        readers = [waiter for job in jobs for waiter in job.request.take_readers()]
        if readers:
            wake(readers)

    def _end_overdue(self) -> None:
        now = time.perf_counter()
        for request in list(self._with_deadline):
            timeout = request.params.timeout
            if request.done:
                self._with_deadline.remove(request)
            elif timeout is not None and now - request.times.submitted >= timeout:
                self._finish(request, "timeout")

    def _leave(self, request: Request) -> bool:
        """Take a request out of every queue; False when it has left before."""
        if request not in self.requests:
            return False
        self.requests.discard(request)
        if not request.times.admitted:
            self._on_admit()
        slot = request.job.slot
        self._scheduler.finish(request.job)
        if slot is not None and request.shifted_keep is not None:
            # What comes after the kept tokens still depends on what was dropped: not to be reused.
            self.context.memory.remove(slot.seq, request.shifted_keep)
            del slot.tokens[request.shifted_keep :]
        return True

    def _finish(self, request: Request, reason: str, stopped: bool = False) -> None:
        if self._leave(request):
            self._record_request(request, request.complete(reason, stopped))

    def _fail(self, request: Request, error: BaseException) -> None:
        if self._leave(request):
            self._metrics.record_error(type(error).__name__)
            request.fail(error)

    def _drop(self, plan: Plan, error: Exception) -> None:
        """Fail the requests of a step that could not be computed; the others go on."""
        for job, _, _ in plan.rows:
            if job.slot is not None:
                self.context.memory.remove(job.seq)
                job.slot.tokens.clear()
            self._fail(job.request, error)

    # --- reports ---

    def _record_step(self, plan: Plan, seconds: float, sampled: float) -> None:
        record = StepRecord(
            phase="decode" if plan.decode else "prefill",
            rows=len(plan.rows),
            tokens=sum(end - begin for _, begin, end in plan.rows),
            decode_seconds=seconds - sampled,
            sample_seconds=sampled,
        )
        self._metrics.record_step(record)
        self._call(self._on_step, record)

    def _record_request(self, request: Request, done: Completion) -> None:
        first = request.times.first_token
        if not request.times.admitted:
            request.shares = (self._sample_share, self._deliver_share)
        record = RequestRecord(
            prompt_tokens=done.prompt_tokens,
            reused_tokens=done.reused_tokens,
            generated_tokens=len(done.tokens),
            queue_seconds=done.queue_seconds,
            prefill_seconds=done.prefill_seconds,
            decode_seconds=done.decode_seconds,
            sample_seconds=self._sample_share - request.shares[0],
            detokenize_seconds=self._deliver_share - request.shares[1],
            time_to_first_token_seconds=first - request.times.submitted if first else None,
            latency_seconds=done.latency_seconds,
            finish_reason=done.finish_reason,
        )
        self._metrics.record_request(record)
        self._call(self._on_request, record)

    def _call(self, hook: Callable[[Any], None] | None, record: Any) -> None:
        if hook is not None:
            try:
                hook(record)
            except BaseException:  # sys.exit() in a hook is no reason to stop either
                logger.exception("a hook of the engine raised")
