"""`llcuda batch`: the requests of a file, answered into another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from llcuda.cli.console import complete_model, examples, print_note
from llcuda.cli.settings import SETTINGS, Config, Pooling, takes_settings
from llcuda.errors import ArgumentError, LibraryError
from llcuda.progress import progress_bar

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from llcuda.server.batches import BatchAnswer, BatchLine

app = typer.Typer()
PARALLEL = 8  # sequences, unless --parallel says otherwise
WAITING = 2  # requests for each sequence, so that the next one is ready
_PARALLEL = replace(SETTINGS["n_parallel"], help=f"Sequences in one batch. Default: {PARALLEL}.")


@app.command(epilog=examples("llcuda batch requests.jsonl answers.jsonl --model qwen2.5-1.5b"))
@takes_settings({**SETTINGS, "n_parallel": _PARALLEL})
def batch(
    settings: dict[str, Any],
    requests: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Lines of JSON, as OpenAI's batches have them."),
    ],
    answers: Annotated[
        Path, typer.Argument(metavar="OUT", help="A line for each answer; written as they come.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="GGUF file, short name or repo/id.",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = "demo",
    config: Config = None,
    pooling: Pooling = None,
) -> None:
    """Answer the requests of a file without a server; the same command goes on where it stopped.

    A line is {"custom_id": "1", "url": "/v1/chat/completions", "body": {...}}. Requests whose
    custom_id is in OUT are left out. The exit status is 1 if OUT has a refused request.
    """
    try:
        from llcuda.server import Limits, ModelSpec, create_app
    except ModuleNotFoundError as error:
        missing = f"llcuda batch needs {error.name}: pip install 'llcuda[server]'"
        raise LibraryError(missing) from error
    from llcuda.hub.names import served_name

    total = _check_requests(requests)
    if answers.exists() and answers.samefile(requests):
        raise ArgumentError(f"{answers}: is IN too; name another file for OUT")
    answered = _answered(answers)
    refused_before = sum(answered.values())
    if len(answered) >= total:
        note = f", {refused_before:,} of them with refusals" if refused_before else ""
        print_note(f"all {total:,} requests are answered in {answers}{note}")
        raise typer.Exit(bool(refused_before))
    parameters = {"n_parallel": PARALLEL, **settings}
    if pooling is not None:
        parameters["pooling"] = pooling
    with _opened(answers, "ab") as target:  # before the model is loaded
        size = max(requests.stat().st_size, 1)
        spec = ModelSpec(served_name(model), model, parameters=parameters)
        limits = Limits(body_bytes=size, deadline=None)
        server = create_app([spec], limits=limits)
        lines = (line for line in _read(requests) if line.custom_id not in answered)
        started = time.monotonic()
        refused, ignored, done = 0, set[str](), len(answered)
        with progress_bar(f"{requests.name}") as draw:
            draw(done / total)

            def write(answer: BatchAnswer) -> None:
                nonlocal refused, done
                target.write(answer.as_json().encode() + b"\n")
                target.flush()
                refused += answer.status != 200
                if answer.ignored:
                    ignored.add(answer.ignored)
                done += 1
                draw(done / total)

            asyncio.run(_run(server, lines, parameters["n_parallel"] * WAITING, write))
    count, seconds = done - len(answered), time.monotonic() - started
    print_note(
        f"{count:,} answers in {seconds:.1f} s, {refused:,} of them refusals; "
        f"{len(answered):,} were there, {refused_before:,} of them refusals"
    )
    for note in sorted(ignored)[:3]:
        print_note(f"ignored: {note}")
    if refused or refused_before:
        raise typer.Exit(1)


async def _run(server: Starlette, lines: Iterator[BatchLine], parallel: int, write: Any) -> None:
    from llcuda.server.batches import answer_lines

    async with server.router.lifespan_context(server):
        async for answer in answer_lines(server, lines, parallel):
            write(answer)


def _opened(path: Path, mode: str) -> BinaryIO:
    """Open a file. ArgumentError where that is not possible."""
    try:
        return cast(BinaryIO, path.open(mode))
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}") from None


def _read(path: Path) -> Iterator[BatchLine]:
    """Yield the requests of a file; empty lines are left out. ArgumentError for a wrong one."""
    from llcuda.server.batches import read_line

    with _opened(path, "rb") as file:
        for number, data in enumerate(file, 1):
            if not data.strip():
                continue
            try:
                line = read_line(number, data)
            except ArgumentError as error:
                raise ArgumentError(f"{path}, {error}") from None
            yield line


def _check_requests(path: Path) -> int:
    """Return how many requests a file has, all of them checked before any is answered."""
    seen: set[str] = set()
    for line in _read(path):
        if line.custom_id in seen:
            rule = f"custom_id={line.custom_id!r}: several requests have it"
            raise ArgumentError(f"{path}: {rule}; give each its own")
        seen.add(line.custom_id)
    if not seen:
        raise ArgumentError(f"{path}: has no requests; a line is a JSON object")
    return len(seen)


def _answered(path: Path) -> dict[str, bool]:
    """Return whether each id's answer is a refusal; cut off a line that is not whole."""
    from llcuda.server.batches import read_answers

    try:
        answered = read_answers(path)
    except ArgumentError as error:
        raise ArgumentError(f"{path}, {error}; name another file for OUT") from None
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}") from None
    if answered.wrong:
        raise ArgumentError(f"{path}: tells of wrong lines of a batch; name another file for OUT")
    if path.exists() and answered.size < path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(answered.size)
    return answered.refused
