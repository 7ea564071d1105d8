"""CUDA graphs: switched off, and checked against the same kernels launched one by one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, CudaGraphs, Engine, Model, RequestParams, SamplingParams
from tests.support.chains import Float32

pytestmark = pytest.mark.gpu

STEPS = 40
PROMPT = [1, 2, 3, 5, 8]
# More cells than llama.cpp's attention reads at first, so that a running text meets further shapes.
LONG = 300


def decode(
    model: Model, rows: int, mode: str, steps: int = STEPS
) -> tuple[list[Float32], CudaGraphs]:
    """Return the logits of each step of `rows` sequences, and what became of the CUDA graphs."""
    sizes: dict[str, Any] = {"ctx_size": 512, "sequences": rows, "unified_kv": False}
    seen = []
    with Context(model, cuda_graphs=mode, outputs_max=rows, **sizes) as context:
        for seq in range(rows):
            context.decode(PROMPT, seq)
        for step in range(steps):
            tokens = [(7 * step + row) % 250 + 1 for row in range(rows)]
            context.decode_batch(tokens, range(rows))
            seen.append(np.stack([context.logits(row).copy() for row in range(rows)]))
        return seen, context.cuda_graphs


@pytest.mark.parametrize("rows", [1, 4])
def test_replays_are_checked_and_equal(rows: int, gpu_demo: Model) -> None:
    """A text that grows meets several shapes; replays give the logits of single launches."""
    launched, off = decode(gpu_demo, rows, "off", LONG)
    replayed, found = decode(gpu_demo, rows, "checked", LONG)
    unchecked, on = decode(gpu_demo, rows, "on", LONG)
    assert off == CudaGraphs()
    assert on.on and on.captured >= 2 and on.replays > LONG / 2
    assert found.on and found.different == 0
    assert found.checked >= 2
    assert found.replays > LONG / 2
    for other in (replayed, unchecked):
        assert all(np.array_equal(a, b) for a, b in zip(launched, other, strict=True))


@pytest.mark.parametrize(
    "kind",
    [pytest.param("llama", marks=pytest.mark.sanitizer), "gemma3", "mamba", "lfm2"],
)
def test_states_that_a_step_changes_are_restored(kind: str, model_files: dict[str, Path]) -> None:
    """Recurrent states, sliding windows: the check computes a step twice and leaves no trace."""
    with Model(model_files[kind], gpu_layers=99, devices=["CUDA0"]) as model:
        launched, _ = decode(model, 2, "off")
        replayed, found = decode(model, 2, "checked")
    assert found.different == 0
    assert all(np.array_equal(a, b) for a, b in zip(launched, replayed, strict=True))


def test_a_difference_turns_them_off(
    gpu_demo: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a tolerance that nothing keeps: one warning, no further replay, the right logits."""
    launched, _ = decode(gpu_demo, 1, "off")
    monkeypatch.setenv("LLCUDA_CUDA_GRAPHS_TOLERANCE", "-1")
    with caplog.at_level(logging.WARNING, "llcuda"):
        replayed, found = decode(gpu_demo, 1, "checked")
    assert found == CudaGraphs(captured=1, replays=1, checked=1, different=1)
    [warning] = [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()]
    assert "CUDA graphs are off from here on" in warning
    assert all(np.array_equal(a, b) for a, b in zip(launched, replayed, strict=True))


def test_engines_give_the_same_texts(gpu_demo: Model) -> None:
    """Texts that join and leave change the shapes; the mode changes nothing of them."""
    texts = {}
    for mode in ("off", "checked", "on"):
        with Engine(gpu_demo, n_parallel=4, ctx_size=256, cuda_graphs=mode) as engine:
            with engine.loop.hold():  # so that all texts join at the same steps
                requests = [
                    engine.submit(
                        f"Once upon a time {i}", RequestParams(max_tokens=20 + 9 * i),
                        SamplingParams(seed=i),
                    )
                    for i in range(9)
                ]  # fmt: skip
            texts[mode] = [request.result().text for request in requests]
            found = engine.context.cuda_graphs
        assert found.on == (mode != "off")
        assert found.different == 0
    assert texts["off"] == texts["checked"] == texts["on"]


def test_a_renewed_context_keeps_the_mode(gpu_demo: Model) -> None:
    """After a renewal the next steps are launched one by one, as before."""
    with Context(gpu_demo, ctx_size=256, cuda_graphs="off") as context:
        context.decode(PROMPT)
        context.renew()
        for token in PROMPT:
            context.decode([token])
        assert not context.cuda_graphs.on
