"""What each patch of llama.cpp gives: a decode step without patches, with each alone, with all.

`python benchmarks/patches.py MODEL [--rows 1,4,16,64,256] [--turns 7] [--only NAME,...]
[--without NAME,...] [--churn] [--other FOLDER]` times the loop of `decode_batch` without sampling
(logits left on the device, where there is a GPU), a prompt of 512 tokens, and the making of the
context, with the host memory that it takes. Each combination is a process of its own with the
switches of patches (build/patches) set, and they take turns; a figure is the median of the turns,
"drift" the slowest turn over the fastest. A patch alone has with it what it needs. "all" leaves out
what a parameter of the model asks for (`parameter` in a patch's file), "all and" has it too.
--only: patches to measure alone, none for an empty name. --without: instead all patches, all but
one of these, and all again; what is small shows so, in the least turns. --churn: each step has the
sequences of the last one, one more or one less, between three quarters of the rows and all, as when
texts join and leave; a turn is the mean of its steps. --other: a folder with another build of the
package llcuda, such as one with LLCUDA_PATCHES=OFF.
The logits of the last step are compared with those without patches: the largest difference, and the
divergence (KL) of the distributions. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llcuda import Context, Model
from llcuda.bench.loops import PROMPT_TOKENS, DecodeLoop, make_prompt
from llcuda.native import library

PATCHES = Path(__file__).resolve().parents[1] / "build" / "patches"
PREFILL = 512  # tokens
COMPARED_ROWS = 8  # whose logits are compared
UNPATCHED = "none"


class Subject:
    """In a process of its own: a model, and a loop that is made for each number of rows."""

    def __init__(
        self, path: str, layers: int | None, threads: int | None, parameters: dict[str, Any]
    ) -> None:
        gpu = any(device.kind == "gpu" for device in library.devices())
        self._layers = (99 if gpu else 0) if layers is None else layers
        self._model = Model(path, gpu_layers=self._layers, **parameters)
        self._threads = threads
        self._loop: DecodeLoop | None = None
        self._rows = 0

    def open(self, rows: int) -> tuple[float, float]:
        """Make a loop over so many sequences; return the seconds and MiB that its context took."""
        if self._loop:
            self._loop.context.close()
        free = host_memory()
        started = time.perf_counter()
        self._loop = DecodeLoop(
            self._model, rows, device_logits=self._layers > 0, threads=self._threads
        )
        self._rows = rows
        return time.perf_counter() - started, free - host_memory()

    def run(self, steps: int) -> float:
        """Return the median seconds of a step."""
        assert self._loop
        return self._loop.run(steps)

    def churn(self, steps: int) -> float:
        """Return the mean seconds of a step whose sequences change; the prompts are there."""
        assert self._loop
        context, chance = self._loop.context, random.Random(0)
        tokens, rows = make_prompt(self._model, self._rows), self._rows
        for seq in range(self._rows):
            context.memory.remove(seq, PROMPT_TOKENS)
        for step in range(2 * steps):
            if step == steps:
                started = time.perf_counter()
            rows += chance.choice((-1, 0, 1))
            rows = max(-(-3 * self._rows // 4), min(self._rows, rows))
            context.decode_batch(tokens[:rows], list(range(rows)))
            context.synchronize()
        seconds = (time.perf_counter() - started) / steps
        context.decode_batch(tokens, list(range(self._rows)))  # for `logits`
        return seconds

    def logits(self, path: str) -> None:
        """Write the logits of the first rows of the last step to a file."""
        assert self._loop
        rows = range(min(self._rows, COMPARED_ROWS))
        np.save(path, [self._loop.context.logits(row) for row in rows])

    def prefill(self) -> float:
        """Return the seconds that a prompt takes on a context of its own."""
        tokens = make_prompt(self._model, PREFILL)
        with Context(self._model, ctx_size=PREFILL, threads=self._threads) as context:
            for _ in range(3):
                context.memory.clear(data=False)
                started = time.perf_counter()
                context.decode(tokens)
                context.synchronize()
                seconds = time.perf_counter() - started
        return seconds


def host_memory() -> float:
    """Return how many MiB of the machine's memory are available."""
    (line,) = re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    return int(line) / 1024


def serve(arguments: list[str]) -> None:
    """Answer the calls on standard input: a JSON list of a method's name and its arguments."""
    subject = Subject(*json.loads(arguments[0]))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, *values = json.loads(line)
        print(json.dumps(getattr(subject, name)(*values)), flush=True)


