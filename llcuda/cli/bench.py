"""`llcuda bench`: measures a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from llcuda.cli.console import (
    INTERRUPTED,
    complete_model,
    examples,
    show_status,
    stdout_console,
)
from llcuda.cli.settings import SIZES, takes_settings
from llcuda.errors import ArgumentError

app = typer.Typer()


@app.command(epilog=examples("llcuda bench model.gguf --quick"))
@takes_settings(SIZES)
def bench(
    settings: dict[str, Any],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="GGUF file, short name or repo/id; default: demo.",
            autocompletion=complete_model,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A known model's sizes with random weights; no download."
        ),
    ] = None,
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="Type of the shape's weights; default: Q4_K_M."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="TABLES",
            help="Some of startup, prefill, decode, parallel, graphs, sampling, requests, depth,"
            " kv, layers, memory; or all. Default: without graphs, requests, depth, kv and layers.",
        ),
    ] = None,
    prefill: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Tokens of prompts, e.g. 128,512.")
    ] = None,
    parallel: Annotated[
        str | None, typer.Option(metavar="SEQUENCES", help="Sequences in a batch, e.g. 1,4,16,64.")
    ] = None,
    graphs: Annotated[
        str | None,
        typer.Option(
            metavar="SEQUENCES",
            help="Sequences in a batch, with CUDA graphs and without, e.g. 1,4,8.",
        ),
    ] = None,
    requests: Annotated[
        str | None, typer.Option(metavar="REQUESTS", help="Requests at once, e.g. 1,4,8.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Tokens in the cache, e.g. 0,4096,16384.")
    ] = None,
    kv_types: Annotated[
        str | None, typer.Option(metavar="TYPES", help="Types of KV cells, e.g. f16,q8_0,q4_0.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Layers on the GPU, e.g. 0,13,27.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tables, less exact.")] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Output of an earlier run; or t4: what documents report for a T4."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture to write, .png or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the document.")] = False,
) -> None:
    """Measure a model: tables, and one JSON document as the last line. Ctrl-C ends it early."""
    from llcuda.bench.plot import check_plot, draw_plot
    from llcuda.bench.report import (
        compare_documents,
        describe_reference,
        read_document,
        show_comparison,
        show_part,
    )
    from llcuda.bench.run import TABLES, Bench, BenchParams
    from llcuda.bench.synthetic import make_synthetic_model
    from llcuda.hub.resolver import resolve

    params = BenchParams(
        tables=_names(measure, TABLES),
        prefill=_numbers("--prefill", prefill),
        parallel=_numbers("--parallel", parallel),
        graphs=_numbers("--graphs", graphs),
        requests=_numbers("--requests", requests),
        depth=_numbers("--depth", depth),
        kv_types=_names(kv_types),
        layers=_numbers("--layers", layers),
        quick=quick,
        **settings,
    )
    if shape and model:
        raise ArgumentError("MODEL and --shape: give one of them, not both")
    if file_type and not shape:
        raise ArgumentError("--type is for --shape: the type of a model file is fixed")
    earlier = read_document(compare) if compare else None
    if plot:
        check_plot(plot)
    if shape:
        path = make_synthetic_model(shape, file_type or "Q4_K_M", progress=show_status)
    else:
        path = resolve(model or "demo", progress=not as_json)
    console = stdout_console(quiet=as_json)

    def show(name: str, content: Any) -> None:
        show_status("")
        show_part(console, name, content)

    runner = Bench(path, params, on_part=show, on_status=show_status)
    document = runner.document
    try:
        runner.run()
    except KeyboardInterrupt:
        document["interrupted"] = True
    finally:
        show_status("")
    if earlier:
        document["compared"] = compare_documents(document, earlier)
        document["compared_with"] = describe_reference(earlier)
        show_comparison(console, document)
    if plot and "interrupted" not in document:
        draw_plot(document, plot)
    print(json.dumps(document, ensure_ascii=False))
    if "interrupted" in document:
        raise typer.Exit(INTERRUPTED)


def _names(text: str | None, all_names: Iterable[str] = ()) -> tuple[str, ...] | None:
    """Return the names in a list with commas; "all" means `all_names`, if there are any."""
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    return tuple(all_names) if all_names and names == ("all",) else names


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the numbers in a list with commas."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(
            f"{option} {text}: expected whole numbers with commas between, e.g. 1,4,16"
        ) from None
