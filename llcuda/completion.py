"""What a request came to, when, and what part of the engine's steps was its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most probable alternatives, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request came to.

    finish_reason: "stop" (the model's end, a stop text or token), "length" (max_tokens), "context"
    (the context is full), "timeout" or "cancelled". Times are seconds; queue_seconds until a slot
    was free, then until the first token, then to the end; latency_seconds is the whole.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    seed: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    latency_seconds: float
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    def __str__(self) -> str:
        return self.text


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
