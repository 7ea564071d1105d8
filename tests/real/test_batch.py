"""BatchProcessor on real models, in processes of a pool."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest

import llcuda
from tests.real.conftest import GEMMA, QWEN, file

SETTINGS: dict[str, Any] = {
    "n_parallel": 2,
    "ctx_size": 512,
    "threads": 1,
    "temperature": 0,
    "on_error": "return",
}


def test_conversations_in_a_pool() -> None:
    """Two processes give what this one gives; a bad row stands among the good ones."""
    pandas = pytest.importorskip("pandas")
    ask = llcuda.BatchProcessor(file(QWEN), "chat", max_tokens=12, **SETTINGS)
    frame = pandas.DataFrame(
        {
            "messages": [
                "What is 2+3? Only the number.",
                [{"role": "user", "content": "Name the capital of France."}],
                [{"role": "nobody", "content": "x"}],
                "word " * 600,
            ],
            "number": range(4),
        }
    )
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        tables = pool.map(ask, [frame, frame[:2]], chunksize=1)
    own = ask(frame)
    ask.close()
    pandas.testing.assert_frame_equal(own, tables[0])
    assert [0, 1, 2, 3] == own["number"].tolist()
    assert "5" in own["content"][0]
    assert "Paris" in own["content"][1]
    errors = [error.partition(":")[0] for error in own["error"]]
    assert ["", "", "ArgumentError", "ContextLengthError"] == errors


def test_prompts_and_vectors() -> None:
    """A base model continues, and a row that is too long has no vector."""
    ask = llcuda.BatchProcessor(file(GEMMA), max_tokens=8, **SETTINGS)
    assert "France" in ask({"prompt": ["The capital of France is"]})["text"][0]
    ask.close()
    settings = {"pooling": "mean", "threads": 1, "ctx_size": 64, "on_error": "return"}
    embed = llcuda.BatchProcessor(file(QWEN), "embed", **settings)
    table = embed({"text": ["a cat", "a dog", "x " * 200]})
    embed.close()
    first, second, bad = table["embedding"]
    assert 0.5 < first @ second < 1
    assert np.isnan(bad).all()
    assert "ContextLengthError" in table["error"][2]
