"""`llcuda list`, `llcuda pull` and `llcuda convert`: models on this machine and on the hub."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llcuda.cli.console import stdout_console

app = typer.Typer()


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the models with a short name, and which of them are in the cache."""
    from rich.table import Table

    from llcuda.hub.resolver import listing

    models = listing()
    if as_json:
        rows = [{**asdict(entry), "path": str(path) if path else None} for entry, path in models]
        print(json.dumps(rows))
        return
    columns = ("Name", "Size", "Parameters", "Context", "License", "Here")
    table = Table(*columns, box=None, pad_edge=False)
    for entry, path in models:
        facts = (f"{entry.gigabytes:.2f} GB", f"{entry.parameters:g} B", f"{entry.context:,}")
        table.add_row(entry.name, *facts, entry.license, "yes" if path else "")
    stdout_console(pipe_width=80).print(table)  # 80 columns hold every row uncut


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Short name, repo/id:file.gguf or repo/id:Q4_K_M.")],
    filename: Annotated[str | None, typer.Argument(help="The file, after repo/id.")] = None,
    silent: Annotated[bool, typer.Option("--silent", help="No progress bar.")] = False,
) -> None:
    """Download a model, or its newer version, and print its path."""
    from llcuda.hub.resolver import pull as pull_model

    print(pull_model(name, filename, progress=not silent))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder, or repo/id: a checkpoint or adapter.")],
    target: Annotated[
        Path | None, typer.Argument(help="File or folder; default: NAME-TYPE.gguf here.")
    ] = None,
    file_type: Annotated[
        str | None,
        typer.Option("--type", help="E.g. q4_k_m (the default), q8_0, f16; an adapter: f32."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="An adapter's base model; default: the one it names.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base model.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the quantization; default: every processor."),
    ] = None,
) -> None:
    """Make a GGUF file of a Hugging Face checkpoint or a LoRA adapter."""
    from llcuda.conversion.convert import convert as convert_checkpoint

    path = convert_checkpoint(
        source, target, file_type, base=base, merge=merge, threads=threads, progress=True
    )
    print(path)
