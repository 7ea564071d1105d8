"""The times of an answer and the build that gave it, as llama-server names them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from llcuda._version import __version__
from llcuda.engine.outputs import Completion
from llcuda.native.library import installation


def timings(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the field `timings`; of several texts the sums.

    The rate of the answer leaves out the first token, which the prompt's last step chooses.

    Args:
        completions: The results.
    """
    cached = sum(completion.cached_tokens for completion in completions)
    computed = sum(completion.prompt_tokens for completion in completions) - cached
    generated = sum(len(completion.tokens) for completion in completions)
    steps = sum(max(0, len(completion.tokens) - 1) for completion in completions)
    prompt_ms = 1000 * sum(completion.prefill_seconds for completion in completions)
    predicted_ms = 1000 * sum(completion.decode_seconds for completion in completions)
    return {
        "cache_n": cached,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, computed),
        "prompt_per_second": _ratio(1000 * computed, prompt_ms),
        "predicted_n": generated,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, steps),
        "predicted_per_second": _ratio(1000 * steps, predicted_ms),
    }


@cache
def build_info() -> str:
    """Return the build: "build-" and the versions of llcuda and llama.cpp."""
    return f"build-llcuda-{__version__}-llama.cpp-{installation()[1][:9]}"


def _ratio(amount: float, count: float) -> float:
    return amount / count if count else 0.0
