"""The measurements of `llcuda bench`: one function for each table.

A table is a list of rows. A row has what was measured (`rows`, `chain`, `depth` ...) and its
figures, or in `error` why there are none. Figures are medians; ratios are medians of the ratios of
the turns.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llcuda.bench.loops import (
    CTX_SIZE,
    DEFAULT_SAMPLING,
    PROMPT_TOKENS,
    Budget,
    DecodeLoop,
    RequestLoop,
    Subject,
    make_prompt,
)
from llcuda.engine.engine import Engine
from llcuda.engine.metrics import percentile
from llcuda.engine.outputs import Completion
from llcuda.errors import LlcudaError
from llcuda.native.estimate import memory_needed
from llcuda.native.gguf.check import parts
from llcuda.native.model import Model
from llcuda.native.quantization.quantize import tensor_size
from llcuda.params import ContextParams, ModelParams

Row = dict[str, Any]

CHAINS: Mapping[str, Mapping[str, Any]] = {
    "top_k 40, top_p 0.9, temperature 0.7": DEFAULT_SAMPLING,
    "greedy": {"temperature": 0.0},
    "no top_k": {**DEFAULT_SAMPLING, "top_k": 0},
    "penalties": {**DEFAULT_SAMPLING, "repeat_penalty": 1.1, "presence_penalty": 0.2},
}
REQUEST_TOKENS = 80  # of an answer, about as many as the documents' run has on average
REQUEST_CTX_SIZE = 2048  # the size of each sequence in that run
WARM_UP_TOKENS = 8  # of each client's first request
OWN_PARAMETERS = "own parameters for each row"

# Runs in a process of its own, whose clock is also this process's.
FIRST_TOKEN_PROGRAM = """
import json, sys, time
marks = [time.perf_counter()]
sys.path.insert(0, sys.argv[1])
import llcuda
del sys.path[0]
from llcuda import Context, Model, Sampler
from llcuda.native import library
library.load()
marks.append(time.perf_counter())
path, layers, devices, threads = json.loads(sys.argv[2])
model = Model(path, gpu_layers=layers, devices=devices)
marks.append(time.perf_counter())
context = Context(model, ctx_size=512, threads=threads)
marks.append(time.perf_counter())
context.decode([token % model.vocab_size for token in range(300, 316)])
Sampler().sample(context)
marks.append(time.perf_counter())
print(json.dumps(marks))
"""
PHASES = ("Python", "llcuda and its libraries", "model", "context", "16 tokens of prompt, sampling")


def startup(path: Path, params: ModelParams, threads: int | None, turns: int) -> list[Row]:
    """Return the seconds from the start of a process to its first token, by phase."""
    folder = str(Path(__file__).parents[2])
    arguments = json.dumps([str(path), params.gpu_layers, params.devices, threads])
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        command = [sys.executable, "-P", "-c", FIRST_TOKEN_PROGRAM, folder, arguments]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            reason = child.stderr.strip().rpartition("\n")[2]
            return [{"phase": "process start to first token", "error": reason}]
        marks = [started, *json.loads(child.stdout.splitlines()[-1])]
        seconds.append([b - a for a, b in itertools.pairwise(marks)])
    rows = [
        {"phase": phase, "seconds": statistics.median(column)}
        for phase, column in zip(PHASES, zip(*seconds, strict=True), strict=True)
    ]
    total = statistics.median(sum(phases) for phases in seconds)
    return [*rows, {"phase": "process start to first token", "seconds": total}]


def prefill(subject: Subject, lengths: Sequence[int]) -> Iterator[Row]:
    """Yield the tokens per second of prompts of some lengths."""
    for length in lengths:
        yield attempt({"tokens": length}, lambda length=length: _prefill(subject, length))  # type: ignore[misc]


def _prefill(subject: Subject, length: int) -> Row:
    loop = subject.decode_loop(1, ctx_size=length + 1, batch_size=max(length, PROMPT_TOKENS))
    tokens = make_prompt(subject.model, length)

    def measure() -> float:
        loop.context.memory.clear(data=False)
        started = time.perf_counter()
        loop.context.decode(tokens)
        loop.context.synchronize()
        return time.perf_counter() - started

    with loop:
        seconds = subject.budget.repeat(measure)
    return {"tokens_per_second": length / seconds, "seconds": seconds}


def decode(subject: Subject, bandwidth: float | None) -> Iterator[Row]:
    """Yield the tokens per second of one sequence without sampling.

    Args:
        subject: The model to measure.
        bandwidth: The bandwidth of the GPU's memory in bytes per second, if it is known.
    """
    names = {"copied": "copied to the host", "left": "left on the device"}
    with ExitStack() as stack:
        turns = subject.budget.compare(subject.decode_loops(stack, 1))
    size = bytes_per_token(subject.model)
    for name, seconds in turns.items():
        tokens_per_second = rate(1, seconds)
        yield {
            "logits": names[name],
            "tokens_per_second": tokens_per_second,
            "milliseconds": 1e3 / tokens_per_second,
            "bandwidth_share": size and bandwidth and tokens_per_second * size / bandwidth,
        }


def parallel(subject: Subject, counts: Sequence[int]) -> Iterator[Row]:
    """Yield the tokens per second of the engine, which samples, and of the decode loops."""

    def measure(rows: int) -> Row:
        with ExitStack() as stack:
            requests = stack.enter_context(RequestLoop(subject.model, rows, subject.threads))
            total_rates: list[float] = []

            def engine_loop(steps: int) -> float:
                seconds = requests.run(steps)
                total_rates.append(requests.total_rate)
                return seconds

            loops = {**subject.decode_loops(stack, rows), "engine": engine_loop}
            turns = subject.budget.compare(loops)
        rates = {f"{name}_tokens_per_second": rate(rows, turns[name]) for name in turns}
        ratios = {f"over_{name}": over(turns, "engine", name) for name in ("copied", "left")}
        return {**rates, **ratios, "whole_tokens_per_second": statistics.median(total_rates[1:])}

    for rows in counts:
        yield attempt({"rows": rows}, lambda rows=rows: measure(rows))  # type: ignore[misc]


def graphs(subject: Subject, counts: Sequence[int]) -> Iterator[Row]:
    """Yield the tokens per second of decode loops by the mode of CUDA graphs."""

    def measure(rows: int) -> Row:
        with ExitStack() as stack:
            loops = {
                mode: stack.enter_context(
                    subject.decode_loop(rows, device_logits=True, cuda_graphs=mode)
                ).run
                for mode in ("on", "checked", "off")
            }
            turns = subject.budget.compare(loops)
        return {
            **{f"{mode}_tokens_per_second": rate(rows, turns[mode]) for mode in turns},
            "over_checked": over(turns, "on", "checked"),
            "over_off": over(turns, "on", "off"),
        }

    for rows in counts:
        yield attempt({"rows": rows}, lambda rows=rows: measure(rows))  # type: ignore[misc]


def sampling(subject: Subject, counts: Sequence[int]) -> Iterator[Row]:
    """Yield the tokens per second of the engine with each chain, and of the decode loops."""
    for rows in counts:
        try:
            yield from _sampling(subject, rows)
        except LlcudaError as error:
            yield {"rows": rows, "error": first_line(error)}


def _sampling(subject: Subject, rows: int) -> Iterator[Row]:
    chains: dict[str, list[Mapping[str, Any]]] = {name: [c] for name, c in CHAINS.items()}
    if rows > 1:
        chains[OWN_PARAMETERS] = [
            {"top_k": 10 + 3 * i, "top_p": 0.5 + i / 200, "temperature": 0.5 + i / 64}
            for i in range(64)
        ]
    with ExitStack() as stack:
        requests = stack.enter_context(RequestLoop(subject.model, rows, subject.threads))
        loops = subject.decode_loops(stack, rows)
        for name, parameters in chains.items():
            loops[name] = lambda steps, parameters=parameters: requests.run(steps, parameters)  # type: ignore[misc]
        turns = subject.budget.compare(loops)
    for name in chains:
        yield {
            "rows": rows,
            "chain": name,
            "tokens_per_second": rate(rows, turns[name]),
            "over_copied": over(turns, name, "copied"),
            "over_left": over(turns, name, "left"),
            "over_first": over(turns, name, next(iter(chains))),
        }


def requests(subject: Subject, counts: Sequence[int]) -> Iterator[Row]:
    """Yield the tokens per second and the latencies of whole requests, by the number at once.

    Each client submits a request when its last one has ended. A request has a prompt of its own of
    PROMPT_TOKENS tokens and REQUEST_TOKENS sampled ones. The tokens per second are those of all
    clients over wall time, prompts included.

    Args:
        subject: The model to measure.
        counts: Numbers of clients, which is also `n_parallel` of the engine.
    """
    for n_parallel in counts:
        yield attempt({"n_parallel": n_parallel}, lambda n=n_parallel: _requests(subject, n))  # type: ignore[misc]


def _requests(subject: Subject, n_parallel: int) -> Row:
    model = subject.model
    count = subject.budget.turns * (2 if subject.gpu else 1)
    ctx_size = min(REQUEST_CTX_SIZE, model.train_ctx_size or REQUEST_CTX_SIZE)
    tokens = make_prompt(model, PROMPT_TOKENS + n_parallel * (count + 1))

    def run(client: int, number: int, max_tokens: int = REQUEST_TOKENS) -> Completion:
        start = client + n_parallel * number
        prompt = tokens[start : start + PROMPT_TOKENS]
        return engine.submit(
            prompt, max_tokens=max_tokens, ignore_eos=True, seed=start, **DEFAULT_SAMPLING
        ).result()

    def run_all(client: int) -> list[Completion]:
        return [run(client, number) for number in range(count)]

    clients = range(n_parallel)
    with (
        Engine(model, n_parallel=n_parallel, ctx_size=ctx_size, threads=subject.threads) as engine,
        ThreadPoolExecutor(n_parallel) as pool,
    ):
        list(pool.map(lambda client: run(client, count, WARM_UP_TOKENS), clients))
        started = time.perf_counter()
        answers = list(pool.map(run_all, clients))
        seconds = time.perf_counter() - started
    latencies = sorted(answer.latency_ms for client in answers for answer in client)
    return {
        "tokens_per_second": len(latencies) * REQUEST_TOKENS / seconds,
        "p50_ms": percentile(latencies, 50),
        "p95_ms": percentile(latencies, 95),
    }


def depth(subject: Subject, depths: Sequence[int]) -> Iterator[Row]:
    """Yield the tokens per second of one sequence of a length, by flash attention."""
    for length in depths:
        variants = {"on": {"flash_attention": True}, "off": {"flash_attention": False}}
        for name, row in _at_depth(subject, length, variants, base="off").items():
            yield {"depth": length, "flash_attention": name, **row}


def kv(subject: Subject, types: Sequence[str], length: int) -> Iterator[Row]:
    """Yield the tokens per second and the cache's bytes of one sequence, by type of KV cells."""
    variants: dict[str, dict[str, Any]] = {
        name: {"type_k": name, "type_v": name, "flash_attention": True} for name in types
    }
    for name, row in _at_depth(subject, length, variants).items():
        if "error" not in row:
            context = ContextParams(ctx_size=CTX_SIZE + length, **variants[name])
            model = subject.model
            needed = memory_needed(model.path, model=model.params, context=context)
            row["kv_bytes"] = sum(device.kv for device in needed)
        yield {"kv_type": name, "depth": length, **row}


