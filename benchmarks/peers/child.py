"""The process of one peer: it loads, writes a first token, measures, and sends JSON lines.

versus.py starts it with one argument, a JSON object: `module`, `task` ("prepare" or "measure"),
`setup`, `rows`, `lengths`, `turns`, and `fd`, where the results go; stdout is the peer's own.
"""

from __future__ import annotations

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
        elif hasattr(module, "prepare"):
            module.prepare(setup)


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
