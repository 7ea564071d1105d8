"""llcuda's loop as its README prints it: sample, is_eog, piece, decode. One text at a time."""

from __future__ import annotations

from collections.abc import Sequence

import peers
from peers import SAMPLING, Setup, Text


def missing() -> str:
    """Nothing: versus.py itself needs llcuda."""
    return ""


class Peer(peers.Peer):
    """A model, a context and a sampler."""

    at_once = 1

    def __init__(self, setup: Setup) -> None:
        import llcuda

        self.version = llcuda.__version__
        self._model = llcuda.Model(setup.gguf)
        self._context = llcuda.Context(
            self._model, ctx_size=setup.context, threads=setup.threads, batch_size=512
        )
        ends = dict.fromkeys(self._model.eog_tokens, -100.0)
        self._sampler = llcuda.Sampler(seed=1, logit_bias=ends, **SAMPLING)

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Write the texts one after the other."""
        return [self._write(text) for text in texts]

    def _write(self, text: Text) -> int:
        model, context, sampler = self._model, self._context, self._sampler
        context.memory.clear(data=False)
        context.decode(text.prompt)
        written = model.piece(token := sampler.sample(context))
        count = 1
        while count < text.length:
            context.decode([token])
            token = sampler.sample(context)
            if model.is_eog(token):
                break
            written += model.piece(token)
            count += 1
        return count
