"""The command line: `llcuda run`, `llcuda doctor`, `llcuda version`.

Only this module prints. Errors go to stderr as one message, never as a trace; the exit status is
1 for what failed, 2 for wrong arguments, 130 after Ctrl-C. rich is imported by what draws with it:
the start of `run` does not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli import chat as cli_chat
from llcuda.cli import doctor as cli_doctor
from llcuda.cli import files as cli_files
from llcuda.cli import quantize as cli_quality
from llcuda.cli import serve as cli_serve
from llcuda.errors import ArgumentError, DecodeAbortedError, LlcudaError

if TYPE_CHECKING:
    from llcuda.engine.engine import Engine
    from llcuda.engine.request import Request
    from llcuda.params import ModelParams

app = typer.Typer(
    help="GGUF language models inside a Python process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_chat.app)
app.add_typer(cli_files.app)
app.add_typer(cli_quality.app)
app.add_typer(cli_serve.app)
app.add_typer(cli_doctor.app)

INTERRUPTED = 130


@app.command()
def run(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; without it, or as -, from stdin.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="GGUF file, short name (llcuda list), or repo/id.")
    ] = "demo",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 = always the most probable token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Keep the k most probable tokens; 0 = all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Keep the tokens with this probability.")] = 0.9,
    min_p: Annotated[float, typer.Option(help="Drop what is so much less probable.")] = 0.0,
    repeat_penalty: Annotated[float, typer.Option(help="1 = off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="For the same text again.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="GBNF file to follow.", exists=True, dir_okay=False)
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="JSON schema to follow.", exists=True, dir_okay=False)
    ] = None,
    regex: Annotated[str | None, typer.Option(help="What the whole text must match.")] = None,
    ctx_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context; default: what is needed.")
    ] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(min=0, help="Layers on the GPU; default: all that fit.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: every processor.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Show the prompt before its text.")] = False,
    special: Annotated[
        bool, typer.Option("--special", help="Read control tokens in the prompt, e.g. <|im_end|>.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document with timings instead.")
    ] = False,
) -> None:
    """Continue a text, token by token. Ctrl-C stops and keeps what there is."""
    from llcuda import progress
    from llcuda.engine.engine import Engine
    from llcuda.engine.request import RequestParams
    from llcuda.hub import registry as hub
    from llcuda.native.model import Model
    from llcuda.params import SamplingParams

    text = _prompt(prompt)
    form = _response_format(json_schema, regex)
    params = RequestParams(max_tokens=max_tokens)
    sampling = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        grammar=grammar.read_text(encoding="utf-8") if grammar else None,
    )
    bar = progress.seen() and not as_json
    path = hub.resolve(model, progress=bar)
    # How many tokens the text has, only the loaded model can say; hardly more than characters.
    placed = _model_params(path, gpu_layers, ctx_size, len(text) + max_tokens)
    with Model(path, params=placed, progress=bar) as loaded:
        tokens = loaded.tokenize(text, parse_special=special)
        size = ctx_size or min(len(tokens) + max_tokens, loaded.train_ctx_size)
        if len(tokens) >= size:
            raise ArgumentError(
                f"the prompt has {len(tokens)} tokens, the context holds {size} with the answer; "
                "give a shorter prompt or a larger --ctx-size"
            )
        with Engine(loaded, ctx_size=size, threads=threads) as engine:
            request = engine.submit(tokens, params, sampling, response_format=form)
            if echo and not as_json:
                print(text if isinstance(text, str) else text.decode(errors="replace"), end="")
            shown, reason = _stream(engine, request, silent=as_json)
            if as_json:
                print(json.dumps(_result(engine, request, shown, reason), ensure_ascii=False))
    if reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the models with a short name, and which of them are in the cache."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from llcuda.hub import registry as hub

    rows = hub.listing()
    if as_json:
        print(json.dumps([{**asdict(e), "path": str(path) if path else None} for e, path in rows]))
        return
    columns = ("Name", "Size", "Parameters", "Context", "License", "Here")
    table = Table(*columns, box=None, pad_edge=False)  # 80 characters wide: nothing is cut
    for entry, path in rows:
        facts = (f"{entry.gigabytes:.2f} GB", f"{entry.parameters:g} B", f"{entry.context:,}")
        table.add_row(entry.name, *facts, entry.license, "yes" if path else "")
    Console(highlight=False, width=None if sys.stdout.isatty() else 80).print(table)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Short name, repo/id:file.gguf or repo/id:Q4_K_M.")],
    filename: Annotated[str | None, typer.Argument(help="The file, after repo/id.")] = None,
    silent: Annotated[bool, typer.Option("--silent", help="No progress bar.")] = False,
) -> None:
    """Download a model, or its newer version, and print its path."""
    from llcuda.hub import registry as hub

    print(hub.pull(name, filename, progress=not silent))


@app.command("bench")
def bench_(
    model: Annotated[
        str | None, typer.Argument(help="GGUF file, short name or repo/id; default: demo.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Sizes of a known model, random weights, no download.")
    ] = None,
    file_type: Annotated[
        str | None, typer.Option("--type", help="Of the shape's weights; default: Q4_K_M.")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Some of startup, prefill, decode, parallel, sampling, depth, kv, layers, memory;"
            " or all. Default: without depth, kv and layers."
        ),
    ] = None,
    prefill: Annotated[str | None, typer.Option(help="Prompts' tokens, e.g. 128,512.")] = None,
    parallel: Annotated[str | None, typer.Option(help="Texts at once, e.g. 1,4,16,64.")] = None,
    depth: Annotated[str | None, typer.Option(help="Texts' tokens, e.g. 0,4096,16384.")] = None,
    kv_types: Annotated[str | None, typer.Option(help="E.g. f16,q8_0,q4_0.")] = None,
    layers: Annotated[str | None, typer.Option(help="On the GPU, e.g. 0,13,27.")] = None,
    gpu_layers: Annotated[int | None, typer.Option(min=0, help="Default: all that fit.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: every processor.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less, and less exactly.")] = False,
    compare: Annotated[Path | None, typer.Option(help="JSON of an earlier run.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the document.")] = False,
) -> None:
    """Measure a model: tables, and one JSON document as the last line. Ctrl-C ends it early."""
    from rich.console import Console

    from llcuda.bench import plot as bench_plot
    from llcuda.bench import report as bench_output
    from llcuda.bench import run as bench
    from llcuda.bench import synthetic as shapes
    from llcuda.hub import registry as hub

    params = bench.BenchParams(
        tables=bench.names(measure, bench.TABLES),
        prefill=bench.numbers("prefill", prefill),
        parallel=bench.numbers("parallel", parallel),
        depth=bench.numbers("depth", depth),
        kv_types=bench.names(kv_types),
        layers=bench.numbers("layers", layers),
        gpu_layers=gpu_layers,
        threads=threads,
        quick=quick,
    )
    if shape and model:
        raise ArgumentError("give a model or --shape, not both")
    if file_type and not shape:
        raise ArgumentError("--type is for --shape: a model file has its type")
    earlier = bench_output.read_document(compare) if compare else None
    if plot:
        bench_plot.check(plot)
    if shape:
        path = shapes.make(shape, file_type or "Q4_K_M", progress=_status)
    else:
        path = hub.resolve(model or "demo", progress=not as_json)
    console = Console(quiet=as_json, highlight=False, width=None if sys.stdout.isatty() else 120)

    def show(name: str, content: Any) -> None:
        _status("")
        bench_output.show(console, name, content)

    runner = bench.Bench(path, params, on_part=show, on_status=_status)
    document = runner.document
    try:
        runner.run()
    except KeyboardInterrupt:
        document["interrupted"] = True
    finally:
        _status("")
    if earlier:
        document["compared"] = bench_output.compare(document, earlier)
        bench_output.show_comparison(console, document["compared"], document, earlier)
    if plot and "interrupted" not in document:
        bench_plot.draw(document, plot)
    print(json.dumps(document, ensure_ascii=False))
    if "interrupted" in document:
        raise typer.Exit(INTERRUPTED)


@app.command()
def version() -> None:
    """Print the version."""
    import llcuda

    print(llcuda.__version__)


def main() -> None:
    """Entry point of `llcuda` and `python -m llcuda`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        app()
    except LlcudaError as error:
        _complain(str(error))
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    except UnicodeDecodeError as error:
        _complain(f"a file is not UTF-8: {error}")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush to
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _status(what: str, share: float | None = None) -> None:
    """Show what is done just now in a line on stderr that the next one takes the place of."""
    if sys.stderr.isatty():
        text = what if share is None else f"{what} {share:.0%}"
        print(f"\r{text[:78]:<78}\r", end="", file=sys.stderr, flush=True)


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(message)}")


