"""The cost and the gain of a Ray cluster: `llcuda serve`, and `--ray` with 1 and 2 replicas.

`python benchmarks/cluster.py [MODEL.gguf] [--clients 8] [--num-gpus 0]`, by default the demo model;
needs the extra `ray`. Whole answers and streams of equal length run in turns against each server.
Each replica computes with one thread on the CPU, or with `--num-gpus`. Only 127.0.0.1 is used.
Prints a table, then one JSON line. Clients, ingress and replicas share the machine: compare ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator

from http_load import Timed, over_http, prompt
from local_server import free_port, running
from rich.console import Console
from rich.table import Table

SERVERS = {
    "llcuda serve": (),
    "--ray, 1 replica": ("--ray", "--replicas", "1"),
    "--ray, 2 replicas": ("--ray", "--replicas", "2"),
}
START_SECONDS = 300


@contextlib.contextmanager
def server(model: str, options: tuple[str, ...], num_gpus: float) -> Iterator[int]:
    """Run a server; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "llcuda", "serve", f"model={model}", "--port", str(port)]
    command += ["--ctx-size", "512", "--parallel", "8", "--log-level", "error", *options]
    if "--ray" in options:
        command += ["--num-gpus", str(num_gpus)]
    if not num_gpus:
        command += ["--threads", "1", "--gpu-layers", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with running(command, port, seconds=START_SECONDS, env=environment):
        yield port


async def whole(port: int, clients: int, turns: int, tokens: int) -> float:
    """Read whole answers; return the tokens of a second."""
    body = {"max_tokens": tokens, "ignore_eos": True}

    def ask(text: str) -> None:
        data = json.dumps({"prompt": text, **body}).encode()
        head = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{port}/v1/completions"
        urllib.request.urlopen(urllib.request.Request(url, data, head), timeout=600).read()

    async def client(number: int) -> None:
        for turn in range(turns):
            await asyncio.to_thread(ask, prompt(number, turn))

    started = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    return clients * turns * tokens / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--num-gpus", type=float, default=0)
    chosen = parser.parse_args()
    size = chosen.clients, chosen.turns, chosen.tokens
    table = Table("server", "whole tok/s", "streams tok/s", "first ms (p50)")
    rates: dict[str, dict[str, float]] = {}
    for name, options in SERVERS.items():
        with server(chosen.model, options, chosen.num_gpus) as port:
            asyncio.run(whole(port, chosen.clients, 1, 8))
            rate = asyncio.run(whole(port, *size))
            timed: Timed = asyncio.run(over_http(port, *size, {"ignore_eos": True}))
        first = 1000 * statistics.median(timed.first)
        streams = timed.tokens / timed.seconds
        rates[name] = {"whole": rate, "streams": streams, "first_ms": first}
        table.add_row(name, f"{rate:.0f}", f"{streams:.0f}", f"{first:.0f}")
    Console().print(table)
    plain, one, two = (rates[name]["whole"] for name in SERVERS)
    print(json.dumps({"ray_over_plain": one / plain, "two_over_one": two / one, "rates": rates}))


if __name__ == "__main__":
    main()
