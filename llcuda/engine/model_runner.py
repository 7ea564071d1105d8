"""The engine's step: plan, decode, sample, deliver.

Runs on one thread, the engine's. Knows the library through Context and BatchSampler, and decides
nothing: that is the scheduler's part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from llcuda.engine.output_processor import Delivery
from llcuda.engine.reporter import Reporter, Spent
from llcuda.engine.scheduler import Job, Plan, Scheduler
from llcuda.engine.speculation import StepCosts
from llcuda.errors import (
    ClosedError,
    DecodeError,
    LlcudaError,
    NoRoomError,
    UnsupportedError,
)
from llcuda.guide import Follower
from llcuda.native.batch_sampler import BatchSampler
from llcuda.native.context import Context

logger = logging.getLogger("llcuda.engine")
now = time.perf_counter


class Lineup:
    """The running texts of decode steps, for as long as they stay the same.

    firsts: those whose first token comes next. quiet: how many tokens each can take before one of
    them may end for want of room, while nothing but its token is asked of any; so many steps need
    not look at each request.
    """

    def __init__(self, context: Context, plan: Plan, quiet: bool) -> None:
        self.plan = Plan([], plan.rows, decode=True)
        self.jobs = jobs = [job for job, _, _ in plan.rows]
        self.rows = BatchSampler(context, [job.request.sampler for job in jobs])
        self.seqs = [job.seq for job in jobs]
        self.tokens = [job.tokens[-1] for job in jobs]
        self.firsts = [job for job in jobs if not job.request.times.first_token]
        self.appends = [(job.request.tokens.append, job.tokens.append) for job in jobs]
        self.quiet = 0
        asked = [job.request.params for job in jobs]
        self.guided = any(p.guide is not None for p in asked)
        quiet = quiet and not self.guided
        if quiet and all(p.logprobs is None and not p.stop_tokens for p in asked):
            room = (p.max_tokens - len(j.request.tokens) for p, j in zip(asked, jobs, strict=True))
            full = (context.ctx_size - len(job.tokens) for job in jobs)
            self.quiet = min(*room, *full) - 1


class Worker(Delivery):
    """Computes requests on `context`, at most `parallel` at a time.

    chunk: most prompt tokens of one step. speculation: most tokens guessed per step. on_leave:
    called when a request has ended. reporter: is told of every step and request.
    """

    def __init__(
        self,
        context: Context,
        parallel: int,
        chunk: int,
        speculation: int,
        on_leave: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        model, params = context.model, context.params
        can_trim = not (model.is_recurrent or model.is_hybrid)
        if speculation and not can_trim:
            logger.warning("speculation is off: %s cannot forget a wrong guess", model.path.name)
            speculation = 0
        scheduler = Scheduler(
            params.sequences,
            parallel,
            chunk,
            trims=can_trim,
            copies=can_trim,
            dense=can_trim and params.device_logits and not params.unified_kv,
            late=params.device_logits,
            chunk_fresh=min(chunk, params.ubatch_size, params.outputs_max or chunk),
        )
        super().__init__(context, scheduler, speculation, on_leave, reporter)
        self._step_costs = StepCosts()
        self._lineup: Lineup | None = None

    def step(self) -> None:
        """Plan, decode, sample, deliver: once."""
        if self._left:
            self._close_samplers()
        if self._with_deadline:
            self._end_overdue()
        started = now()
        lineup = self._lineup
        if lineup is not None and lineup.quiet > 0 and self._scheduler.decodes(len(lineup.jobs)):
            plan = lineup.plan
        elif (planned := self._scheduler.plan()) is not None:
            plan = planned
        else:
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
        self._unreported = plan, now() - started, spent
        if not self._undelivered:  # else beside the next step
            self._deliver()

    def _members_changed(self) -> None:
        self._lineup = None

    def _change(self, changes: Sequence[tuple[Any, ...]]) -> bool:
        """Make the changes of a plan, in order; False when one could not be made.

        Its job goes back into the queue, to be computed from the start; so does one that was to
        copy from the slot of such a change, whose memory is not what the plan took it for.
        """
        memory, undone = self.context.memory, set()
        for kind, *arguments in changes:
            if kind in ("move", "save"):
                self._move(arguments[0], arguments[1], running=kind == "move")
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

    def _move(self, source: int, target: int, running: bool) -> None:
        """Move a text to another sequence; where the memory cannot, it stays, or is forgotten."""
        memory = self.context.memory
        self._members_changed()
        try:
            memory.copy(source, target)
        except UnsupportedError:
            if running:
                self._scheduler.move(target, source)
            else:
                self._scheduler.slots[target].keep(0)
        else:
            memory.remove(source)

    def _prefill(self, plan: Plan) -> Spent:
        """Compute a chunk of prompts; sample for the texts that are whole now."""
        tokens: list[int] = []
        seqs: list[int] = []
        flags: list[int] = []
        ready: list[tuple[Job, int]] = []
        for job, begin, end in plan.rows:
            echo = job.request.params.echo
            self._admit(job.request)
            tokens += job.tokens[begin:end]
            seqs += [job.seq] * (end - begin)
            flags += [int(echo)] * (end - begin)
            if end == len(job.tokens) and job.request.params.max_tokens:
                flags[-1] = 1
                ready.append((job, len(tokens) - 1))
        begun = now()
        self._compute(tokens, seqs, flags)
        self._scheduler.computed(plan.rows)
        computed = now()
        self._deliver()
        row = 0
        for job, begin, end in plan.rows:
            if job.request.params.echo:
                self._echo(job, begin, end, row)
            row += end - begin
        delivered = now()
        if not ready:
            return computed - begun, 0.0, delivered - computed
        rows = BatchSampler(self.context, [job.request.sampler for job, _ in ready])
        guided = any(job.request.params.guide is not None for job, _ in ready)
        limits = self._restrict([job for job, _ in ready]) if guided else ()
        chosen = rows.sample([index for _, index in ready], *limits)
        sampled = now()
        running = any(job.request.times.first_token for job, _ in ready)
        if running:  # their last tokens are others now than those of the line-up
            self._members_changed()
        self._sum(len(ready), rows.seconds, running)
        for (job, index), token in zip(ready, chosen, strict=True):
            self._first(job.request, token, sampled, rows.seconds / len(ready))
            if job.slot is not None:  # else a stop text has ended it meanwhile
                self._take(job, token, index)
        if not self._overlaps:
            self._wake_readers([job for job, _ in ready])
        waiting = sampled - delivered - rows.seconds
        return computed - begun + waiting, rows.seconds, now() - sampled + delivered - computed

    def _decode(self, plan: Plan) -> Spent:
        """Compute one token of each running text, and what is guessed to follow it."""
        lineup = self._lineup
        if lineup is None or (
            plan is not lineup.plan and lineup.jobs != [job for job, _, _ in plan.rows]
        ):
            lineup = self._lineup = Lineup(self.context, plan, quiet=self._overlaps)
            for job in lineup.firsts:
                self._admit(job.request)
        jobs = lineup.jobs
        if self._speculation and not lineup.guided and self._step_costs.knows(len(jobs)):
            drafts = [job.request.drafter.draft(job.tokens)[: self._room(job)] for job in jobs]
            if any(drafts):
                self._lineup = None  # its tokens are not those after the guesses
                return self._decode_drafts(jobs, drafts)
        begun = now()
        self._compute(lineup.tokens, lineup.seqs, None)
        self._scheduler.computed([(job, job.done, job.done + 1) for job in jobs])
        computed = now()
        self._deliver()
        limits = self._restrict(jobs) if lineup.guided else ()
        delivered = now()
        chosen = lineup.rows.sample(None, *limits)
        sampled = now()
        sampling = lineup.rows.seconds
        self._sum(len(jobs), sampling)
        if self._speculation:
            self._step_costs.learn(len(jobs), sampled - begun)
        self._take_all(lineup, chosen, sampled)
        waiting, delivering = sampled - delivered - sampling, now() - sampled
        self._sums.deliver_seconds += (delivering + delivered - computed) / len(jobs)
        return computed - begun + waiting, sampling, delivering + delivered - computed

    def _restrict(self, jobs: Sequence[Job]) -> tuple[list[Any], list[int | None]]:
        """Return what each text's guide allows next, or forces; a guide that fails ends its text.

        A text that is to end now ends here; what its row gets is dropped.
        """
        masks: list[Any] = [None] * len(jobs)
        forced: list[int | None] = [None] * len(jobs)
        choosing = []
        for i, job in enumerate(jobs):
            request = job.request
            if request.follower is None or job.slot is None:
                continue
            known = self._forced(job)
            if job.slot is None:
                continue
            if known and self._is_end(request, known[0]):
                self._finish(request, "stop")
            elif known:
                forced[i] = known[0]
                request.forced_tokens += 1
            else:
                choosing.append(i)
        found = Follower.masks([jobs[i].request.follower for i in choosing])
        for i, mask in zip(choosing, found, strict=True):
            if isinstance(mask, BaseException):
                self._fail(jobs[i].request, mask)
            else:
                masks[i] = mask
        return masks, forced

    def _take_all(self, lineup: Lineup, chosen: list[Any], sampled: float) -> None:
        """Add each text's token."""
        if lineup.firsts:
            for job, token in zip(lineup.jobs, chosen, strict=True):
                self._first(job.request, token, sampled, lineup.rows.seconds / len(chosen))
            lineup.firsts = []
        lineup.quiet -= 1
        if (
            lineup is self._lineup
            and lineup.quiet >= 0
            and not lineup.rows.failed
            and self._ends.isdisjoint(chosen)
        ):
            for (to_answer, to_text), token in zip(lineup.appends, chosen, strict=True):
                to_answer(token)
                to_text(token)
            self._undelivered = lineup.jobs
            lineup.tokens = chosen
            return
        for i, (job, token) in enumerate(zip(lineup.jobs, chosen, strict=True)):
            if job.slot is not None:  # else a stop text has ended it meanwhile
                self._take(job, token, i)
        if not self._overlaps:
            self._wake_readers(lineup.jobs)
        lineup.tokens = [job.tokens[-1] for job in lineup.jobs]

    def _sum(self, rows: int, sampling: float, decoding: bool = True) -> None:
        """Add a step before its tokens are taken, so that a text's last one counts too."""
        sums = self._sums
        if decoding:
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
        begun = now()
        self._compute(tokens, seqs, None)
        self.context.synchronize()
        decoding = now() - begun
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

    def _compute(self, tokens: list[int], seqs: list[int], flags: list[int] | None) -> None:
        """Decode; when the cache is full, give up the kept texts and try once more."""
        try:
            self.context.decode_batch(tokens, seqs, None, flags)  # type: ignore[arg-type]
        except NoRoomError:
            for slot in self._scheduler.slots:
                if slot.job is None and (slot.tokens or slot.stale):
                    self.context.memory.remove(slot.seq)
                    slot.tokens.clear()
            self.context.decode_batch(tokens, seqs, None, flags)  # type: ignore[arg-type]
