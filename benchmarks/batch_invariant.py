"""What batch_invariant=True costs: decode steps and a prompt, with and without it, by turns.

`python benchmarks/batch_invariant.py MODEL [--rows 1,4,16] [--prompt 512] [--turns 5]`
computes on the CPU with one thread and takes the thread's time, which other programs disturb less
than the clock. A figure is the least of the turns; the ratio is that with over that without. Prints
a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from llcuda import Context, Model
from llcuda.bench.loops import make_prompt

STEPS = 20


def decode_step(model: Model, rows: int, invariant: bool) -> float:
    """Return the least seconds of a decode step of so many sequences."""
    prompt, seqs = make_prompt(model, 32), [*range(rows)]
    with Context(
        model,
        sequences=rows,
        ctx_size=256,
        unified_kv=False,
        threads=1,
        batch_invariant=invariant,
    ) as context:
        for seq in seqs:
            context.decode(prompt, seq)
        times = []
        for step in range(STEPS):
            started = time.thread_time()
            context.decode_batch([prompt[step]] * rows, seqs)
            times.append(time.thread_time() - started)
    return min(times)


def prefill(model: Model, length: int, invariant: bool) -> float:
    """Return the seconds of a prompt of so many tokens."""
    prompt = make_prompt(model, length)
    with Context(model, ctx_size=length, threads=1, batch_invariant=invariant) as context:
        context.decode(prompt[:8])
        context.memory.clear()
        started = time.thread_time()
        context.decode(prompt)
        return time.thread_time() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    with Model(asked.model, gpu_layers=0, devices=()) as model:
        measures: dict[str, Callable[[bool], float]] = {}
        for rows in map(int, asked.rows.split(",")):
            measures[f"decode step, {rows} sequences"] = lambda on, rows=rows: decode_step(
                model, rows, on
            )
        measures[f"prompt of {asked.prompt} tokens"] = lambda on: prefill(model, asked.prompt, on)
        print(f"{'':26}{'without, ms':>14}{'with, ms':>12}{'ratio':>8}")
        for name, measure in measures.items():
            turns = [(measure(False), measure(True)) for _ in range(asked.turns)]
            without, invariant = (min(times) for times in zip(*turns, strict=True))
            print(
                f"{name:26}{without * 1e3:14.2f}{invariant * 1e3:12.2f}{invariant / without:8.2f}"
            )


if __name__ == "__main__":
    main()
