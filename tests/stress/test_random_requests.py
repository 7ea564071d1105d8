"""A slice of the random requests: each answer is a fresh engine's."""

from __future__ import annotations

import pytest

from tests.stress.random_requests import KINDS, Files, run_session


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Model files, written when they are first needed."""
    return Files(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("seed", range(2 * len(KINDS)))
def test_each_answer_is_a_fresh_engines(seed: int, files: Files) -> None:
    """Tokens, texts, finish reasons, log-probabilities and counters, in company and with reuse."""
    result = run_session(seed, files)
    assert [] == result["failures"]
    assert 10 < result["inputs"]