class Build:
    """A process with some of the patches."""

    def __init__(
        self,
        options: argparse.Namespace,
        environment: dict[str, str],
        parameters: dict[str, Any],
    ) -> None:
        arguments = json.dumps(
            [str(options.model), options.gpu_layers, options.threads, parameters]
        )
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", arguments],
            env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def call(self, *call: Any) -> Any:
        """Return what the method called in the process returns."""
        assert self._child.stdin
        if call:
            self._child.stdin.write(json.dumps(call) + "\n")
            self._child.stdin.flush()
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            sys.exit(f"error: a measured process ended with code {self._child.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._child.communicate()


def combinations(
    only: list[str] | None, without: list[str], other: Path | None
) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Yield the name, the environment and the model's parameters of each combination.

    The others are compared with the first one.
    """
    patches = {path.stem: tomllib.loads(path.read_text()) for path in PATCHES.glob("*.toml")}
    switches = {name: patch["switch"] for name, patch in sorted(patches.items())}
    asked = {name: patch["parameter"] for name, patch in patches.items() if "parameter" in patch}
    if without:
        yield "all", {}, {}
        for name in without:
            yield f"no {name}", {switches[name]: "1"}, {}
        yield "all again", {}, {}
        return
    yield UNPATCHED, dict.fromkeys(switches.values(), "1"), {}
    for name in switches:
        if only is None or name in only:
            kept = [name, *patches[name].get("needs", ())]
            others = {s: "1" for n, s in switches.items() if n not in kept}
            yield name, others, {asked[name]: True} if name in asked else {}
    yield "all", {}, {}
    for name, parameter in asked.items():
        yield f"all and {name}", {}, {parameter: True}
    if other:
        path = os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")])
        yield "other build", {"PYTHONPATH": path}, {}


def measure(options: argparse.Namespace, builds: dict[str, Build]) -> Iterator[dict[str, Any]]:
    """Yield what each number of rows takes, with the seconds of each combination."""
    for rows in options.rows:
        openers = {name: build.call("open", rows) for name, build in builds.items()}
        slowest = max(build.call("run", 8) for build in builds.values())
        steps = max(8, min(96 if options.churn else 128, int(options.seconds / slowest)))
        turns: dict[str, list[float]] = {name: [] for name in builds}
        for _ in range(options.turns):
            for name, build in builds.items():
                turns[name].append(build.call("churn" if options.churn else "run", steps))
        for name, difference in differences(builds).items():
            first = next(iter(turns.values()))
            ratios = [b / a for a, b in zip(turns[name], first, strict=True)]
            yield {
                "rows": rows,
                "patches": name,
                "step": statistics.median(turns[name]),
                "least": min(turns[name]),
                "over": statistics.median(ratios),
                "drift": max(turns[name]) / min(turns[name]),
                "make": openers[name][0],
                "host": openers[name][1],
                **difference,
            }
    seconds = {name: [] for name in builds}
    for _ in range(3):
        for name, build in builds.items():
            seconds[name].append(build.call("prefill"))
    for name, values in seconds.items():
        step, least = statistics.median(values), min(values)
        yield {"rows": f"prompt of {PREFILL}", "patches": name, "step": step, "least": least}


def differences(builds: dict[str, Build]) -> dict[str, dict[str, float]]:
    """Return how far each combination's logits are from those of the first one."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, build in builds.items():
            path = f"{folder}/{len(rows)}.npy"
            build.call("logits", path)
            rows[name] = np.load(path).astype(np.float64)
    base = next(iter(rows.values()))
    return {
        name: {"largest": float(np.abs(figures - base).max()), "kl": divergence(base, figures)}
        for name, figures in rows.items()
    }


def divergence(base: np.ndarray, other: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence of rows of logits."""
    p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (base, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", default="1,4,16,64,256", help="sequences of a step")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a turn, about")
    parser.add_argument("--gpu-layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--only", default=None, help="patches to measure alone")
    parser.add_argument("--churn", action="store_true", help="sequences that join and leave")
    parser.add_argument("--without", default="", help="patches to leave out, one at a time")
    parser.add_argument("--other", type=Path, default=None, help="another build to measure")
    options = parser.parse_args()
    options.rows = [int(number) for number in options.rows.split(",")]
    only = None if options.only is None else options.only.split(",")
    without = options.without.split(",") if options.without else []
    known = {path.stem for path in PATCHES.glob("*.toml")}
    if unknown := {*without, *(only or [])} - known - {""}:
        parser.error(f"no patch is named {', '.join(unknown)}; expected some of {sorted(known)}")
    builds = {
        name: Build(options, environment, parameters)
        for name, environment, parameters in combinations(only, without, options.other)
    }
    for build in builds.values():
        build.call()
    results = []
    print(f"{options.model.name}, microseconds a step")
    print(f"{'rows':>14} {'patches':>20} {'step':>9} {'least':>9} {'gain':>9} {'times':>6} "
          f"{'drift':>6} {'make, s':>8} {'MiB':>6} {'largest':>9} {'KL':>8}")  # fmt: skip
    base = 0.0
    for row in measure(options, builds):
        results.append(row)
        base = row["step"] if row["patches"] == next(iter(builds)) else base
        line = f"{row['rows']:>14} {row['patches']:>20} {1e6 * row['step']:9.1f} "
        line += f"{1e6 * row['least']:9.1f} {1e6 * (base - row['step']):9.1f}"
        if "over" in row:
            line += f" {row['over']:6.3f} {row['drift']:6.3f} {row['make']:8.3f} {row['host']:6.0f}"
            line += f" {row['largest']:9.2g} {row['kl']:8.1g}"
        print(line, flush=True)
    for build in builds.values():
        build.close()
    print(json.dumps({"model": options.model.name, "rows": results}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    else:
        main()
