"""llcuda report: one block with the machine, a benchmark and the tests' result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import llcuda
from llcuda.cli import diagnose
from llcuda.cli.main import main
from llcuda.cli.report import summarize_tests
from llcuda.errors import ArgumentError
from llcuda.native import library

RUN = {
    "format": 1,
    "device": {"name": "Tesla T4", "gpus": 1, "compute_capability": "7.5", "driver_version": "550"},
    "llcuda": "3.0.0",
    "build": {"llama.cpp": "0c1e57098", "cuda": "CUDA 12.4", "code": "native"},
    "model": {
        "file": "/home/ann/gemma.gguf", "description": "gemma3 1B Q4_K - Medium", "bytes": 2**29,
        "layers": 26, "gpu_layers": 27, "threads": 2, "load_seconds": 1.5,
    },
    "tables": {"requests": [{"n_parallel": 1, "tokens_per_second": 268.6}]},
    "compared": [
        {
            "table": "requests", "of": "n_parallel 1", "figure": "tokens_per_second",
            "before": 134.3, "now": 268.6, "ratio": 2.0,
        }
    ],
    "compared_with": {"name": "llcuda 2", "device": {"name": "Tesla T4"}},
}  # fmt: skip
TESTS = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests">
<testsuite name="pytest" errors="1" failures="1" skipped="2" tests="9" time="61.2">
<testcase classname="tests.gpu.test_computing" name="test_text[a]" time="1.0">
<failure message="assert [1] == [2]&#10;  and more">the trace</failure></testcase>
<testcase classname="tests.gpu.test_nf4" name="test_values" time="0.1">
<error message="failed on setup">the trace</error></testcase>
<testcase classname="tests.gpu.test_two_gpus" name="test_split" time="0"><skipped message="s"/>
</testcase></testsuite></testsuites>"""


def report(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Return the exit status and the lines of `llcuda report`."""
    monkeypatch.setattr(sys, "argv", ["llcuda", "report", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert "" == output.err
    return int(ended.value.code or 0), output.out.splitlines()


def test_the_machine_is_described_without_its_paths(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions, devices and patches; of a variable that holds a path only the name."""
    for name in [name for name in os.environ if name.startswith(("CUDA_", "GGML_", "LLCUDA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("LLCUDA_TEST", "/home/ann/secret")
    status, lines = report([], monkeypatch, capsys)
    assert (0, "```text", "```") == (status, lines[0], lines[-1])
    facts = dict(line.split(maxsplit=1) for line in lines[1:-1] if not line.startswith(" "))
    assert llcuda.__version__ == facts["llcuda"]
    assert library.versions()["commit"] == facts["commit"]
    assert facts["devices"].startswith(library.devices()[0].name)
    assert "CUDA_VISIBLE_DEVICES=0,1 LLCUDA_TEST=(a path)" == facts["variables"]
    assert {"python", "platform", "patches", "service"} <= facts.keys()
    assert "libraries" not in facts
    assert all(line == line.rstrip() for line in lines)


def test_problems_are_in_the_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `llcuda doctor` finds missing, in its words, of paths only the files' names."""
    found = diagnose.diagnose()
    found.problems[:] = [
        diagnose.Problem("no [driver]", "install one"),
        diagnose.Problem("/home/ann/a/libx.so.1, ~/.nv", "pip install 'a-TAGS.whl[cuda]'"),
    ]
    monkeypatch.setattr(diagnose, "diagnose", lambda: found)
    status, lines = report([], monkeypatch, capsys)
    assert 0 == status
    first, second = (line for line in lines if "missing" in line)
    assert "no [driver]: install one" in first
    assert ".../libx.so.1, ~/.nv: pip install 'a-TAGS.whl[cuda]'" in second


def test_a_benchmark_and_the_tests_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own tables, also of several runs, the documents' figures, and the counts."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"Tables\n{json.dumps(RUN)}\n")
    (tmp_path / "tests.xml").write_text(TESTS)
    arguments = [f"--bench={tmp_path / 'a.txt'}", f"--bench={tmp_path / 'b.txt'}"]
    status, lines = report([*arguments, f"--tests={tmp_path / 'tests.xml'}"], monkeypatch, capsys)
    assert 0 == status
    assert 2 == lines.count("Tesla T4, compute capability 7.5, driver 550")
    assert any(line.startswith("gemma.gguf: gemma3 1B Q4_K - Medium") for line in lines)
    assert not any("ann" in line.split("/") for line in lines)
    compared = next(line for line in lines if line.startswith("requests"))
    assert ["134", "269", "2.000"] == compared.split()[-3:]
    assert [
        "Tests: 5 passed, 1 failed, 1 errors, 2 skipped in 61 s",
        "  tests.gpu.test_computing::test_text[a]: assert [1] == [2]",
        "  tests.gpu.test_nf4::test_values: failed on setup",
        "```",
    ] == lines[-4:]


def test_many_failures_are_counted(tmp_path: Path) -> None:
    """The block stays short: twenty tests, and short messages."""
    case = '<testcase classname="t" name="n"><failure message="{}"/></testcase>'.format("x" * 500)
    path = tmp_path / "tests.xml"
    path.write_text(
        f'<testsuite tests="30" failures="30" errors="0" skipped="0" time="1">{case * 30}'
        "</testsuite>"
    )
    lines = summarize_tests(path)
    assert ["Tests: 0 passed, 30 failed, 0 errors, 0 skipped in 1 s", "  and 10 more"] == [
        lines[0], lines[-1],
    ]  # fmt: skip
    assert 22 == len(lines)
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize(
    "text",
    ["", "no XML", "<html/>", '<testsuite tests="many"/>', "<testsuite", "{}"],
)
def test_other_files_are_no_test_results(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=r"tests\.xml: is not the result of pytest --junitxml"):
        summarize_tests(path)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("nothing", "is not a document of llcuda bench"),
        (json.dumps({"format": 1, "tables": {}}), "incomplete: 'device'"),
        (None, "--bench='"),
    ],
)
def test_what_cannot_be_read_is_said_in_the_block(
    run: str | None, says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The rest is printed all the same; the status is that of a wrong argument."""
    path = tmp_path / "run.txt"
    if run is not None:
        path.write_text(run)
    (tmp_path / "tests.xml").write_text(TESTS)
    arguments = [f"--bench={path}", f"--tests={tmp_path / 'tests.xml'}"]
    status, lines = report(arguments, monkeypatch, capsys)
    assert 2 == status
    assert any(line.startswith("error: ") and says in line for line in lines)
    assert any(line.startswith("Tests: 5 passed") for line in lines)
