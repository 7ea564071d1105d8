"""`llcuda convert`: a Hugging Face checkpoint or a LoRA adapter as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llcuda.cli.console import examples

app = typer.Typer()


@app.command(epilog=examples("llcuda convert my-checkpoint model.gguf --type q4_k_m"))
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, or repo/id: a checkpoint or adapter.")
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="TARGET", help="File or folder; default: NAME-TYPE.gguf here."),
    ] = None,
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="E.g. q4_k_m (the default), q8_0, f16; an adapter: f32."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="An adapter's base model; default: the one it names."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base model.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="THREADS", help="Threads of the quantization; default: every processor."
        ),
    ] = None,
) -> None:
    """Make a GGUF file of a Hugging Face checkpoint or a LoRA adapter."""
    from llcuda.conversion.convert import convert as convert_checkpoint

    path = convert_checkpoint(
        source, target, file_type, base=base, merge=merge, threads=threads, progress=True
    )
    print(path)
