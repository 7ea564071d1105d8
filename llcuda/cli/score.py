"""`llcuda score`: how probable a model finds texts, token by token."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli import texts
from llcuda.cli.console import examples, stdout_console
from llcuda.cli.settings import WHOLE_MODEL, takes_settings
from llcuda.errors import ArgumentError

if TYPE_CHECKING:
    from llcuda.engine.engine import Engine
    from llcuda.engine.outputs import TokenLogprob
    from llcuda.native.model import Model

app = typer.Typer()
MAX_TEXT = 60  # characters of a text in a table


@app.command(
    epilog=examples(
        'llcuda score demo "Once upon a time" --top 3',
        'llcuda score model.gguf --prompt "The capital of France is" " Paris" " Rome"',
    ),
)
@takes_settings(WHOLE_MODEL)
def score(
    settings: dict[str, Any],
    model: texts.Model,
    text: texts.Texts = None,
    file: texts.Files = None,
    lines: texts.Lines = False,
    field: texts.Field = None,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="What stands before each text; its own tokens are not scored."
        ),
    ] = "",
    top: Annotated[
        int,
        typer.Option(
            min=0, max=100, metavar="TOKENS", help="Show the most probable tokens beside each."
        ),
    ] = 0,
    special: Annotated[
        bool,
        typer.Option(
            "--special/--no-special", help="Read control tokens in the texts, e.g. <|im_end|>."
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON document for each text, each in a line.")
    ] = False,
) -> None:
    """Print the log-probability of each token of a text, and the text's perplexity.

    The first token has none, unless the model puts one before it, such as BOS.
    """
    from llcuda.engine.engine import Engine
    from llcuda.hub.resolver import resolve
    from llcuda.native.model import Model
    from llcuda.progress import is_visible

    texts.check_name(model)
    given = texts.given_texts(text or [], file or [], lines=lines, field=field)
    path = resolve(model, progress=is_visible())
    with Model(path, gpu_layers=settings.pop("gpu_layers", None)) as loaded:
        before = loaded.tokenize(prompt, parse_special=special) if prompt else []
        tokens = [
            _tokens(loaded, before, text, special, number) for number, text in enumerate(given, 1)
        ]
        ctx_size = max(map(len, tokens))
        with Engine(loaded, ctx_size=ctx_size, **settings) as engine:
            pairs = list(zip(given, tokens, strict=True))
            if len(given) == 1 and not as_json:
                _show_tokens(_document(engine, given[0], tokens[0], len(before), top))
            elif as_json:
                for content, sequence in pairs:
                    document = _document(engine, content, sequence, len(before), top)
                    print(json.dumps(document, ensure_ascii=False), flush=True)
            else:
                documents = [
                    _document(engine, content, sequence, len(before), 0)
                    for content, sequence in pairs
                ]
                _show_texts(documents)


def _tokens(
    model: Model, before: list[int], text: str | bytes, special: bool, number: int
) -> list[int]:
    """Return the tokens of prompt and text; raise ArgumentError where nothing can be scored."""
    tokens = [
        *before, *model.tokenize(text, add_special=not before, parse_special=special)
    ]  # fmt: skip
    if len(tokens) < 2 or len(tokens) == len(before):
        raise ArgumentError(f"text {number}: has no token that can be scored; give a longer text")
    if len(tokens) > model.train_ctx_size > 0:
        raise ArgumentError(
            f"text {number}: has {len(tokens):,} tokens, the model was trained on "
            f"{model.train_ctx_size:,}; give a shorter text, or use llcuda perplexity"
        )
    return tokens


def _document(
    engine: Engine, text: str | bytes, tokens: list[int], skipped: int, top: int
) -> dict[str, Any]:
    """Return the scores of a text, ready for JSON."""
    completion = engine.submit(tokens, echo=True, max_tokens=0, logprobs=top).result()
    assert completion.prompt_logprobs is not None
    scores = completion.prompt_logprobs[max(skipped - 1, 0) :]
    total = math.fsum(item.logprob for item in scores)
    return {
        "text": text if isinstance(text, str) else text.decode(),
        "tokens": len(scores),
        "logprob": total,
        "mean_logprob": total / len(scores),
        "perplexity": math.exp(-total / len(scores)),
        "scores": [_score(engine.model, item, top) for item in scores],
    }


def _score(model: Model, item: TokenLogprob, top: int) -> dict[str, Any]:
    def piece(token: int) -> str:
        return texts.shown_piece(model.piece_bytes(token, special=True))

    score = {"token": item.token, "piece": piece(item.token), "logprob": item.logprob}
    if top:
        score["top"] = [
            {"token": token, "piece": piece(token), "logprob": logprob}
            for token, logprob in item.top
        ]
    return score


def _show_tokens(document: dict[str, Any]) -> None:
    """Print a row for each token, then the figures of the text."""
    from rich.table import Table
    from rich.text import Text

    table = Table("Token", "Text", "Log-prob.", "Prob.", box=None, pad_edge=False)
    if any("top" in score for score in document["scores"]):
        table.add_column("Most probable")
    for score in document["scores"]:
        best = " ".join(
            f"'{item['piece']}' {math.exp(item['logprob']):.1%}" for item in score.get("top", ())
        )
        table.add_row(
            str(score["token"]),
            Text(f"'{score['piece']}'"),
            f"{score['logprob']:.4f}",
            f"{math.exp(score['logprob']):.1%}",
            *([Text(best)] if best else []),
        )
    stdout_console().print(table)
    print(
        f"{document['tokens']:,} tokens, log-probability {document['logprob']:.4f}, "
        f"perplexity {document['perplexity']:.4f}"
    )


def _show_texts(documents: list[dict[str, Any]]) -> None:
    """Print a row for each text."""
    from rich.table import Table
    from rich.text import Text

    table = Table("Tokens", "Log-prob.", "Perplexity", "Text", box=None, pad_edge=False)
    for document in documents:
        text = texts.shown_piece(document["text"].encode())
        table.add_row(
            f"{document['tokens']:,}",
            f"{document['logprob']:.4f}",
            f"{document['perplexity']:.4f}",
            Text(text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."),
        )
    stdout_console().print(table)