def _at_depth(
    subject: Subject,
    length: int,
    variants: Mapping[str, Mapping[str, Any]],
    base: str | None = None,
) -> dict[str, Row]:
    """Decode one sequence of `length` tokens with each variant of a context, in turns.

    Args:
        subject: The model to measure.
        length: Tokens of the sequence.
        variants: Fields of ContextParams by the variant's name.
        base: The variant that the speed of the others is compared with, as "over_" and its name.
    """
    rows: dict[str, Row] = {}
    with ExitStack() as stack:
        loops: dict[str, DecodeLoop] = {}
        for name, parameters in variants.items():
            try:
                loop = subject.decode_loop(1, depth=length, device_logits=subject.gpu, **parameters)
                loops[name] = stack.enter_context(loop)
                loop.run(1)
            except LlcudaError as error:
                loops.pop(name, None)
                rows[name] = {"error": first_line(error)}
        turns = subject.budget.compare({name: loop.run for name, loop in loops.items()})
        for name, loop in loops.items():
            rows[name] = {"tokens_per_second": rate(1, turns[name])}
            if length:
                rows[name]["prefill_tokens_per_second"] = length / loop.prefill_seconds
            if base not in (None, name):
                rows[name][f"over_{base}"] = over(turns, name, str(base))
    return {name: rows[name] for name in variants}


