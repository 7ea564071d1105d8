"""The plot of the tables that `llcuda bench` measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llcuda.bench.report import FIGURES, TITLES, Document, Row
from llcuda.errors import ArgumentError, LlcudaError
from llcuda.files import atomic_write

PLOTTED = {  # table: x, the figures over it
    "parallel": (
        "rows",
        ("engine_tokens_per_second", "left_tokens_per_second", "copied_tokens_per_second"),
    ),
    "graphs": ("rows", ("on_tokens_per_second", "off_tokens_per_second")),
    "prefill": ("tokens", ("tokens_per_second",)),
    "depth": ("depth", ("tokens_per_second",)),
    "layers": ("gpu_layers", ("tokens_per_second",)),
    "sampling": ("chain", ("tokens_per_second",)),
    "kv": ("kv_type", ("tokens_per_second",)),
}


def check_plot(path: Path) -> None:
    """Raise unless a plot can be written to a path.

    Args:
        path: The picture to write, .png or .svg.

    Raises:
        ArgumentError: The name has another ending, or its folder does not exist.
        LlcudaError: matplotlib is missing.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise ArgumentError(f"--plot {path}: expected a name that ends in .png or .svg")
    if not path.parent.is_dir():
        raise ArgumentError(f"--plot {path}: there is no folder {path.parent}; make it first")
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise LlcudaError("--plot needs matplotlib: pip install 'llcuda[plot]'") from error
    return Figure


def draw_plot(document: Document, path: Path) -> None:
    """Draw the tables of a document into one picture."""
    tables = {
        name: _series(name, rows)
        for name, rows in document["tables"].items()
        if name in PLOTTED and any("error" not in row for row in rows)
    }
    columns = min(2, max(1, len(tables)))
    lines = math.ceil(len(tables) / columns) or 1
    figure = _figure_class()(figsize=(7 * columns, 4.5 * lines), layout="constrained")
    for place, (name, series) in enumerate(tables.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        x, _ = PLOTTED[name]
        named = any(isinstance(value, str) for _, xs, _ in series for value in xs)
        for i, (label, xs, ys) in enumerate(series):
            if named:
                height = 0.8 / len(series)
                axes.barh([n + i * height for n in range(len(xs))], ys, height, label=label)
                axes.set_yticks(range(len(xs)), xs)
            else:
                axes.plot(xs, ys, marker="o", label=label)
        if name == "parallel":
            axes.set_xscale("log", base=2)
            axes.set_xticks(series[0][1], series[0][1])
        if not named:
            axes.set_ylim(bottom=0)
        (axes.set_xlabel if named else axes.set_ylabel)("tokens per second")
        if not named:
            axes.set_xlabel(x.replace("_", " "))
        axes.set_title(TITLES[name], fontsize="medium")
        if len(series) > 1:
            axes.legend(fontsize="small")
    figure.suptitle(f"{document['model']['description']} on {document['device']['name']}")
    with atomic_write(path) as partial:
        figure.savefig(partial, format=path.suffix.lower()[1:])


def _series(name: str, rows: Sequence[Row]) -> list[tuple[str, list[Any], list[float]]]:
    """Return the lines of a table's plot: label, x and y."""
    x, figures = PLOTTED[name]
    series: dict[str, tuple[list[Any], list[float]]] = {}
    for figure in figures:
        for row in rows:
            if figure not in row:
                continue
            others = [f"{k} {v}" for k, v in row.items() if k not in (*FIGURES, x)]
            label = ", ".join([*others, *([FIGURES[figure][0]] if len(figures) > 1 else [])])
            xs, ys = series.setdefault(label, ([], []))
            xs.append(row[x])
            ys.append(row[figure])
    return [(label, xs, ys) for label, (xs, ys) in series.items()]
