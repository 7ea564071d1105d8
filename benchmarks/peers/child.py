"""The process of one peer: load, write a first token, measure; results go out as JSON lines.

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
ENOUGH = 0.99  # of the tokens asked for: where a peer gives text, special ones are left out


def main() -> None:
    """Do what the argument says."""
    # Not this folder, whose modules have the names of the libraries.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from peers import Setup

    asked = json.loads(sys.argv[1])
    os.set_inheritable(asked["fd"], False)
    given = asked["setup"]
    paths = {name: Path(given[name]) for name in ("gguf", "folder")}
    with os.fdopen(asked["fd"], "w") as out:
        module = importlib.import_module(asked["module"])
        setup = Setup(**{**given, **paths})
        if asked["task"] == "measure":
            measure(module.Peer(setup), asked, out)
        elif hasattr(module, "prepare"):
            module.prepare(setup)


def measure(peer: Any, asked: dict[str, Any], out: TextIO) -> None:
    """Measure for each number of rows."""
    from peers import Text, make_texts

    words = asked["setup"]["shape"]["vocabulary"]
    first = make_texts(1, words)[0]
    peer.open(1)
    peer.generate([Text(first.prompt, 1)])
    say(out, version=peer.version, first_token_seconds=time.perf_counter() - STARTED)
    done: dict[int, dict[str, Any]] = {}
    for rows in asked["rows"]:
        together = min(rows, peer.at_once or rows)
        if together not in done:
            texts = make_texts(together, words, asked["lengths"])
            done[together] = one(peer, together, texts, asked["turns"])
        say(out, rows=rows, **done[together])


def one(peer: Any, rows: int, texts: list[Any], n_turns: int) -> dict[str, Any]:
    """Measure for one number of rows; RuntimeError unless the texts have their lengths."""
    started = time.perf_counter()
    peer.open(rows)
    peer.warm_up(texts)
    warm = time.perf_counter() - started
    turns = [peer.measure(texts) for _ in range(n_turns)]
    wanted = sum(text.length for text in texts)
    for counts, _ in turns:
        if not ENOUGH * wanted <= sum(counts) <= wanted:
            raise RuntimeError(f"wrote {sum(counts)} tokens instead of {wanted}")
    return {
        "texts": len(texts),
        "tokens": sum(turns[0][0]),
        "seconds": [seconds for _, seconds in turns],
        "warm_up_seconds": warm,
    }


def say(out: TextIO, **values: Any) -> None:
    """Send one line."""
    print(json.dumps(values), file=out, flush=True)


if __name__ == "__main__":
    main()
