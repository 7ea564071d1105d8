"""What a sampler chain leaves of logits, and a reference in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda import Model, Sampler
from llcuda import samplers as steps
from tests.support import models

N = models.VOCABULARY
Float32 = npt.NDArray[np.float32]


def after(
    model: Model,
    chain: Sequence[steps.Step],
    logits: Float32,
    *accepted: int,
    prompt: Sequence[int] = (),
) -> Float32:
    """Return the logits that a chain leaves, -inf for what it removed."""
    left = np.full(N, -np.inf, np.float32)

    def look(candidates: npt.NDArray[Any]) -> int:
        left[candidates["id"]] = candidates["logit"]
        return int(candidates["id"][candidates["logit"].argmax()])

    sampler = Sampler(chain=[*chain, steps.Python(look)], model=model)
    sampler.accept_prompt(prompt)
    for token in accepted:
        sampler.accept(token)
    sampler.sample_logits(logits)
    return left


def softmax(logits: Float32) -> npt.NDArray[np.float64]:
    """Return probabilities in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def kept(logits: Float32) -> set[int]:
    """Return the tokens that are left."""
    return set(np.flatnonzero(logits > -np.inf).tolist())
