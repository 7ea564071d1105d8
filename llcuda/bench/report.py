"""The output of `llcuda bench`: its tables, and the comparison with other figures.

Other figures are those of an earlier run, or those that documents report (REFERENCES).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llcuda.bench.run import FORMAT
from llcuda.errors import ArgumentError
from llcuda.files import data_file
from llcuda.params import wrong_value

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]
Document = Mapping[str, Any]
Figures = dict[tuple[str, str, str], float]

REFERENCES = {"t4": "t4.toml"}  # files of figures that documents report, by name
DESCRIBED = (("device", "name"), ("model", "description"), ("build", "llama.cpp"))

TITLES = {
    "startup": "Start-up, a process of its own",
    "prefill": "Prompts",
    "decode": "One text, no sampling",
    "parallel": "Texts at once: the engine samples, the bare loop does not",
    "graphs": "CUDA graphs on, on with checks of the first replays, and off; no sampling",
    "sampling": "Sampling chains, in the engine",
    "requests": "Requests at once: 80 tokens each, sampling and prompt included",
    "depth": "Length of the text, no sampling",
    "kv": "Types of the KV cache, no sampling",
    "layers": "Layers on the GPU, no sampling",
    "memory": "GPU memory in use",
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


# The heading and the format of each figure. All other keys say what was measured.
FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", _seconds),
    "load_seconds": ("load", _seconds),
    "tokens_per_second": ("tokens/s", _number),
    "milliseconds": ("ms a token", _number),
    "p50_ms": ("median ms", _number),
    "p95_ms": ("95th percentile ms", _number),
    "bandwidth_share": ("of the memory's bandwidth", lambda value: f"{value:.1%}"),
    "copied_tokens_per_second": ("bare, logits copied", _number),
    "left_tokens_per_second": ("bare, logits left", _number),
    "engine_tokens_per_second": ("engine", _number),
    "on_tokens_per_second": ("on", _number),
    "checked_tokens_per_second": ("checked", _number),
    "off_tokens_per_second": ("off", _number),
    "over_checked": ("over checked", lambda value: f"{value:.3f}"),
    "over_copied": ("over copied", lambda value: f"{value:.3f}"),
    "over_left": ("over left", lambda value: f"{value:.3f}"),
    "over_off": ("over off", lambda value: f"{value:.3f}"),
    "over_first": ("over the first", lambda value: f"{value:.3f}"),
    "whole_tokens_per_second": ("with prompts", _number),
    "prefill_tokens_per_second": ("filling it", _number),
    "kv_bytes": ("cache", _bytes),
    "gpu_bytes": ("in use", _bytes),
    "error": ("", str),
}


def show_part(console: Console, name: str, content: Any) -> None:
    """Print a part of the document, as Bench passes it to `on_part`."""
    if name == "header":
        _show_header(console, content)
    elif name == "model":
        _show_model(console, content)
    else:
        _show_table(console, name, content)


def show_document(console: Console, document: Document) -> None:
    """Print all parts of the document of a run, as the run printed them.

    Raises:
        ArgumentError: The document is not complete.
    """
    try:
        _show_header(console, document)
        if "model" in document:  # missing after an early Ctrl-C
            _show_model(console, document["model"])
        for name, rows in document["tables"].items():
            show_part(console, name, rows)
        if "compared" in document:
            show_comparison(console, document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"the document of llcuda bench is incomplete: {error}") from None


def _show_header(console: Console, document: Document) -> None:
    """Print the device, its clocks, the build and the model."""
    device, build = document["device"], document["build"]
    lines = [device["name"]]
    if device["gpus"]:
        lines[0] += f", compute capability {device['compute_capability']}"
        lines[0] += f", driver {device['driver_version']}"
        clocks = [
            f"{name} {device[key]} of {device[f'{key}_limit']} MHz"
            for name, key in (("clock", "clock"), ("memory", "memory_clock"))
            if device.get(key) is not None
        ]
        lines.append(", ".join(clocks))
        if device["gpus"] > 1:
            lines[0] += f" ({device['gpus']} GPUs)"
    lines.append(f"llcuda {document['llcuda']}, llama.cpp {build['llama.cpp']}")
    if build["cuda"]:
        lines[-1] += f", {build['cuda']}"
    if build["code"] == "PTX":
        lines.append("runs as PTX that the driver compiled: built for this GPU it would be faster")
    for line in filter(None, lines):
        console.print(line, markup=False)


def _show_model(console: Console, model: Row) -> None:
    """Print the model's description and the place of its layers."""
    name = Path(model["file"]).name
    where = f"{model['threads']} thread{'s'[: model['threads'] - 1]}"
    if model["gpu_layers"]:
        where = f"{model['gpu_layers']} of {model['layers'] + 1} layers on the GPU, {where}"
    console.print(
        f"\n{name}: {model['description']}, {_bytes(model['bytes'])}, {where}, "
        f"loaded in {_seconds(model['load_seconds'])}",
        markup=False,
    )


