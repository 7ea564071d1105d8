from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Model, Sampler
from llcuda.errors import ArgumentError, NoOutputError
from tests.support import models
from tests.support.chains import Float32

SIZE = 2**16 + 5  # whole blocks and a rest
RANDOM = np.random.default_rng(11)
NORMAL = RANDOM.normal(0, 3, SIZE).astype(np.float32)
ONE_FORBIDDEN = NORMAL.copy()
ONE_FORBIDDEN[[0, 70, SIZE - 1]] = -np.inf
LOGITS: dict[str, Float32] = {
    "normal": NORMAL,
    "far apart": NORMAL * 30,
    "far from zero": NORMAL + 1000,
    "all equal": np.zeros(SIZE, np.float32),
    "ascending": np.linspace(-20, 5, SIZE, dtype=np.float32),
    "with ties": np.round(NORMAL),
    "huge": np.where(NORMAL > 8, 1e38, -1e38).astype(np.float32),
    "some forbidden": ONE_FORBIDDEN,
}


def oracle(logits: Float32) -> np.ndarray:
    """Return log-softmax, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A context with 65,541 logits, computed once; the tests write their own into it."""
    metadata, tensors = models.llama()
    metadata = {key: value for key, value in metadata.items() if "tokenizer" not in key}
    metadata |= {"tokenizer.ggml.model": "none", "llama.vocab_size": SIZE}
    tensors["token_embd.weight"] = np.zeros((SIZE, models.EMBEDDING), np.float16)
    del tensors["output.weight"]
    path = models.write(tmp_path_factory.mktemp("wide") / "wide.gguf", metadata, tensors)
    with Model(path) as model, Context(model, ctx_size=256, threads=1) as context:
        context.decode([1, 2, 3], logits="all")
        yield context


@pytest.mark.parametrize("kind", LOGITS)
def test_log_softmax_and_its_best(wide: Context, kind: str) -> None:
    """Values are those of float64; best first, of equals the lower token."""
    logits = LOGITS[kind]
    wide.logits(1)[:] = logits
    expected = oracle(logits)
    tokens = [0, 69, 70, 2**16 - 1, SIZE - 1, int(logits.argmax())]
    actual = wide.logprobs(tokens, [1] * len(tokens), 100)
    np.testing.assert_allclose([value for value, _ in actual], expected[tokens], 1e-7, 1e-5)
    best = np.argsort(-logits, kind="stable")[:100]
    for _, top in actual:
        assert best.tolist() == [token for token, _ in top]
        np.testing.assert_allclose([value for _, value in top], expected[best], 1e-7, 1e-5)
    assert actual[0] == wide.logprobs([0], [1], 100)[0]


@pytest.mark.parametrize("distance", [0, 0.3466, 1, 5.5, 8.8, 11, 12.7, 20, 79, 81, 200, np.inf])
def test_many_small_terms_add_up(wide: Context, distance: float) -> None:
    """One token above all others by `distance`: the error of exp() would add up."""
    logits = wide.logits(0)
    logits[:] = 3 - distance
    logits[77] = 3
    expected = -np.log1p((SIZE - 1) * np.exp(-np.float64(np.float32(3) - logits[0])))
    assert pytest.approx(expected, abs=1e-6) == wide.logprob(77, 0)


@pytest.mark.parametrize("n", [0, 1, models.VOCABULARY - 1, models.VOCABULARY, 10**30, np.int64(2)])
def test_at_most_as_many_as_there_are(context: Context, n: int) -> None:
    """Asking for more than the vocabulary gives all of it, for none nothing."""
    context.decode([1])
    top = context.top_logprobs(n)
    assert min(n, models.VOCABULARY) == len(top)
    if n >= models.VOCABULARY:
        assert pytest.approx(1.0) == sum(np.exp(value) for _, value in top)
        assert dict(top) == {token: context.logprob(token) for token in range(models.VOCABULARY)}


@pytest.mark.parametrize("kind", ["nan", "inf", "all forbidden", "all nan"])
def test_logits_that_are_no_numbers(context: Context, kind: str) -> None:
    """Each log p is NaN and nobody is warned."""
    context.decode([1])
    if kind.startswith("all"):
        context.logits()[:] = np.nan if kind == "all nan" else -np.inf
    else:
        context.logits()[100] = float(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [(value, top)] = context.logprobs([5], [0], 4)
    assert [0, 1, 2, 3] == [token for token, _ in top]
    assert np.isnan([value, *(value for _, value in top)]).all()


@pytest.mark.parametrize("place", range(60, 76))
def test_a_nan_hides_no_better_token(context: Context, place: int) -> None:
    """Sampling leaves NaN out, and sees what stands beside it."""
    context.decode([1])
    logits = context.logits()
    logits[:] = 0
    logits[place], logits[place + 8] = np.nan, 1
    assert place + 8 == Sampler(temperature=0).sample(context)


def test_thousands_of_rows(demo: Model) -> None:
    """Rows that are shared between threads are those of one by one, in order."""
    with Context(demo, ctx_size=256, threads=1) as context:
        context.decode([1, 2, 3, 4, 5], logits="all")
        rows = [i % 5 for i in range(6000)]
        tokens = [i % demo.vocab_size for i in range(6000)]
        one_by_one = [context.top_logprobs(3, i) for i in range(5)]
        expected = np.array([oracle(context.logits(i)) for i in range(5)])
        actual = context.logprobs(tokens, rows, 3)
    np.testing.assert_allclose([value for value, _ in actual], expected[rows, tokens], 0, 1e-5)
    assert [one_by_one[i] for i in rows] == [top for _, top in actual]


def test_arrays_and_ranges_serve_as_lists(context: Context) -> None:
    """Tokens and indices are any sequences of whole numbers, also none."""
    context.decode([1, 2, 3], logits="all")
    expected = context.logprobs([7, 8, 9], [0, 1, 2])
    assert expected == context.logprobs(np.array([7, 8, 9]), range(3))
    assert expected[1:] == context.logprobs((8, 9), (-2, -1))
    assert [] == context.logprobs([], [], 5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1], [0, 1]), ArgumentError),
        (([models.VOCABULARY], [0]), ArgumentError),
        (([-1], [0]), ArgumentError),
        (([1.5], [0]), ArgumentError),
        (([1], ["0"]), ArgumentError),
        (([1], [2**40]), ArgumentError),
        ((None, [0]), ArgumentError),
        (([1], [0], -1), ArgumentError),
        (([1], [0], 1.5), ArgumentError),
        (([1], [0], "2"), ArgumentError),
        (([1], [0], None), ArgumentError),
        (([1], [1]), NoOutputError),
        (([1, 1], [0, -2]), NoOutputError),
    ],
)
def test_what_makes_no_sense(context: Context, arguments: Any, error: type[Exception]) -> None:
    """An error that is ours, and the logits are still there."""
    context.decode([1])
    before = context.logprob(1)
    with pytest.raises(error):
        context.logprobs(*arguments)
    assert before == context.logprob(1)


def test_a_score_that_fails_leaves_nothing(
    model: Model, make_context: Callable[..., Context]
) -> None:
    """A token that does not exist, met after some parts were computed."""
    context = make_context(model, batch_size=2)
    with pytest.raises(ArgumentError):
        context.score([1, 2, 3, 4, models.VOCABULARY, 6])
    assert 0 == context.n_past()
