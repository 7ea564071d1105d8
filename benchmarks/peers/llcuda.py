"""llcuda's engine, as its users submit requests."""

from __future__ import annotations

from collections.abc import Sequence

import peers
from peers import SAMPLING, Setup, Text


def missing() -> str:
    """Nothing: versus.py itself needs llcuda."""
    return ""


class Peer(peers.Peer):
    """A model and the engine on it."""

    def __init__(self, setup: Setup) -> None:
        import llcuda

        self.version = llcuda.__version__
        self._setup, self._make = setup, llcuda.Engine
        copies = setup.variant.endswith("+copies")
        self._model = llcuda.Model(setup.gguf, bf16_copies=copies)
        self._engine: llcuda.Engine | None = None

    def open(self, rows: int) -> None:
        """Replace the engine."""
        if self._engine:
            self._engine.close()
        self._engine = self._make(self._model, n_parallel=rows, ctx_size=self._setup.context)

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Submit all; the engine decodes as many at once as it has rows."""
        requests = [
            self._engine.submit(
                text.prompt, max_tokens=text.length, ignore_eos=True, seed=seed, **SAMPLING
            )
            for seed, text in enumerate(texts)
        ]
        return [len(request.result().tokens) for request in requests]
