"""The cost of HTTP: `llcuda serve` against the engine without it, and against llama_cpp.server.

`python benchmarks/serve.py [MODEL.gguf] [--clients 1,8,32] [--peer-python PATH]`, by default the
demo model. Streams of equal length run in turns: in the engine in this process, in `llcuda serve`,
and in `python -m llama_cpp.server` on llcuda's libraries, run by an interpreter that has llcuda and
the packages of the dependency group peer-llama-cpp-server. `--soak MINUTES` sends mixed requests to
every API of `llcuda serve`, also wrong ones and from clients that disconnect, and prints what the
server holds by minute and what is left at the end; the exit status is 1 if an answer was wrong, if
the memory grew, or if something is left. Only 127.0.0.1 is used. Prints a table, then one JSON
line. Clients and server share the machine: compare ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from http_load import PROMPT, Timed, over_http, prompt
from local_server import free_port, running
from mixed_load import SLOT_FILES, Held, Results, fill_buffers, put_load, unanswerable
from peers import llama_cpp_python
from rich.console import Console
from rich.table import Table

import llcuda
from llcuda import Engine, Model
from llcuda.engine.metrics import percentile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support import models

CTX_SIZE = 512
SOAK_CTX_SIZE = 1024
WARM_UP_MINUTES = 1.0  # fills the caches
GROWTH = 0.05  # of the memory between the first and the last third of a soak: more is a problem
EXIT_SECONDS = 60
# What a soak serves; paths are relative to its working directory.
SOAK = """
port = {port}
log-level = "warning"
slot-save-path = "slots"
file-path = "files"

[[models]]
source = {model}
name = "served"
ctx-size = {ctx_size}
threads = {threads}
parallel = 4
pooling = "mean"

[[models]]
source = "rank.gguf"
name = "rank"
threads = 1
"""
PEER = """
import os, runpy, sys
from llcuda.native import library
os.environ["LLAMA_CPP_LIB_PATH"] = library.versions()["folder"]
sys.path.insert(0, sys.argv.pop(1))
import llama_cpp.llama_cpp as raw
raw.llama_vocab_is_eog = lambda vocab, token: False
sys.argv[0] = "llama_cpp.server"
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


async def in_engine(engine: Engine, clients: int, turns: int, tokens: int) -> Timed:
    """Read the same streams in coroutines of this process."""
    timed = Timed()

    async def client(number: int) -> None:
        for turn in range(turns):
            asked, began = time.perf_counter(), 0.0
            request = engine.submit(prompt(number, turn), max_tokens=tokens, ignore_eos=True)
            async for _ in request:
                began = began or time.perf_counter()
            timed.add(tokens, (asked, began, time.perf_counter()))

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    timed.seconds = time.perf_counter() - started
    return timed


def llcuda_command(model: Path, port: int, parallel: int, threads: int) -> list[str]:
    """Return the command of `llcuda serve`."""
    return [
        sys.executable, "-m", "llcuda", "serve", f"served={model}", "--port", str(port),
        "--parallel", str(parallel), "--ctx-size", str(CTX_SIZE), "--threads", str(threads),
        "--pooling", "mean",
    ]  # fmt: skip


def peer_command(python: str, model: Path, port: int, threads: int) -> list[str]:
    """Return the command of llama-cpp-python's server."""
    return [
        python, "-c", PEER, str(llama_cpp_python.folder()), "--model", str(model), "--port",
        str(port), "--n_ctx", str(CTX_SIZE), "--n_threads", str(threads), "--n_threads_batch",
        str(threads), "--flash_attn", "true", "--interrupt_requests", "false", "--verbose", "false",
    ]  # fmt: skip


def row(name: str, clients: int, turns: list[Timed], base: list[Timed]) -> dict[str, Any]:
    """Return the figures of one measurement; times in milliseconds."""
    first = sorted(value for turn in turns for value in turn.first)
    each = sorted(value for turn in turns for value in turn.each)
    rates = [turn.tokens / turn.seconds for turn in turns]
    over = [rate * b.seconds / b.tokens for rate, b in zip(rates, base, strict=True)]
    return {
        "what": name,
        "clients": clients,
        "tokens_per_second": statistics.median(rates),
        "over_engine": statistics.median(over),
        "first_p50_ms": percentile(first, 50) * 1e3,
        "first_p95_ms": percentile(first, 95) * 1e3,
        "token_p50_ms": percentile(each, 50) * 1e3,
        "token_p95_ms": percentile(each, 95) * 1e3,
    }


