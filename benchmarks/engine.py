"""The engine's gains by batching, prefix reuse and speculation, and its cost per step.

`python benchmarks/engine.py [MODEL.gguf]`, by default the demo model. Needs the packages of the
dependency group peer-llama-cpp-python. Compares with one request after the other on the same
engine, with the bare loop of `decode_batch` and sampling, and with llama-cpp-python's `Llama`
behind a lock, as its users share one. Prints tables, then one JSON line. Speeds drift on a shared
machine: compare ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
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
SMALL_FILE = 2**27  # bytes; smaller models write more tokens


def seconds(call: Callable[[], Any]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def batching(model: Model, peer: Any, n_tokens: int, threads: int) -> list[dict[str, float]]:
    """Return the tokens per second of N requests at once, over one by one and over the peer."""
    settings: dict[str, Any] = {"max_tokens": n_tokens, "ignore_eos": True}
    rows = []
    # One thread stands for the lock: the peer's requests run one after the other, and each of
    # several threads would have an OpenMP team of its own.
    peer_thread = ThreadPoolExecutor(1)

    def peer_behind_lock(n: int) -> None:
        prompt = model.tokenize(PROMPT)
        list(peer_thread.map(lambda _: peer.generate([Text(prompt, n_tokens)]), range(n)))

    for n in PARALLEL:
        with Engine(model, n_parallel=n, ctx_size=512, threads=threads) as engine:

            def at_once(engine: Engine = engine, n: int = n) -> None:
                for request in [engine.submit(PROMPT, **settings) for _ in range(n)]:
                    request.result()

            def one_by_one(engine: Engine = engine, n: int = n) -> None:
                for _ in range(n):
                    engine.submit(PROMPT, **settings).result()

            at_once()
            turns = [
                (seconds(at_once), seconds(one_by_one), seconds(lambda n=n: peer_behind_lock(n)))
                for _ in range(TURNS)
            ]
        rows.append({
            "parallel": n,
            "tokens_per_second": n * n_tokens / statistics.median(turn[0] for turn in turns),
            "over_one_by_one": statistics.median(b / a for a, b, _ in turns),
            "over_llama_cpp_python": statistics.median(c / a for a, _, c in turns),
        })  # fmt: skip
    return rows


def overhead(model: Model, rows: int, threads: int, steps: int = 200) -> dict[str, float]:
    """Return the microseconds of a step in the engine and in the bare loop over the same rows."""

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
            settings: dict[str, Any] = {"max_tokens": steps, "ignore_eos": True}
            for request in [engine.submit(PROMPT, seed=i, **settings) for i in range(rows)]:
                request.result()
        return statistics.median(b - a for a, b in itertools.pairwise(times))

    turns = [(bare(), in_engine()) for _ in range(TURNS)]
    bare_us, engine_us = (statistics.median(column) * 1e6 for column in zip(*turns, strict=True))
    difference_us = statistics.median((engine - bare) * 1e6 for bare, engine in turns)
    return {"bare_us": bare_us, "engine_us": engine_us, "difference_us": difference_us}


def first_token(model: Model, threads: int) -> dict[str, float]:
    """Return the milliseconds to the first token on an idle engine.

    The prompts are a short one, one of 400 tokens, and one of 400 tokens whose prefix is cached.
    """
    story = (model.tokenize(PROMPT) * 40)[:400]

    def wait(engine: Engine, prompt: Any) -> float:
        return seconds(lambda: next(iter(engine.submit(prompt, max_tokens=1)))) * 1e3

    with Engine(model, ctx_size=512, threads=threads) as engine:
        wait(engine, PROMPT)
        idle = statistics.median(wait(engine, f"{i} {PROMPT}") for i in range(20))
        uncached = statistics.median(wait(engine, [i + 300, *story, 301]) for i in range(TURNS))
        wait(engine, [*story, 300])
        cached = statistics.median(wait(engine, [*story, 300 + i]) for i in range(TURNS))
    return {"idle_ms": idle, "prompt_400_ms": uncached, "prompt_400_reused_ms": cached}


def speculation(model: Model, n_tokens: int, threads: int) -> dict[str, float]:
    """Return the tokens per second with and without speculation, of two kinds of text.

    A grammar makes the text "copying" repeat a sentence, whatever the model. Both are greedy.
    """
    repetition = 'root ::= ("Tom had a red ball and a blue kite in the park. ")+'
    result: dict[str, float] = {}
    with (
        Engine(model, ctx_size=1024, threads=threads) as plain,
        Engine(model, ctx_size=1024, threads=threads, speculation=8) as speculative,
    ):
        for name, grammar in (("copying", repetition), ("other", None)):
            settings: dict[str, Any] = {
                "max_tokens": n_tokens, "temperature": 0, "grammar": grammar,
                "ignore_eos": grammar is None,  # a grammar decides where the text ends
            }  # fmt: skip
            turns = [
                tuple(
                    seconds(lambda e=engine: e.submit(PROMPT, **settings).result())  # noqa: B023
                    for engine in (plain, speculative)
                )
                for _ in range(TURNS)
            ]
            rates = [n_tokens / statistics.median(column) for column in zip(*turns, strict=True)]
            result[f"{name}_plain"], result[f"{name}_guessing"] = rates
            result[f"{name}_ratio"] = statistics.median(a / b for a, b in turns)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=llcuda.demo_model())
    path = parser.parse_args().model
    if reason := llama_cpp_python.missing():
        parser.error(f"llama-cpp-python: {reason}")
    small = path.stat().st_size < SMALL_FILE
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
