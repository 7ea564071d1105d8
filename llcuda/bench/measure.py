"""What `llcuda bench` measures: one function for each table.

A table is a list of rows. A row says what was measured (`rows`, `chain`, `depth` ...), and its
figures or, in `error`, why there are none. Figures are medians, ratios those of the turns' ratios.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llcuda.bench.loops import CELLS, PROMPT, USUAL, Loop, Pace, Served, Subject, prompt
from llcuda.errors import LlcudaError
from llcuda.native.estimate import memory_needed
from llcuda.native.gguf.check import parts
from llcuda.native.model import Model
from llcuda.native.quantization.quantize import tensor_size
from llcuda.params import ContextParams, ModelParams

Row = dict[str, Any]

CHAINS: Mapping[str, Mapping[str, Any]] = {
    "top_k 40, top_p 0.9, temperature 0.7": USUAL,
    "greedy": {"temperature": 0.0},
    "no top_k": {**USUAL, "top_k": 0},
    "penalties": {**USUAL, "repeat_penalty": 1.1, "presence_penalty": 0.2},
}
OWN_PARAMETERS = "own parameters for each row"

# Process start to first token, in a process of its own; the marks are on one clock with ours.
FIRST_TOKEN = """
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


def startup(path: Path, placed: ModelParams, threads: int | None, turns: int) -> list[Row]:
    """Seconds from the start of a process to its first token, by phases."""
    folder = str(Path(__file__).parents[2])
    asked = json.dumps([str(path), placed.gpu_layers, placed.devices, threads])
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-P", "-c", FIRST_TOKEN, folder, asked], capture_output=True, text=True
        )
        if child.returncode:
            reason = child.stderr.strip().rpartition("\n")[2]
            return [{"phase": "process start to first token", "error": reason}]
        marks = [started, *json.loads(child.stdout.splitlines()[-1])]
        seconds.append([b - a for a, b in itertools.pairwise(marks)])
    rows = [
        {"phase": phase, "seconds": statistics.median(column)}
        for phase, column in zip(PHASES, zip(*seconds, strict=True), strict=True)
    ]
    whole = statistics.median(sum(phases) for phases in seconds)
    return [*rows, {"phase": "process start to first token", "seconds": whole}]


def prefill(subject: Subject, lengths: Sequence[int]) -> Iterator[Row]:
    """Tokens per second of prompts."""
    for length in lengths:
        yield attempt({"tokens": length}, lambda length=length: _prefill(subject, length))  # type: ignore[misc]


def _prefill(subject: Subject, length: int) -> Row:
    loop = subject.loop(1, ctx_size=length + 1, batch_size=max(length, PROMPT))
    tokens = prompt(subject.model, length)

    def once() -> float:
        loop.context.memory.clear(data=False)
        started = time.perf_counter()
        loop.context.decode(tokens)
        loop.context.synchronize()
        return time.perf_counter() - started

    with loop:
        seconds = subject.pace.repeat(once)
    return {"tokens_per_second": length / seconds, "seconds": seconds}


def decode(subject: Subject, bandwidth: float | None) -> Iterator[Row]:
    """Tokens per second of one text without sampling. bandwidth: of the memory, bytes a second."""
    names = {"copied": "copied to the host", "left": "left on the device"}

    def measure() -> dict[str, list[float]]:
        with ExitStack() as stack:
            return subject.pace.compare(subject.bare_loops(stack, 1))

    size = bytes_per_token(subject.model)
    for name, seconds in measure().items():
        found = rate(1, seconds)
        row = {"logits": names[name], "tokens_per_second": found, "milliseconds": 1e3 / found}
        yield {**row, "bandwidth_share": size and bandwidth and found * size / bandwidth}


def parallel(subject: Subject, counts: Sequence[int]) -> Iterator[Row]:
    """Tokens per second of the engine, with sampling, against the loops without."""

    def measure(rows: int) -> Row:
        with ExitStack() as stack:
            served = stack.enter_context(Served(subject.model, rows, subject.threads))
            wholes: list[float] = []

            def turn(steps: int) -> float:
                seconds = served.turn(steps)
                wholes.append(served.whole_rate)
                return seconds

            loops = {**subject.bare_loops(stack, rows), "engine": turn}
            turns = subject.pace.compare(loops)
        found = {f"{name}_tokens_per_second": rate(rows, turns[name]) for name in turns}
        ratios = {f"over_{name}": over(turns, "engine", name) for name in ("copied", "left")}
        return {**found, **ratios, "whole_tokens_per_second": statistics.median(wholes[1:])}

    for rows in counts:
        yield attempt({"rows": rows}, lambda rows=rows: measure(rows))  # type: ignore[misc]


