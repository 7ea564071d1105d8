"""Where the time goes: the phases of a context and one decode's report.

Times are seconds of wall clock; token counts are whole numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class DecodeEvent:
    """What one call of `Context.decode` did; handed to each hook.

    phase: "decode" when every row belongs to another sequence, else "prefill".
    rows: tokens computed. outputs: rows of logits. seconds: wall clock, the device waited for.
    """

    phase: str
    rows: int
    outputs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall clock and counts of each phase.

    load, tokenize and detokenize belong to the model, with all its users; prefill, decode and
    sample to the context. graphs_reused: decodes that reused the last compute graph.
    """

    load_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    detokenize_seconds: float = 0.0
    tokenized_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    sampled_tokens: int = 0
    detokenized_tokens: int = 0
    prefill_calls: int = 0
    decode_calls: int = 0
    graphs_reused: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second of prefill; 0.0 before any."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens per second of decode and sampling together; 0.0 before any."""
        seconds = self.decode_seconds + self.sample_seconds
        return self.decode_tokens / seconds if seconds else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return every field and both rates, ready for JSON."""
        rates = ("prefill_tokens_per_second", "decode_tokens_per_second")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}
