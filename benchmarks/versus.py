"""llcuda and its peers on the same work: four prompts of about 17 tokens, answers up to 1,131.

`python benchmarks/versus.py [--rows 1,4,16,64] [--peers llcuda:Q4_K_M,transformers:static,...]`
measures the rate at which a library writes texts of given lengths, sampling with top_k 40, top_p
0.9, temperature 0.7: generated tokens over wall time, prefill included. End tokens are ignored. One
row is the four texts one after the other; with more rows as many are written at once. Start-up is
the time from import to the first token. Warm-up is the time before the first batch, mostly
compilation. The models are synthetic, with a known model's shapes, so nothing is downloaded.

After the colon of a peer's name comes a file type (llcuda, llama-cpp-python, llama-bench), for
llcuda with "+copies" for bf16_copies, or a mode, which the peer's module in benchmarks/peers
documents. Each peer has a process of its own; one
that cannot run here is reported. llcuda runs before the others and again after them: the difference
is the drift of the machine, and the others are compared with the mean. Needs the extra [bench] and
the packages of the peers, for llama-cpp-python the dependency group peer-llama-cpp-python.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from peers import LENGTHS, PROMPT_SIZES, SAMPLING, Setup
from rich.console import Console
from rich.table import Table

import llcuda
from llcuda.bench.synthetic import SHAPES, make_synthetic_model
from llcuda.files import cache_folder

CHILD = Path(__file__).resolve().parent / "peers" / "child.py"
PEERS = {
    "llcuda": "peers.llcuda",
    "llcuda-loop": "peers.llcuda_loop",
    "llama-cpp-python": "peers.llama_cpp_python",
    "llama-bench": "peers.llama_bench",
    "transformers": "peers.transformers",
    "ctranslate2": "peers.ctranslate2",
    "eole": "peers.eole",
    "vllm": "peers.vllm",
}
LOAD_GGUF = ("llcuda", "llcuda-loop", "llama-cpp-python", "llama-bench")
DEFAULT = (
    "llcuda:Q4_K_M,llcuda:F16,llama-cpp-python:Q4_K_M,llama-bench:Q4_K_M,"
    "transformers,transformers:static,ctranslate2,eole,eole:compile,vllm"
)
Results = list[dict[str, Any]]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", default="1,4,16,64", help="sequences at once, e.g. 1,4,16,64")
    parser.add_argument("--peers", default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--shape", default="gemma-3-1b", choices=list(SHAPES))
    parser.add_argument(
        "--lengths", default=",".join(map(str, LENGTHS)), help="tokens of the four answers"
    )
    parser.add_argument("--turns", type=int, default=1, help="measurements; the median counts")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each peer")
    parser.add_argument(
        "--prepare", action="store_true", help="only write the files that the peers load"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    options = parser.parse_args(arguments)
    for name in ("rows", "lengths"):
        try:
            numbers = [int(number) for number in getattr(options, name).split(",")]
        except ValueError:
            numbers = [0]
        if min(numbers) < 1:
            parser.error(f"--{name}: expected numbers from 1, e.g. 1,4,16")
        setattr(options, name, numbers)
    options.peers = options.peers.split(",")
    for peer in options.peers:
        if peer.partition(":")[0] not in PEERS:
            parser.error(f"--peers: {peer} is not one of {', '.join(PEERS)}")
    return options


def setup_for(peer: str, options: argparse.Namespace) -> Setup:
    """Return the setup of a peer."""
    name, _, variant = peer.partition(":")
    variant = variant or ("Q4_K_M" if name in LOAD_GGUF else "")
    folder, shape = cache_folder("shapes"), options.shape
    longest = max(PROMPT_SIZES) + max(options.lengths)
    return Setup(
        gguf=folder / f"{shape}-{file_type(variant)}.gguf" if name in LOAD_GGUF else Path(),
        shape=dataclasses.asdict(SHAPES[shape]),
        folder=folder / shape,
        variant=variant,
        rows=max(options.rows),
        context=-(-longest // 256) * 256,
        threads=len(os.sched_getaffinity(0)),
        gpu=llcuda.detect_cuda()["available"],
    )


def file_type(variant: str) -> str:
    """Return the file type of a variant, without a mode after it."""
    return variant.partition("+")[0]


def prepare(peer: str, options: argparse.Namespace) -> str:
    """Write the files that a peer loads; return in one line why it cannot run, or ""."""
    if reason := importlib.import_module(PEERS[peer.partition(":")[0]]).missing():
        return str(reason)
    setup = setup_for(peer, options)
    if peer.partition(":")[0] in LOAD_GGUF:
        # The memory of a process of its own, on the GPU too, is free when it ends.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                pool.submit(make_synthetic_model, options.shape, file_type(setup.variant)).result()
            except llcuda.LlcudaError as error:
                return str(error)
    return run_child(peer, setup, options.limit, task="prepare")[1]


def run_child(peer: str, setup: Setup, limit: float, **job: Any) -> tuple[Results, str]:
    """Run a peer's process; return its lines, and why it ended early, or "".

    Args:
        peer: The peer, with its variant.
        setup: What it loads.
        limit: Seconds until it is stopped.
        job: The `task`, and what it needs; see peers/child.py.
    """
    fields = dataclasses.asdict(setup)
    job["module"] = PEERS[peer.partition(":")[0]]
    job["setup"] = {key: str(v) if isinstance(v, Path) else v for key, v in fields.items()}
    reading, writing = os.pipe()
    lines: Results = []
    with tempfile.TemporaryFile("w+") as log, os.fdopen(reading) as results:
        process = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps({**job, "fd": writing})],
            pass_fds=[writing], stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        timed_out = threading.Event()
        timer = threading.Timer(limit, lambda: (timed_out.set(), stop(process)))
        timer.start()
        try:
            for line in results:
                lines.append(json.loads(line))
                print(f"{peer}: {line.strip()}", file=sys.stderr, flush=True)
            code = process.wait()
        finally:
            timer.cancel()
            stop(process)
        if timed_out.is_set():
            return lines, f"stopped after {limit:g} s"
        log.seek(0)
        logged = [line.strip() for line in log if line.strip()]
    reason = logged[-1][:300] if logged else f"exit code {code}"
    return lines, f"failed: {reason}" if code else ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a peer with all the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(peer: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of a peer."""
    job = {name: getattr(options, name) for name in ("rows", "lengths", "turns")}
    lines, reason = run_child(peer, setup_for(peer, options), options.limit, task="measure", **job)
    measured: dict[str, Any] = {"peer": peer, "reason": reason, **(lines[0] if lines else {})}
    measured["results"] = lines[1:]
    for result in measured["results"]:
        result["tokens_per_second"] = result["tokens"] / statistics.median(result["seconds"])
    return measured


