from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Model, Sampler
from llcuda import samplers as steps
from llcuda.errors import ArgumentError, SamplingError
from llcuda.native.batch_sampler import BatchSampler
from tests.support.chains import Float32, N

CHOOSERS = [
    [steps.Distribution(11)],
    [steps.TopK(20), steps.TopP(0.9), steps.Temperature(1.5), steps.Distribution(11)],
    [steps.XTC(0.5, 0.05, seed=11), steps.Distribution(11)],
    [steps.Mirostat(seed=11)],
    [steps.MirostatV2(seed=11)],
    [steps.AdaptiveP(0.3, seed=11)],
    [steps.Penalties(32, 1.3, 0.2, 0.2), steps.DRY(0.8), steps.Distribution(11)],
    [steps.Infill(), steps.Distribution(11)],
    [steps.Typical(0.9), steps.TopNSigma(2.0), steps.MinP(0.01), steps.Greedy()],
]


@pytest.mark.parametrize("chain", CHOOSERS, ids=lambda c: "-".join(type(s).__name__ for s in c))
class TestState:
    """What a chain remembers: its seed and its tokens."""

    def test_the_same_seed_gives_the_same_tokens(
        self, chain: list[steps.Step], model: Model, logits: Float32
    ) -> None:
        """Two samplers, one text."""
        first, second = (Sampler(chain=chain, model=model) for _ in range(2))
        assert [first.sample_logits(logits) for _ in range(30)] == [
            second.sample_logits(logits) for _ in range(30)
        ]

    def test_a_clone_goes_on_as_its_original(
        self, chain: list[steps.Step], model: Model, logits: Float32
    ) -> None:
        """Cloned in the middle, both continue alike (adaptive-p draws anew, as it says)."""
        if isinstance(chain[-1], steps.AdaptiveP):
            return
        original = Sampler(chain=chain, model=model)
        for _ in range(10):
            original.sample_logits(logits)
        two = original.clone()
        assert [original.sample_logits(logits) for _ in range(30)] == [
            two.sample_logits(logits) for _ in range(30)
        ]

    def test_reset_begins_again(
        self, chain: list[steps.Step], model: Model, logits: Float32
    ) -> None:
        """After reset() the tokens of the beginning come again."""
        sampler = Sampler(chain=chain, model=model)
        first = [sampler.sample_logits(logits) for _ in range(30)]
        sampler.reset()
        assert first == [sampler.sample_logits(logits) for _ in range(30)]


def test_another_seed_gives_other_tokens(model: Model, logits: Float32) -> None:
    """A test that equal seeds are equal would pass with the seed ignored."""
    draws = [
        [Sampler(seed=seed, model=model).sample_logits(logits) for _ in range(8)]
        for seed in range(5)
    ]
    assert len({tuple(draw) for draw in draws}) > 1


def test_a_random_seed_is_readable_and_repeats(model: Model, logits: Float32) -> None:
    """Without a seed one is drawn; with it the same tokens come again."""
    sampler = Sampler(model=model)
    again = Sampler(seed=sampler.seed, model=model)
    assert [sampler.sample_logits(logits) for _ in range(20)] == [
        again.sample_logits(logits) for _ in range(20)
    ]


@pytest.mark.parametrize(
    "chain", [[], [steps.TopK(1)], ["top_k"], [steps.Greedy], [steps.Step()], None, 5, "text"]
)
def test_no_chain(chain: Any, model: Model) -> None:
    """A chain is a list of steps, and its last one chooses."""
    if chain is None:
        with pytest.raises(ArgumentError):
            Sampler(chain=[steps.Greedy()], temperature=1.0)
        return
    with pytest.raises(ArgumentError):
        Sampler(chain=chain, model=model)


@pytest.mark.parametrize(
    "values", [np.full(N, -np.inf), np.full(N, np.nan), np.append(np.nan, np.full(N - 1, -np.inf))]
)
@pytest.mark.parametrize("given", [{}, {"temperature": 0}, {"mirostat": 2}, {"top_k": 0}], ids=str)
def test_no_candidate_is_left(values: Float32, given: dict[str, Any], model: Model) -> None:
    """Nothing but -inf or NaN is a SamplingError, which says which, not an arbitrary token."""
    with pytest.raises(SamplingError, match="NaN" if np.isnan(values[0]) else "no candidate"):
        Sampler(seed=1, **given).sample_logits(values, model)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize("chain", CHOOSERS, ids=lambda c: "-".join(type(s).__name__ for s in c))
