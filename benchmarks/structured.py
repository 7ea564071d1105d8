"""Generation by a JSON schema against free text, in llcuda and in llama-cpp-python.

`python benchmarks/structured.py MODEL [--rows 1,4,16] [--tokens 128] [--turns 3] [--peer]` submits
requests at once, free and by a schema, in turns in one process. A figure is the median of the
turns, a ratio the median of their ratios. Random weights are enough, because the mask decides.
--peer then runs llama-cpp-python on the same library, one sequence, with its grammar; it needs the
packages of the dependency group peer-llama-cpp-python. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import llcuda
from llcuda import structured

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "note": {"type": "string", "pattern": "^[a-z ]{5,60}$"},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 500}
PROMPT = [1000 + i for i in range(16)]
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", default="1,4,16", help="requests at once")
    parser.add_argument("--tokens", type=int, default=128, help="of each request")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--gpu-layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peer", action="store_true", help="also measure llama-cpp-python")
    options = parser.parse_args()
    results = list(measure_llcuda(options))
    if options.peer:
        results += measure_peer(options)
    table = Table(
        "library", "rows", "free, tokens/s", "schema, tokens/s", "ratio", "forced", box=None
    )
    for row in results:
        figures = (f"{row['free']:.1f}", f"{row['schema']:.1f}", f"{row['ratio']:.2f}")
        table.add_row(row["library"], str(row["rows"]), *figures, f"{row['forced']:.0%}")
    Console(width=100).print(table)
    print(json.dumps(results))


def measure_llcuda(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the engine: free, by the schema, and by the schema without whitespace."""
    layers = {} if options.gpu_layers is None else {"gpu_layers": options.gpu_layers}
    with llcuda.Model(options.model, **layers) as model:
        started = time.perf_counter()
        grammar = structured.compile(model, schema=SCHEMA)
        compile_seconds = time.perf_counter() - started
        compact = structured.compile(model, schema=SCHEMA, compact=True)
        grammars = {"schema": grammar, "compact": compact}
        for rows in map(int, options.rows.split(",")):
            size = len(PROMPT) + options.tokens + 1
            with llcuda.Engine(
                model, n_parallel=rows, ctx_size=size, threads=options.threads
            ) as engine:

                def run(
                    grammar: Any, engine: Any = engine, rows: int = rows
                ) -> tuple[float, float]:
                    settings: dict[str, Any] = {
                        "max_tokens": options.tokens, "ignore_eos": grammar is None, **SAMPLING,
                    }  # fmt: skip
                    started = time.perf_counter()
                    requests = [
                        engine.submit(
                            [*PROMPT, 2000 + i],
                            seed=i,
                            guide=grammar and grammar.guide(),
                            **settings,
                        )
                        for i in range(rows)
                    ]
                    completions = [request.result() for request in requests]
                    seconds = time.perf_counter() - started
                    count = sum(len(completion.tokens) for completion in completions)
                    forced = sum(completion.forced_tokens for completion in completions)
                    return count / seconds, forced / count

                variants = {"free": None, **grammars}
                for grammar in variants.values():
                    run(grammar)
                turns = [
                    {name: run(grammar) for name, grammar in variants.items()}
                    for _ in range(options.turns)
                ]
                for name in grammars:
                    row = summary(f"llcuda, {name}", rows, turns, name)
                    yield row | {"compile_seconds": compile_seconds}


def summary(library: str, rows: int, turns: list[Any], name: str) -> dict[str, Any]:
    """Return the medians of the turns."""
    return {
        "library": library,
        "rows": rows,
        "free": statistics.median(turn["free"][0] for turn in turns),
        "schema": statistics.median(turn[name][0] for turn in turns),
        "ratio": statistics.median(turn[name][0] / turn["free"][0] for turn in turns),
        "forced": statistics.median(turn[name][1] for turn in turns),
    }


def measure_peer(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure llama-cpp-python, which decodes one sequence at a time."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from peers import Setup, Text, llama_cpp_python

    if reason := llama_cpp_python.missing():
        print(f"llama-cpp-python: {reason}", file=sys.stderr)
        return []
    llama_cpp_python.prepare()
    threads = options.threads or len(os.sched_getaffinity(0))
    size = len(PROMPT) + options.tokens + 8
    peer = llama_cpp_python.Peer(Setup(options.model, context=size, threads=threads))
    import llama_cpp

    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(SCHEMA), verbose=False)

    def run(grammar: Any) -> tuple[float, float]:
        started = time.perf_counter()
        count = peer.write(Text([*PROMPT, 2000], options.tokens), grammar=grammar)
        return count / (time.perf_counter() - started), 0.0

    run(None)
    run(grammar)
    turns = [{"free": run(None), "schema": run(grammar)} for _ in range(options.turns)]
    return [summary("llama-cpp-python", 1, turns, "schema")]


if __name__ == "__main__":
    main()
