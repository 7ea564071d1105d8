"""Completion: the result of a request."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

from llcuda._lazy import warn_deprecated


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most probable alternatives.

    Attributes:
        token: The token.
        logprob: The natural logarithm of its probability.
        top: The most probable tokens with theirs, best first; as many as `logprobs=` asked for.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, repr=False)
class Completion:
    """The result of a request; `str()` is the text.

    `InferResult` is another name of this class.

    Attributes:
        text: The generated text.
        tokens: The generated tokens, without the token that ended the text.
        finish_reason: "stop" (the model's end token, a stop text or a stop token), "length"
            (max_tokens), "context" (the context is full), "timeout" or "cancelled".
        prompt_tokens: Tokens of the prompt, computed or cached.
        dropped_tokens: Tokens of the prompt that overflow="truncate" or "shift" left out.
        cached_tokens: Tokens of the prompt that a cached prefix has spared.
        seed: The seed that gives this text again.
        queue_seconds: From submission until a slot was free.
        prefill_seconds: From then until the first token.
        decode_seconds: From then until the end.
        latency_seconds: From submission until the end.
        logprobs: The log-probability of each token; None unless `logprobs=` was given.
        prompt_logprobs: Those of the prompt's tokens but the first; None without `echo=True`.
        forced_tokens: How many of `tokens` a guide left no choice for.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    dropped_tokens: int
    cached_tokens: int
    seed: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    latency_seconds: float
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    forced_tokens: int = 0

    @property
    def tokens_generated(self) -> int:
        """The number of generated tokens, without the token that ended the text."""
        return len(self.tokens)

    @property
    def latency_ms(self) -> float:
        """Milliseconds from submission until the end, queue and prefill included."""
        return self.latency_seconds * 1000

    @property
    def tokens_per_sec(self) -> float:
        """Generated tokens per second of the whole latency."""
        return len(self.tokens) / self.latency_seconds if self.latency_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The old name of `tokens_per_sec`; deprecated."""
        warn_deprecated("Completion.tokens_per_second", "Completion.tokens_per_sec")
        return self.tokens_per_sec

    @property
    def timings(self) -> dict[str, float]:
        """The seconds of each phase, by attribute name."""
        names = ("queue_seconds", "prefill_seconds", "decode_seconds", "latency_seconds")
        return {name: getattr(self, name) for name in names}

    @property
    def completion(self) -> Completion:
        """The completion itself; code for `InferResult` reads it."""
        return self

    @property
    def reused_tokens(self) -> int:
        """The old name of `cached_tokens`; deprecated."""
        warn_deprecated("Completion.reused_tokens", "Completion.cached_tokens")
        return self.cached_tokens

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<llcuda.Completion {self.text!r}: {self.figures()}>"

    def _repr_html_(self) -> str:
        """Return the text for a notebook, with the figures below; nothing in it is markup.

        Notebooks do not look for TeX in <pre>. HTML drops a line break after that tag, hence the
        one here.
        """
        style = "white-space: pre-wrap; font-family: inherit"
        text, figures = html.escape(self.text), html.escape(self.figures())
        return f'<pre style="{style}">\n{text}</pre><small>{figures}</small>'

    def figures(self) -> str:
        """Return tokens, time, rate and finish reason in one line."""
        dropped = f", {self.dropped_tokens} tokens of the prompt dropped"
        return (
            f"{len(self.tokens)} tokens, {self.latency_ms:.0f} ms, "
            f"{self.tokens_per_sec:.1f} tokens/s, {self.finish_reason}"
            f"{dropped if self.dropped_tokens else ''}"
        )


InferResult = Completion
