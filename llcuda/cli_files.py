"""The commands that work on files; cli.py takes them in."""

from __future__ import annotations

import json
import sys
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

    from llcuda import gguf_inspect

    document = gguf_inspect.inspect(file, ctx_size=ctx_size, validate=validate)
    if as_json:
        print(json.dumps(document))
    else:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        gguf_inspect.show(console, document, tensors=tensors)
    if document["problems"]:
        raise typer.Exit(1)