def layers(path: Path, counts: Sequence[int], threads: int | None, budget: Budget) -> Iterator[Row]:
    """Yield the tokens per second of one sequence, by the number of layers on GPUs."""

    def measure(count: int) -> Row:
        with Model(path, gpu_layers=count) as model:
            subject = Subject(model, count > model.layer_count, threads, budget)
            with subject.decode_loop(1, device_logits=subject.gpu) as loop:
                (seconds,) = budget.compare({"decode": loop.run}).values()
        return {"tokens_per_second": rate(1, seconds), "load_seconds": model.load_seconds}

    for count in counts:
        yield attempt({"gpu_layers": count}, lambda count=count: measure(count))  # type: ignore[misc]


def bytes_per_token(model: Model) -> int | None:
    """Return the bytes of weights that one token reads; None for a mixture of experts.

    A token reads all weights but the embedding, of which it reads one row, unless the embedding is
    also the output matrix.
    """
    architecture = model.metadata.get("general.architecture", "")
    if model.metadata.get(f"{architecture}.expert_count", "0") != "0":
        return None

    def bytes_of(name: str) -> int:
        return sum(tensor_size(part, name) for part in parts(model.path))

    return model.size - (bytes_of("token_embd.weight") if bytes_of("output.weight") else 0)


def rate(rows: int, seconds: Sequence[float]) -> float:
    """Return the tokens per second of steps with `rows` rows."""
    return rows / statistics.median(seconds)


def over(turns: Mapping[str, Sequence[float]], name: str, base: str) -> float | None:
    """Return the speed of `name` over that of `base`; None if one was not measured."""
    if name not in turns or base not in turns:
        return None
    return statistics.median(b / a for a, b in zip(turns[name], turns[base], strict=True))


def first_line(error: Exception) -> str:
    """Return the message of an error without llama.cpp's log."""
    return str(error).partition("\n")[0]


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """Return `row` with the measured figures, or with the error."""
    try:
        return {**row, **measure()}
    except LlcudaError as error:
        return {**row, "error": first_line(error)}