def compare(path: Path, clients: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all servers with a number of clients, in turns."""
    small = path.stat().st_size < 2**27
    tokens, streams = (100, 4) if small else (options.tokens, 1)
    threads = options.threads or (1 if small else len(os.sched_getaffinity(0)))
    port, peer_port = free_port(), free_port()
    turns: dict[str, list[Timed]] = {"engine": [], "llcuda serve": [], "llama_cpp.server": []}
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(Model(path))
        engine = stack.enter_context(
            Engine(model, n_parallel=clients, ctx_size=CTX_SIZE, threads=threads, ubatch_size=128)
        )
        stack.enter_context(running(llcuda_command(path, port, clients, threads), port))
        peer = options.peer_python
        if peer:
            command = peer_command(peer, path, peer_port, threads)
            stack.enter_context(running(command, peer_port, "/v1/models"))
        fields = {"ignore_eos": True, "model": "served"}
        for turn in range(-1, options.turns):
            results = {
                "engine": asyncio.run(in_engine(engine, clients, streams, tokens)),
                "llcuda serve": asyncio.run(over_http(port, clients, streams, tokens, fields)),
            }
            if peer:
                peer_fields = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
                results["llama_cpp.server"] = asyncio.run(
                    over_http(peer_port, clients, streams, tokens, peer_fields)
                )
            for name, timed in results.items():
                if turn >= 0:
                    turns[name].append(timed)
    return [row(name, clients, timed, turns["engine"]) for name, timed in turns.items() if timed]


def run_soak(path: Path, minutes: float, threads: int) -> dict[str, Any]:
    """Put mixed load on a server, and return what it did, held and left, with its problems."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        for part in ("slots", "files"):
            (folder / part).mkdir()
        models.write(folder / "rank.gguf", *models.reranker())
        text = SOAK.format(
            port=port,
            model=json.dumps(str(path.resolve())),
            ctx_size=SOAK_CTX_SIZE,
            threads=threads,
        )
        (folder / "soak.toml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "llcuda", "serve", "--config", "soak.toml"]
        log = folder / "log"
        with (
            log.open("wb") as stderr,
            running(command, port, cwd=folder, stderr=stderr) as process,
        ):
            left_out = asyncio.run(unanswerable(port))
            asyncio.run(fill_buffers(port))
            load = functools.partial(put_load, port, process.pid, left_out=left_out)
            asyncio.run(load(min(WARM_UP_MINUTES, minutes), seed=1))
            before = Held.of(process.pid)
            results, held = asyncio.run(load(minutes, seed=2))
            left = what_is_left(port, folder)
            after = Held.of(process.pid)
            process.terminate()
            status = process.wait(EXIT_SECONDS)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        problems = judge(results, held, before, after, left)
        if status:
            problems.append(f"the server ended with {status}")
        if "Traceback (most recent call last):" in lines:
            problems.append("the log has a traceback")
            print("\n".join(lines[-200:]), file=sys.stderr)
    return {
        "model": path.name,
        "minutes": minutes,
        "answers": dict(sorted(results.answers.items())),
        "requests": results.answers.total(),
        "left_out": sorted(left_out),
        "left_clients": results.left,
        "held": [asdict(one) for one in (before, *held, after)],
        "left": left,
        "problems": problems,
    }


def judge(
    results: Results, held: list[Held], before: Held, after: Held, left: dict[str, Any]
) -> list[str]:
    """Return what was wrong in a soak."""
    problems = list(results.problems)
    if results.problem_count > len(problems):
        problems.append(f"{results.problem_count - len(problems)} further answers")
    third = max(1, len(held) // 3)
    first, last = (
        statistics.mean(reading.memory for reading in part)
        for part in (held[:third], held[-third:])
    )
    if last > first * (1 + GROWTH):
        problems.append(f"memory: {first:.0f} MiB in the first third, {last:.0f} in the last")
    if after.files > before.files + 4:
        problems.append(f"files: {before.files} open before, {after.files} after")
    expected = {"requests": [], "unfinished_batches": 0, "busy_slots": 0, "strange_files": []}
    problems += [f"{key}: {left[key]}" for key, value in expected.items() if left[key] != value]
    return problems


def what_is_left(port: int, folder: Path) -> dict[str, Any]:
    """Return what a server still does and keeps when its clients have gone."""

    def read(path: str, method: str = "GET") -> Any:
        address = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        with urllib.request.urlopen(address) as answer:
            data = answer.read()
            return json.loads(data) if "json" in answer.headers["content-type"] else data.decode()

    gauges = ("llcuda_num_requests_running", "llcuda_num_requests_waiting", "llcuda_http_body")
    requests: list[str] = []
    for _ in range(300):  # until batches whose clients disconnected have ended
        lines = read("/metrics").splitlines()
        requests = [x for x in lines if x.startswith(gauges) and not x.endswith(" 0.0")]
        batches = read("/v1/batches?limit=1000")["data"]
        unfinished = sum(batch["status"] in ("validating", "in_progress") for batch in batches)
        if not requests and not unfinished:
            break
        time.sleep(0.2)
    kept = read("/v1/files")["data"]
    for file in kept:
        read(f"/v1/files/{file['id']}", "DELETE")
    slots = [path.name for path in (folder / "slots").iterdir()]
    files = {path.name for path in (folder / "files").iterdir()}
    strange = sorted(files - {f"{batch['id']}.json" for batch in batches})
    return {
        "requests": requests,
        "unfinished_batches": unfinished,
        "busy_slots": sum(slot["is_processing"] for slot in read("/slots?model=served")),
        "batches": len(batches),
        "files": len(kept),
        "slot_files": len(slots),
        "strange_files": strange + (slots if len(slots) > SLOT_FILES else []),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=llcuda.demo_model())
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="of a stream of a large model")
    parser.add_argument(
        "--threads", type=int, help="default: every processor; for the demo model one"
    )
    parser.add_argument("--peer-python", help="runs llama_cpp.server; default: it is not run")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    if options.soak:
        result = run_soak(options.model, options.soak, options.threads or 1)
        print(json.dumps(result))
        sys.exit(bool(result["problems"]))
    llama_cpp_python.prepare()
    rows = [
        row
        for clients in map(int, options.clients.split(","))
        for row in compare(options.model, clients, options)
    ]
    table = Table(*rows[0], title=f"{options.model.name}, prompt of {len(PROMPT)} letters")
    for measured in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in measured.values()))
    Console(width=140).print(table)
    print(json.dumps({"model": options.model.name, "rows": rows}))


if __name__ == "__main__":
    main()
