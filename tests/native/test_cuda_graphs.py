"""The check of CUDA graphs, on the CPU: llcuda's own file over a backend that replays as CUDA's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llcuda.native import library

ROOT = Path(__file__).parents[2]
GGML = ROOT / "vendor" / "llama.cpp" / "ggml"
# A shape is captured in its second step; the third part of the program repeats the first's shape.
STEPS, REPLAYS, SHAPES = 5, 3 * 4, 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of tests/support/cuda_graphs.cpp."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not GGML.is_dir():
        pytest.skip("needs a C++ compiler and the source of llama.cpp in vendor/")
    folder = tmp_path_factory.mktemp("graphs")
    empty = folder / "ggml-cuda" / "common.cuh"  # the program has what is used of it
    empty.parent.mkdir()
    empty.touch()
    libraries, _ = library.installation()
    shim = ROOT / "llcuda" / "native" / "shim" / "decode"
    command = [compiler, "-std=c++17", "-O1", "-DGGML_SHARED", "-DGGML_BACKEND_SHARED"]
    command += [f"-I{path}" for path in (folder, shim, GGML / "include", GGML / "src")]
    command += [str(ROOT / "tests" / "support" / "cuda_graphs.cpp"), "-o", str(folder / "program")]
    command += [str(libraries / name) for name in ("libggml.so", "libggml-base.so")]
    subprocess.run([*command, f"-Wl,-rpath,{libraries}"], check=True)
    return folder / "program"


def run(program: Path, mode: str, broken: int = 0) -> tuple[list[str], list[int], str]:
    """Return the results of all steps, the report, and what was logged."""
    folder = library.installation()[0]
    command = [str(program), f"{folder}", mode, str(broken), str(STEPS)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    results, report = result.stdout.splitlines()
    return results.split(), [int(number) for number in report.split()], result.stderr


@pytest.mark.parametrize(
    ("mode", "report"),
    [
        ("on", [1, REPLAYS, 0, 0]),
        ("off", [0, 0, 0, 0]),
        ("checked", [1, REPLAYS, SHAPES, 0]),
        ("auto", [1, REPLAYS, SHAPES, 0]),  # the device is a T4
    ],
)
def test_results_do_not_depend_on_the_mode(mode: str, report: list[int], program: Path) -> None:
    """Inputs that the graph overwrites and states that it changes are as if it ran once."""
    expected, _, _ = run(program, "off")
    results, found, log = run(program, mode)
    assert results == expected
    assert found == report
    assert "CUDA graph" not in log


@pytest.mark.parametrize(("broken", "replays"), [(1, 1), (5, 5)])
def test_a_wrong_first_replay_turns_graphs_off(broken: int, replays: int, program: Path) -> None:
    """Its step has the right result, and no later one is replayed; the log says so once."""
    expected, _, _ = run(program, "off")
    results, report, log = run(program, "checked", broken)
    assert results == expected
    assert report == [0, replays, 1 if broken == 1 else SHAPES, 1]
    assert log.count("CUDA graphs are off from here on") == 1


def test_the_tolerance_is_chosen_by_the_environment(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger one lets a difference pass."""
    monkeypatch.setenv("LLCUDA_CUDA_GRAPHS_TOLERANCE", "0.5")
    _, report, log = run(program, "checked", 1)
    assert report == [1, REPLAYS, SHAPES, 0]
    assert "CUDA graph" not in log
