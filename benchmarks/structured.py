"""Texts that follow a JSON schema against free ones, in llcuda and in llama-cpp-python.

`python benchmarks/structured.py MODEL [--rows 1,4,16] [--tokens 128] [--turns 3] [--peer]`
submits so many texts at once, free and by a schema, turn by turn in one process; a figure is the
median of the turns, a ratio the median of theirs. Random weights will do: the mask decides. --peer
then runs llama-cpp-python on the same library, one text, with its grammar (it needs the packages of
the extra [bench]). Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
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
    parser.add_argument("--rows", default="1,4,16", help="texts at once")
    parser.add_argument("--tokens", type=int, default=128, help="of each text")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--gpu-layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peer", action="store_true", help="llama-cpp-python, too")
    options = parser.parse_args()
    results = list(ours(options))
    if options.peer:
        results += peer(options)
    table = Table("who", "rows", "free, tokens/s", "schema, tokens/s", "ratio", "forced", box=None)
    for row in results:
        figures = (f"{row['free']:.1f}", f"{row['schema']:.1f}", f"{row['ratio']:.2f}")
        table.add_row(row["who"], str(row["rows"]), *figures, f"{row['forced']:.0%}")
    Console(width=100).print(table)
    print(json.dumps(results))


def ours(options: argparse.Namespace) -> Any:
    """Measure the engine: free, by the schema, and by the schema without whitespace."""
    layers = {} if options.gpu_layers is None else {"gpu_layers": options.gpu_layers}
    with llcuda.Model(options.model, **layers) as model:
        started = time.perf_counter()
        loose = structured.compile(model, schema=SCHEMA)
        first = time.perf_counter() - started
        forms = {"schema": loose, "compact": structured.compile(model, schema=SCHEMA, compact=True)}
        for rows in map(int, options.rows.split(",")):
            size = len(PROMPT) + options.tokens + 1
            with llcuda.Engine(
                model, n_parallel=rows, ctx_size=size, threads=options.threads
            ) as engine:

                def run(form: Any, engine: Any = engine, rows: int = rows) -> tuple[float, float]:
                    asked = {"max_tokens": options.tokens, "ignore_eos": form is None, **SAMPLING}
                    begun = time.perf_counter()
                    requests = [
                        engine.submit(
                            [*PROMPT, 2000 + i], seed=i, guide=form and form.guide(), **asked
                        )
                        for i in range(rows)
                    ]
                    count = sum(len(request.result().tokens) for request in requests)
                    seconds = time.perf_counter() - begun
                    return count / seconds, sum(r.forced_tokens for r in requests) / count

                for form in (None, *forms.values()):
                    run(form)
                turns = [
                    {name: run(form) for name, form in {"free": None, **forms}.items()}
                    for _ in range(options.turns)
                ]
                for name in forms:
                    yield summary(f"llcuda, {name}", rows, turns, name) | {"compile_seconds": first}


def summary(who: str, rows: int, turns: list[Any], name: str) -> dict[str, Any]:
    """Return the medians."""
    return {
        "who": who,
        "rows": rows,
        "free": statistics.median(turn["free"][0] for turn in turns),
        "schema": statistics.median(turn[name][0] for turn in turns),
        "ratio": statistics.median(turn[name][0] / turn["free"][0] for turn in turns),
        "forced": statistics.median(turn[name][1] for turn in turns),
    }


def peer(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure llama-cpp-python, which decodes one text at a time."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from peers import Setup, llama_cpp_python

    if reason := llama_cpp_python.missing():
        print(f"llama-cpp-python: {reason}", file=sys.stderr)
        return []
    llama_cpp_python.prepare()
    threads = options.threads or len(os.sched_getaffinity(0))
    size = len(PROMPT) + options.tokens + 8
    writer = llama_cpp_python.Peer(Setup(options.model, context=size, threads=threads))
    import llama_cpp

    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(SCHEMA), verbose=False)

    def run(form: Any) -> tuple[float, float]:
        writer._llama.reset()
        begun = time.perf_counter()
        answer = writer._llama(
            [*PROMPT, 2000], max_tokens=options.tokens, grammar=form, min_p=0.0,
            repeat_penalty=1.0, **SAMPLING,
        )  # fmt: skip
        return answer["usage"]["completion_tokens"] / (time.perf_counter() - begun), 0.0

    run(None)
    run(grammar)
    turns = [{"free": run(None), "schema": run(grammar)} for _ in range(options.turns)]
    return [summary("llama-cpp-python", 1, turns, "schema")]


if __name__ == "__main__":
    main()
