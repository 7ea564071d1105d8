"""llcuda doctor: what it finds, and what it advises."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from llcuda import device
from llcuda.cli import diagnose
from llcuda.errors import LibraryError
from llcuda.native import cuda_libraries, library
from llcuda.native.cuda_build import (
    WHEELS,
    CudaBuild,
    Driver,
    Remark,
    RuntimeLibraries,
    loading_problem,
    no_gpu,
    parse,
)


def test_a_good_build_has_no_problem() -> None:
    """On a machine without a GPU a CPU build is whole: library, backend, device, demo model."""
    report = diagnose.diagnose()
    assert report.usable
    assert [p for p in report.problems if not report.driver] == []
    assert any(device["kind"] == "cpu" for device in report.devices)
    assert "loaded" in report.backends.values()
    assert report.versions["llama.cpp"]


@pytest.mark.parametrize(("names", "shown"), [(["fast", "small"], "fast, small"), ([], "none")])
def test_the_changes_to_llama_cpp_are_named(
    names: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "patches", lambda: names)
    assert diagnose.diagnose().built_with["patches"] == shown


def test_the_library_knows_its_patches() -> None:
    """Each has a file in build/patches."""
    folder = Path(__file__).parents[2] / "build" / "patches"
    assert set(library.patches()) <= {path.stem for path in folder.glob("*.toml")}


def test_modules_without_their_package_are_a_problem() -> None:
    """Copied modules run, and doctor says that the package's metadata is missing."""
    hidden = (
        "import importlib.metadata as metadata, sys\n"
        "real = metadata.distribution\n"
        "def without(name):\n"
        "    if name == 'llcuda':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.distribution = without\n"
        "from llcuda.cli.main import main\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", hidden, "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, check=True, text=True)
    document = json.loads(result.stdout)
    assert (document["usable"], document["versions"]["llcuda"]) == (True, "unknown")
    assert "metadata is missing" in document["problems"][0]["what"]


def test_json_is_one_document() -> None:
    """`llcuda doctor --json` prints the same as JSON."""
    command = [sys.executable, "-m", "llcuda", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, check=True)
    document = json.loads(result.stdout)
    assert document["usable"] is True
    assert document["versions"]["llcuda"] == diagnose.diagnose().versions["llcuda"]


def test_missing_library_is_fatal_and_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the native library the report says how to build it."""

    def refuse() -> None:
        raise LibraryError("llcuda's native library cannot be loaded")

    monkeypatch.setattr(library, "versions", refuse)
    report = diagnose.diagnose()
    assert not report.usable
    (problem,) = report.problems
    assert "pip install" in problem.mend


GPU: device.GpuInfo = {
    "name": "NVIDIA L4",
    "compute_capability": "8.9",
    "memory": 2**34,
    "driver_version": "550.54.15",
}
IDLE = Remark("the CUDA backend sees no GPU", "check nvidia-smi")


def report_of(
    monkeypatch: pytest.MonkeyPatch,
    made: str | None,
    driver: bool = True,
    survey: device.Survey | None = None,
    idle: Remark | None = IDLE,
) -> diagnose.Report:
    """Diagnose a machine without a GPU as one with this driver and this build ("12.4 75")."""
    monkeypatch.setattr(library, "cuda_build", lambda: made and parse(*made.split()))
    monkeypatch.setattr(library, "why_no_gpu", lambda: idle if made else None)
    monkeypatch.setattr(
        device, "survey", lambda: survey or device.Survey("12.4", "550.54.15", [GPU])
    )
    monkeypatch.setattr(cuda_libraries, "driver", lambda: Driver() if driver else None)
    devices = [item for item in library.devices() if item.kind == "cpu"]
    monkeypatch.setattr(library, "devices", lambda: devices)
    return diagnose.diagnose()


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, capability and driver, and what the code was compiled for."""
    report = report_of(monkeypatch, "12.4 75,86-real", idle=None)
    assert report.built_with["CUDA"] == "CUDA 12.4, machine code for 7.5, 8.6, PTX for 7.5"
    facts = "NVIDIA L4, compute capability 8.9, driver 550.54.15, which runs CUDA 12.4"
    assert report.gpus == {"GPU 0": facts}
    assert report.problems == []


@pytest.mark.parametrize(("disabled", "when"), [("0", "at the first run"), ("1", "at every start")])
def test_ptx_is_compiled_at_the_first_run(
    monkeypatch: pytest.MonkeyPatch, disabled: str, when: str
) -> None:
    """A GPU newer than all machine code: when, how long, where it is kept; it is no problem."""
    monkeypatch.setenv("CUDA_CACHE_DISABLE", disabled)
    report = report_of(monkeypatch, "12.4 75", idle=None)
    assert f"for compute capability 8.9 {when}, which takes a minute" in report.gpus["first run"]
    assert "LLCUDA_CUDA_ARCHITECTURES=89" in report.gpus["first run"]
    assert report.problems == []


NOTHING = device.Survey(reason=Remark("CUDA_VISIBLE_DEVICES='' leaves no GPU", "unset it"))
NO_LIBRARY = loading_problem(CudaBuild(), None)


@pytest.mark.parametrize(
    ("case", "what", "mend"),
    [
        ({"made": None}, "built without CUDA", "LLCUDA_CUDA=ON"),
        ({"made": None}, "built without CUDA", "+cu124-TAGS.whl[cuda]' (make wheel-cuda)"),
        ({"made": None, "survey": NOTHING}, "built without CUDA", "LLCUDA_CUDA=ON"),
        ({"made": "12.4 75", "survey": NOTHING}, "CUDA_VISIBLE_DEVICES", "unset it"),
        ({"made": "13.0 75"}, "driver 550.54.15 is too old: it runs CUDA 12.4 at most", "+cu124"),
        ({"made": "12.4 90"}, "no code for compute capability 8.9", "ARCHITECTURES=89"),
        ({"made": "12.8 75"}, "too old to compile this llcuda's PTX", "ARCHITECTURES=89"),
        ({"made": "12.4 75"}, "sees no GPU", "nvidia-smi"),
        (
            {"made": "12.4 75", "driver": False, "survey": NOTHING, "idle": NO_LIBRARY},
            "no NVIDIA driver (libcuda.so.1)",
            "install the driver",
        ),
    ],
)
def test_why_a_gpu_is_not_used(
    monkeypatch: pytest.MonkeyPatch, case: dict[str, Any], what: str, mend: str
) -> None:
    """One sentence each, and what to do."""
    (problem,) = report_of(monkeypatch, **case).problems
    assert what in problem.what
    assert mend in problem.mend


def test_no_driver_and_no_cuda_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU build on a machine without a GPU lacks nothing."""
    assert report_of(monkeypatch, None, driver=False, survey=NOTHING).problems == []


@pytest.mark.parametrize(
    ("error", "what", "mend"),
    [
        ("", "sees no GPU", "CUDA_VISIBLE_DEVICES"),
        ("failed to initialize CUDA: no CUDA-capable device is detected", "sees no", "nvidia-smi"),
        ("CUDA driver version is insufficient for CUDA runtime version", "too old", "newer driver"),
        ("libcudart.so.12: cannot open", "does not find libcudart.so.12", "'llcuda[cuda]'"),
        ("libcublasLt.so.12: cannot open", "libcublasLt.so.12", "'llcuda[cuda]'"),
        ("undefined symbol: f, version libcudart.so.12", "do not fit", "nvidia-cuda-runtime-cu12"),
        ("undefined symbol: cuMemCreate", "undefined symbol", "LLCUDA_CUDA=ON"),
    ],
)
def test_what_loading_the_backend_said(error: str, what: str, mend: str) -> None:
    """The linker's and CUDA's messages, in words."""
    remark = no_gpu(error, parse("12.4", "75"), RuntimeLibraries())
    assert what in remark.what
    assert mend in remark.mend


def test_the_extra_of_cuda_13() -> None:
    """It is named by its version."""
    libraries = RuntimeLibraries(missing=["libcudart.so.13"])
    error = "libcudart.so.13: cannot open shared object file"
    remark = no_gpu(error, parse("13.0", "75"), libraries)
    assert str(remark) == (
        "the CUDA backend does not find libcudart.so.13: pip install 'llcuda[cuda13]', which brings"
        " CUDA's run-time libraries"
    )


@pytest.mark.parametrize("major", WHEELS)
def test_the_extras_that_are_named_bring_the_libraries(major: int) -> None:
    """Those of pyproject.toml, with packages of the same CUDA version."""
    remark = no_gpu(f"libcudart.so.{major}: cannot open", CudaBuild((major, 0)), RuntimeLibraries())
    name = remark.mend.partition("[")[2].partition("]")[0]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    packages = project["project"]["optional-dependencies"][name]
    assert ["nvidia-cublas", "nvidia-cuda-runtime"] == [
        package.partition(">=")[0].removesuffix("-cu12") for package in packages
    ]
    assert all(package.endswith(f"<{major + 1}") for package in packages)
