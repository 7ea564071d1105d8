"""ContextRequest: a completion on the context of a `Llama`, in the thread that reads it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from llcuda.engine.detokenizer import StopFinder, Utf8Decoder
from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.engine.request import RequestParams
from llcuda.errors import UnsupportedError
from llcuda.llama_cpp.evaluation import Evaluation, logits_to_logprobs

Tokens = Generator[int, Any, None]


class ContextRequest:
    """A handle like `llcuda.Request`; the text is generated while somebody reads it.

    Args:
        evaluation: The text and its context.
        prompt: The tokens of the prompt.
        params: What ends the request and what it reports.
        generate: Begins the generation.
        seed: The seed of its sampler.

    Attributes:
        params: The request's parameters.
        tokens: The generated tokens so far.
        logprobs: The log-probabilities of these tokens so far, if asked for.
        prompt_logprobs: The log-probabilities of the prompt's tokens, if asked for.
        prompt_tokens: Tokens of the prompt.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        prompt: Sequence[int],
        params: RequestParams,
        generate: Callable[[], Tokens],
        seed: int,
    ) -> None:
        self.params = params
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self._evaluation = evaluation
        self.prompt_tokens = len(prompt)
        self._prompt = prompt
        self._generate = generate
        self._seed = seed
        self._completion: Completion | None = None
        self._is_cancelled = False
        self._started = self._first_token_at = 0.0
        self._stops = StopFinder(self.params.stop or ())

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self._completion is not None

    def cancel(self) -> None:
        """End the text before the next token."""
        self._is_cancelled = True

    def result(self, timeout: float | None = None) -> Completion:
        """Generate what is left of the text and return the result."""
        if self._completion is None:
            with self._evaluation.lock:
                for _ in self:
                    pass
        assert self._completion is not None
        return self._completion

    def take(self) -> str:
        """Return "": nothing comes but while somebody reads."""
        return ""

    async def more(self) -> str:
        """Raise UnsupportedError: a coroutine cannot wait for a text that its thread generates."""
        raise UnsupportedError("this text is generated in the thread that reads it")

    def __await__(self) -> Generator[Any, None, Completion]:
        raise UnsupportedError("this text is generated in the thread that reads it")

    def __aiter__(self) -> AsyncIterator[str]:
        raise UnsupportedError("this text is generated in the thread that reads it")

    def __iter__(self) -> Iterator[str]:
        if self.done:
            return
        self._started = time.perf_counter()
        texts: list[str] = []
        try:
            reason = yield from self._read(texts)
        except GeneratorExit:
            self._finish(texts, "cancelled")
            raise
        self._finish(texts, reason)

    def _read(self, texts: list[str]) -> Generator[str, None, str]:
        """Yield the text piece by piece, keep the pieces, and return the finish reason."""
        decoder, stops = Utf8Decoder(), self._stops
        model = self._evaluation.context.model
        ends = model.eog_tokens | set(self.params.stop_tokens)
        reason = "stop"
        with contextlib.closing(self._generate()) as tokens:
            for token in tokens:
                if not self._first_token_at:
                    self._first_token_at = time.perf_counter()
                    if self.params.echo:
                        self._score_prompt()
                if token in ends:
                    break
                self._append(token)
                piece = model.piece_bytes(token, token in self.params.shown_tokens)
                text, is_stopped = stops.decode(decoder.decode(piece))
                if text:
                    texts.append(text)
                    yield text
                if is_stopped:
                    return reason
                if (limit := self._limit()) is not None:
                    reason = limit
                    break
        if rest := stops.flush(decoder.flush()):
            texts.append(rest)
            yield rest
        return reason

    def _finish(self, texts: Sequence[str], reason: str) -> None:
        ended = time.perf_counter()
        first_token_at = self._first_token_at or ended
        self._completion = Completion(
            text="".join(texts),
            tokens=self.tokens,
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            dropped_tokens=0,
            cached_tokens=0,
            seed=self._seed,
            queue_seconds=0.0,
            prefill_seconds=first_token_at - self._started,
            decode_seconds=ended - first_token_at,
            latency_seconds=ended - self._started,
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            prompt_logprobs=self.prompt_logprobs if self.params.echo else None,
            stop_text=self._stops.found,
        )

    def _score_prompt(self) -> None:
        """Note the log-probabilities of the prompt's tokens but the first."""
        scores, top = self._evaluation.scores, self.params.logprobs or 0
        for place, token in enumerate(self._prompt[1:]):
            logprobs = logits_to_logprobs(scores[place])
            best = np.argsort(-logprobs, kind="stable")[:top].tolist()
            pairs = [(i, float(logprobs[i])) for i in best]
            self.prompt_logprobs.append(TokenLogprob(token, float(logprobs[token]), pairs))

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        if self.params.logprobs is not None:
            context, row = self._evaluation.context, self._evaluation.row
            [(logprob, top)] = context.logprobs([token], [row], self.params.logprobs)
            self.logprobs.append(TokenLogprob(token, logprob, top))

    def _limit(self) -> str | None:
        """Return the finish reason of a text that may have no more tokens."""
        if self._is_cancelled:
            return "cancelled"
        if len(self.tokens) >= self.params.max_tokens:
            return "length"
        is_full = len(self._prompt) + len(self.tokens) >= len(self._evaluation.input_ids)
        return "context" if is_full else None
