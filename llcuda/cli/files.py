"""The commands that work on files; cli.py takes them in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="GGUF file, short name, or repo/id:file.gguf.")],
    ctx_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context to count memory for.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors.")] = False,
    validate: Annotated[bool, typer.Option("--validate", help="Read all weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a GGUF file holds and what it needs here; one on the hub is not downloaded."""
    from rich.console import Console

    from llcuda.cli import inspect as gguf_inspect

    document = gguf_inspect.inspect(file, ctx_size=ctx_size, validate=validate)
    if as_json:
        print(json.dumps(document))
    else:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        gguf_inspect.show(console, document, tensors=tensors)
    if document["problems"]:
        raise typer.Exit(1)


@app.command("convert")
def convert_(
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
        int | None, typer.Option(min=1, help="Of the quantisation; default: every processor.")
    ] = None,
) -> None:
    """Make a GGUF file of a Hugging Face checkpoint or a LoRA adapter."""
    from llcuda.conversion.convert import convert

    print(
        convert(source, target, file_type, base=base, merge=merge, threads=threads, progress=True)
    )
