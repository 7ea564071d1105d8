"""Graphs that are kept when texts join and leave, with their CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcuda.native import library
from tests.support.churn import CHURN
from tests.support.programs import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba", "lfm2"])
@pytest.mark.parametrize("left", ["copied", "left"])
def test_kept_graphs_compute_what_new_ones_do(
    kind: str, left: str, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are equal, bit for bit, and more micro-batches reuse a graph."""
    *kept, reused = run(CHURN, model_files[kind], left, "split", "99").stdout.split()
    monkeypatch.setenv("LLCUDA_NO_KEPT_GRAPHS", "1")
    *built, reused_without = run(CHURN, model_files[kind], left, "split", "99").stdout.split()
    assert built == kept
    if "kept-graphs" in library.patches():
        assert int(reused) > 2 * int(reused_without)
