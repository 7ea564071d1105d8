"""The commands that work on files; cli.py takes them in."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="GGUF file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a GGUF file holds."""
    from llcuda.native.estimate import read_facts

    facts = asdict(read_facts(file))
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")
