"""llcuda's loop as its README prints it: sample, is_eog, piece, decode."""

from __future__ import annotations

import time
from pathlib import Path

from llcuda import Context, Model, Sampler


class Peer:
    """A model, a context and a sampler."""

    def __init__(self, model: Path, threads: int) -> None:
        self._model = Model(model)
        self._context = Context(
            self._model, ctx_size=1024, threads=threads, flash_attention=True, batch_size=512
        )
        bias = dict.fromkeys(self._model.eog_tokens, -100.0)
        self._sampler = Sampler(temperature=0.7, top_k=40, top_p=0.9, seed=1, logit_bias=bias)

    def seconds_per_token(self, prompt: list[int], n_tokens: int) -> float:
        """Time the loop with top_k 40, top_p 0.9, temperature 0.7; the prompt counts too."""
        model, context, sampler = self._model, self._context, self._sampler
        context.memory.clear(data=False)
        started = time.perf_counter()
        context.decode(prompt)
        text = ""
        text = model.piece(token := sampler.sample(context))
        for _ in range(n_tokens - 1):
            context.decode([token])
            token = sampler.sample(context)
            if model.is_eog(token):
                break
            text += model.piece(token)
        return (time.perf_counter() - started) / n_tokens
