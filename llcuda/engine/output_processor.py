"""From sampled tokens to results: texts, stops, ends, and who is told.

The half of the engine's worker that knows requests; `worker` computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from llcuda.engine.outputs import StepSums, TokenLogprob
from llcuda.engine.reporter import Reporter, Spent
from llcuda.engine.request import Request, RequestParams, wake
from llcuda.engine.scheduler import Job, Plan, Scheduler
from llcuda.engine.speculation import Drafter
from llcuda.errors import ArgumentError, LlcudaError, UnsupportedError
from llcuda.guide import Follower
from llcuda.native.context import Context

now = time.perf_counter
JUMP_TEXTS = 8  # with more texts at once forced tokens are not computed ahead
JUMP_TOKENS = 1  # forced tokens for each text at once that make a chunk worth its step


class Delivery:
    """The requests in an engine. overlaps: tokens are delivered while the next step computes."""

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        speculation: int,
        on_leave: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        self.context = context
        self.model = context.model
        self.requests: set[Request] = set()
        self._left: list[Any] = []  # samplers of requests that ended in the last step
        self._scheduler = scheduler
        self._speculation = speculation
        self._on_leave = on_leave
        self._reporter = reporter
        self._limit = context.ctx_size
        self._overlaps = context.params.device_logits
        self._undelivered: list[Job] = []
        self._unreported: tuple[Plan, float, Spent] | None = None
        self._ends = self.model.eog_tokens
        self._with_deadline: set[Request] = set()
        self._sums = StepSums()

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return self._scheduler.busy

    def accept(self, request: Request) -> None:
        """Take a request into the queue."""
        guide = request.params.guide
        taken = guide is not None and any(r.params.guide is guide for r in self.requests)
        self.requests.add(request)
        if taken:
            self._fail(request, ArgumentError("this guide follows another text at present"))
            return
        if request.params.timeout is not None:
            self._with_deadline.add(request)
        if guide is not None:
            request.follower = Follower(guide, self.model.vocab_size)
        if self._speculation:
            request.drafter = Drafter(self._speculation)
        self._scheduler.add(request.job)

    def cancel(self, request: Request) -> None:
        """End a request with what it has; nothing when it has ended."""
        self._deliver()
        self._finish(request, "cancelled")

    def fail_all(self, error: BaseException) -> None:
        """End every request with an exception."""
        self._undelivered.clear()
        for request in list(self.requests):
            self._fail(request, error)
        self._close_samplers()

    def _admit(self, request: Request) -> None:
        """Note that a request waits no longer."""
        if not request.times.admitted:
            request.times.admitted = now()

    def _first(self, request: Request, token: Any, sampled: float, sampling: float) -> None:
        """Note a text's first token; what was spent on sampling it is its own."""
        if not request.times.first_token and not isinstance(token, Exception):
            request.times.first_token, request.since = sampled, self._sums.mark()
            request.since.sample_seconds -= sampling

    # --- tokens ---

    def _take(self, job: Job, token: Any, index: int) -> None:
        """Add a token to its request, and what is forced to follow; end it where it ends."""
        request: Request = job.request
        params = request.params
        if not self._add(job, token):
            return
        if params.logprobs is not None:
            request.logprobs.append(self._logprob(token, index, params.logprobs))
        last = self._is_last(job)
        forced = self._look_ahead(job, last) if request.follower is not None else ()
        if job.slot is None:
            return
        if self._overlaps and not last and not forced:
            self._undelivered.append(job)
        elif self._show(job, forced) and forced:
            self._run_ahead(job, forced)

    def _add(self, job: Job, token: Any) -> bool:
        """Add a token; False when the request has ended with it."""
        request: Request = job.request
        if isinstance(token, BaseException):
            self._fail(request, token)
            return False
        if self._is_end(request, token):
            self._finish(request, "stop")
            return False
        if request.follower is not None:
            try:
                request.follower.accept(token)
            except BaseException as error:  # sys.exit() in a guide ends its text only
                self._fail(request, error)
                return False
        request.tokens.append(token)
        job.tokens.append(token)
        return True

    def _is_end(self, request: Request, token: int) -> bool:
        return token in self._ends or token in request.params.stop_tokens

    def _is_last(self, job: Job) -> bool:
        """Whether a text has no room for another token."""
        full = len(job.tokens) >= self._limit
        return full or len(job.request.tokens) >= job.request.params.max_tokens

    def _last_piece(self, request: Request) -> bytes:
        token = request.tokens[-1]
        return self.model.piece_bytes(token, token in request.params.shown_tokens)

    def _show(self, job: Job, forced: Sequence[int] = ()) -> bool:
        """Deliver the last token, and what `forced` follows; False when the request has ended."""
        request: Request = job.request
        if request.deliver(self._last_piece(request)):
            self._finish(request, "stop", stopped=True)
        elif forced and self._is_end(request, forced[0]):
            self._finish(request, "stop")
        elif len(request.tokens) >= request.params.max_tokens:
            self._finish(request, "length")
        elif len(job.tokens) >= self._limit and not self._shift(job, request.params):
            self._finish(request, "context")
        return job.slot is not None

    # --- forced tokens ---

    def _forced(self, job: Job) -> Sequence[int]:
        """Return the tokens that come next without a choice; a guide that fails ends its text."""
        try:
            return job.request.follower.forced()  # type: ignore[no-any-return]
        except BaseException as error:  # sys.exit() in a guide ends its text only
            self._fail(job.request, error)
            return ()

    def _look_ahead(self, job: Job, last: bool) -> Sequence[int]:
        """Return forced tokens when they are to be taken at once, or when the first is an end.

        As a chunk they cost each other text a step, and spare this one a step each. Otherwise the
        guide is asked while the next step computes.
        """
        texts = len(self._scheduler.running)
        if texts > JUMP_TEXTS and not last:
            return ()
        forced = self._forced(job)
        if not forced or self._is_end(job.request, forced[0]):
            return forced
        params = job.request.params
        full = len(job.tokens) + len(forced) >= self._limit
        worth = len(forced) >= JUMP_TOKENS * texts
        scored = params.logprobs is not None or params.echo or job.fresh
        return forced if worth and not (last or full or scored) else ()

    def _run_ahead(self, job: Job, forced: Sequence[int]) -> None:
        """Add forced tokens to a text, and have them computed as one chunk."""
        request: Request = job.request
        while forced and len(job.tokens) + 1 < self._limit:
            try:
                request.sampler.accept(forced[0], self.model)
            except LlcudaError as error:
                self._fail(request, error)
                return
            if not self._add(job, forced[0]):
                return
            request.forced_tokens += 1
            forced = self._forced(job)
            if job.slot is None or not self._show(job, forced):
                return
        self._scheduler.extend(job)
        self._members_changed()

    def _deliver(self) -> None:
        """Deliver the tokens of the step before, and report it."""
        if self._unreported is not None:
            report, self._unreported = self._unreported, None
            self._reporter.step(*report)
        if not self._undelivered:
            return
        jobs, self._undelivered = self._undelivered, []
        for job in jobs:
            request: Request = job.request
            if request.deliver(self._last_piece(request)):
                self._finish(request, "stop", stopped=True)
        self._wake_readers(jobs)

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
        except UnsupportedError as error:
            self._fail(request, error)
            return True
        del job.tokens[keep : keep + drop], job.slot.tokens[keep : keep + drop]
        job.done -= drop
        job.prompt_size = min(job.prompt_size, job.done)
        request.shifted_keep = keep
        if request.drafter is not None:  # what it knows of are places in the whole text
            request.drafter = Drafter(self._speculation)
        return True

    def _logprob(self, token: int, index: int, n: int) -> TokenLogprob:
        [(value, top)] = self.context.logprobs([token], [index], n)
        return TokenLogprob(token, value, top)

    def _echo(self, job: Job, begin: int, end: int, row: int) -> None:
        """Report the prompt's own tokens: each by the logits of the one before.

        A request that asks for no more than that has ended.
        """
        request: Request = job.request
        tokens = job.tokens[begin + 1 : min(end + 1, job.prompt_size)]
        indices = range(row, row + len(tokens))
        found = self.context.logprobs(tokens, indices, request.params.logprobs or 0)
        for token, (value, top) in zip(tokens, found, strict=True):
            request.prompt_logprobs.append(TokenLogprob(token, value, top))
        if end == job.prompt_size and not request.params.max_tokens:
            self._finish(request, "length")

    # --- ends ---

    def _wake_readers(self, jobs: Sequence[Job]) -> None:
        readers = [waiter for job in jobs for waiter in job.request.take_readers()]
        if readers:
            wake(readers)

    def _end_overdue(self) -> None:
        self._deliver()
        for request in list(self._with_deadline):
            timeout = request.params.timeout
            if timeout is not None and now() - request.times.submitted >= timeout:
                self._finish(request, "timeout")

    def _leave(self, request: Request) -> bool:
        """Take a request out of everything here; False when it has left before."""
        if request not in self.requests:
            return False
        self.requests.discard(request)
        self._left.append(request.sampler)
        self._with_deadline.discard(request)
        self._on_leave()
        slot = request.job.slot
        self._scheduler.finish(request.job)
        if slot is not None:
            self._members_changed()
            if request.shifted_keep is not None:
                # What follows the kept tokens was computed with what was dropped.
                slot.keep(request.shifted_keep)
        return True

    def _close_samplers(self) -> None:
        """Free the samplers of ended requests, which hold the model; not while a step uses them."""
        for sampler in self._left:
            sampler.close()
        self._left.clear()

    def _members_changed(self) -> None:
        """Called when a text leaves its slot."""

    def _finish(self, request: Request, reason: str, stopped: bool = False) -> None:
        if self._leave(request):
            request.complete(reason, stopped)
            self._reporter.finished(request.record(self._sums))
            request.end()

    def _fail(self, request: Request, error: BaseException) -> None:
        if self._leave(request):
            request.fail(error)
            self._reporter.failed(request.record(self._sums), error)
            request.end()

    def _drop(self, plan: Plan, error: Exception) -> None:
        """Fail the requests of a step that could not be computed; the others go on."""
        self._deliver()
        for job, _, _ in plan.rows:
            if job.slot is not None:
                job.slot.keep(0)
            self._fail(job.request, error)
