"""`llcuda quantize`, `imatrix` and `perplexity`: smaller model files, and their quality."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.console import complete_model, examples, stdout_console
from llcuda.cli.settings import READING, THREADS, takes_settings
from llcuda.cli.texts import read_file
from llcuda.errors import ArgumentError

if TYPE_CHECKING:
    from llcuda.evaluate import Divergence, Perplexity
    from llcuda.native.quantization.plan import QuantizePlan

app = typer.Typer()

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="GGUF file, short name, or repo/id.", autocompletion=complete_model
    ),
]
Chunk = Annotated[int, typer.Option(metavar="TOKENS", help="Tokens of a chunk.")]
Chunks = Annotated[
    int | None, typer.Option(min=1, metavar="CHUNKS", help="Chunks at most; default: all.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(epilog=examples("llcuda quantize model.gguf small.gguf Q4_K_M"))
@takes_settings(THREADS)
def quantize(
    settings: dict[str, Any],
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File to write.")],
    file_type: Annotated[str, typer.Argument(metavar="TYPE", help="E.g. Q4_K_M, Q8_0, IQ2_XXS.")],
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix of this model (llcuda imatrix)."),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TYPE", help="Type of single tensors; NAME is a regular expression."
        ),
    ] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Allow weights that are quantized already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show types and sizes, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model with another type of weights. Ctrl-C stops after the current tensor."""
    from llcuda.hub.resolver import resolve
    from llcuda.native.quantization.quantize import quantize as quantize_model
    from llcuda.native.quantization.quantize import quantize_plan
    from llcuda.progress import progress_bar

    path = resolve(source, progress=not as_json)
    types = dict(_name_and_type(option) for option in tensor_type or [])
    if dry_run:
        plan = quantize_plan(path, file_type, imatrix=imatrix, tensor_types=types)
        print(json.dumps(_plan_document(plan))) if as_json else _show_plan(plan)
        return
    started = time.perf_counter()
    with progress_bar(f"Quantizing {path.name}") as draw:
        quantize_model(
            path,
            target,
            file_type,
            imatrix=imatrix,
            tensor_types=types,
            **settings,
            requantize=requantize,
            progress=draw,
        )
    seconds, nbytes = time.perf_counter() - started, target.stat().st_size
    if as_json:
        facts = {"target": str(target), "file_type": file_type.upper()}
        print(json.dumps({**facts, "nbytes": nbytes, "seconds": seconds}))
    else:
        print(f"{target}: {nbytes / 1e6:,.1f} MB, in {seconds:.1f} s")