def _show_table(console: Console, name: str, rows: Sequence[Row]) -> None:
    """Print a table with the columns that any row has."""
    from rich.table import Table
    from rich.text import Text

    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys.sort(key=lambda key: list(FIGURES).index(key) if key in FIGURES else -1)
    table = Table(box=None, pad_edge=False)
    for key in keys:
        heading = FIGURES[key][0] if key in FIGURES else key.replace("_", " ")
        right = key in FIGURES and key != "error"
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(key, row.get(key))) for key in keys))
    console.print(f"\n[bold]{TITLES[name]}[/]")
    console.print(table)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in FIGURES:
        return FIGURES[key][1](value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_document(compare: str, parameter: str = "compare") -> Document:
    """Return the figures that a run is compared with.

    Args:
        compare: A file with the output of an earlier run, whose last line is its document; or the
            name of a reference in REFERENCES, unless a file has that name.
        parameter: What errors call it.

    Raises:
        ArgumentError: The file cannot be read, or it is not such an output.
    """
    path = Path(compare)
    remedy = f"give the output of an earlier llcuda bench, or {', '.join(REFERENCES)}"
    try:
        if compare in REFERENCES and not path.exists():
            document: Document = tomllib.loads(data_file(REFERENCES[compare]).read_text("utf-8"))
        else:
            document = json.loads(path.read_text("utf-8").strip().rpartition("\n")[2])
        if document["format"] != FORMAT or not isinstance(document["tables"], dict):
            raise ValueError
        _figures(document)
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
        raise wrong_value(parameter, compare, rule, remedy) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        rule = "it is not a document of llcuda bench"
        raise wrong_value(parameter, compare, rule, remedy) from None
    return document


def compare_documents(now: Document, before: Document) -> list[dict[str, Any]]:
    """Return the figures that both runs measured, with the ratio of now to before."""
    earlier = _figures(before)
    return [
        {
            "table": key[0], "of": key[1], "figure": key[2],
            "before": earlier[key], "now": value, "ratio": value / earlier[key],
        }
        for key, value in _figures(now).items()
        if earlier.get(key)
    ]  # fmt: skip


def _figures(document: Document) -> Figures:
    """Return the figures of all tables; of the ratios only the speed-up over something off."""
    figures: Figures = {}
    for table, rows in document["tables"].items():
        for row in rows:
            measured = ", ".join(f"{k} {v}" for k, v in row.items() if k not in FIGURES)
            for key, value in row.items():
                if (
                    key in FIGURES
                    and (key == "over_off" or not key.startswith("over_"))
                    and isinstance(value, int | float)
                ):
                    figures[table, measured, key] = value
    return figures


def describe_reference(document: Document) -> dict[str, Any]:
    """Return the part of a document that says which figures a run was compared with."""
    parts = {part: {key: document[part][key]} for part, key in DESCRIBED if part in document}
    named = {key: document[key] for key in ("name", "note") if key in document}
    return {"name": "before", **named, **parts}


def show_comparison(console: Console, now: Document) -> None:
    """Print the ratios of a document's figures to others, and in what else the runs differ.

    Args:
        console: The console.
        now: A document with "compared" and "compared_with".
    """
    from rich.table import Table

    reference, rows = now["compared_with"], now["compared"]
    name = reference["name"]
    for part, key in DESCRIBED:
        if part in reference and reference[part][key] != (new := now.get(part, {}).get(key)):
            console.print(f"another {part}: {name} {reference[part][key]}, now {new}", markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "of", "figure", name, "now", "ratio"):
        right = heading in (name, "now", "ratio")
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        heading, write = FIGURES[row["figure"]]
        values = write(row["before"]), write(row["now"]), f"{row['ratio']:.3f}"
        table.add_row(row["table"], row["of"], heading, *values)
    console.print(f"\n[bold]Now over {name}[/]")
    console.print(table if rows else "nothing was measured in both runs")
    if "note" in reference:
        console.print(reference["note"], markup=False)
