"""Counts and wall clock of a model's tokenizer, a context, its CUDA graphs and one decode."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class DecodeEvent:
    """What one call of `Context.decode` or `Context.decode_batch` did; passed to each hook.

    Attributes:
        phase: "decode" if every row belongs to another sequence, else "prefill".
        rows: Tokens computed.
        outputs: Rows of logits computed.
        seconds: Wall clock, with the wait for the device.
    """

    phase: str
    rows: int
    outputs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall clock in seconds and counts of each phase, since the last reset.

    Load, tokenize and detokenize belong to the model and count all its users; they are never
    reset.

    Attributes:
        load_seconds: Loading the model.
        tokenize_seconds: `Model.tokenize`.
        prefill_seconds: Decodes with several rows of one sequence.
        decode_seconds: Decodes whose rows belong to different sequences.
        sample_seconds: Choosing tokens.
        detokenize_seconds: `Model.detokenize`, and the first `Model.piece` of each token.
        tokenized_tokens: Tokens that `Model.tokenize` returned.
        prefill_tokens: Rows of prefills.
        decode_tokens: Rows of decodes.
        sampled_tokens: Tokens chosen.
        detokenized_tokens: Tokens turned into text.
        prefill_calls: Prefills.
        decode_calls: Decodes.
        graphs_reused: Micro-batches that reused the compute graph of an earlier one.
        graphs_kept: Compute graphs of decode steps that were built to be kept.
        graphs_evicted: Kept graphs that made way for another.
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
    graphs_kept: int = 0
    graphs_evicted: int = 0

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


@dataclass(frozen=True, slots=True)
class CudaGraphs:
    """The CUDA graphs of a context; see `ContextParams.cuda_graphs`.

    Comparisons are counted where first replays are checked, the rest also elsewhere.

    Attributes:
        on: Whether every GPU of the context may replay CUDA graphs. False without a GPU, and after
            a difference.
        captured: CUDA graphs that kernels were recorded for, anew too.
        replays: Launches of CUDA graphs.
        checked: First replays that were compared with the same kernels launched one by one.
        different: Comparisons that found a difference.
    """

    on: bool = False
    captured: int = 0
    replays: int = 0
    checked: int = 0
    different: int = 0


@dataclass(slots=True)
class TokenizerTimings:
    """What a model adds up for the `Timings` of its contexts."""

    tokenize_seconds: float = 0.0
    detokenize_seconds: float = 0.0
    tokenized_tokens: int = 0
    detokenized_tokens: int = 0
