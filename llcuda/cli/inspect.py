"""`llcuda inspect`: a GGUF file, here or on the hub, as one document or as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.console import complete_model, examples, stdout_console
from llcuda.errors import ArgumentError, LlcudaError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

app = typer.Typer()

SHOWN_ELEMENTS = 3  # of an array
MAX_CELL = 60  # characters of a value in a table


@app.command(epilog=examples("llcuda inspect model.gguf --ctx-size 8192"))
def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="GGUF file, short name, or repo/id:file.gguf.",
            autocompletion=complete_model,
        ),
    ],
    ctx_size: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Context to count memory for.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors.")] = False,
    validate: Annotated[bool, typer.Option("--validate", help="Read all weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a GGUF file holds and what it needs here; one on the hub is not downloaded."""
    document = describe(file, ctx_size=ctx_size, validate=validate)
    if as_json:
        print(json.dumps(document))
    else:
        _show(stdout_console(), document, tensors=tensors)
    if document["problems"]:
        raise typer.Exit(1)


def describe(name: str, *, ctx_size: int | None = None, validate: bool = False) -> dict[str, Any]:
    """Return a file's contents and the memory it needs on this machine, ready for JSON.

    Where memory cannot be estimated, the document holds the error.

    Args:
        name: The file, as `llcuda.hub.resolve` takes it. A file on the hub that is not in the
            cache is not downloaded.
        ctx_size: Tokens of context to count memory for; None is what `load_model` chooses.
        validate: Whether to read all weights and list the problems.

    Raises:
        ModelNotFoundError: The file does not exist.
        GGUFError: The file is not a GGUF file.
        ArgumentError: `validate` is set for a file that is not downloaded.
    """
    from llcuda.gguf_parser import GGUFReader

    with open_model(name) as (path, downloaded), GGUFReader(path) as reader:
        if validate and not downloaded:
            raise ArgumentError(
                f"--validate: {name} is not downloaded; download it by `llcuda pull {name}`"
            )
        return {
            "source": name,
            "path": str(path) if downloaded else None,
            "summary": asdict(reader.summary()),
            "metadata": {key: _json_value(value) for key, value in reader.metadata.items()},
            "tensors": [
                {"name": info.name, "shape": info.shape, "type": info.ggml_type.name}
                | {"offset": info.offset, "nbytes": info.nbytes}
                for info in reader.tensors.values()
            ],
            "memory": _memory(path, ctx_size),
            "problems": reader.validate() if validate else None,
        }


@contextmanager
def open_model(name: str) -> Iterator[tuple[Path, bool]]:
    """Yield the path of a model, and whether the whole file is there.

    Args:
        name: The file, as `llcuda.hub.resolve` takes it. Of a file on the hub that is not in the
            cache only the header is there.
    """
    from llcuda.hub.resolver import find
    from llcuda.native.gguf.remote import header_files

    location = find(name)
    if isinstance(location, Path):
        yield location, True
        return
    with header_files(location) as path:
        yield path, False


def _memory(path: Path, ctx_size: int | None) -> dict[str, Any]:
    """Return where `load_model` would put the model, what it takes there, and whether it fits."""
    from llcuda.engine.autofit import fit
    from llcuda.engine.config import EngineConfig
    from llcuda.native.estimate import memory_needed

    config = EngineConfig.from_kwargs(ctx_size=ctx_size)
    try:
        fitted = fit(config, path)
        size = fitted.config.engine.ctx_size
        needs = memory_needed(path, model=fitted.config.model, ctx_size=size)
    except LlcudaError as error:
        return {"error": str(error)}
    devices = [{**asdict(d), "needed": d.needed, "fits": d.needed <= d.free} for d in needs]
    return {"ctx_size": size, "gpu_layers": fitted.gpu_layers, "devices": devices}


def _json_value(value: Any) -> Any:
    """Return a metadata value for JSON; an array as its length and its first elements."""
    import numpy as np

    from llcuda.native.gguf.metadata import Texts

    if isinstance(value, (Texts, np.ndarray)):
        first = [_json_value(item) for item in (value[:SHOWN_ELEMENTS] if len(value) else [])]
        return {"count": len(value), "first": first}
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# --- tables ---


def _show(console: Console, document: dict[str, Any], *, tensors: bool) -> None:
    """Print the document as tables."""
    from rich.table import Table

    summary = document["summary"]
    types = ", ".join(f"{count} {name}" for name, count in summary["types"].items())
    facts = {
        "File": document["path"] or f"{document['source']} (not downloaded)",
        "Model": f"{summary['name'] or '(no name)'}, {summary['architecture'] or 'unknown'}",
        "Weights": f"{summary['parameters']:,} values, {_size(summary['nbytes'])}",
        "Tensors": types or "none",
        "Format": f"version {summary['version']}, {summary['files']} file(s)",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in [*facts.items(), ("", ""), *document["metadata"].items()]:
        grid.add_row(_cell(name), _cell(value))
    console.print(grid)
    if tensors:
        table = _table("Name", "Shape", "Type", "Size")
        for tensor in document["tensors"]:
            shape = " x ".join(map(str, tensor["shape"]))
            table.add_row(_cell(tensor["name"]), shape, tensor["type"], _size(tensor["nbytes"]))
        console.print("", table)
    _show_memory(console, document["memory"])
    for problem in document["problems"] or ():
        console.print("[red]wrong:[/]", _cell(problem, max_length=1000))
    if document["problems"] == []:
        console.print("[green]all values are numbers, and nothing else is wrong[/]")


def _show_memory(console: Console, memory: dict[str, Any]) -> None:
    if "error" in memory:
        reason = "; ".join(memory["error"].splitlines())
        console.print("", _cell(f"memory cannot be estimated: {reason}", max_length=1000))
        return
    layers = memory["gpu_layers"]
    place = f"{layers} layers on GPUs" if layers else "on the CPU"
    console.print(f"\nload_model puts it {place}, with a context of {memory['ctx_size']:,} tokens:")
    table = _table("Memory", "Weights", "KV", "Compute", "Needed", "Free", "")
    for device in memory["devices"]:
        sizes = [_size(device[key]) for key in ("model", "kv", "compute", "needed", "free")]
        fits = "[green]fits[/]" if device["fits"] else "[red]too large[/]"
        table.add_row(_cell(f"{device['name']} ({device['kind']})"), *sizes, fits)
    console.print(table)


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, pad_edge=False)


def _cell(value: Any, max_length: int = MAX_CELL) -> Text:
    """Return a value of the file in one line, without characters that control the terminal."""
    from rich.text import Text

    if isinstance(value, dict):
        first = ", ".join(map(str, value["first"]))
        value = f"{value['count']:,}: {first}{', ...' if value['count'] > SHOWN_ELEMENTS else ''}"
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return Text(text if len(text) <= max_length else f"{text[: max_length - 3]}...")


def _size(nbytes: int) -> str:
    """Return a size to three digits."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"