@app.command(epilog=examples("llcuda imatrix model.gguf text.txt model.imatrix"))
@takes_settings(READING)
def imatrix(
    settings: dict[str, Any],
    model: Source,
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="Text file; - is stdin.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File to write.")],
    chunk: Chunk = 512,
    chunks: Chunks = None,
    output_tensor: Annotated[
        bool, typer.Option("--output-tensor", help="Also for the output matrix.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure on a text which weights matter, for `llcuda quantize --imatrix`."""
    from llcuda.evaluate import importance_matrix
    from llcuda.files import check_target
    from llcuda.hub.resolver import resolve
    from llcuda.progress import progress_bar

    check_target(target, text)
    path = resolve(model, progress=not as_json)
    with progress_bar(f"Reading {text.name}") as draw:
        matrix = importance_matrix(
            path,
            read_file(text),
            chunk=chunk,
            chunks=chunks,
            output=output_tensor,
            dataset=text.name,
            progress=draw,
            **settings,
        )
    matrix.save(target)
    facts = {"target": str(target), "tensors": len(matrix.entries), "chunks": matrix.chunks}
    if as_json:
        print(json.dumps({**facts, "chunk": chunk}))
    else:
        print(f"{target}: {facts['tensors']} tensors, {matrix.chunks} chunks of {chunk} tokens")


@app.command(epilog=examples("llcuda perplexity model.gguf --file text.txt"))
@takes_settings(READING)
def perplexity(
    settings: dict[str, Any],
    model: Source,
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="Text; - is stdin.")],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A model to compare with, e.g. this one before quantizing."
        ),
    ] = None,
    chunk: Chunk = 512,
    chunks: Chunks = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model predicts a text, and how far it is from a reference."""
    from llcuda.evaluate import Divergence, divergence
    from llcuda.evaluate import perplexity as measure_perplexity
    from llcuda.hub.resolver import resolve
    from llcuda.progress import progress_bar

    text = read_file(file)
    settings |= {"chunk": chunk, "chunks": chunks}
    path = resolve(model, progress=not as_json)
    reference_path = resolve(reference, progress=not as_json) if reference else None
    result: Perplexity | Divergence
    with progress_bar(f"Reading {file.name}") as draw:
        if reference_path is None:
            result = measure_perplexity(path, text, progress=draw, **settings)
        else:
            result = divergence(path, reference_path, text, progress=draw, **settings)
    if as_json:
        print(json.dumps(asdict(result)))
    elif isinstance(result, Divergence):
        _show_divergence(result)
    else:
        print(f"perplexity {_with_error(result.value, result.error)}, {_scope(result)}")


def _name_and_type(option: str) -> tuple[str, str]:
    name, _, kind = option.rpartition("=")
    if not name:
        raise ArgumentError(f"--tensor-type {option!r}: expected NAME=TYPE, e.g. ffn_down=Q6_K")
    return name, kind


def _plan_document(plan: QuantizePlan) -> dict[str, object]:
    tensors = [
        {**asdict(tensor), "old_type": tensor.old_type.name, "new_type": tensor.new_type.name}
        for tensor in plan.tensors
    ]
    facts = {"file_type": plan.file_type, "old_nbytes": plan.old_nbytes, "nbytes": plan.nbytes}
    return {**facts, "needs_matrix": plan.needs_matrix, "tensors": tensors}


def _show_plan(plan: QuantizePlan) -> None:
    from rich.table import Table

    table = Table("Tensor", "Shape", "Type", "MB", "New type", "MB", box=None, pad_edge=False)
    for tensor in plan.tensors:
        table.add_row(
            tensor.name,
            " x ".join(map(str, tensor.shape)),
            tensor.old_type.name,
            f"{tensor.old_nbytes / 1e6:,.2f}",
            tensor.new_type.name,
            f"{tensor.nbytes / 1e6:,.2f}",
        )
    stdout_console().print(table)
    print(
        f"in all {plan.old_nbytes / 1e6:,.1f} MB, as {plan.file_type} {plan.nbytes / 1e6:,.1f} MB"
    )
    if plan.needs_matrix:
        print(f"{len(plan.needs_matrix)} tensors need an importance matrix (--imatrix)")
    if plan.requantizes:
        print(f"{len(plan.requantizes)} tensors are quantized already (--requantize)")


def _show_divergence(result: Divergence) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("perplexity", _with_error(result.perplexity.value, result.perplexity.error)),
        ("of the reference", _with_error(result.reference.value, result.reference.error)),
        ("log of their ratio", _with_error(result.log_ratio, result.log_ratio_error)),
        ("divergence (nats)", _with_error(result.mean, result.error)),
        *((f"  {p} % are below", f"{value:.5f}") for p, value in result.percentiles.items()),
        ("  maximum", f"{result.maximum:.5f}"),
        ("same token on top", _with_error(100 * result.same_best, 100 * result.same_best_error, 2)),
        ("difference of p, RMS", f"{result.delta_p:.4f}"),
    ):
        table.add_row(name, f"{value} %" if name.startswith("same") else value)
    stdout_console(pipe_width=80).print(table)
    print(_scope(result.perplexity))


def _with_error(value: float, error: float, digits: int = 5) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _scope(result: Perplexity) -> str:
    return f"{result.tokens:,} tokens of {result.chunks} chunks of {result.chunk}"
