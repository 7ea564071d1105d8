"""Sequence: the state of one request on the engine's thread, from submission to its end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llcuda.engine.detokenizer import StopFinder, Utf8Decoder
from llcuda.engine.metrics import RequestRecord, StepSums
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llcuda.engine.functions import SequenceFunctions
    from llcuda.engine.speculation import Drafter
    from llcuda.engine.token_masks import TokenMaskState

now = time.perf_counter


class Sequence:
    """The tokens of one request, its place in the KV cache, and its output so far.

    The scheduler, the model runner and the output processor each write the attributes of their
    part. Only the engine's thread uses a sequence.

    Args:
        request: The caller's handle.
        tokens: The prompt.
        sampler: Chooses the tokens; the scheduler's tests need none.
        shares_prompt_with: A sequence with the same prompt, whose prefill this one waits for.
        skip_prefix_cache: Compute the whole prompt, as the logits of every token are needed.

    Attributes:
        seq_id: The sequence of the KV cache that holds the tokens; None while it has no slot.
        tokens: The prompt and the generated tokens.
        prefill_size: How many of the tokens are computed in chunks: the prompt, and after
            `Scheduler.extend` and `Scheduler.requeue` all tokens of that time.
        computed_tokens: How many of the tokens are in the KV cache.
        cached_tokens: How many of the prompt's tokens a cached prefix has spared.
        ended: Whether the scheduler has let go of it.
        valid_prefix: How many cells a later prompt may reuse; None for all of them.
        generated: The tokens after the prompt; the request shows the same list.
        forced_tokens: How many of them a guide left no choice for.
        take_readers: The request's, bound: it is called for each token.
        token_masks: The state of the request's guide; None without a guide.
        continuing_mask: The tokens that do not end the text, as a mask, while it has fewer than
            min_tokens; None afterwards.
        functions: The request's functions over tokens and logits; None without any.
        drafter: Proposes tokens for speculation; None without it, and where functions change the
            logits.
        submitted_at, admitted_at, first_token_at: `time.perf_counter()` of the submission, of the
            first slot and of the first token; 0.0 before.
    """

    __slots__ = (
        "_decoder", "_emit", "_start", "_stops", "_texts", "admitted_at", "cached_tokens",
        "computed_tokens", "continuing_mask", "drafter", "ended", "first_token_at",
        "forced_tokens", "functions", "generated", "logprobs", "params", "prefill_size",
        "prompt_logprobs", "request", "sampler", "seq_id", "shares_prompt_with",
        "skip_prefix_cache", "submitted_at", "take_readers", "token_masks", "tokens",
        "valid_prefix",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        tokens: Iterable[int],
        sampler: Any = None,
        *,
        shares_prompt_with: Sequence | None = None,
        skip_prefix_cache: bool = False,
    ) -> None:
        self.request, self.params, self.sampler = request, request.params, sampler
        self.shares_prompt_with = shares_prompt_with
        self.skip_prefix_cache = skip_prefix_cache
        self.seq_id: int | None = None
        self.tokens = list(tokens)
        self.prefill_size = len(self.tokens)
        self.computed_tokens = self.cached_tokens = 0
        self.ended = False
        self.valid_prefix: int | None = None
        self.generated = request.tokens
        self.logprobs = request.logprobs
        self.prompt_logprobs = request.prompt_logprobs
        self.forced_tokens = 0
        self.token_masks: TokenMaskState | None = None
        self.continuing_mask: npt.NDArray[np.uint32] | None = None
        self.functions: SequenceFunctions | None = None
        self.drafter: Drafter | None = None
        self.submitted_at, self.admitted_at, self.first_token_at = now(), 0.0, 0.0
        self._start: StepSums | None = None  # the engine's sums at the first token
        self._decoder = Utf8Decoder()
        self._stops = StopFinder(self.params.stop) if self.params.stop else None
        self._texts: list[str] = []
        self._emit = request.emit
        self.take_readers = request.take_readers

    @property
    def prefilled(self) -> bool:
        """Whether all that is computed in chunks is in the KV cache."""
        return self.computed_tokens >= self.prefill_size

    def note_first_token(self, sampled_at: float, sums: StepSums, sample_seconds: float) -> None:
        """Start the decode phase, to which the sampling of the first token belongs."""
        self.first_token_at, self._start = sampled_at, sums.mark()
        self._start.sample_seconds -= sample_seconds

    def deliver(self, piece: bytes) -> bool:
        """Emit the text that the bytes of a token complete; return whether a stop text came."""
        text = self._decoder.decode(piece)
        stopped = False
        if self._stops is not None and len(self.generated) > self.params.min_tokens:
            text, stopped = self._stops.decode(text)
        if text:
            self._texts.append(text)
            self._emit(text)
        return stopped

    @property
    def text(self) -> str:
        """The text that was emitted."""
        return "".join(self._texts)

    def flush(self) -> None:
        """Emit the text that was held back for a character or for a stop text."""
        rest = self._decoder.flush()
        if self._stops is not None:
            rest = self._stops.flush(rest)
        if rest:
            self._texts.append(rest)
            self._emit(rest)

    def completion(self, finish_reason: str, finished_at: float) -> Completion:
        """Return the result of the request."""
        request, params = self.request, self.params
        return Completion(
            text=self.text,
            tokens=self.generated,
            finish_reason=finish_reason,
            prompt_tokens=request.prompt_tokens,
            dropped_tokens=request.dropped_tokens,
            cached_tokens=self.cached_tokens,
            seed=request.seed,
            forced_tokens=self.forced_tokens,
            response_format=request.response_format,
            stop_text=None if self._stops is None else self._stops.found,
            logprobs=self.logprobs if params.logprobs is not None else None,
            prompt_logprobs=self.prompt_logprobs if params.echo else None,
            **self._phases(finished_at),
        )

    def record(
        self,
        sums: StepSums,
        finish_reason: str,
        finished_at: float,
        error: BaseException | None = None,
    ) -> RequestRecord:
        """Return the cost of the request.

        Args:
            sums: The engine's sums over all its decode steps.
            finish_reason: The completion's, "error" for a request that failed.
            finished_at: `time.perf_counter()` of the end.
            error: The exception of a request that failed.
        """
        start = self._start or sums
        first, steps = self.first_token_at, sums.steps - start.steps
        return RequestRecord(
            prompt_tokens=self.request.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=len(self.generated),
            forced_tokens=self.forced_tokens,
            sample_seconds=sums.sample_seconds - start.sample_seconds,
            detokenize_seconds=sums.deliver_seconds - start.deliver_seconds,
            mean_rows=(sums.rows - start.rows) / steps if steps else 0.0,
            time_to_first_token_seconds=first - self.submitted_at if first else None,
            finish_reason=finish_reason,
            error=f"{type(error).__name__}: {error}" if error is not None else None,
            **self._phases(finished_at),
        )

    def _phases(self, finished_at: float) -> dict[str, float]:
        """Return the seconds of each phase; a phase that never began took none."""
        admitted_at = self.admitted_at or finished_at
        first_token_at = self.first_token_at or finished_at
        return {
            "queue_seconds": admitted_at - self.submitted_at,
            "prefill_seconds": first_token_at - admitted_at,
            "decode_seconds": finished_at - first_token_at,
            "latency_seconds": finished_at - self.submitted_at,
        }