def _prompt(argument: str | None) -> str | bytes:
    """Return the prompt; from stdin as bytes, so that the tokenizer sees what was sent."""
    if argument == "":
        raise ArgumentError("the prompt is empty")
    if argument is not None and argument != "-":
        return argument
    if sys.stdin.isatty():
        raise ArgumentError("give a text to continue, e.g.: llcuda run 'Once upon a time'")
    text = sys.stdin.buffer.read().removesuffix(b"\n")
    if not text:
        raise ArgumentError("stdin is empty; give a text to continue")
    return text


def _response_format(schema: Path | None, regex: str | None) -> dict[str, Any] | None:
    if schema is None:
        return None if regex is None else {"type": "regex", "regex": regex}
    if regex is not None:
        raise ArgumentError("give --json-schema or --regex, not both")
    try:
        read = json.loads(schema.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{schema} is no JSON: {error}") from None
    return {"type": "json_schema", "json_schema": {"schema": read}}


def _model_params(
    path: Path, gpu_layers: int | None, ctx_size: int | None, most: int
) -> ModelParams:
    """Return where the layers go, by default to the GPUs as many as fit beside the text.

    most: tokens of the text; what the context holds without `ctx_size`, if the model allows it.
    """
    from llcuda.native import library
    from llcuda.params import ModelParams

    if gpu_layers is not None or all(device.kind != "gpu" for device in library.devices()):
        return ModelParams(gpu_layers=gpu_layers)
    from llcuda.engine.autofit import fit
    from llcuda.engine.config import EngineConfig
    from llcuda.native.estimate import read_facts

    config = EngineConfig.from_kwargs(
        ctx_size=ctx_size or min(most, read_facts(path).train_ctx_size)
    )
    return fit(config, path, automatic_ctx_size=False).config.model


def _stream(engine: Engine, request: Request, silent: bool) -> tuple[str, str]:
    """Show the pieces as they come; return the whole text, and why it ended."""
    pieces = []

    def show() -> None:
        for piece in request:
            pieces.append(piece)
            if not silent:
                print(piece, end="", flush=True)

    try:
        show()
        reason = request.result().finish_reason
    except KeyboardInterrupt:
        request.cancel()
        engine.context.cancel()  # what decodes just now: a long prompt takes many seconds
        with contextlib.suppress(DecodeAbortedError):
            show()
        reason = "interrupted"
    if not silent:
        print(flush=True)
    return "".join(pieces), reason


def _result(engine: Engine, request: Request, text: str, reason: str) -> dict[str, Any]:
    return {
        "model": str(engine.model.path),
        "text": text,
        "tokens_generated": len(request.tokens),
        "prompt_tokens": request.prompt_tokens,
        "finish_reason": reason,
        "seed": request.sampler.seed,
        "timings": engine.context.timings.as_dict(),
    }