def rates(measured: dict[str, Any]) -> dict[int, float]:
    """Return tokens per second by rows."""
    return {result["rows"]: result["tokens_per_second"] for result in measured["results"]}


def compare(before: Results, others: Results, after: Results) -> dict[str, Any]:
    """Return ratios[peer][rows][llcuda's variant], and drift[variant][rows] (after / before)."""
    drift: dict[str, dict[int, float]] = {}
    means: dict[str, dict[int, float]] = {}
    for first, second in zip(before, after, strict=True):
        a, b = rates(first), rates(second)
        drift[first["peer"]] = {rows: b[rows] / a[rows] for rows in a if rows in b}
        means[first["peer"]] = {rows: (a[rows] + b.get(rows, a[rows])) / 2 for rows in a}
    ratios = {
        peer["peer"]: {
            rows: {name: mean[rows] / rate for name, mean in means.items() if rows in mean}
            for rows, rate in rates(peer).items()
        }
        for peer in others
    }
    return {"ratios": ratios, "drift": drift}


def table(document: dict[str, Any]) -> Table:
    """Return the table of the results."""
    names = list(document["drift"])
    ratio = ", ".join(f"x{i} = {name} / peer" for i, name in enumerate(names, 1))
    shown = Table("rows", title=f"tokens per second; {ratio}" if ratio else None)
    shown.add_column("peer", no_wrap=True)
    ratios = [f"x{i}" for i in range(1, len(names) + 1)]
    for name in ("start-up s", "warm-up s", "tokens/s", *ratios):
        shown.add_column(name, justify="right", no_wrap=True)
    for rows in document["rows"]:
        shown.add_section()
        for peer in document["peers"]:
            for result in peer["results"]:
                if result["rows"] != rows:
                    continue
                over = document["ratios"].get(peer["peer"], {}).get(rows, {})
                shown.add_row(
                    str(rows),
                    f"{peer['peer']} {peer['turn']}",
                    f"{peer['first_token_seconds']:.1f}",
                    f"{result['warm_up_seconds']:.1f}",
                    f"{result['tokens_per_second']:,.0f}",
                    *(f"{over[name]:.2f}" if name in over else "" for name in names),
                )
    return shown


def conditions(absent: dict[str, str]) -> dict[str, Any]:
    """Return the part of a document that says under which conditions it was measured.

    Args:
        absent: For each peer why it cannot run, or "".
    """
    return {
        "sampling": SAMPLING,
        "devices": [gpu["name"] for gpu in llcuda.detect_cuda()["gpus"]],
        "processors": len(os.sched_getaffinity(0)),
        "absent": {peer: reason for peer, reason in absent.items() if reason},
    }


def show_reasons(console: Console, document: dict[str, Any]) -> None:
    """Print why peers did not run, or not to their end."""
    reasons = document["absent"] | {peer["peer"]: peer["reason"] for peer in document["peers"]}
    for peer, reason in reasons.items():
        if reason:
            console.print(f"{peer}: {reason}", markup=False)


def print_document(document: dict[str, Any], path: Path | None) -> None:
    """Print the document as one JSON line, and write it to a file if there is a path."""
    line = json.dumps(document)
    if path:
        path.write_text(line + "\n")
    print(line)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    console = Console()
    absent = {peer: prepare(peer, options) for peer in dict.fromkeys(options.peers)}
    peers = [peer for peer, reason in absent.items() if not reason]
    if options.prepare:
        peers = []
    own = [peer for peer in peers if peer.partition(":")[0] == "llcuda"]
    before = [measure(peer, options) for peer in own]
    others = [measure(peer, options) for peer in peers if peer not in own]
    after = [measure(peer, options) for peer in own] if others else before
    turns = (("before", before), ("", others), ("after", after)) if others else (("", before),)
    document = {
        "shape": options.shape,
        "rows": options.rows,
        "lengths": options.lengths,
        "prompts": PROMPT_SIZES,
        **conditions(absent),
        "peers": [{**peer, "turn": turn} for turn, group in turns for peer in group],
        **compare(before, others, after),
    }
    if peers:
        console.print(table(document))
    show_reasons(console, document)
    for peer, by_rows in document["drift"].items():
        if others:
            drifts = ", ".join(f"{rows} rows {ratio:.3f}" for rows, ratio in by_rows.items())
            console.print(f"{peer}, after over before: {drifts}", markup=False)
    print_document(document, options.json)


if __name__ == "__main__":
    main()
