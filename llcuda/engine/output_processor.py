"""OutputProcessor: from sampled tokens to text, stops, ends, and the readers that wait for them."""

from __future__ import annotations

from collections import abc
from itertools import count
from typing import Any

from llcuda.engine.functions import SequenceFunctions
from llcuda.engine.metrics import Reporter, StepRecord, StepSums
from llcuda.engine.model_runner import Batch, DecodeBatch, DraftBatch, ModelRunner
from llcuda.engine.request import Request, kept_tokens, wake
from llcuda.engine.scheduler import Chunk, Scheduler, SchedulerOutput
from llcuda.engine.sequence import Sequence, now
from llcuda.engine.speculation import Drafter
from llcuda.engine.token_masks import TokenMaskState, joined_mask, mask_without, token_masks
from llcuda.errors import ClosedError, LlcudaError, SamplingError
from llcuda.params import wrong_argument, wrong_value

JUMP_SEQUENCES = 8  # with more sequences at once forced tokens are not computed ahead
JUMP_TOKENS = 1  # forced tokens for each sequence at once that make a chunk worth its step


class OutputProcessor:
    """Takes the tokens of each step, and ends the requests.

    On a GPU the text of a token is delivered while the next step computes.

    Args:
        scheduler: Is told which sequences end, and which have tokens to compute ahead.
        runner: Computes log-probabilities, and shifts the cells of a full sequence.
        reporter: Is told of each step and of each request that ends.
        on_end: Called for each request that ends, before its readers wake.

    Attributes:
        completed: The number of requests whose text has ended by itself.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        reporter: Reporter,
        on_end: abc.Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._reporter = reporter
        self._on_end = on_end
        self._model = runner.model
        self._piece_bytes = runner.model.piece_bytes  # bound: it is called for each token
        self._end_tokens = runner.model.eog_tokens
        self._ctx_size = runner.context.ctx_size
        self._overlaps = runner.context.params.device_logits
        self._unfinished: dict[Request, Sequence] = {}
        self._with_deadline: set[Sequence] = set()
        self._undelivered: list[Sequence] = []
        self._unreported: tuple[SchedulerOutput, tuple[float, float, float], float] | None = None
        self._sums = StepSums()
        self.completed = 0

    # --- requests ---

    def register(self, sequence: Sequence) -> bool:
        """Take note of a submitted sequence; False where its request fails at once."""
        guide = sequence.params.guide
        in_use = guide is not None and any(
            other.params.guide is guide for other in self._unfinished.values()
        )
        self._unfinished[sequence.request] = sequence
        if in_use:
            problem = "this guide is already used by another request"
            self.fail(sequence, wrong_argument("guide", problem, remedy="create one per request"))
            return False
        if sequence.params.timeout is not None:
            self._with_deadline.add(sequence)
        if guide is not None:
            sequence.token_masks = TokenMaskState(guide, self._model.vocab_size)
        params = sequence.params
        if params.min_tokens:
            ends = {*self._end_tokens, *params.stop_tokens}
            sequence.continuing_mask = mask_without(ends, self._model.vocab_size)
        if params.logits_processor or params.stopping_criteria:
            sequence.functions = SequenceFunctions(
                params.logits_processor, params.stopping_criteria
            )
        if self._runner.speculation and not params.logits_processor:
            sequence.drafter = Drafter(self._runner.speculation)
        return True

    def cancel(self, request: Request) -> None:
        """End a request with what it has; nothing when it has ended."""
        self.deliver()
        if sequence := self._unfinished.get(request):
            self._finish(sequence, "cancelled")

    def end_overdue(self) -> None:
        """End the requests whose time is over."""
        if not self._with_deadline:
            return
        self.deliver()
        for sequence in list(self._with_deadline):
            if now() - sequence.submitted_at >= sequence.params.timeout:  # type: ignore[operator]
                self._finish(sequence, "timeout")

    def fail_all(self, error: BaseException) -> None:
        """End every request with an exception."""
        self._undelivered = []
        for sequence in list(self._unfinished.values()):
            self.fail(sequence, error)

    # --- a step ---

    def deliver(self) -> None:
        """Deliver the tokens of the step before, and report it."""
        if self._unreported is not None:
            (scheduled, seconds, whole), self._unreported = self._unreported, None
            phase, rows = scheduled.phase, len(scheduled.sequences)
            record = StepRecord(phase, rows, scheduled.token_count, *seconds, whole)
            self._reporter.step(record)
        if not self._undelivered:
            return
        sequences, self._undelivered = self._undelivered, []
        for sequence in sequences:
            if sequence.deliver(self._last_piece(sequence)):
                self._finish(sequence, "stop", stopped=True)
        _wake_readers(sequences)

    def echo(self, chunks: list[Chunk]) -> None:
        """Report the log-probabilities of prompts, each token's by the logits of the one before.

        A request that asks for no more than that has ended.
        """
        row = 0
        for sequence, begin, end in chunks:
            if sequence.params.echo:
                first = max(begin, len(sequence.prompt_logprobs))  # a recovery computes it again
                last = min(end, sequence.request.prompt_tokens - 1)
                tokens, top = sequence.tokens[first + 1 : last + 1], sequence.params.logprobs or 0
                rows = range(row + first - begin, row + first - begin + len(tokens))
                sequence.prompt_logprobs += self._runner.logprobs(tokens, rows, top)
                if end == sequence.prefill_size and not sequence.params.max_tokens:
                    self._finish(sequence, "length")
            row += end - begin

    def constrain(self, sequences: list[Sequence]) -> tuple[list[Any], list[int | None]]:
        """Return the mask of each sequence, and the token that its guide forces.

        Below min_tokens a mask has no token that ends the text, unless the guide has no other. A
        guide that fails ends its request, as does a forced end. Their rows are sampled in vain.
        """
        masks: list[Any] = [None] * len(sequences)
        forced_tokens: list[int | None] = [None] * len(sequences)
        choosing: list[tuple[int, TokenMaskState]] = []
        for i, sequence in enumerate(sequences):
            if sequence.ended:
                continue
            masks[i] = sequence.continuing_mask
            if sequence.token_masks is None:
                continue
            forced = self._forced(sequence)
            if sequence.ended:
                continue
            if not forced:
                choosing.append((i, sequence.token_masks))
            elif self._is_end(sequence, forced[0]):
                self._finish(sequence, "stop")
            else:
                forced_tokens[i] = forced[0]
                sequence.forced_tokens += 1
        answers = token_masks([state for _, state in choosing])
        for (i, _), mask in zip(choosing, answers, strict=True):
            if isinstance(mask, BaseException):
                self.fail(sequences[i], mask)
            else:
                masks[i] = joined_mask(mask, masks[i])
        return masks, forced_tokens

    def process(self, batch: Batch | DraftBatch, tokens: list[Any], sampled_at: float) -> None:
        """Take the sampled tokens of a step.

        Args:
            batch: The sampled batch.
            tokens: For each of its sequences the token, or the exception of its sampler.
            sampled_at: `time.perf_counter()` of the sampling.
        """
        sums, sample_seconds = self._sums, batch.sample_seconds / batch.size
        if batch.decodes:
            sums.steps += 1
            sums.rows += batch.size
        sums.sample_seconds += sample_seconds
        if batch.awaiting_first_token:
            self._note_first_tokens(batch, tokens, sampled_at, sample_seconds)
        if isinstance(batch, DecodeBatch) and batch.steps_without_checks > 0:
            batch.steps_without_checks -= 1
            if (
                (step := self._scheduler.decode_step) is not None
                and step.sequences is batch.sequences  # nobody has left meanwhile
                and not batch.failed
                and self._end_tokens.isdisjoint(tokens)
            ):
                for (append_generated, append), token in zip(batch.appends, tokens, strict=True):
                    append_generated(token)
                    append(token)
                self._undelivered = batch.sequences
                return
        elif isinstance(batch, DraftBatch):
            for sequence, draft in batch.confirmed:
                self._scheduler.computed_draft(sequence, draft)
        rows = batch.rows or count()
        for sequence, token, row in zip(batch.sequences, tokens, rows, strict=False):
            if not sequence.ended:  # a stop text may have ended it meanwhile
                self._take(sequence, token, row)
        if not self._overlaps:
            _wake_readers(batch.sequences)

    def report(
        self,
        scheduled: SchedulerOutput,
        size: int,
        seconds: tuple[float, float, float],
        whole: float,
    ) -> None:
        """Report a step, beside the next one where that delivers the tokens of this one.

        Args:
            scheduled: The step.
            size: The number of sequences that got a token.
            seconds: The time of decoding, of sampling and of delivery.
            whole: Seconds of the whole step.
        """
        if size:
            self._sums.deliver_seconds += seconds[2] / size
        self._unreported = scheduled, seconds, whole
        if not self._undelivered:
            self.deliver()

    def fail_step(self, scheduled: SchedulerOutput, error: Exception) -> None:
        """Fail the requests of a step that could not be computed; the others go on."""
        self.deliver()
        for sequence in scheduled.sequences:
            self._scheduler.invalidate(sequence)
            self.fail(sequence, error)

    # --- tokens ---

    def _note_first_tokens(
        self,
        batch: Batch | DraftBatch,
        tokens: list[Any],
        sampled_at: float,
        sample_seconds: float,
    ) -> None:
        batch.awaiting_first_token = False
        for sequence, token in zip(batch.sequences, tokens, strict=True):
            if not sequence.first_token_at and not isinstance(token, Exception):
                sequence.note_first_token(sampled_at, self._sums, sample_seconds)

    def _take(self, sequence: Sequence, token: Any, row: int) -> None:
        """Add a token, and the tokens that are forced to follow; end the request where it ends."""
        params = sequence.params
        if sequence.continuing_mask is not None and isinstance(token, SamplingError):
            # Its grammar may allow the end alone.
            token = self._runner.sample_unrestricted(sequence, row)
        if not self._append(sequence, token):
            return
        if params.logprobs is not None:
            sequence.logprobs += self._runner.logprobs([token], [row], params.logprobs)
        full = len(sequence.tokens) >= self._ctx_size
        last = full or len(sequence.generated) >= params.max_tokens  # no room for another token
        forced = self._forced_ahead(sequence, last) if sequence.token_masks is not None else ()
        if sequence.ended:
            return
        if self._overlaps and not last and not forced and not _decides(sequence):
            self._undelivered.append(sequence)
        elif self._show(sequence, forced) and forced:
            self._run_ahead(sequence, forced)

    def _append(self, sequence: Sequence, token: Any) -> bool:
        """Append a token; False when the request has ended with it."""
        if isinstance(token, BaseException):
            self.fail(sequence, token)
            return False
        if self._is_end(sequence, token):
            if self._has_no_other(sequence, token):
                rule = "every token that does not end the text is forbidden as well"
                remedy = "permit another token, or let the text end"
                self.fail(sequence, wrong_value("ignore_eos", True, rule, remedy))
            else:
                self._finish(sequence, "stop")
            return False
        if sequence.token_masks is not None:
            try:
                sequence.token_masks.accept(token)
            except BaseException as error:  # sys.exit() in a guide ends its request only
                self.fail(sequence, error)
                return False
        sequence.generated.append(token)
        sequence.tokens.append(token)
        if (
            sequence.continuing_mask is not None
            and len(sequence.generated) >= sequence.params.min_tokens
        ):
            sequence.continuing_mask = None
            self._runner.regroup()
        return True

    def _is_end(self, sequence: Sequence, token: int) -> bool:
        return token in self._end_tokens or token in sequence.params.stop_tokens

    def _has_no_other(self, sequence: Sequence, end: int) -> bool:
        """Whether the end of a text was sampled that must not end, as nothing else is permitted.

        The text of a guide or of a grammar does end where that is whole.
        """
        params = sequence.params
        restricted = sequence.token_masks is not None or sequence.sampler.params.grammar is not None
        return params.ignore_eos and not restricted and end not in params.stop_tokens

    def _last_piece(self, sequence: Sequence) -> bytes:
        token = sequence.tokens[-1]
        return self._piece_bytes(token, token in sequence.params.shown_tokens)

    def _show(self, sequence: Sequence, forced: abc.Sequence[int] = ()) -> bool:
        """Deliver the last token; False when the request has ended.

        Args:
            sequence: The sequence.
            forced: The tokens that are forced to follow.
        """
        params = sequence.params
        if sequence.deliver(self._last_piece(sequence)):
            self._finish(sequence, "stop", stopped=True)
        elif forced and self._is_end(sequence, forced[0]):
            self._finish(sequence, "stop")
        elif sequence.functions is not None and self._ended_by_function(sequence):
            return False
        elif len(sequence.generated) >= params.max_tokens:
            self._finish(sequence, "length")
        elif len(sequence.tokens) >= self._ctx_size:
            if params.overflow == "shift":
                self._shift(sequence)
            else:
                self._finish(sequence, "context")
        return not sequence.ended

    def _ended_by_function(self, sequence: Sequence) -> bool:
        """End a request where a function ends its text, or fails; return whether it has ended."""
        functions = sequence.functions
        assert functions is not None
        if not functions.decides or sequence.continuing_mask is not None:
            return False
        try:
            stop = functions.is_stop(sequence.tokens, sequence.text)
        except BaseException as error:  # sys.exit() in a function ends its request only
            self.fail(sequence, error)
            return True
        if stop:
            self._finish(sequence, "stop")
        return stop

    def _shift(self, sequence: Sequence) -> None:
        """Drop the older half of a full sequence; the positions close up."""
        assert sequence.seq_id is not None
        begin = kept_tokens(sequence.params, self._model.adds_bos, self._ctx_size)
        end = begin + (sequence.computed_tokens - begin) // 2
        try:
            self._runner.shift(sequence.seq_id, begin, end)
        except ClosedError:
            raise
        except LlcudaError as error:
            self._scheduler.invalidate(sequence)  # some cells may be gone
            self.fail(sequence, error)
            return
        self._scheduler.shift(sequence, begin, end)
        if sequence.drafter is not None:  # it knows places in the whole text
            sequence.drafter = Drafter(self._runner.speculation)
        if sequence.functions is not None:
            sequence.functions.forget()

    # --- forced tokens ---

    def _forced(self, sequence: Sequence) -> abc.Sequence[int]:
        """Return the tokens that come next without a choice; a failing guide ends its request."""
        assert sequence.token_masks is not None
        try:
            return sequence.token_masks.forced()
        except BaseException as error:  # sys.exit() in a guide ends its request only
            self.fail(sequence, error)
            return ()

    def _forced_ahead(self, sequence: Sequence, last: bool) -> abc.Sequence[int]:
        """Return forced tokens when they are to be taken at once, or when the first is an end.

        As a chunk they cost each other sequence a step, and spare this one a step each. Otherwise
        the guide is asked while the next step computes.
        """
        running = len(self._scheduler.running)
        if running > JUMP_SEQUENCES and not last:
            return ()
        forced = self._forced(sequence)
        if not forced or self._is_end(sequence, forced[0]):
            return forced
        params = sequence.params
        full = len(sequence.tokens) + len(forced) >= self._ctx_size
        worth = len(forced) >= JUMP_TOKENS * running
        scored = params.logprobs is not None or params.echo or sequence.skip_prefix_cache
        return forced if worth and not (last or full or scored) else ()

    def _run_ahead(self, sequence: Sequence, forced: abc.Sequence[int]) -> None:
        """Append forced tokens, and have them computed as one chunk."""
        while forced and len(sequence.tokens) + 1 < self._ctx_size:
            try:
                sequence.sampler.accept(forced[0], self._model)
            except LlcudaError as error:
                self.fail(sequence, error)
                return
            if not self._append(sequence, forced[0]):
                return
            sequence.forced_tokens += 1
            forced = self._forced(sequence)
            if sequence.ended or not self._show(sequence, forced):
                return
        self._scheduler.extend(sequence)

    # --- ends ---

    def _finish(self, sequence: Sequence, reason: str, stopped: bool = False) -> None:
        """End a request with a result.

        Args:
            sequence: The sequence.
            reason: The finish reason.
            stopped: Whether a stop text has come, so that nothing after it is shown.
        """
        if not self._end(sequence):
            return
        if not stopped:
            sequence.flush()
        finished_at = now()
        completion = sequence.completion(reason, finished_at)
        self.completed += reason in ("stop", "length", "context")
        self._reporter.finished(sequence.record(self._sums, reason, finished_at))
        sequence.request.settle(completion)

    def fail(self, sequence: Sequence, error: BaseException) -> None:
        """End a request with an exception."""
        if not self._end(sequence):
            return
        self._reporter.failed(sequence.record(self._sums, "error", now(), error), error)
        sequence.request.settle(error)

    def _end(self, sequence: Sequence) -> bool:
        """Take a sequence out of the engine; False when it has ended before."""
        if self._unfinished.pop(sequence.request, None) is None:
            return False
        self._with_deadline.discard(sequence)
        self._runner.release(sequence)
        self._scheduler.finish(sequence)
        self._on_end()
        return True


def _decides(sequence: Sequence) -> bool:
    return sequence.functions is not None and sequence.functions.decides


def _wake_readers(sequences: list[Sequence]) -> None:
    readers = [waiter for sequence in sequences for waiter in sequence.take_readers()]
    if readers:
        wake(readers)
