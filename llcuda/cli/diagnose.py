"""`llcuda doctor`: the build, the backends and GPUs, the problems and their remedies."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda._version import UNKNOWN, __version__
from llcuda.cli.console import examples
from llcuda.demo import demo_model
from llcuda.errors import LlcudaError

if TYPE_CHECKING:
    from llcuda.native.cuda_build import CudaBuild, Remark

app = typer.Typer()


@app.command("version", epilog=examples("llcuda version"))
def print_version() -> None:
    """Print the version."""
    print(__version__)


@app.command(epilog=examples("llcuda doctor"))
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what was built, which backends and devices load, and how to mend what is missing."""
    report = diagnose()
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        _print_report(report)
    if not report.usable:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Problem:
    """Something that is missing.

    Attributes:
        what: The problem in one sentence.
        mend: The command that solves it, or what to do.
        fatal: Whether models cannot be loaded.
    """

    what: str
    mend: str
    fatal: bool = False


@dataclass
class Report:
    """The result of `diagnose`.

    Attributes:
        versions: Versions by package.
        built_with: The folder of the libraries, their CUDA code, and the changes to llama.cpp.
        gpus: Descriptions by "GPU 0" and so on; at "first run" how long the first run waits.
        cuda_libraries: The files of CUDA's run-time libraries that the backend uses, by name.
        backends: "loaded", or the reason why not, by file.
        devices: The devices that compute.
        driver: Whether CUDA's driver library loads.
        problems: What is missing.
    """

    versions: dict[str, str] = field(default_factory=dict)
    built_with: dict[str, str] = field(default_factory=dict)
    gpus: dict[str, str] = field(default_factory=dict)
    cuda_libraries: dict[str, str] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    driver: bool = False
    problems: list[Problem] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether models can be loaded at all."""
        return not any(problem.fatal for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {**asdict(self), "usable": self.usable}


def diagnose() -> Report:
    """Load the library and its backends, and report problems instead of raising them."""
    from llcuda.native.cuda_build import REBUILD
    from llcuda.native.cuda_libraries import driver

    report = Report(versions=_versions(), driver=driver() is not None)
    if __version__ == UNKNOWN:
        what = "the package's metadata is missing: its modules were copied, not installed"
        report.problems.append(Problem(what, "pip install llcuda"))
    if not demo_model().is_file():
        report.problems.append(Problem(f"the demo model {demo_model()} is missing", REBUILD))
    try:
        from llcuda.native import library

        library_versions = library.versions()
        report.backends = dict(library.backends())
        report.devices = [asdict(item) for item in library.devices()]
    except (LlcudaError, ImportError) as error:
        report.problems.append(Problem(str(error), REBUILD, True))
        return report
    folder, build = library_versions.pop("folder"), library.cuda_build()
    report.versions.update(library_versions)
    report.built_with = {
        "libraries": folder,
        "CUDA": str(build or "off"),
        "patches": ", ".join(library.patches()) or "none",
    }
    report.cuda_libraries = dict(library.runtime_libraries().paths)
    report.problems += [
        Problem(remark.what, remark.mend)
        for remark in _check_gpus(report, build, library.why_no_gpu())
    ]
    report.problems += _check_other_backends(report)
    return report


def _versions() -> dict[str, str]:
    versions = {
        "llcuda": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in ("numpy", "cffi"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions


def _check_gpus(report: Report, build: CudaBuild | None, no_gpu: Remark | None) -> list[Remark]:
    """Describe the GPUs in the report, and return why one that is expected is not used.

    Args:
        report: The report to complete.
        build: The CUDA code in the library; None without any.
        no_gpu: Why the CUDA backend has no GPU.
    """
    from llcuda import device
    from llcuda.native.cuda_build import WITH_CUDA, Remark, with_wheel

    survey = device.survey()
    problems = []
    for number, (gpu, problem) in enumerate(zip(survey.gpus, survey.problems(build), strict=True)):
        runs = f"driver {gpu['driver_version']}, which runs CUDA {survey.version}"
        has = f"compute capability {gpu['compute_capability']}"
        report.gpus[f"GPU {number}"] = f"{gpu['name']}, {has}, {runs}"
        first_run = device.first_run(gpu, build)
        if problem is not None:
            problems.append(problem)
        elif first_run is not None:
            report.gpus["first run"] = str(first_run)
    if build is None and no_gpu is not None:
        return [no_gpu]
    used = any(item["kind"] == "gpu" for item in report.devices)
    if problems or used:
        return list(dict.fromkeys(problems))
    if build is None:
        what = "an NVIDIA driver is here, but llcuda was built without CUDA"
        return (
            [Remark(what, f"{with_wheel(survey.driver)}, or {WITH_CUDA}")] if report.driver else []
        )
    if report.driver and not survey.gpus:
        return [survey.reason]
    return [no_gpu] if no_gpu is not None else []


def _check_other_backends(report: Report) -> list[Problem]:
    """Return what is missing for the backends that LLCUDA_BACKENDS has built."""
    problems = []
    for backend, file, remedy in (
        ("Vulkan", "libggml-vulkan.so", "apt install libvulkan1 mesa-vulkan-drivers"),
        ("ROCm", "libggml-hip.so", "install AMD's driver and ROCm's libraries"),
    ):
        state = report.backends.get(file, "loaded")
        if state != "loaded":
            problems.append(Problem(f"the {backend} backend cannot be loaded: {state}", remedy))
        elif file in report.backends and backend not in {d["backend"] for d in report.devices}:
            problems.append(Problem(f"the {backend} backend sees no GPU", remedy))
    return problems


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    rows = {**report.versions, **report.built_with, **report.cuda_libraries, **report.gpus}
    for name, value in rows.items():
        facts.add_row(f"[bold]{escape(name)}[/]", escape(value))
    console.print(facts)
    for title, entries in (
        ("Backends", [(name, state) for name, state in report.backends.items()]),
        (
            "Devices",
            [
                (d["name"], f"{d['kind']}: {d['description']}, {d['total_memory'] / 2**30:.1f} GiB")
                for d in report.devices
            ],
        ),
    ):
        if entries:
            table = Table("Name", "State", title=title, title_justify="left", box=None)
            for row in entries:
                table.add_row(*(escape(cell) for cell in row))
            console.print(table)
    for problem in report.problems:
        colour = "red" if problem.fatal else "yellow"
        console.print(
            f"[{colour}]missing:[/] {escape(problem.what)}\n  mend: {escape(problem.mend)}"
        )
    if not report.problems:
        console.print("[green]all is well[/]")
