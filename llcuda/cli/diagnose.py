"""What was built, what loads, what is missing, and the command that mends it.

`diagnose()` collects plain data; printing it is the command line's business.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llcuda import device
from llcuda.demo import demo_model
from llcuda.errors import LlcudaError
from llcuda.native.cuda_build import REBUILD, WITH_CUDA, CudaBuild, Remark


@dataclass(frozen=True)
class Problem:
    """Something that is missing. what: one sentence; mend: the command, or what to do."""

    what: str
    mend: str
    fatal: bool = False


@dataclass
class Report:
    """What `llcuda doctor` found. backends: file -> "loaded" or why not.

    built_with: what CUDA code there is. gpus: "GPU 0" -> what the driver says of it; "first run" ->
    what it has to wait for. driver: whether CUDA's library is here.
    """

    versions: dict[str, str] = field(default_factory=dict)
    built_with: dict[str, str] = field(default_factory=dict)
    gpus: dict[str, str] = field(default_factory=dict)
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
    """Load the library and its backends, and look around. Never raises for what is missing."""
    report = Report(versions=_versions(), driver=_driver_loads())
    if not demo_model().is_file():
        report.problems.append(Problem(f"the demo model {demo_model()} is missing", REBUILD))
    try:
        from llcuda.native import library

        facts = library.versions()
        report.backends = dict(library.backends())
        report.devices = [asdict(item) for item in library.devices()]
    except (LlcudaError, ImportError) as error:
        report.problems.append(Problem(str(error), REBUILD, True))
        return report
    folder, build = facts.pop("folder"), library.cuda_build()
    report.versions.update(facts)
    report.built_with = {"libraries": folder, "CUDA": str(build or "off")}
    report.problems += [
        Problem(remark.what, remark.mend)
        for remark in _look_at_gpus(report, build, library.why_no_gpu())
    ]
    return report


def _versions() -> dict[str, str]:
    found = {"llcuda": version("llcuda"), "python": platform.python_version()}
    found["platform"] = platform.platform()
    for package in ("numpy", "cffi"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _driver_loads() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _look_at_gpus(report: Report, build: CudaBuild | None, idle: Remark | None) -> list[Remark]:
    """Describe the GPUs; return why one that is here, or was built for, is not used.

    idle: why the CUDA backend has none.
    """
    found = device.survey()
    problems = []
    for number, gpu in enumerate(found.gpus):
        runs = f"driver {gpu['driver_version']}, which runs CUDA {found.version}"
        has = f"compute capability {gpu['compute_capability']}"
        report.gpus[f"GPU {number}"] = f"{gpu['name']}, {has}, {runs}"
        wrong = device.problem(gpu, found.version, build)
        wait = device.first_run(gpu, build)
        if wrong is not None:
            problems.append(wrong)
        elif wait is not None:
            report.gpus["first run"] = str(wait)
    used = any(item["kind"] == "gpu" for item in report.devices)
    if problems or used:
        return problems
    if build is None:
        what = "an NVIDIA driver is here, but llcuda was built without CUDA"
        return [Remark(what, WITH_CUDA)] if report.driver else []
    if report.driver and not found.gpus:
        return [found.reason]
    return [idle] if idle is not None else []
