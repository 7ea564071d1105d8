"""`llcuda embed`: the vectors of texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli import texts
from llcuda.cli.console import examples
from llcuda.cli.settings import EMBEDDING, takes_settings
from llcuda.errors import ArgumentError

if TYPE_CHECKING:
    from llcuda.embeddings.embedder import EmbeddingResult, Float32

app = typer.Typer()
AT_ONCE = 256  # texts; then their vectors are printed


@app.command(
    epilog=examples(
        'llcuda embed bge-small.gguf "a text" "another"',
        'llcuda embed nomic.gguf --prefix "search_document: " --lines -f texts.txt -o vectors.npy',
        "cat rows.jsonl | llcuda embed bge-small.gguf --field text > vectors.jsonl",
    ),
)
@takes_settings(EMBEDDING)
def embed(
    settings: dict[str, Any],
    model: texts.Model,
    text: texts.Texts = None,
    file: texts.Files = None,
    lines: texts.Lines = False,
    field: texts.Field = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A file to write: .npy, an array of float32 with a row for each text, or .jsonl."
            " Default: JSON lines on stdout.",
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help='Put before each text, as some models want it: "query: ".'
        ),
    ] = "",
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="mean|cls|last", help="From tokens to a vector. Default: as the file says."
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Give each vector the length 1.")
    ] = True,
    dimensions: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="NUMBERS", help="Keep the first numbers of each vector. Default: all."
        ),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Drop the end of a text that is too long.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option("--special/--no-special", help="Read control tokens in the texts."),
    ] = True,
) -> None:
    """Print the vector of each text as a JSON line, or write all of them to a file."""
    from llcuda.embeddings.embedder import Embedder
    from llcuda.files import check_target
    from llcuda.hub.resolver import resolve
    from llcuda.native.model import Model
    from llcuda.progress import is_visible, progress_bar

    if output is not None:
        check_target(output, *(file or ()))
        if output.suffix not in (".npy", ".jsonl"):
            raise ArgumentError(f"--output {output}: expected a name that ends in .npy or .jsonl")
    texts.check_name(model)
    given = texts.given_texts(text or [], file or [], lines=lines, field=field)
    prompts = [prefix + (text if isinstance(text, str) else text.decode()) for text in given]
    path = resolve(model, progress=is_visible())
    with (
        Model(path, gpu_layers=settings.pop("gpu_layers", None)) as loaded,
        _words_of_options(),
        Embedder(loaded, pooling=pooling, **settings) as embedder,
        progress_bar(f"Embedding with {path.name}") as draw,
    ):

        def compute(part: Sequence[str]) -> EmbeddingResult:
            return embedder.embed_counted(
                part,
                normalize=normalize,
                truncate=truncate,
                dimensions=dimensions,
                parse_special=special,
            )

        results = _results(compute, prompts, draw if output else None)
        if output is None:
            for line in _json_lines(results):
                print(line, flush=True)
        else:
            _write(output, results, len(prompts))
    if output is not None:
        print(f"{output}: {len(prompts):,} vectors", file=sys.stderr)


def _results(
    compute: Callable[[Sequence[str]], EmbeddingResult],
    prompts: Sequence[str],
    draw: Callable[[float], None] | None,
) -> Iterator[EmbeddingResult]:
    """Yield the vectors of AT_ONCE texts after the other."""
    for begin in range(0, len(prompts), AT_ONCE):
        part = prompts[begin : begin + AT_ONCE]
        with _words_of_options(begin):
            result = compute(part)
        yield result
        if draw is not None:
            draw((begin + len(part)) / len(prompts))


@contextmanager
def _words_of_options(begin: int = 0) -> Iterator[None]:
    """Raise errors of an Embedder with options as remedies, and the number of a text at fault.

    Args:
        begin: The number of texts before those that the Embedder is given.
    """
    try:
        yield
    except ArgumentError as error:
        raise _in_words_of_options(error, begin) from None


def _in_words_of_options(error: ArgumentError, begin: int) -> ArgumentError:
    parameter = error.parameter or ""
    if parameter == "pooling" and error.remedy:
        return ArgumentError(f"{error.problem}; --pooling mean or last gives vectors all the same")
    if parameter in ("pooling", "dimensions"):
        return error
    if not parameter.startswith("texts["):
        return ArgumentError(error.problem)
    number = begin + int(parameter[6:-1]) + 1
    problem = error.problem.removeprefix(f"{parameter}: ")
    remedy = "; --truncate drops its end, a larger --ctx-size may take it whole"
    return ArgumentError(
        f"text {number}: {problem}{remedy if 'tokens, at most' in problem else ''}"
    )


def _json_lines(results: Iterable[EmbeddingResult]) -> Iterator[str]:
    index = 0
    for result in results:
        for vector, tokens in zip(result.values, result.token_counts, strict=True):
            yield json.dumps({"index": index, "tokens": tokens, "embedding": _numbers(vector)})
            index += 1


def _numbers(vector: Float32) -> list[float]:
    """Return float32 numbers such that they are printed with no more digits than they have."""
    return [float(text) for text in vector.astype(str)]


def _write(path: Path, results: Iterable[EmbeddingResult], count: int) -> None:
    """Write vectors to a file, which appears when it is complete."""
    import numpy as np

    from llcuda.files import atomic_write

    with atomic_write(path) as partial:
        if path.suffix == ".npy":
            values = np.concatenate([result.values for result in results])
            with partial.open("wb") as out:
                np.save(out, values)
        else:
            with partial.open("w", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in _json_lines(results))
