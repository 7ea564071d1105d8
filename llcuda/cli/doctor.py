"""`llcuda doctor`; cli.py takes it in."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

app = typer.Typer()


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what was built, which backends and devices load, and how to mend what is missing."""
    from llcuda.cli.diagnose import diagnose

    report = diagnose()
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        _print_report(report)
    if not report.usable:
        raise typer.Exit(1)


def _print_report(report: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in {**report.versions, **report.built_with, **report.gpus}.items():
        facts.add_row(f"[bold]{escape(name)}[/]", escape(value))
    console.print(facts)
    for title, rows in (
        ("Backends", [(name, state) for name, state in report.backends.items()]),
        (
            "Devices",
            [
                (d["name"], f"{d['kind']}: {d['description']}, {d['total_memory'] / 2**30:.1f} GiB")
                for d in report.devices
            ],
        ),
    ):
        if rows:
            table = Table("Name", "State", title=title, title_justify="left", box=None)
            for row in rows:
                table.add_row(*(escape(cell) for cell in row))
            console.print(table)
    for problem in report.problems:
        colour = "red" if problem.fatal else "yellow"
        console.print(
            f"[{colour}]missing:[/] {escape(problem.what)}\n  mend: {escape(problem.mend)}"
        )
    if not report.problems:
        console.print("[green]all is well[/]")
