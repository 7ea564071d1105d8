from __future__ import annotations

import numpy as np
import pytest

from llcuda.errors import ArgumentError
from llcuda.logprobs import log_softmax, top_logprobs


def test_probabilities_sum_to_one_and_keep_the_differences() -> None:
    """log_softmax only subtracts a number."""
    logits = np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)
    scores = log_softmax(logits)
    assert pytest.approx(1.0, abs=1e-5) == float(np.exp(scores, dtype=np.float64).sum())
    np.testing.assert_allclose(logits - logits[0], scores - scores[0], atol=1e-5)


def test_huge_logits_do_not_overflow() -> None:
    """The best token of far apart logits has log p = 0."""
    scores = log_softmax(np.array([1e38, -1e38], np.float32))
    assert (0.0, np.float32(-2e38)) == (scores[0], scores[1])


def test_a_forbidden_token_has_minus_infinity() -> None:
    """-inf stays -inf and takes no probability from the others."""
    scores = log_softmax(np.array([0, -np.inf], np.float32))
    assert [0.0, -np.inf] == scores.tolist()


@pytest.mark.parametrize(("n", "expected"), [(0, []), (2, [2, 0]), (9, [2, 0, 1])])
def test_top_logprobs_come_best_first_and_at_most_n(n: int, expected: list[int]) -> None:
    """Asking for more than there are gives all, for none or fewer nothing."""
    logits = np.array([1.0, 0.0, 2.0], np.float32)
    assert expected == [token for token, _ in top_logprobs(logits, n)]


@pytest.mark.parametrize("n", [-1, 1.5, "2", None])
def test_top_logprobs_of_no_number(n: object) -> None:
    """N is a whole number from 0."""
    with pytest.raises(ArgumentError):
        top_logprobs(np.zeros(3, np.float32), n)  # type: ignore[arg-type]


def test_logits_that_are_no_numbers_warn_nobody() -> None:
    """NaN and all -inf give NaN, without numpy's warnings."""
    for logits in ([np.nan, 0.0], [-np.inf, -np.inf]):
        assert np.isnan(log_softmax(np.array(logits, np.float32))).all()
