"""Completion: the result of a request."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from llcuda._lazy import explain_names, field_of, warn_deprecated
from llcuda.display import small, text_block, token_table
from llcuda.structured.classes import read_answer


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most probable alternatives.

    Attributes:
        token: The token.
        logprob: The natural logarithm of its probability.
        top: The most probable tokens with theirs, best first; as many as `logprobs=` asked for.
        text: The text of the token; of a control token its name.
        top_texts: The texts of the tokens in `top`.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    text: str = ""
    top_texts: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the log-probabilities as data for JSON, which has no infinity: None stands for it.

        The most probable tokens are {"token": ..., "text": ..., "logprob": ...}.
        """
        texts = self.top_texts or [""] * len(self.top)
        top = [
            {"token": token, "text": text, "logprob": _finite(logprob)}
            for (token, logprob), text in zip(self.top, texts, strict=True)
        ]
        score = _finite(self.logprob)
        return {"token": self.token, "text": self.text, "logprob": score, "top": top}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


@explain_names
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
        response_format: The format that the request was given, which `parsed` reads; or None.
        stop_text: The stop text that ended the text; None where none did.
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
    response_format: Any = None
    stop_text: str | None = None

    @property
    def content(self) -> str:
        """The text, by the name that the answer of a chat has for it."""
        return self.text

    @property
    def parsed(self) -> Any:
        """What the text holds, by its `response_format`.

        An instance where the format is a class, Python's data where it is JSON; None for other
        formats, also for a CompiledGrammar.

        Raises:
            AnswerError: The text is cut off, or the class refuses it.
        """
        return read_answer(self.text, self.response_format, self.finish_reason)

    def __getitem__(self, name: str) -> Any:
        return field_of(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data for JSON: the attributes, and the figures made of them."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        del data["response_format"]
        for name in ("logprobs", "prompt_logprobs"):
            if data[name] is not None:
                data[name] = [score.to_dict() for score in data[name]]
        return {
            **data,
            "tokens": list(self.tokens),
            "tokens_generated": self.tokens_generated,
            "latency_ms": self.latency_ms,
            "tokens_per_sec": self.tokens_per_sec,
        }

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
        """Return the text for a notebook, with the figures and probabilities below."""
        table = token_table(self.logprobs) if self.logprobs else ""
        return text_block(self.text) + small(self.figures()) + table

    def figures(self) -> str:
        """Return tokens, time, rate and finish reason in one line."""
        dropped = f", {self.dropped_tokens} tokens of the prompt dropped"
        return (
            f"{len(self.tokens)} tokens, {self.latency_ms:.0f} ms, "
            f"{self.tokens_per_sec:.1f} tokens/s, {self.finish_reason}"
            f"{dropped if self.dropped_tokens else ''}"
        )


InferResult = Completion
