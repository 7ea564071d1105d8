"""What the engine gives: batching, reuse, speculation, and what it costs. One run, by turns.

`python benchmarks/engine.py [MODEL.gguf]`, the demo model by default. Needs the packages of the
extra [bench]. Compares with one request after the other on the same engine, with the bare loop of
`decode_batch` and sampling, and with llama-cpp-python's `Llama` behind a lock, as its users share
one. Prints tables, then one JSON line. Speeds drift on a shared machine: ratios count.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import Setup, Text, llama_cpp_python
from rich.console import Console
from rich.table import Table

import llcuda
from llcuda import Context, Engine, Model, Sampler
from llcuda.native.batch_sampler import BatchSampler

PROMPT = "Once upon a time, there was a brave fox named Lily who lived in the forest."
PARALLEL = (1, 2, 4, 8, 16)
TURNS = 5


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def batching(model: Model, peer: Any, n_tokens: int, threads: int) -> list[dict[str, float]]:
    """Tokens per second of N requests at once, one by one, and behind the peer's lock."""
    asked = {"max_tokens": n_tokens, "ignore_eos": True}
    rows = []
    # One thread stands for the lock: the peer's requests run one after the other, and several
    # threads would each bring an OpenMP team of their own.
    alone = ThreadPoolExecutor(1)

    def peer_behind_lock(n: int) -> None:
        prompt = model.tokenize(PROMPT)
        list(alone.map(lambda _: peer.generate([Text(prompt, n_tokens)]), range(n)))

    for n in PARALLEL:
        with Engine(model, n_parallel=n, ctx_size=512, threads=threads) as engine:

            def at_once(engine: Engine = engine, n: int = n) -> None:
                for request in [engine.submit(PROMPT, **asked) for _ in range(n)]:
                    request.result()

            def one_by_one(engine: Engine = engine, n: int = n) -> None:
                for _ in range(n):
                    engine.submit(PROMPT, **asked).result()

            at_once()
            turns = [
                (seconds(at_once), seconds(one_by_one), seconds(lambda n=n: peer_behind_lock(n)))
                for _ in range(TURNS)
            ]
        together, _alone, _theirs = (
            statistics.median(column) for column in zip(*turns, strict=True)
        )
        rows.append({
            "parallel": n,
            "tokens_per_second": n * n_tokens / together,
            "over_one_by_one": statistics.median(b / a for a, b, _ in turns),
            "over_llama_cpp_python": statistics.median(c / a for a, _, c in turns),
        })  # fmt: skip
    return rows


def overhead(model: Model, rows: int, threads: int, steps: int = 200) -> dict[str, float]:
    """Microseconds of a step, in the engine and in the bare loop over the same rows."""

    def bare() -> float:
        with Context(
            model, ctx_size=512, sequences=rows, threads=threads, unified_kv=False, ubatch_size=128
        ) as context:
            ends = dict.fromkeys(model.eog_tokens, -1e30)
            samplers = [Sampler(seed=i, model=model, logit_bias=ends) for i in range(rows)]
            prompt = model.tokenize(PROMPT)
            for seq in range(rows):
                context.decode(prompt, seq=seq)
            batch, tokens, seqs = BatchSampler(context, samplers), [5] * rows, list(range(rows))
            times = []
            for _ in range(steps):
                started = time.perf_counter()
                context.decode_batch(tokens, seqs)
                tokens = batch.sample()  # type: ignore[assignment]
                times.append(time.perf_counter() - started)
            return statistics.median(times)

    def in_engine() -> float:
        times: list[float] = []
        hook = lambda record: times.append(time.perf_counter())  # noqa: E731
        with Engine(model, n_parallel=rows, ctx_size=512, threads=threads, on_step=hook) as engine:
            asked = {"max_tokens": steps, "ignore_eos": True}
            for request in [engine.submit(PROMPT, seed=i, **asked) for i in range(rows)]:
                request.result()
        return statistics.median(b - a for a, b in itertools.pairwise(times))

    turns = [(bare(), in_engine()) for _ in range(TURNS)]
    a, b = (statistics.median(column) * 1e6 for column in zip(*turns, strict=True))
    differences = [(y - x) * 1e6 for x, y in turns]
    return {"bare_us": a, "engine_us": b, "difference_us": statistics.median(differences)}


def first_token(model: Model, threads: int) -> dict[str, float]:
    """Milliseconds to the first token: idle; 400 tokens of prompt, with and without reuse."""
    story = (model.tokenize(PROMPT) * 40)[:400]

    def wait(engine: Engine, prompt: Any) -> float:
        return seconds(lambda: next(iter(engine.submit(prompt, max_tokens=1)))) * 1e3

    with Engine(model, ctx_size=512, threads=threads) as engine:
        wait(engine, PROMPT)
        idle = statistics.median(wait(engine, f"{i} {PROMPT}") for i in range(20))
        fresh = statistics.median(wait(engine, [i + 300, *story, 301]) for i in range(TURNS))
        wait(engine, [*story, 300])
        reused = statistics.median(wait(engine, [*story, 300 + i]) for i in range(TURNS))
    return {"idle_ms": idle, "prompt_400_ms": fresh, "prompt_400_reused_ms": reused}


def speculation(model: Model, n_tokens: int, threads: int) -> dict[str, float]:
    """Tokens per second with and without guessing: of a text that copies, and of one that does not.

    A grammar makes the first repeat a sentence, whatever the model. Both are greedy.
    """
    copies = 'root ::= ("Tom had a red ball and a blue kite in the park. ")+'
    found: dict[str, float] = {}
    with (
        Engine(model, ctx_size=1024, threads=threads) as plain,
        Engine(model, ctx_size=1024, threads=threads, speculation=8) as guessing,
    ):
        for name, grammar in (("copying", copies), ("other", None)):
            asked = {"max_tokens": n_tokens, "temperature": 0, "grammar": grammar}
            asked["ignore_eos"] = grammar is None  # a grammar that ends decides itself
            turns = [
                tuple(
                    seconds(lambda e=e: e.submit(PROMPT, **asked).result())  # noqa: B023
                    for e in (plain, guessing)
                )
                for _ in range(TURNS)
            ]
            a, b = (n_tokens / statistics.median(column) for column in zip(*turns, strict=True))
            ratio = statistics.median(x / y for x, y in turns)
            found |= {f"{name}_plain": a, f"{name}_guessing": b, f"{name}_ratio": ratio}
    return found


def main() -> None:
    """Measure and print."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else llcuda.demo_model()
    small = path.stat().st_size < 2**27
    n_tokens = 100 if small else 16
    threads = 1 if small else 2  # see ContextParams.threads
    console = Console()
    llama_cpp_python.prepare()
    peer = llama_cpp_python.Peer(Setup(gguf=path, threads=threads))
    with Model(path) as model:
        rows = batching(model, peer, n_tokens, threads)
        table = Table(*rows[0], title=f"{path.name}, {threads} threads, {n_tokens} tokens each")
        for row in rows:
            table.add_row(*(f"{value:.2f}" for value in row.values()))
        console.print(table)
        others = {
            "step_at_16_rows": overhead(model, 16, 1, 200 if small else 12),
            "first_token": first_token(model, threads),
            "speculation": speculation(model, 4 * n_tokens, threads),
        }
        for name, values in others.items():
            console.print(name, {key: round(value, 2) for key, value in values.items()})
    print(json.dumps({"model": path.name, "batching": rows, **others}))


if __name__ == "__main__":
    main()
