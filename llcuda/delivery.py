"""From sampled tokens to results: texts, stops, ends, and who is told.

The half of the engine's worker that knows requests; `worker` computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from llcuda.completion import StepSums, TokenLogprob
from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.native.context import Context
from llcuda.reporter import Reporter, Spent
from llcuda.request import Request, RequestParams, wake
from llcuda.scheduler import Job, Plan, Scheduler
from llcuda.speculation import Drafter

now = time.perf_counter


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
        """Add a sampled token to its request, and end the request where it ends."""
        request: Request = job.request
        if isinstance(token, BaseException):
            self._fail(request, token)
            return
        params = request.params
        if token in self._ends or token in params.stop_tokens:
            self._finish(request, "stop")
            return
        if params.guide is not None:
            try:
                params.guide.accept(token)
            except BaseException as error:  # sys.exit() in a guide ends its text only
                self._fail(request, error)
                return
        request.tokens.append(token)
        job.tokens.append(token)
        if params.logprobs is not None:
            request.logprobs.append(self._logprob(token, index, params.logprobs))
        last = len(request.tokens) >= params.max_tokens
        full = len(job.tokens) >= self._limit
        if self._overlaps and not last and not full:
            self._undelivered.append(job)
        elif request.deliver(self.model.piece_bytes(token)):
            self._finish(request, "stop", stopped=True)
        elif last:
            self._finish(request, "length")
        elif full and not self._shift(job, params):
            self._finish(request, "context")

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
            if request.deliver(self.model.piece_bytes(request.tokens[-1])):
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
