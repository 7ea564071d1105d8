"""`llcuda report`: one block of text for a bug report, with the results of benchmarks and tests."""

from __future__ import annotations

import contextlib
import io
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from xml.etree import ElementTree

import typer

from llcuda.cli.console import examples
from llcuda.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

app = typer.Typer()
# Packages that bring CUDA's libraries: torch's may be found first.
CUDA_PACKAGES = (
    "torch",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cublas-cu12",
    "nvidia-cuda-runtime",
    "nvidia-cublas",
)
VARIABLES = ("CUDA_", "GGML_", "LLCUDA_")  # beginnings of the names that change what llcuda does
MAX_FAILURES = 20  # tests that are named
MAX_MESSAGE = 160  # characters of a test's message
FENCE = "```"  # keeps the columns where markdown is read


@app.command(epilog=examples("llcuda report"))
def report(
    bench: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Output of llcuda bench; may be given several times."),
    ] = None,
    tests: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Result of pytest --junitxml=FILE, e.g. of tests/gpu."),
    ] = None,
) -> None:
    """Print versions, GPUs, driver, patches and results as one block to paste into a report."""
    from rich.console import Console

    from llcuda.cli.console import PIPE_WIDTH

    text = io.StringIO()
    console = Console(file=text, width=PIPE_WIDTH, color_system=None, highlight=False)
    parts: list[Callable[[], None]] = [lambda: _show_machine(console)]
    parts += [lambda path=path: _show_bench(console, path) for path in bench or ()]  # type: ignore[misc]
    if tests is not None:
        parts.append(lambda: console.print("\n".join(summarize_tests(tests)), markup=False))
    failed = False
    for number, show in enumerate(parts):
        if number:
            console.print()
        try:
            show()
        except ArgumentError as error:  # the rest is worth pasting
            failed = True
            console.print(f"error: {error}", markup=False, soft_wrap=True)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    print("\n".join([f"{FENCE}text", *lines, FENCE]))
    if failed:
        raise typer.Exit(2)


def _show_machine(console: Console) -> None:
    """Print the findings of `llcuda doctor` without the paths of this machine."""
    from rich.table import Table
    from rich.text import Text

    from llcuda.cli.diagnose import diagnose
    from llcuda.device import check_gpu_compatibility

    found = diagnose()
    facts = {**found.versions, **_packages(), **found.built_with, **found.gpus}
    facts.pop("libraries", None)
    facts["service"] = check_gpu_compatibility()["platform"]
    facts["devices"] = ", ".join(f"{d['name']} ({d['description']})" for d in found.devices)
    facts["variables"] = " ".join(_variables())
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, Text(value, overflow="fold"))
    for problem in found.problems:
        text = _without_folders(f"{problem.what}: {problem.mend}")
        grid.add_row("missing", Text(text, overflow="fold"))
    console.print(grid)


def _without_folders(text: str) -> str:
    """Return a text whose paths are the names of their files."""
    return re.sub(r"(?<![\w~.])(?:/[^\s/,;:()']+)+/", ".../", text)


def _packages() -> dict[str, str]:
    """Return the versions of the packages with CUDA's libraries that are installed."""
    versions = {}
    for package in CUDA_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _variables() -> Iterator[str]:
    """Yield the environment variables that change what llcuda does; paths stay private."""
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            yield f"{name}={'(a path)' if os.sep in value else value}"


def _show_bench(console: Console, path: Path) -> None:
    from llcuda.bench.report import read_document, show_document

    show_document(console, read_document(str(path), "--bench"))


def summarize_tests(path: Path) -> list[str]:
    """Return the result of a test run in lines: the counts, then the tests that failed.

    Args:
        path: The file that `pytest --junitxml` wrote.

    Raises:
        ArgumentError: The file cannot be read, or it is not such a file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        suites = list(root.iter("testsuite"))
        if not suites:
            raise ValueError
        tests, failures, errors, skipped = (
            sum(int(suite.get(name, 0)) for suite in suites)
            for name in ("tests", "failures", "errors", "skipped")
        )
        seconds = sum(float(suite.get("time", 0)) for suite in suites)
    except OSError as error:
        raise ArgumentError(f"--tests {path}: cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError):
        rule = "is not the result of pytest --junitxml"
        raise ArgumentError(f"--tests {path}: {rule}; run pytest with --junitxml={path}") from None
    passed = tests - failures - errors - skipped
    lines = [
        f"Tests: {passed} passed, {failures} failed, {errors} errors, {skipped} skipped"
        f" in {seconds:.0f} s"
    ]
    bad = [
        f"  {case.get('classname')}::{case.get('name')}: {_first_line(result.get('message', ''))}"
        for case in root.iter("testcase")
        for result in case
        if result.tag in ("failure", "error")
    ]
    more = [f"  and {len(bad) - MAX_FAILURES} more"] if len(bad) > MAX_FAILURES else []
    return [*lines, *bad[:MAX_FAILURES], *more]


def _first_line(text: str) -> str:
    """Return the first line of a message, shortened."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}..."
