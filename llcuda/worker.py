"""The engine's step: plan, decode, sample, deliver.

Runs on one thread, the engine's. Knows the library through Context and Rows, the caller through
Request, and decides nothing: that is the scheduler's part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from llcuda.completion import StepSums, TokenLogprob
from llcuda.errors import ClosedError, DecodeError, LlcudaError, NoRoomError, UnsupportedError
from llcuda.native.context import Context
from llcuda.native.rows import Rows
from llcuda.reporter import Reporter, Spent
from llcuda.request import Request, RequestParams, wake
from llcuda.scheduler import Job, Plan, Scheduler
from llcuda.speculation import Drafter, StepCosts

logger = logging.getLogger("llcuda.engine")
now = time.perf_counter


class Worker:
    """Computes requests on `context`, at most `parallel` at a time.

    chunk: most prompt tokens of one step. speculation: most tokens guessed per step. on_admit:
    called when a request leaves the queue. reporter: is told of every step and request.
    """

    def __init__(
        self,
        context: Context,
        parallel: int,
        chunk: int,
        speculation: int,
        on_admit: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        self.context = context
        self.model = context.model
        self.requests: set[Request] = set()
        self._limit = context.ctx_size
        self._on_admit = on_admit
        self._reporter = reporter
        can_trim = not (self.model.is_recurrent or self.model.is_hybrid)
        if speculation and not can_trim:
            logger.warning(
                "speculation is off: %s cannot forget a wrong guess", self.model.path.name
            )
        self._speculation = speculation if can_trim else 0
        self._scheduler = Scheduler(
            context.params.sequences,
            parallel,
            chunk,
            trims=can_trim,
            copies=can_trim,
            dense=can_trim and not context.params.unified_kv,
        )
        self._step_costs = StepCosts()
        self._ends = self.model.eog_tokens
        self._with_deadline: set[Request] = set()
        self._sums = StepSums()
        self._rows: Rows | None = None
        self._rows_of: list[Job] = []
        self._seqs: list[int] = []

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return self._scheduler.busy

    def accept(self, request: Request) -> None:
        """Take a request into the queue."""
        self.requests.add(request)
        if request.params.timeout is not None:
            self._with_deadline.add(request)
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
        started = now()
        plan = self._scheduler.plan()
        if plan is None:
            return
        if (plan.changes and not self._change(plan.changes)) or not plan.rows:
            return  # what could not be reused is computed from the start: plan again
        spent = (0.0, 0.0, 0.0)
        try:
            spent = self._decode(plan) if plan.decode else self._prefill(plan)
        except ClosedError:
            raise  # the engine's model, or its context: nothing can be computed any more
        except Exception as error:
            if not isinstance(error, DecodeError):
                logger.exception("a step of the engine failed")
            self._drop(plan, error)
        self._reporter.step(plan, now() - started, spent)

    def _change(self, changes: Sequence[tuple[Any, ...]]) -> bool:
        """Make the changes of a plan, in order; False when one could not be made.

        Its job goes back into the queue, to be computed from the start; so does one that was to
        copy from the slot of such a change, whose memory is not what the plan took it for.
        """
        memory, undone = self.context.memory, set()
        for kind, *arguments in changes:
            if kind == "move":
                self._move(*arguments)
                continue
            seq, keep = arguments[-2:]
            try:
                if kind == "copy":
                    if arguments[0] in undone:
                        raise UnsupportedError("what was to be copied is not there")
                    memory.copy(arguments[0], seq)  # whole: split KV shares no part of a sequence
                memory.remove(seq, keep)
            except ClosedError:
                raise
            except LlcudaError as error:
                undone.add(seq)
                job = self._scheduler.return_slot(seq)
                if job.fresh:
                    self._fail(job.request, error)
                job.fresh = True
        return not undone

    def _move(self, source: int, target: int) -> None:
        """Move a running text to another sequence; where the memory cannot, it stays."""
        memory = self.context.memory
        self._rows, self._rows_of = None, []
        try:
            memory.copy(source, target)
        except UnsupportedError:
            self._scheduler.move(target, source)
        else:
            memory.remove(source)

    def _prefill(self, plan: Plan) -> Spent:
        """Compute a chunk of prompts; sample for those that are whole now."""
        begun = now()
        tokens: list[int] = []
        seqs: list[int] = []
        flags: list[int] = []
        ready: list[tuple[Job, int]] = []
        for job, begin, end in plan.rows:
            request: Request = job.request
            if not request.times.admitted:
                request.times.admitted = begun
                self._on_admit()
            tokens += job.tokens[begin:end]
            seqs += [job.seq] * (end - begin)
            flags += [int(request.params.echo)] * (end - begin)
            if end == job.prompt_size:
                flags[-1] = 1
                ready.append((job, len(tokens) - 1))
        decoding = self._compute(tokens, seqs, flags)
        self._scheduler.computed(plan.rows)
        row = 0
        for job, begin, end in plan.rows:
            if job.request.params.echo:
                self._echo(job, begin, end, row)
            row += end - begin
        if not ready:
            return decoding, 0.0, 0.0
        started = now()
        rows = Rows(self.context, [job.request.sampler for job, _ in ready])
        chosen = rows.sample([index for _, index in ready])
        sampled = now()
        since = self._sums.mark()
        since.sample_seconds -= (sampled - started) / len(ready)  # the first token's, its own
        for (job, index), token in zip(ready, chosen, strict=True):
            if not isinstance(token, Exception):
                job.request.times.first_token, job.request.since = sampled, since
            self._take(job, token, index)
        self._wake_readers([job for job, _ in ready])
        return decoding, sampled - started, now() - sampled

    def _decode(self, plan: Plan) -> Spent:
        """Compute one token of each running text, and what is guessed to follow it."""
        jobs = [job for job, _, _ in plan.rows]
        if self._speculation and self._step_costs.knows(len(jobs)):
            drafts = [job.request.drafter.draft(job.tokens)[: self._room(job)] for job in jobs]
            if any(drafts):
                return self._decode_drafts(jobs, drafts)
        if self._rows is None or jobs != self._rows_of:
            self._rows, self._rows_of = Rows(self.context, [j.request.sampler for j in jobs]), jobs
            self._seqs = [job.seq for job in jobs]
        decoding = self._compute([job.tokens[-1] for job in jobs], self._seqs, None)
        self._scheduler.computed(plan.rows)
        started = now()
        chosen = self._rows.sample()
        sampled = now()
        self._sum(len(jobs), sampled - started)
        if self._speculation:
            self._step_costs.learn(len(jobs), decoding + sampled - started)
        for i, (job, token) in enumerate(zip(jobs, chosen, strict=True)):
            self._take(job, token, i)
        self._wake_readers(jobs)
        delivering = now() - sampled
        self._sums.deliver_seconds += delivering / len(jobs)
        return decoding, sampled - started, delivering

    def _sum(self, rows: int, sampling: float) -> None:
        """Add a step before its tokens are taken, so that a text's last one counts too."""
        sums = self._sums
        sums.steps += 1
        sums.rows += rows
        sums.sample_seconds += sampling / rows

    def _room(self, job: Job) -> int:
        left: int = job.request.params.max_tokens - len(job.request.tokens) - 1
        return max(0, min(left, self._limit - len(job.tokens) - 1))

    def _decode_drafts(self, jobs: Sequence[Job], drafts: Sequence[list[int]]) -> Spent:
        """Compute the rows of guesses too; keep those that sampling confirms."""
        tokens: list[int] = []
        seqs: list[int] = []
        for job, draft in zip(jobs, drafts, strict=True):
            tokens += [job.tokens[-1], *draft]
            seqs += [job.seq] * (1 + len(draft))
        decoding = self._compute(tokens, seqs, None)
        self._sum(len(jobs), 0.0)
        sampling, row, entered = 0.0, 0, now()
        cost = self._step_costs.extra(len(jobs), decoding) / (len(tokens) - len(jobs))
        for job, draft in zip(jobs, drafts, strict=True):
            begin = job.done
            seq = job.seq
            right = 0
            while True:
                started = now()
                try:
                    token: Any = job.request.sampler.sample(self.context, row + right)
                except Exception as error:
                    token = error
                sampling += now() - started
                confirmed = right < len(draft) and token == draft[right]
                self._scheduler.computed([(job, job.done, job.done + 1)])
                self._take(job, token, row + right)
                if not confirmed or job.slot is None:
                    break
                right += 1
            row += 1 + len(draft)
            job.request.drafter.judge(right, cost * len(draft), len(job.tokens))
            if right < len(draft) or job.slot is None:
                self.context.memory.remove(seq, begin + 1 + right)
        self._wake_readers(jobs)
        delivering = now() - entered - sampling
        self._sums.sample_seconds += sampling / len(jobs)
        self._sums.deliver_seconds += delivering / len(jobs)
        return decoding, sampling, delivering

    def _compute(self, tokens: list[int], seqs: list[int], flags: list[int] | None) -> float:
        """Decode, and return the seconds; with a full cache give up the kept texts, try again."""
        begun = now()
        try:
            self.context.decode_batch(tokens, seqs, None, flags)  # type: ignore[arg-type]
        except NoRoomError:
            for slot in self._scheduler.slots:
                if slot.job is None and (slot.tokens or slot.stale):
                    self.context.memory.remove(slot.seq)
                    slot.tokens.clear()
            self.context.decode_batch(tokens, seqs, None, flags)  # type: ignore[arg-type]
        self.context.synchronize()
        return now() - begun

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
        except UnsupportedError as error:
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

    def _wake_readers(self, jobs: Sequence[Job]) -> None:
        readers = [waiter for job in jobs for waiter in job.request.take_readers()]
        if readers:
            wake(readers)

    def _end_overdue(self) -> None:
        for request in list(self._with_deadline):
            timeout = request.params.timeout
            if timeout is not None and now() - request.times.submitted >= timeout:
                self._finish(request, "timeout")

    def _leave(self, request: Request) -> bool:
        """Take a request out of everything here; False when it has left before."""
        if request not in self.requests:
            return False
        self.requests.discard(request)
        self._with_deadline.discard(request)
        if not request.times.admitted:
            self._on_admit()
        slot = request.job.slot
        self._scheduler.finish(request.job)
        if slot is not None:
            self._rows, self._rows_of = None, []
            if request.shifted_keep is not None:
                # What follows the kept tokens was computed with what was dropped.
                slot.keep(request.shifted_keep)
        return True

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
        for job, _, _ in plan.rows:
            if job.slot is not None:
                job.slot.keep(0)
            self._fail(job.request, error)
