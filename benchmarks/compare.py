"""Our loop against llama-cpp-python's, same libraries, same file, turn by turn in one run.

`python benchmarks/compare.py [MODEL.gguf ...]`; without a file the demo model and Gemma 3 1B's
shapes at Q4_K_M with random weights (written once to ~/.cache/llcuda/shapes, 0.8 GB, 4 GB while
it is made). Needs the packages of the extra [bench]. Prints a table, then one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from rich.console import Console
from rich.table import Table

import llcuda
from llcuda.native import library

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llcuda"
PEERS = ("llcuda_loop", "llama_cpp_python")
TURNS, REPETITIONS, PROMPT = 3, 2, 16


def bring_peer() -> Path:
    """Return a folder with the pure Python package llama_cpp, from the pinned archive."""
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
    return folder


def run(peer: str, *arguments: object) -> str:
    """Run a peer's script over our libraries and return what it printed."""
    environment = {
        **os.environ,
        "LLAMA_CPP_LIB_PATH": library.versions()["folder"],
        "PYTHONPATH": str(CACHE / "peers"),
    }
    command = [sys.executable, str(HERE / "peers" / f"{peer}.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def gemma_shape() -> Path:
    """Return the Q4_K_M file with Gemma 3 1B's shapes, making it at the first call."""
    target = CACHE / "shapes" / "gemma-3-1b-Q4_K_M.gguf"
    if not target.is_file():
        from shapes import write_gemma_3_1b

        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name("gemma-3-1b-F16.gguf")
        write_gemma_3_1b(half)
        run("llama_cpp_python", "quantize", half, target.with_suffix(".part"))
        half.unlink()
        target.with_suffix(".part").rename(target)
    return target


def main() -> None:
    """Compare on each model and print."""
    bring_peer()
    models = [Path(name) for name in sys.argv[1:]] or [llcuda.demo_model(), gemma_shape()]
    threads = len(os.sched_getaffinity(0))
    table = Table(
        "model", "threads", *PEERS, "ratio", title="tokens per second, median of all turns"
    )
    results = []
    for model in models:
        tokens = 400 if model.stat().st_size < 2**27 else 48
        for n_threads in sorted({1, threads}):
            rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
            for _ in range(TURNS):
                for peer in PEERS:
                    printed = run(peer, model, PROMPT, tokens, REPETITIONS, n_threads)
                    rates[peer] += json.loads(printed.splitlines()[-1])
            ours, theirs = (statistics.median(rates[peer]) for peer in PEERS)
            table.add_row(
                model.name, str(n_threads), f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.3f}"
            )
            results.append({"model": model.name, "threads": n_threads, **rates})
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