def test_strange_logits(bad: float, chain: list[steps.Step], model: Model, logits: Float32) -> None:
    """NaN and infinities among the logits give a token or a SamplingError."""
    values = logits.copy()
    values[::3] = bad
    sampler = Sampler(chain=chain, model=model)
    for _ in range(5):
        with contextlib.suppress(SamplingError):
            assert 0 <= sampler.sample_logits(values) < N


@pytest.mark.parametrize("values", [[], [1.0], np.zeros(N + 1), np.zeros((2, N)), "text", None])
def test_logits_of_another_shape(values: Any, model: Model) -> None:
    """sample_logits wants one number for each token."""
    with pytest.raises(ArgumentError):
        Sampler().sample_logits(values, model)


@pytest.mark.parametrize("token", [-1, N, 2**40, 1.5, "a", None])
def test_no_token_to_accept(token: Any, model: Model) -> None:
    """A token is one of the vocabulary."""
    with pytest.raises(ArgumentError):
        Sampler(model=model).accept(token)


def test_a_sampler_belongs_to_one_model(model: Model, gemma: Model, logits: Float32) -> None:
    """Used with a second model's vocabulary it says so; without any, too."""
    sampler = Sampler(model=model)
    with pytest.raises(ArgumentError, match="another model"):
        sampler.sample_logits(logits, gemma)
    with pytest.raises(ArgumentError, match="no model"):
        Sampler().sample_logits(logits)
    with pytest.raises(ArgumentError, match="no model"):
        Sampler().accept(1)


def test_a_bias_for_a_token_outside_the_vocabulary(model: Model) -> None:
    """Known only when the vocabulary is."""
    with pytest.raises(ArgumentError, match=f"{N - 1}"):
        Sampler(logit_bias={N: 1.0}, model=model)


def test_a_forced_row_draws_nothing(model: Model, make_context: Callable[..., Context]) -> None:
    """It gets its token, of which its chain is told; the other rows' random numbers go on."""
    context = make_context(model, sequences=3)
    context.decode_batch([1, 2, 3], [0, 1, 2])
    expected = BatchSampler(context, [Sampler(seed=7, temperature=2, top_k=0) for _ in range(3)])
    rows = BatchSampler(context, [Sampler(seed=7, temperature=2, top_k=0) for _ in range(3)])
    first, second = expected.sample(), expected.sample()
    assert rows.sample(None, None, [None, 5, None]) == [first[0], 5, first[2]]
    assert rows.sample() == [second[0], first[1], second[2]]
    penalised = BatchSampler(
        context, [Sampler(temperature=0, repeat_penalty=1e6) for _ in range(3)]
    )
    best = BatchSampler(context, [Sampler(temperature=0) for _ in range(3)]).sample()
    assert penalised.sample(None, None, best) == best
    assert all(a != b for a, b in zip(penalised.sample(), best, strict=True))


def test_a_prompt_stays_in_a_clone_and_goes_with_reset(model: Model, logits: Float32) -> None:
    """A clone counts it, takes another one, and is not told of what the first is told."""
    best, second = np.argsort(-logits)[:2].tolist()
    sampler = Sampler(temperature=0, repeat_penalty=1e6, model=model)
    sampler.accept_prompt([best])
    clone = sampler.clone()
    assert second == clone.clone().sample_logits(logits)
    assert second == sampler.sample_logits(logits)
    assert second == clone.sample_logits(logits)
    sampler.reset()
    assert best == sampler.sample_logits(logits)
    clone.reset()
    clone.accept_prompt([best])
    assert second == clone.sample_logits(logits)


def test_a_prompt_is_not_of_the_grammar(model: Model, logits: Float32) -> None:
    """A sampler with a grammar may be told of any prompt; a wrong token is an error."""
    sampler = Sampler(temperature=0, grammar='root ::= "a"', repeat_penalty=1.5, model=model)
    sampler.accept_prompt(model.tokenize("Not in the grammar"))
    assert "a" == model.piece(sampler.sample_logits(logits))
    with pytest.raises(ArgumentError, match=str(model.vocab_size)):
        sampler.accept_prompt([model.vocab_size])
