"""Our loop against llama-cpp-python's `Llama`: same libraries, same file, same process, by turns.

`python benchmarks/compare.py [MODEL.gguf ...]`; without a file the demo model and Gemma 3 1B's
shapes at Q4_K_M with random weights. Needs the packages of the extra [bench]. Prints a table, then
one JSON line. Speeds drift on a shared machine, so what counts is the median of the ratios of
neighbouring turns; versus.py compares whole batches, each library in a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

from peers import Setup, Text, llama_cpp_python, llcuda_loop
from rich.console import Console
from rich.table import Table

import llcuda
from llcuda.bench.synthetic import make_synthetic_model

TURNS = 15
PROMPT = list(range(300, 316))


def main() -> None:
    """Compare on each model and print."""
    llama_cpp_python.prepare()
    given = [Path(name) for name in sys.argv[1:]]
    models = given or [llcuda.demo_model(), make_synthetic_model("gemma-3-1b", "Q4_K_M")]
    table = Table(
        "model", "threads", "llcuda", "llama-cpp-python", "ratio", title="tokens/s, median"
    )
    results = []
    for model in models:
        text = Text(PROMPT, 300 if model.stat().st_size < 2**27 else 32)
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            setup = Setup(gguf=model, threads=threads)
            ours, theirs = llcuda_loop.Peer(setup), llama_cpp_python.Peer(setup)
            turns = [
                (ours.measure([text])[1], theirs.measure([text])[1]) for _ in range(TURNS + 1)
            ][1:]
            ratio = statistics.median(them / us for us, them in turns)
            rates = [text.length / statistics.median(column) for column in zip(*turns, strict=True)]
            table.add_row(model.name, str(threads), *(f"{r:.1f}" for r in rates), f"{ratio:.3f}")
            results.append(
                {"model": model.name, "threads": threads, "ratio": ratio, "turns": turns}
            )
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
