"""`llcuda tokenize`: the tokens of a text, as a model reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llcuda.cli import texts
from llcuda.cli.console import examples
from llcuda.errors import ArgumentError

app = typer.Typer()


@app.command(
    epilog=examples(
        'llcuda tokenize demo "Once upon a time"',
        "cat notes.txt | llcuda tokenize model.gguf --count",
    ),
)
def tokenize(
    model: texts.Model,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="The text; - or nothing reads stdin.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="File with the text; - is stdin."),
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Print the number of tokens.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Print the tokens as a list.")] = False,
    bos: Annotated[
        bool,
        typer.Option(
            "--bos/--no-bos", help="Add the tokens that the model wants around a text, e.g. BOS."
        ),
    ] = True,
    special: Annotated[
        bool,
        typer.Option(
            "--special/--no-special", help="Read control tokens in the text, e.g. <|im_end|>."
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the tokens of a text, each with its number and its text. No weights are loaded."""
    from llcuda.hub.resolver import resolve
    from llcuda.native.model import Model
    from llcuda.progress import is_visible

    if text is not None and file is not None:
        raise ArgumentError("give TEXT or --file, not both")
    if sum((count, ids, as_json)) > 1:
        raise ArgumentError("give one of --count, --ids and --json")
    texts.check_name(model)
    [given] = texts.given_texts([] if text is None else [text], [] if file is None else [file])
    path = resolve(model, progress=is_visible())
    with Model(path, vocab_only=True) as loaded:
        tokens = loaded.tokenize(given, add_special=bos, parse_special=special)
        pieces = [texts.shown_piece(loaded.piece_bytes(token, special=True)) for token in tokens]
    if count:
        print(len(tokens))
    elif ids:
        print(json.dumps(tokens))
    elif as_json:
        document = {"count": len(tokens), "tokens": tokens, "pieces": pieces}
        print(json.dumps(document, ensure_ascii=False))
    else:
        width = len(str(max(tokens, default=0)))
        for token, piece in zip(tokens, pieces, strict=True):
            print(f"{token:>{width}}  '{piece}'")
