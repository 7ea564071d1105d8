"""Requests that arrive by chance, at llcuda and at its peers.

`python benchmarks/arrivals.py [--peers llcuda:F16,llcuda:Q4_K_M,vllm] [--rows 64]
[--loads 0.5,0.8,0.95] [--requests 400] [--seeded] [--reference PEER | --rate REQUESTS]` sends
requests to the libraries' Python interfaces from coroutines of one process: prompts of 32 to 2,048
tokens, answers of 32 to 512 (--prompts, --answers), lengths whose logarithms are distributed
uniformly, sampling as versus.py does, end tokens ignored. First all requests are sent at once: the
rate at which they end in the middle of that run is the peer's saturated rate. Then they arrive as a
Poisson process at shares of the saturated rate of one peer: --reference, or vLLM where it runs, or
the first peer. That peer is measured first. --rate is a rate to use instead, in requests a second.

Printed are tokens of the answers a second over the whole run, and percentiles 50, 95 and 99 of
three times in milliseconds: to the first token, from when the request was due; of a further token,
each request's mean; between two outputs of a request. For the times the first and the last tenth of
the requests are left out. llcuda also prints its decode steps, the mean rows of its steps, how many
graphs were reused for a step, of which each micro-batch has one, how many were built to be kept and
how many of these made way for others (evicted), and how many CUDA graphs were captured and
launched. --seeded gives each request a seed. Models and peers are those of versus.py, as are
--shape, --limit, --prepare and --json. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import versus
from peers import Setup
from peers.traffic import ANSWER_RANGE, PERCENTILES, PROMPT_RANGE
from rich.console import Console
from rich.table import Table

from llcuda.bench.synthetic import SHAPES

DEFAULT = "llcuda:F16,llcuda:Q4_K_M,vllm"
TIMES = {"first_ms": "first", "token_ms": "token", "gap_ms": "gap"}
GRAPHS = ("kept", "evicted", "captured", "replays")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--peers", default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--rows", type=int, default=64, help="requests computed at once")
    parser.add_argument("--loads", default="0.5,0.8,0.95", help="shares of the saturated rate")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--prompts", default="{}-{}".format(*PROMPT_RANGE), help="their tokens")
    parser.add_argument("--answers", default="{}-{}".format(*ANSWER_RANGE), help="their tokens")
    parser.add_argument("--seeded", action="store_true", help="give each request a seed")
    parser.add_argument("--reference", help="the peer whose saturated rate is a load of 1")
    parser.add_argument("--rate", type=float, help="requests a second that are a load of 1")
    parser.add_argument("--shape", default="gemma-3-1b", choices=list(SHAPES))
    parser.add_argument("--limit", type=float, default=900, help="seconds for each peer")
    parser.add_argument(
        "--prepare", action="store_true", help="only write the files that the peers load"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    options = parser.parse_args(arguments)
    if options.rows < 1 or options.requests < 20:
        parser.error("--rows, --requests: expected 1 row and 20 requests or more")
    for name in ("prompts", "answers"):
        low, _, high = getattr(options, name).partition("-")
        if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
            parser.error(f"--{name}: expected the least and the largest number, e.g. 32-512")
        setattr(options, name, (int(low), int(high)))
    try:
        options.loads = [float(load) for load in options.loads.split(",")]
    except ValueError:
        options.loads = [0]
    if not min(options.loads) > 0 or not (options.rate is None or options.rate > 0):
        parser.error("--loads, --rate: expected numbers above 0, e.g. --loads 0.5,0.8")
    options.peers = options.peers.split(",")
    for peer in [*options.peers, *([options.reference] if options.reference else ())]:
        if peer.partition(":")[0] not in versus.PEERS:
            parser.error(f"--peers: {peer} is not one of {', '.join(versus.PEERS)}")
    if options.reference and options.reference not in options.peers:
        parser.error(f"--reference: {options.reference} is not among --peers")
    # what versus.py's preparation looks at
    options.lengths = [options.prompts[1] + options.answers[1]]
    return options


def setup_for(peer: str, options: argparse.Namespace) -> Setup:
    """Return the setup of a peer."""
    setup = versus.setup_for(peer, argparse.Namespace(**{**vars(options), "rows": [options.rows]}))
    return dataclasses.replace(setup, context=-(-options.lengths[0] // 256) * 256)


def missing(peer: str, options: argparse.Namespace) -> str:
    """Prepare a peer; return in one line why it cannot run, or ""."""
    reason = versus.prepare(peer, argparse.Namespace(**{**vars(options), "rows": [options.rows]}))
    module = importlib.import_module(versus.PEERS[peer.partition(":")[0]])
    return reason or ("" if hasattr(module, "Server") else "it takes no requests while it computes")


def measure(peer: str, options: argparse.Namespace, rate: float | None) -> dict[str, Any]:
    """Return the measurements of a peer; without a rate, at shares of its own saturated rate."""
    names = ("loads", "requests", "prompts", "answers", "seeded")
    job = {name: getattr(options, name) for name in names}
    lines, reason = versus.run_child(
        peer, setup_for(peer, options), options.limit, task="serve", rate=rate, **job
    )
    return {"peer": peer, "reason": reason, "results": lines}


def table(measured: list[dict[str, Any]]) -> Table:
    """Return the table of the results."""
    shown = Table("load", "peer", title="tokens of answers a second; milliseconds")
    heads = ["requests/s", "tokens/s"]
    heads += [f"{short} p{p}" for short in TIMES.values() for p in PERCENTILES]
    for head in (*heads, "steps", "rows", "reused", *GRAPHS):
        shown.add_column(head, justify="right")
    for load in dict.fromkeys(line["load"] for peer in measured for line in peer["results"]):
        shown.add_section()
        for peer in measured:
            for line in peer["results"]:
                if line["load"] != load:
                    continue
                times = [f"{value:,.1f}" for name in TIMES for value in line[name]]
                shown.add_row(
                    "all at once" if load is None else f"{load:g}", peer["peer"],
                    f"{line['rate']:.2f}", f"{line['tokens_per_second']:,.0f}", *times,
                    *own_figures(line["figures"]),
                )  # fmt: skip
    return shown


def own_figures(figures: dict[str, Any]) -> list[str]:
    """Return llcuda's decode steps, the mean rows, how many graphs a step reused, and others."""
    if not figures:
        return []
    steps = figures["decode_steps"] + figures["prefill_steps"]
    reused = figures["reused"] / max(1, steps)
    counts = [f"{figures[name]:,}" for name in GRAPHS]
    return [f"{figures['decode_steps']:,}", f"{figures['mean_rows']:.1f}", f"{reused:.2f}", *counts]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 240)
    absent = {peer: missing(peer, options) for peer in dict.fromkeys(options.peers)}
    peers = [] if options.prepare else [peer for peer, reason in absent.items() if not reason]
    vllm = next((peer for peer in peers if peer.startswith("vllm")), None)
    if reference := options.reference or vllm:
        peers.sort(key=lambda peer: peer != reference)
    measured, rate = [], options.rate
    for peer in peers:
        measured.append(measure(peer, options, rate))
        if rate is None and measured[-1]["results"]:
            rate = measured[-1]["results"][0]["rate"]
    document = {
        "shape": options.shape,
        "rows": options.rows,
        "requests": options.requests,
        "prompts": options.prompts,
        "answers": options.answers,
        "seeded": options.seeded,
        **versus.conditions(absent),
        "rate": rate,
        "peers": measured,
    }
    if measured:
        console.print(table(measured))
    versus.show_reasons(console, document)
    versus.print_document(document, options.json)


if __name__ == "__main__":
    main()