def sampling(subject: Subject, counts: Sequence[int]) -> Iterator[Row]:
    """Tokens per second of the engine with each chain, against the loops without sampling."""
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
        served = stack.enter_context(Served(subject.model, rows, subject.threads))
        loops = subject.bare_loops(stack, rows)
        for name, parameters in chains.items():
            loops[name] = lambda steps, parameters=parameters: served.turn(steps, parameters)  # type: ignore[misc]
        turns = subject.pace.compare(loops)
    for name in chains:
        yield {
            "rows": rows,
            "chain": name,
            "tokens_per_second": rate(rows, turns[name]),
            "over_copied": over(turns, name, "copied"),
            "over_left": over(turns, name, "left"),
            "over_first": over(turns, name, next(iter(chains))),
        }


def depth(subject: Subject, depths: Sequence[int]) -> Iterator[Row]:
    """Tokens per second of one text of a length, with flash attention and without."""
    for length in depths:
        kinds = {"on": {"flash_attention": True}, "off": {"flash_attention": False}}
        for name, row in _at_depth(subject, length, kinds).items():
            yield {"depth": length, "flash_attention": name, **row}


def kv(subject: Subject, types: Sequence[str], length: int) -> Iterator[Row]:
    """Tokens per second and bytes of the cache of one text with each type of KV cells."""
    kinds: dict[str, dict[str, Any]] = {
        name: {"type_k": name, "type_v": name, "flash_attention": True} for name in types
    }
    for name, row in _at_depth(subject, length, kinds).items():
        if "error" not in row:
            context = ContextParams(ctx_size=CELLS + length, **kinds[name])
            model = subject.model
            needed = memory_needed(model.path, model=model.params, context=context)
            row["kv_bytes"] = sum(device.kv for device in needed)
        yield {"kv_type": name, "depth": length, **row}


def _at_depth(
    subject: Subject, length: int, kinds: Mapping[str, Mapping[str, Any]]
) -> dict[str, Row]:
    """Decode one text of `length` tokens with each kind of context, turn by turn."""
    found: dict[str, Row] = {}
    with ExitStack() as stack:
        loops: dict[str, Loop] = {}
        for name, parameters in kinds.items():
            try:
                loop = subject.loop(1, depth=length, device_logits=subject.gpu, **parameters)
                loops[name] = stack.enter_context(loop)
                loop.turn(1)
            except LlcudaError as error:
                loops.pop(name, None)
                found[name] = {"error": first_line(error)}
        turns = subject.pace.compare({name: loop.turn for name, loop in loops.items()})
        for name, loop in loops.items():
            found[name] = {"tokens_per_second": rate(1, turns[name])}
            if length:
                found[name]["prefill_tokens_per_second"] = length / loop.prefill_seconds
    return {name: found[name] for name in kinds}


def layers(path: Path, counts: Sequence[int], threads: int | None, pace: Pace) -> Iterator[Row]:
    """Tokens per second of one text with so many layers on the GPUs."""

    def measure(count: int) -> Row:
        with Model(path, gpu_layers=count) as model:
            subject = Subject(model, count > model.layer_count, threads, pace)
            with subject.loop(1, device_logits=subject.gpu) as loop:
                seconds = pace.compare({"one": loop.turn})["one"]
        return {"tokens_per_second": rate(1, seconds), "load_seconds": model.load_seconds}

    for count in counts:
        yield attempt({"gpu_layers": count}, lambda count=count: measure(count))  # type: ignore[misc]


def bytes_per_token(model: Model) -> int | None:
    """Bytes of weights that a token reads; None where it chooses among experts.

    All but the embedding, of which it reads a row, unless that is the output matrix too.
    """
    architecture = model.metadata.get("general.architecture", "")
    if model.metadata.get(f"{architecture}.expert_count", "0") != "0":
        return None

    def bytes_of(name: str) -> int:
        return sum(tensor_size(part, name) for part in parts(model.path))

    return model.size - (bytes_of("token_embd.weight") if bytes_of("output.weight") else 0)


def rate(rows: int, seconds: Sequence[float]) -> float:
    """Tokens per second of steps with so many rows."""
    return rows / statistics.median(seconds)


def over(turns: Mapping[str, Sequence[float]], name: str, base: str) -> float | None:
    """Return how many times as fast `name` is as `base`; None where one was not measured."""
    if name not in turns or base not in turns:
        return None
    return statistics.median(b / a for a, b in zip(turns[name], turns[base], strict=True))


def first_line(error: Exception) -> str:
    """What an error says, without llama.cpp's log."""
    return str(error).partition("\n")[0]


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """Return `row` with what is measured, or with why it cannot be."""
    try:
        return {**row, **measure()}
    except LlcudaError as error:
        return {**row, "error": first_line(error)}
