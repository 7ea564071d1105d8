"""Log-probabilities from logits. Plain numpy; knows nothing of models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError

Float32 = npt.NDArray[np.float32]


def log_softmax(logits: Float32) -> Float32:
    """Return log p for each entry of `logits`, shape (vocab_size,); sums in float64.

    NaN everywhere when a logit is NaN, or all are -inf.
    """
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max()
        total = np.exp(shifted, dtype=np.float64).sum()
        scores: Float32 = shifted - np.float32(np.log(total))
    return scores


def top_logprobs(logits: Float32, n: int) -> list[tuple[int, float]]:
    """Return the `n` most probable (token, log p), best first; fewer when there are fewer."""
    if not isinstance(n, int) or n < 0:
        raise ArgumentError(f"n={n!r}: expected a whole number from 0")
    scores = log_softmax(logits)
    n = min(n, len(scores))
    best = np.arange(len(scores)) if n == len(scores) else np.argpartition(-scores, n)[:n]
    best = best[np.argsort(-scores[best], kind="stable")]
    return [(int(token), float(scores[token])) for token in best[:n]]
