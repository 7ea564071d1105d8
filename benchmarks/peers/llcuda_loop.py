"""llcuda's loop, decode and sample and piece, as its README prints it. Arguments as its peers'."""

from __future__ import annotations

import json
import sys
import time

from llcuda import Context, Model, Sampler


def generate(
    model: str, n_prompt: int, n_tokens: int, repetitions: int, threads: int
) -> list[float]:
    """Return tokens per second with top_k 40, top_p 0.9, temperature 0.7."""
    rates = []
    with (
        Model(model) as loaded,
        Context(loaded, ctx_size=1024, threads=threads, flash_attention=True) as context,
    ):
        sampler = Sampler(temperature=0.7, top_k=40, top_p=0.9, seed=1)
        for _ in range(repetitions):
            context.memory.clear()
            context.decode(list(range(300, 300 + n_prompt)))
            context.decode([sampler.sample(context)])
            started = time.perf_counter()
            for _ in range(n_tokens):
                token = sampler.sample(context)
                loaded.is_eog(token)
                loaded.piece(token)
                context.decode([token])
            rates.append(n_tokens / (time.perf_counter() - started))
    return rates


if __name__ == "__main__":
    print(json.dumps(generate(sys.argv[1], *(int(text) for text in sys.argv[2:6]))))
