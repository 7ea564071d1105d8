"""What was built, what loads, what is missing, and the command that mends it.

`diagnose()` collects plain data; printing it is the command line's business.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llcuda.demo import demo_model
from llcuda.errors import LlcudaError

REBUILD = "in llcuda's source folder: pip install --no-cache-dir ."
REBUILD_CUDA = f"{REBUILD} --config-settings=cmake.define.LLCUDA_CUDA=ON"


@dataclass(frozen=True)
class Problem:
    """Something that is missing. what: one sentence; mend: the command, or what to do."""

    what: str
    mend: str
    fatal: bool = False


@dataclass
class Report:
    """What `llcuda doctor` found. backends: file -> "loaded" or why not."""

    versions: dict[str, str] = field(default_factory=dict)
    built_with: dict[str, str] = field(default_factory=dict)
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
        report.devices = [asdict(device) for device in library.devices()]
    except (LlcudaError, ImportError) as error:
        report.problems.append(Problem(str(error), REBUILD, True))
        return report
    architectures = facts.pop("cuda_architectures")
    folder = facts.pop("folder")
    report.versions.update(facts)
    report.built_with = {"libraries": folder, "CUDA": architectures or "off"}
    report.problems += _gpu_problems(report, architectures, Path(folder))
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


def _gpu_problems(report: Report, architectures: str, folder: Path) -> list[Problem]:
    """Return why a GPU that is here, or was built for, is not used."""
    if any(device["kind"] == "gpu" for device in report.devices):
        return []
    if not architectures:
        if not report.driver and shutil.which("nvidia-smi") is None:
            return []
        return [
            Problem("an NVIDIA driver is here, but llcuda was built without CUDA", REBUILD_CUDA)
        ]
    if not report.driver:
        return [
            Problem(
                "built with CUDA, but no NVIDIA driver (libcuda.so.1) loads; the CPU is used",
                "install the NVIDIA driver",
            )
        ]
    try:
        ctypes.CDLL(str(folder / "libggml-cuda.so"))
    except OSError as error:
        if "libcudart" in str(error) or "libcublas" in str(error):
            suffix = "" if ".so.13" in str(error) else "-cu12"
            packages = f"nvidia-cuda-runtime{suffix} nvidia-cublas{suffix}"
            return [Problem(f"the CUDA backend does not load: {error}", f"pip install {packages}")]
        return [Problem(f"the CUDA backend does not load: {error}", REBUILD_CUDA)]
    return [
        Problem(
            "the CUDA backend loads, but sees no GPU",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    ]
