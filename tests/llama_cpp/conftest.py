from __future__ import annotations

from collections.abc import Iterator

import pytest

from llcuda.llama_cpp import Llama


@pytest.fixture(scope="session")
def llm() -> Iterator[Llama]:
    """Completions and chats of the demo model, by the engine."""
    with Llama("demo", n_ctx=256, n_threads=1, verbose=False) as llama:
        yield llama


@pytest.fixture
def own() -> Iterator[Llama]:
    """A Llama of the demo model for one test, whose text the test may change."""
    with Llama("demo", n_ctx=128, n_threads=1, verbose=False) as llama:
        yield llama
