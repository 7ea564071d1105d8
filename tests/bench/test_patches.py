"""benchmarks/patches.py: combinations of patches in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llcuda.bench.synthetic import make_synthetic_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import patches


def test_steps_whose_sequences_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each combination is timed with so many rows, and no logit of the last step differs."""
    model = make_synthetic_model("tiny", "F16")
    options = ["--rows", "4", "--turns", "1", "--seconds", "0.01", "--threads", "1"]
    churn = ["--churn", "--without", "kept-graphs"]
    monkeypatch.setattr(sys, "argv", ["patches.py", str(model), *options, *churn])
    patches.main()
    *_, line = capsys.readouterr().out.splitlines()
    steps = [row for row in json.loads(line)["rows"] if row["rows"] == 4]
    assert ["all", "no kept-graphs", "all again"] == [row["patches"] for row in steps]
    assert all(row["step"] > 0 == row["largest"] for row in steps)
