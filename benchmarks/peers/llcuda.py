"""llcuda's engine, as its users submit requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

import peers
from peers import SAMPLING, Setup, Text

CUDA_GRAPHS = ("captured", "replays")


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


class Server(peers.Server):
    """The engine, whose requests are read as text."""

    def __init__(self, setup: Setup) -> None:
        import llcuda

        self.version = llcuda.__version__
        copies = setup.variant.endswith("+copies")
        self._model = llcuda.Model(setup.gguf, bf16_copies=copies)
        self._engine = llcuda.Engine(
            self._model, n_parallel=setup.rows, ctx_size=setup.context, queue_size=2**20
        )
        self._counted: dict[str, int] = {}

    async def stream(self, text: Text, seed: int | None) -> AsyncIterator[int]:
        """Submit the text and read it as it comes."""
        request = self._engine.submit(
            text.prompt, max_tokens=text.length, ignore_eos=True, seed=seed, **SAMPLING
        )
        count = 0
        while await request.more():
            if len(request.tokens) > count:
                yield (count := len(request.tokens))
        if len(request.tokens) > count:
            yield len(request.tokens)

    def figures(self) -> dict[str, Any]:
        """Return the steps, their mean rows, and what became of compute graphs and CUDA graphs."""
        context, batch = self._engine.context, self._engine.metrics.snapshot()["batch"]
        timings, graphs = context.timings.as_dict(), asdict(context.cuda_graphs)
        context.reset_timings()
        self._engine.metrics.reset()
        names = ("decode_steps", "prefill_steps", "mean_rows")
        counted = {name: timings[f"graphs_{name}"] for name in ("reused", "kept", "evicted")}
        counted |= {name: graphs[name] - self._counted.get(name, 0) for name in CUDA_GRAPHS}
        self._counted = graphs
        return {**counted, **{name: batch[name] for name in names}}

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
