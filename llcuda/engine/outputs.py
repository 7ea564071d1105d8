"""What a request came to, when, and what part of the engine's steps was its own."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most probable alternatives, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, repr=False)
class Completion:
    """What a request came to; str() is the text.

    finish_reason: "stop" (the model's end, a stop text or token), "length" (max_tokens), "context"
    (the context is full), "timeout" or "cancelled". prompt_tokens: computed or reused;
    dropped_tokens: of the prompt too, but left out by overflow="truncate" or "shift".
    forced_tokens: those of `tokens` that a guide left no choice for. Times are
    seconds; queue_seconds until a slot was free, then until the first token, then to the end;
    latency_seconds is the whole.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    dropped_tokens: int
    reused_tokens: int
    seed: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    latency_seconds: float
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    forced_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the whole latency."""
        return len(self.tokens) / self.latency_seconds if self.latency_seconds else 0.0

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<llcuda.Completion {self.text!r}: {self.figures()}>"

    def _repr_html_(self) -> str:
        return _as_html(self.text, self.figures())

    def figures(self) -> str:
        """Return tokens, time, rate, and why it ended, in one line."""
        count = f"{len(self.tokens)} tokens, {self.latency_seconds * 1000:.0f} ms"
        dropped = f", {self.dropped_tokens} tokens of the prompt dropped"
        return (
            f"{count}, {self.tokens_per_second:.1f} tokens/s, {self.finish_reason}"
            f"{dropped if self.dropped_tokens else ''}"
        )


@dataclass(frozen=True, slots=True, repr=False)
class InferResult:
    """What `infer` returns; str(result) is the text.

    tokens_generated: sampled tokens, the end token not counted. latency_ms: wall time of the
    request, queue and prefill in it. tokens_per_sec = tokens_generated / (latency_ms / 1000).
    completion: the engine's Completion, with the time of each phase.
    """

    text: str
    tokens_generated: int
    latency_ms: float
    completion: Completion = field(repr=False)

    @property
    def tokens_per_sec(self) -> float:
        """Tokens per second over the whole latency."""
        return self.completion.tokens_per_second

    @property
    def finish_reason(self) -> str:
        """Why the text ended: "stop", "length", "context", "timeout" or "cancelled"."""
        return self.completion.finish_reason

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.completion.prompt_tokens

    @property
    def dropped_tokens(self) -> int:
        """Tokens of the prompt that overflow="truncate" or "shift" left out."""
        return self.completion.dropped_tokens

    @property
    def seed(self) -> int:
        """The seed that gives this text again."""
        return self.completion.seed

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of each phase of this request."""
        names = ("queue_seconds", "prefill_seconds", "decode_seconds", "latency_seconds")
        return {name: getattr(self.completion, name) for name in names}

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompt that a kept text spared."""
        return self.completion.reused_tokens

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """Each token's log-probability with its alternatives; None unless logprobs= was given."""
        return self.completion.logprobs

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<llcuda.InferResult {self.text!r}: {self.completion.figures()}>"

    def _repr_html_(self) -> str:
        return _as_html(self.text, self.completion.figures())


def _as_html(text: str, note: str) -> str:
    """Return a text as it is, for a notebook, with a small line below.

    Nothing in it is markup: of TeX neither, which notebooks do not look for in <pre>. HTML drops a
    line break after that tag, hence the one.
    """
    style = "white-space: pre-wrap; font-family: inherit"
    return f'<pre style="{style}">\n{html.escape(text)}</pre><small>{html.escape(note)}</small>'


@dataclass(slots=True)
class Times:
    """When a request was submitted, admitted, prefilled and done; seconds of time.perf_counter."""

    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0

    def phases(self) -> dict[str, float]:
        """Return the seconds of each phase of a finished request; what never began took none."""
        admitted = self.admitted or self.finished
        first_token = self.first_token or self.finished
        return {
            "queue_seconds": admitted - self.submitted,
            "prefill_seconds": first_token - admitted,
            "decode_seconds": self.finished - first_token,
            "latency_seconds": self.finished - self.submitted,
        }


@dataclass(slots=True)
class StepSums:
    """Running sums over the engine's decode steps, with the time of one of the step's rows.

    A request's part is what was added between its first and its last step: nothing is kept for
    each request, and nothing is added up for each row.
    """

    steps: int = 0
    rows: int = 0
    sample_seconds: float = 0.0
    deliver_seconds: float = 0.0

    def mark(self) -> StepSums:
        """Return the sums as they are now."""
        return StepSums(self.steps, self.rows, self.sample_seconds, self.deliver_seconds)
