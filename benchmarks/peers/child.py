"""The process of one peer: it loads, measures, and sends JSON lines.

versus.py and arrivals.py start it with one argument, a JSON object: `module`, `task` ("prepare",
"measure" or "serve"), `setup`, `fd`, where the results go, and what the task needs; stdout is the
peer's own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

STARTED = time.perf_counter()
MIN_SHARE = 0.99  # of the tokens to write; a peer that returns text leaves out special tokens


def main() -> None:
    """Run the task of the argument."""
    # This folder has modules with the names of the libraries.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from peers import Setup

    job = json.loads(sys.argv[1])
    os.set_inheritable(job["fd"], False)
    fields = job["setup"]
    paths = {name: Path(fields[name]) for name in ("gguf", "folder")}
    with os.fdopen(job["fd"], "w") as out:
        module = importlib.import_module(job["module"])
        setup = Setup(**{**fields, **paths})
        if job["task"] == "measure":
            measure(module.Peer(setup), job, out)
        elif job["task"] == "serve":
            server = module.Server(setup)
            try:
                asyncio.run(serve(server, job, out))
            finally:
                server.close()
        elif hasattr(module, "prepare"):
            module.prepare(setup)


async def serve(server: Any, job: dict[str, Any], out: TextIO) -> None:
    """Measure requests that are all there at once, then requests that arrive at each load.

    The job has `requests`, `prompts`, `answers` and `seeded` (see peers.traffic), `loads`, and
    `rate`, the requests a second that are a load of 1; null is the saturated rate measured here.
    """
    from peers import traffic

    words, count, seeded = job["setup"]["shape"]["vocabulary"], job["requests"], job["seeded"]
    ranges = job["prompts"], job["answers"]
    warm_up = traffic.make_requests(job["setup"]["rows"], words, *ranges)
    await traffic.send(server, warm_up, [0.0] * len(warm_up), seeded)
    requests = traffic.make_requests(count, words, *ranges)
    server.figures()
    traces = await traffic.send(server, requests, [0.0] * count, seeded)
    saturated = traffic.saturated_rate(traces)
    send(out, version=server.version, load=None, rate=saturated,
         **traffic.summary(traces), figures=server.figures())  # fmt: skip
    for load in job["loads"]:
        rate = load * (job["rate"] or saturated)
        traces = await traffic.send(server, requests, traffic.poisson_times(count, rate), seeded)
        send(out, version=server.version, load=load, rate=rate,
             **traffic.summary(traces), figures=server.figures())  # fmt: skip


def measure(peer: Any, job: dict[str, Any], out: TextIO) -> None:
    """Measure with each number of rows."""
    from peers import Text, make_texts

    words = job["setup"]["shape"]["vocabulary"]
    first = make_texts(1, words)[0]
    peer.open(1)
    peer.generate([Text(first.prompt, 1)])
    send(out, version=peer.version, first_token_seconds=time.perf_counter() - STARTED)
    results: dict[int, dict[str, Any]] = {}
    for rows in job["rows"]:
        together = min(rows, peer.at_once or rows)
        if together not in results:
            texts = make_texts(together, words, job["lengths"])
            results[together] = measure_rows(peer, together, texts, job["turns"])
        send(out, rows=rows, **results[together])


def measure_rows(peer: Any, rows: int, texts: list[Any], n_turns: int) -> dict[str, Any]:
    """Measure with one number of rows; raise RuntimeError if a text has another length."""
    started = time.perf_counter()
    peer.open(rows)
    peer.warm_up(texts)
    warm_up_seconds = time.perf_counter() - started
    turns = [peer.measure(texts) for _ in range(n_turns)]
    expected = sum(text.length for text in texts)
    for counts, _ in turns:
        if not MIN_SHARE * expected <= sum(counts) <= expected:
            raise RuntimeError(f"wrote {sum(counts)} tokens instead of {expected}")
    return {
        "texts": len(texts),
        "tokens": sum(turns[0][0]),
        "seconds": [seconds for _, seconds in turns],
        "warm_up_seconds": warm_up_seconds,
    }


def send(out: TextIO, **values: Any) -> None:
    """Send one JSON line."""
    print(json.dumps(values), file=out, flush=True)


if __name__ == "__main__":
    main()
