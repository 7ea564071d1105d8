"""llcuda doctor: what it finds, and what it advises."""

import json
import subprocess
import sys

import pytest

from llcuda import doctor
from llcuda.errors import LibraryError
from llcuda.native import library


def test_a_good_build_has_no_problem() -> None:
    """On a machine without a GPU a CPU build is whole: library, backend, device, demo model."""
    report = doctor.diagnose()
    assert report.usable
    assert [p for p in report.problems if not report.driver] == []
    assert any(device["kind"] == "cpu" for device in report.devices)
    assert "loaded" in report.backends.values()
    assert report.versions["llama.cpp"]


def test_json_is_one_document() -> None:
    """`llcuda doctor --json` prints the same as JSON."""
    command = [sys.executable, "-m", "llcuda", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, check=True)
    document = json.loads(result.stdout)
    assert document["usable"] is True
    assert document["versions"]["llcuda"] == doctor.diagnose().versions["llcuda"]


def test_missing_library_is_fatal_and_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the native library the report says how to build it."""

    def refuse() -> None:
        raise LibraryError("llcuda's native library cannot be loaded")

    monkeypatch.setattr(library, "versions", refuse)
    report = doctor.diagnose()
    assert not report.usable
    (problem,) = report.problems
    assert "pip install" in problem.mend


def report_of(monkeypatch: pytest.MonkeyPatch, driver: bool, architectures: str) -> doctor.Report:
    facts = {**library.versions(), "cuda_architectures": architectures}
    monkeypatch.setattr(library, "versions", lambda: dict(facts))
    monkeypatch.setattr(doctor, "_driver_loads", lambda: driver)
    devices = [device for device in library.devices() if device.kind == "cpu"]
    monkeypatch.setattr(library, "devices", lambda: devices)
    return doctor.diagnose()


def test_driver_without_cuda_build_advises_a_rebuild(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that a CPU build leaves idle is named with the command that uses it."""
    (problem,) = report_of(monkeypatch, driver=True, architectures="").problems
    assert "built without CUDA" in problem.what
    assert "LLCUDA_CUDA=ON" in problem.mend


def test_cuda_build_without_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build on a machine without a driver runs on the CPU and says why."""
    (problem,) = report_of(monkeypatch, driver=False, architectures="75").problems
    assert "libcuda.so.1" in problem.what
