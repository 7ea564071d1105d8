"""ModelRunner: decodes and samples the batches that the scheduler chose.

All that the engine computes on its context is computed here. The scheduler decides what; the
runner chooses only the tokens that speculation proposes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from llcuda.engine.outputs import TokenLogprob
from llcuda.engine.scheduler import CacheChange, Chunk, CopyPrefix, Move, SchedulerOutput
from llcuda.engine.sequence import Sequence, now
from llcuda.engine.speculation import StepCosts
from llcuda.native.batch_sampler import BatchSampler
from llcuda.native.context import Context

logger = logging.getLogger("llcuda.engine")
TRIAL_TOKENS = 16  # of the text with which a context is tried out


class Batch:
    """The sequences of a decoded batch that get a token.

    Args:
        context: The context that has decoded it.
        sequences: The sequences.
        rows: The row of each one's logits in the decoded batch; None = 0, 1, 2, ...

    Attributes:
        size: The number of sequences.
        decodes: Whether the step counts as a decode step of these sequences.
        is_constrained: Whether a guide or min_tokens restricts the tokens of one of them.
        awaiting_first_token: Whether one of them has no token yet.
    """

    def __init__(
        self, context: Context, sequences: list[Sequence], rows: list[int] | None = None
    ) -> None:
        self.sequences, self.rows, self.size = sequences, rows, len(sequences)
        self._context = context
        self._processed = [i for i, sequence in enumerate(sequences) if _processes(sequence)]
        self._process_seconds = 0.0
        samplers = [sequence.sampler for sequence in sequences]
        self._sampler = BatchSampler(context, samplers, self._processed)
        self.decodes = rows is None or any(sequence.first_token_at for sequence in sequences)
        self.is_constrained = any(
            sequence.token_masks is not None or sequence.continuing_mask is not None
            for sequence in sequences
        )
        self.awaiting_first_token = not all(sequence.first_token_at for sequence in sequences)

    def sample(
        self, masks: list[Any] | None = None, forced: list[int | None] | None = None
    ) -> list[Any]:
        """Return the next token of each sequence, or the exception that its sampler raised.

        Args:
            masks: The tokens allowed for each sequence; see `BatchSampler.sample`.
            forced: The token that each one gets without sampling, if any.
        """
        if not self._processed:
            return self._sampler.sample(self.rows, masks, forced) if self.size else []
        return self._process_and_sample(masks, forced)

    def _process_and_sample(
        self, masks: list[Any] | None, forced: list[int | None] | None
    ) -> list[Any]:
        """Return the tokens; before, call the functions of sequences that have some."""
        self._process_seconds = 0.0
        failures: dict[int, BaseException] = {}
        originals: list[tuple[Any, Any]] = []
        for i in self._processed:
            sequence = self.sequences[i]
            if sequence.ended or (forced and forced[i] is not None):
                continue
            logits = self._context.logits(self.rows[i] if self.rows else i)
            if sequence.params.logprobs is not None:  # which are those of the model
                originals.append((logits, logits.copy()))
            began = now()
            failure = _process(sequence, logits)
            self._process_seconds += now() - began
            if failure is not None:
                failures[i] = failure
        tokens: list[Any] = self._sampler.sample(self.rows, masks, forced)
        for logits, original in originals:
            logits[:] = original
        for i, failure in failures.items():
            tokens[i] = failure
        return tokens

    def close(self) -> None:
        """Let go of the samplers: the frames of an error of the step may keep the batch."""
        self._sampler.close()

    @property
    def sample_seconds(self) -> float:
        """Seconds of the last `sample`, without the wait for the logits."""
        return self._sampler.seconds + self._process_seconds


class DecodeBatch(Batch):
    """The batch of decode steps, for as long as its members stay.

    Attributes:
        seq_ids: The slot of each sequence.
        tokens: The token that each computes next; None = look it up.
        appends: The functions that append a token to `generated` and to `tokens` of each.
        steps_without_checks: How many steps end no sequence for want of room, while nothing but
            its token is asked of each; so many steps need not look at each sequence.
    """

    def __init__(self, context: Context, sequences: list[Sequence]) -> None:
        super().__init__(context, sequences)
        self.seq_ids: list[Any] = [sequence.seq_id for sequence in sequences]
        self.tokens: list[Any] | None = None
        self.appends = [(s.generated.append, s.tokens.append) for s in sequences]
        self.steps_without_checks = 0
        if (
            context.params.device_logits
            and not self.is_constrained
            and all(
                s.params.logprobs is None and not s.params.stop_tokens and s.functions is None
                for s in sequences
            )
        ):
            room = [s.params.max_tokens - len(s.generated) for s in sequences]
            cells = [context.ctx_size - len(s.tokens) for s in sequences]
            self.steps_without_checks = min(*room, *cells) - 1

    def sample(
        self, masks: list[Any] | None = None, forced: list[int | None] | None = None
    ) -> list[Any]:
        """Return the next token of each sequence, as `Batch.sample`, and keep it to be decoded."""
        if self._processed:
            self.tokens = tokens = self._process_and_sample(masks, forced)
        else:
            self.tokens = tokens = self._sampler.sample(None, masks, forced)
        return tokens

    @property
    def failed(self) -> int:
        """How many tokens of the last `sample` are exceptions."""
        return self._sampler.failed


class DraftBatch:
    """A decode step with proposed tokens, of which sampling confirms those that it would choose.

    Args:
        context: The context that has decoded each sequence's last token and its draft.
        batch: The decode batch of the sequences.
        drafts: The tokens proposed for each sequence.
        cost: What a proposed token has cost, in tokens of plain steps.

    Attributes:
        sequences, rows: As those of `Batch`, with an entry for each sampled token.
        confirmed: The proposed tokens of each sequence that were right.
    """

    decodes, is_constrained, awaiting_first_token = True, False, False

    def __init__(
        self, context: Context, batch: DecodeBatch, drafts: list[list[int]], cost: float
    ) -> None:
        self._context, self._batch, self._drafts, self._cost = context, batch, drafts, cost
        self.size = batch.size
        self.sequences: list[Sequence] = []
        self.rows: list[int] = []
        self.confirmed: list[tuple[Sequence, list[int]]] = []
        self.sample_seconds = 0.0

    def sample(self, masks: None = None, forced: None = None) -> list[Any]:
        """Return the tokens sampled for the sequences, and remove the cells of wrong drafts."""
        started = now()
        tokens: list[Any] = []
        row = 0
        for sequence, draft in zip(self._batch.sequences, self._drafts, strict=True):
            sampled = self._sample_draft(sequence, row, draft)
            right = len(sampled) - 1
            tokens += sampled
            self.sequences += [sequence] * len(sampled)
            self.rows += range(row, row + len(sampled))
            self.confirmed.append((sequence, draft[:right]))
            row += 1 + len(draft)
            if sequence.drafter is not None:
                length = len(sequence.tokens) + len(sampled)
                sequence.drafter.update(right, self._cost * len(draft), length)
            if right < len(draft):
                assert sequence.seq_id is not None
                self._context.memory.remove(sequence.seq_id, sequence.computed_tokens + right)
        self.sample_seconds = now() - started
        return tokens

    def _sample_draft(self, sequence: Sequence, row: int, draft: list[int]) -> list[Any]:
        """Return a sample at each row, to the first one that the draft does not have."""
        if _processes(sequence):
            return [self._sample_processed(sequence, row)]
        sampled: list[Any] = []
        for proposed in [*draft, None]:
            try:
                token: Any = sequence.sampler.sample(self._context, row + len(sampled))
            except Exception as error:
                token = error
            sampled.append(token)
            if token != proposed:
                break
        return sampled

    def _sample_processed(self, sequence: Sequence, row: int) -> Any:
        """Return the token of a sequence without a draft, whose functions change the logits."""
        batch = Batch(self._context, [sequence], [row])
        token = batch.sample()[0]
        batch.close()
        return token


class ModelRunner:
    """Computes scheduled steps on a context.

    Args:
        context: The context, which only the engine's thread uses.
        speculation: Tokens to propose for each sequence and step. It is off where the memory
            cannot remove a wrong one.
    """

    def __init__(self, context: Context, speculation: int = 0) -> None:
        model = context.model
        if speculation and (model.is_recurrent or model.is_hybrid):
            logger.warning("speculation is off: %s cannot forget a wrong guess", model.path.name)
            speculation = 0
        self.context, self.model = context, model
        self.speculation = speculation
        self._batch: DecodeBatch | None = None
        self._launched: Batch | None = None
        self._released: list[Any] = []
        self._step_costs = StepCosts()

    # --- the KV cache ---

    def change(self, change: CacheChange) -> None:
        """Change the KV cache as scheduled.

        Raises:
            UnsupportedError: The memory cannot do that.
        """
        memory = self.context.memory
        if isinstance(change, Move):
            memory.copy(change.source, change.seq_id)
            memory.remove(change.source)
            return
        if isinstance(change, CopyPrefix):  # whole: a split KV cache shares no part of a sequence
            memory.copy(change.source, change.seq_id)
        memory.remove(change.seq_id, change.length)

    def renew(self) -> None:
        """Make the context that failed new and empty.

        Raises:
            LlcudaError: As `Context.renew`.
        """
        self._batch = None
        self.context.renew()

    def try_out(self) -> None:
        """Compute a short text on the empty context, and forget it.

        Raises:
            LlcudaError: As `Context.decode`.
        """
        count = min(TRIAL_TOKENS, self.context.ctx_size - 1)
        for tokens in ([i % self.model.vocab_size for i in range(count)], [0]):
            self.context.decode(tokens)
        self.context.synchronize()
        self.context.memory.remove(0)

    def clear(self, seq_ids: Iterable[int]) -> None:
        """Remove all cells of these slots."""
        for seq_id in seq_ids:
            self.context.memory.remove(seq_id)

    # --- a step ---

    def launch(self, scheduled: SchedulerOutput) -> Batch | DraftBatch:
        """Decode a scheduled batch; a GPU computes on when this returns.

        Returns:
            The sequences to sample: of a prefill step those whose prompts are whole now.
        """
        if scheduled.chunks is not None:
            return self._prefill(scheduled.chunks)
        batch = self._batch
        if batch is None or batch.sequences is not scheduled.sequences:
            batch = self._batch = DecodeBatch(self.context, scheduled.sequences)
        self._launched = batch
        if self.speculation and not batch.is_constrained:
            return self._decode_and_learn(batch)
        self.context.decode_batch(batch.tokens or _last_tokens(batch.sequences), batch.seq_ids)
        return batch

    def _prefill(self, chunks: list[Chunk]) -> Batch:
        tokens: list[int] = []
        seq_ids: list[Any] = []
        flags: list[int] = []
        whole: list[Sequence] = []
        rows: list[int] = []
        for sequence, begin, end in chunks:
            params = sequence.params
            tokens += sequence.tokens[begin:end]
            seq_ids += [sequence.seq_id] * (end - begin)
            flags += [int(params.echo)] * (end - begin)
            if end == len(sequence.tokens) and params.max_tokens:
                flags[-1] = 1
                whole.append(sequence)
                rows.append(len(tokens) - 1)
        self.context.decode_batch(tokens, seq_ids, None, flags)  # type: ignore[arg-type]
        if self._batch is not None:
            self._batch.tokens = None  # running sequences may have taken part
        self._launched = Batch(self.context, whole, rows)
        return self._launched

    def _decode_and_learn(self, batch: DecodeBatch) -> DecodeBatch | DraftBatch:
        """Decode with proposed tokens, if there are any; learn the time of a step without."""
        sequences, costs = batch.sequences, self._step_costs
        drafts = (
            [self._draft(sequence) for sequence in sequences] if costs.knows(batch.size) else []
        )
        proposed = sum(map(len, drafts))
        tokens, seq_ids = batch.tokens or _last_tokens(sequences), batch.seq_ids
        if proposed:
            batch.tokens = None
            pairs = list(zip(tokens, seq_ids, drafts, strict=True))
            tokens = [token for last, _, draft in pairs for token in (last, *draft)]
            seq_ids = [seq_id for _, seq_id, draft in pairs for _ in range(1 + len(draft))]
        began = now()
        self.context.decode_batch(tokens, seq_ids)
        self.context.synchronize()
        seconds = now() - began
        if proposed:
            return DraftBatch(
                self.context, batch, drafts, costs.extra(batch.size, seconds) / proposed
            )
        costs.learn(batch.size, seconds)
        return batch

    def _draft(self, sequence: Sequence) -> list[int]:
        """Return the tokens proposed for a sequence, as far as it has room for them."""
        if sequence.drafter is None:
            return []
        left = sequence.params.max_tokens - len(sequence.generated)
        cells = self.context.ctx_size - len(sequence.tokens)
        return sequence.drafter.propose(sequence.tokens)[: max(0, min(left, cells) - 1)]

    def sample_unrestricted(self, sequence: Sequence, row: int) -> Any:
        """Return the next token of a sequence without a mask, or the exception of its sampler."""
        try:
            return sequence.sampler.sample(self.context, row)
        except Exception as error:
            return error

    def regroup(self) -> None:
        """Look at the members of the decode batch again: one needs less than before."""
        self._batch = None

    def logprobs(self, tokens: list[int], rows: Iterable[int], top: int) -> list[TokenLogprob]:
        """Return the log-probability of each token at its row, with the `top` most probable."""
        scores = self.context.logprobs(tokens, [*rows], top)
        name = self.context.model.token_name
        return [
            TokenLogprob(token, value, best, name(token), [name(other) for other, _ in best])
            for token, (value, best) in zip(tokens, scores, strict=True)
        ]

    def shift(self, seq_id: int, begin: int, end: int) -> None:
        """Remove the cells from `begin` to `end`, and close the gap.

        Raises:
            UnsupportedError: The memory cannot do that.
        """
        self.context.memory.remove(seq_id, begin, end)
        self.context.memory.shift(begin - end, seq_id, end)

    def release(self, sequence: Sequence) -> None:
        """Let go of a sequence that ends; a step that runs may still use its sampler."""
        self._released.append(sequence.sampler)
        if sequence.seq_id is not None:
            self._batch = None

    def close_released(self) -> None:
        """Free the samplers of ended sequences, which hold the model."""
        for sampler in self._released:
            sampler.close()
        self._released.clear()
        if self._launched is not None and self._launched is not self._batch:
            self._launched.close()
            self._launched = None


def _processes(sequence: Sequence) -> bool:
    return sequence.functions is not None and sequence.functions.processes


def _process(sequence: Sequence, logits: Any) -> BaseException | None:
    """Have the functions of a sequence change its logits; return the exception of one."""
    assert sequence.functions is not None
    try:
        sequence.functions.process(sequence.tokens, logits)
    except BaseException as error:  # sys.exit() in a function ends its request only
        return error
    return None


def _last_tokens(sequences: list[Sequence]) -> list[int]:
    return [sequence.tokens[-1] for sequence in sequences]
