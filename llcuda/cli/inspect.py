"""What `llcuda inspect` says of a GGUF file, here or on the hub: one document, and its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llcuda.engine.autofit import fit
from llcuda.engine.config import EngineConfig
from llcuda.errors import ArgumentError, LlcudaError
from llcuda.gguf_parser import GGUFReader
from llcuda.hub import registry as hub
from llcuda.hub.gguf_header import headers
from llcuda.native.estimate import memory_needed
from llcuda.native.gguf.metadata import Texts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SHOWN = 3  # elements of an array
LONGEST = 60  # characters of a value in a table


def inspect(name: str, *, ctx_size: int | None = None, validate: bool = False) -> dict[str, Any]:
    """Return what a file holds and what it takes of this machine, as JSON has it.

    name: as `hub.resolve` knows them; a file on the hub that is not in the cache is not downloaded.
    ctx_size: tokens of the context that memory is counted for; None = as `load_model` chooses.
    validate: read all weights, and list what is wrong with them.

    Raises what `hub.resolve` and `GGUFReader` raise; that memory cannot be estimated is said in the
    document.
    """
    with _file(name) as (path, downloaded), GGUFReader(path) as reader:
        if validate and not downloaded:
            raise ArgumentError(f"to validate {name}, download it: llcuda pull {name}")
        return {
            "source": name,
            "path": str(path) if downloaded else None,
            "summary": asdict(reader.summary()),
            "metadata": {key: _plain(value) for key, value in reader.metadata.items()},
            "tensors": [
                {"name": info.name, "shape": info.shape, "type": info.ggml_type.name}
                | {"offset": info.offset, "nbytes": info.nbytes}
                for info in reader.tensors.values()
            ],
            "memory": _memory(path, ctx_size),
            "problems": reader.validate() if validate else None,
        }


@contextmanager
def _file(name: str) -> Iterator[tuple[Path, bool]]:
    """Yield a path, and whether all of the file is there."""
    found = hub.find(name)
    if isinstance(found, Path):
        yield found, True
        return
    with headers(found) as path:
        yield path, False


def _memory(path: Path, ctx_size: int | None) -> dict[str, Any]:
    """Return where `load_model` would put the model, what it takes there, and whether it fits."""
    config = EngineConfig() if ctx_size is None else EngineConfig.from_kwargs(ctx_size=ctx_size)
    try:
        fitted = fit(config, path, automatic_ctx_size=ctx_size is None)
        size = fitted.config.engine.ctx_size
        found = memory_needed(path, model=fitted.config.model, ctx_size=size)
    except LlcudaError as error:
        return {"error": str(error)}
    devices = [{**asdict(d), "needed": d.needed, "fits": d.needed <= d.free} for d in found]
    return {"ctx_size": size, "gpu_layers": fitted.gpu_layers, "devices": devices}


def _plain(value: Any) -> Any:
    """Return a value of the metadata as JSON has it; of arrays how many elements and the first."""
    if isinstance(value, (Texts, np.ndarray)):
        first = [_plain(item) for item in (value[:SHOWN] if len(value) else [])]
        return {"count": len(value), "first": first}
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# --- tables ---


def show(console: Console, document: dict[str, Any], *, tensors: bool = False) -> None:
    """Print the document: what it is, its metadata, where it goes in this machine's memory."""
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
        console.print("[red]wrong:[/]", _cell(problem, longest=1000))
    if document["problems"] == []:
        console.print("[green]all values are numbers, and nothing else is wrong[/]")


def _show_memory(console: Console, memory: dict[str, Any]) -> None:
    if "error" in memory:
        reason = "; ".join(memory["error"].splitlines())
        console.print("", _cell(f"memory cannot be estimated: {reason}", longest=1000))
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


def _cell(value: Any, longest: int = LONGEST) -> Text:
    """Return what a file says so that it cannot drive the terminal, and in one line."""
    from rich.text import Text

    if isinstance(value, dict):
        first = ", ".join(map(str, value["first"]))
        value = f"{value['count']:,}: {first}{', ...' if value['count'] > SHOWN else ''}"
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return Text(text if len(text) <= longest else f"{text[: longest - 3]}...")


def _size(nbytes: int) -> str:
    """Return a size to three digits."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"
