"""Real models from the folder in LLCUDA_REAL_MODELS (`make real MODELS=FOLDER`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda import Engine, Model

FOLDER = os.environ.get("LLCUDA_REAL_MODELS")
GEMMA = "gemma-3-270m-q4_k_m.gguf"  # base model: sliding window, 262,144 tokens, no chat template
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"  # chat template with tools, FIM tokens


def file(name: str) -> Path:
    """Return the path of a real model, or skip the test."""
    if FOLDER is None:
        pytest.skip("no real models: make real MODELS=FOLDER")
    path = Path(FOLDER) / name
    assert path.is_file(), f"{path} is missing"
    return path


@pytest.fixture(scope="session")
def gemma() -> Iterator[Model]:
    """Gemma 3 270M, Q4_K_M."""
    with Model(file(GEMMA)) as model:
        yield model


@pytest.fixture(scope="session")
def qwen() -> Iterator[Model]:
    """Qwen2.5-Coder 0.5B Instruct, Q4_K_M."""
    with Model(file(QWEN)) as model:
        yield model


@pytest.fixture(scope="session")
def engine(qwen: Model) -> Iterator[Engine]:
    """An engine of two sequences on Qwen."""
    with Engine(qwen, n_parallel=2, ctx_size=2048) as engine:
        yield engine
