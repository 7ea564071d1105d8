"""llcuda's decode loop against llama-cpp-python's `Llama`: same libraries, file and process.

`python benchmarks/compare.py [MODEL.gguf ...]`; without a file it takes the demo model and a
synthetic one with Gemma 3 1B's shapes (Q4_K_M; the package gguf writes it). Needs the packages of
the dependency group peer-llama-cpp-python. Prints a table, then one JSON line. Speeds drift on a
shared machine, so the figure is the median of the ratios of neighbouring turns; versus.py compares
whole batches, each library in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from peers import Setup, Text, llama_cpp_python, llcuda_loop
from rich.console import Console
from rich.table import Table

import llcuda
from llcuda.bench.synthetic import make_synthetic_model

PROMPT = list(range(300, 316))
SMALL_FILE = 2**27  # bytes; smaller models write more tokens


def main() -> None:
    """Compare on each model and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--turns", type=int, default=15, help="besides the one that warms up")
    options = parser.parse_args()
    if reason := llama_cpp_python.missing():
        parser.error(f"llama-cpp-python: {reason}")
    llama_cpp_python.prepare()
    models = options.models or [
        llcuda.demo_model(),
        make_synthetic_model("gemma-3-1b", "Q4_K_M"),
    ]
    table = Table(
        "model", "threads", "llcuda", "llama-cpp-python", "ratio", title="tokens/s, median"
    )
    results = []
    for model in models:
        text = Text(PROMPT, 300 if model.stat().st_size < SMALL_FILE else 32)
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            setup = Setup(gguf=model, threads=threads)
            own, peer = llcuda_loop.Peer(setup), llama_cpp_python.Peer(setup)
            turns = [
                (own.measure([text])[1], peer.measure([text])[1]) for _ in range(options.turns + 1)
            ][1:]
            ratio = statistics.median(peer / own for own, peer in turns)
            rates = [text.length / statistics.median(column) for column in zip(*turns, strict=True)]
            table.add_row(model.name, str(threads), *(f"{r:.1f}" for r in rates), f"{ratio:.3f}")
            results.append(
                {"model": model.name, "threads": threads, "ratio": ratio, "turns": turns}
            )
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
