"""Kaggle's notebook with a real model on the CPU, in place of the one that it downloads.

Colab's has the same cells but for those of the second GPU: tests/docs/test_notebooks.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.real.conftest import GEMMA, file
from tests.support.documents import ROOT
from tests.support.notebooks import NOTEBOOKS, Session

KAGGLE = NOTEBOOKS[1]
SHORTER = {
    "NEED_GPU = True": "NEED_GPU = False",
    "startup,decode,graphs,requests,memory --graphs 1,4,8 --requests 1,4,8": (
        "memory --quick --threads 1"
    ),
    "--measure startup,": "--quick --threads 1 --measure startup,",
    "--requests 1,4,8": "--requests 1",
    "--depth 512,2048,4096,8192": "--depth 128",
    "[2048, 2048]": "[256, 256]",
    "range(8)": "range(2)",
    **{f"max_tokens={count}": "max_tokens=16" for count in (50, 80, 100, 200)},
    '"tests/gpu"': '"tests/gpu/test_embedding.py"',
}


@pytest.mark.timeout(1800)
def test_the_cells_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each shows something, and the last one the report with all tables and the tests."""
    path = file(GEMMA)
    (tmp_path / "llcuda-source").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "llcuda-source")
    shutil.copytree(
        ROOT / "tests", tmp_path / "llcuda-source" / "tests",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    session, shown = Session({**SHORTER, "gemma-3-1b-Q4_K_M": str(path)}), ""
    for cell in session.run_all(KAGGLE):
        shown = capsys.readouterr().out.strip()
        assert shown, cell.id
        if cell.id == "load":
            assert "✓ Model loaded and ready for inference" in shown
        if cell.id == "final":
            assert "  Total requests: 7" in shown
    lines = shown.splitlines()
    assert ("```text", "```") == (lines[0], lines[-1])
    for begin in (
        f"{GEMMA}: ",
        "Requests at once",
        "Length of the text",
        "CUDA graphs",
        "Tests: ",
    ):
        assert any(line.startswith(begin) for line in lines), begin
    assert "another model: llcuda 2 gemma3 1B Q4_K - Medium" in shown
    assert "requests  n_parallel 1" in shown
