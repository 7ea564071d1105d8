"""Our loop against llama-cpp-python's `Llama`: same libraries, same file, same process, by turns.

`python benchmarks/compare.py [MODEL.gguf ...]`; without a file the demo model and Gemma 3 1B's
shapes at Q4_K_M with random weights (written once to ~/.cache/llcuda/shapes, 0.8 GB, 2.8 GB while
it is made). Needs the packages of the extra [bench]. Prints a table, then one JSON line. Speeds
drift on a shared machine, so what counts is the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import llcuda
from llcuda import shapes
from llcuda.native import library

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llcuda"
TURNS = 15
PROMPT = list(range(300, 316))


def bring_peer() -> Any:
    """Return the peer's module; its pure Python package comes from the pinned archive."""
    folder = CACHE / "peers"
    if not (folder / "llama_cpp").is_dir():
        sys.path.insert(0, str(HERE.parent / "build"))
        import fetch

        folder.mkdir(parents=True, exist_ok=True)
        pin = tomllib.loads((fetch.VENDOR / "llama.cpp.toml").read_text())
        with tarfile.open(fetch.download(pin, folder)) as tar:
            for member in tar.getmembers():
                _, _, member.name = member.name.partition("/")
                if member.name.startswith("llama_cpp/"):
                    tar.extract(member, folder)
    # Ours first: it loads the libraries and their backends, which the peer then shares.
    os.environ["LLAMA_CPP_LIB_PATH"] = library.versions()["folder"]
    sys.path.insert(0, str(folder))
    from peers import llama_cpp_python

    return llama_cpp_python


def main() -> None:
    """Compare on each model and print."""
    theirs = bring_peer()
    from peers import llcuda_loop as ours

    models = [Path(name) for name in sys.argv[1:]]
    models = models or [llcuda.demo_model(), shapes.make("gemma-3-1b")]
    table = Table(
        "model", "threads", "llcuda", "llama-cpp-python", "ratio", title="tokens/s, median"
    )
    results = []
    for model in models:
        n_tokens = 300 if model.stat().st_size < 2**27 else 32
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            a, b = ours.Peer(model, threads), theirs.Peer(model, threads)
            turns = [
                (a.seconds_per_token(PROMPT, n_tokens), b.seconds_per_token(PROMPT, n_tokens))
                for _ in range(TURNS + 1)
            ][1:]
            ratio = statistics.median(them / us for us, them in turns)
            rates = [1 / statistics.median(column) for column in zip(*turns, strict=True)]
            table.add_row(model.name, str(threads), *(f"{r:.1f}" for r in rates), f"{ratio:.3f}")
            results.append(
                {"model": model.name, "threads": threads, "ratio": ratio, "turns": turns}
            )
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
