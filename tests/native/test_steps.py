from __future__ import annotations

import numpy as np
import pytest

from llcuda import Model, Sampler
from llcuda import samplers as steps
from tests.support.chains import Float32, N, after, kept, softmax


@pytest.mark.parametrize("k", [1, 5, N - 1, N, 10**9, 0])
def test_top_k_keeps_the_k_best(k: int, model: Model, logits: Float32) -> None:
    """0 and more than there are keep all."""
    expected = set(np.argsort(-logits)[: k or N].tolist())
    assert expected == kept(after(model, [steps.TopK(k)], logits))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_with_probability_p(
    p: float, model: Model, logits: Float32
) -> None:
    """The nucleus: by descending probability until the sum reaches p."""
    order = np.argsort(-logits)
    count = int(np.searchsorted(np.cumsum(softmax(logits)[order]), p)) + 1
    assert set(order[:count].tolist()) == kept(after(model, [steps.TopP(p)], logits))


@pytest.mark.parametrize("p", [0.05, 0.5, 1.0])
def test_min_p_keeps_what_is_probable_against_the_best(
    p: float, model: Model, logits: Float32
) -> None:
    """At least p times the best candidate's probability."""
    probabilities = softmax(logits)
    expected = set(np.flatnonzero(probabilities >= p * probabilities.max()).tolist())
    assert expected == kept(after(model, [steps.MinP(p)], logits))


@pytest.mark.parametrize("step", [steps.TopP(0.0, 7), steps.MinP(1.0, 7), steps.Typical(0.0, 7)])
def test_min_keep_is_the_least(step: steps.Step, model: Model, logits: Float32) -> None:
    """A filter never leaves fewer than min_keep."""
    assert 7 == len(kept(after(model, [step], logits)))


@pytest.mark.parametrize("p", [0.2, 0.6, 0.95])
def test_typical_keeps_what_is_near_the_entropy(p: float, model: Model, logits: Float32) -> None:
    """By distance of the surprise from the entropy until the sum exceeds p."""
    probabilities = softmax(logits)
    entropy = -(probabilities * np.log(probabilities)).sum()
    order = np.argsort(np.abs(-np.log(probabilities) - entropy), kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[order]), p, side="right")) + 1
    assert set(order[:count].tolist()) == kept(after(model, [steps.Typical(p)], logits))


@pytest.mark.parametrize("n", [0.5, 1.0, 3.0])
def test_top_n_sigma_keeps_what_is_within_n_deviations(
    n: float, model: Model, logits: Float32
) -> None:
    """Logits at least max - n times the standard deviation."""
    expected = set(np.flatnonzero(logits >= logits.max() - n * logits.std()).tolist())
    assert expected == kept(after(model, [steps.TopNSigma(n)], logits))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_temperature_divides(temperature: float, model: Model, logits: Float32) -> None:
    """Logit / temperature."""
    left = after(model, [steps.Temperature(temperature)], logits)
    np.testing.assert_allclose(left, logits / np.float32(temperature), rtol=1e-6)


def test_temperature_zero_leaves_the_best(model: Model, logits: Float32) -> None:
    """The others are forbidden."""
    left = after(model, [steps.Temperature(0.0)], logits)
    assert {int(logits.argmax())} == kept(left)


def test_temperature_with_spread_follows_the_entropy(model: Model, logits: Float32) -> None:
    """Between temperature - spread and + spread, by normalised entropy."""
    probabilities = softmax(logits)
    entropy = -(probabilities * np.log(probabilities)).sum() / np.log(N)
    expected = logits / (0.5 + 1.0 * entropy**1.5)
    left = after(model, [steps.Temperature(1.0, 0.5, 1.5)], logits)
    np.testing.assert_allclose(left, expected, rtol=1e-4)


def test_penalties_lower_what_was_accepted(model: Model, logits: Float32) -> None:
    """Repeat divides or multiplies by sign, frequency counts, presence subtracts once."""
    high, low = int(logits.argmax()), int(logits.argmin())
    expected = logits.copy()
    for token, count in ((high, 2), (low, 1)):
        value = expected[token]
        value = value * 1.5 if value <= 0 else value / 1.5
        expected[token] = value - count * 0.25 - 0.5
    step = steps.Penalties(64, 1.5, 0.25, 0.5)
    np.testing.assert_allclose(after(model, [step], logits, high, low, high), expected, rtol=1e-6)


def test_of_a_prompt_only_the_repetition_penalty_counts(model: Model, logits: Float32) -> None:
    """Frequency and presence count the text; a step of all three does each as it alone."""
    prompt, text = [3, 4, 5, 3], [5, 6]
    expected = logits.copy()
    for token in (3, 4, 5, 6):
        expected[token] *= 1.5 if expected[token] <= 0 else 1 / 1.5
    left = after(model, [steps.Penalties(64, 1.5)], logits, *text, prompt=prompt)
    np.testing.assert_allclose(left, expected, rtol=1e-6)
    expected[[5, 6]] -= 0.25 + 0.5
    left = after(model, [steps.Penalties(64, 1.5, 0.25, 0.5)], logits, *text, prompt=prompt)
    np.testing.assert_allclose(left, expected, rtol=1e-6)
    counts = [steps.Penalties(64, 1.0, 0.25, 0.5)]
    np.testing.assert_array_equal(
        after(model, counts, logits, *text), after(model, counts, logits, *text, prompt=prompt)
    )


def test_penalties_look_back_over_prompt_and_text(model: Model, logits: Float32) -> None:
    """The last last_n tokens of both, in their order; none with last_n=0."""
    left = after(model, [steps.Penalties(3, 2.0)], logits, 6, prompt=[3, 4, 5])
    assert [4, 5, 6] == np.flatnonzero(left != logits).tolist()
    left = after(model, [steps.Penalties(0, 2.0)], logits, 6, prompt=[3, 4, 5])
    np.testing.assert_array_equal(left, logits)


def test_penalties_forget_beyond_last_n(model: Model, logits: Float32) -> None:
    """Only the last last_n tokens count."""
    left = after(model, [steps.Penalties(1, presence=1.0)], logits, 3, 4)
    np.testing.assert_allclose(left, logits - (np.arange(N) == 4), rtol=1e-6)


def test_dry_lowers_the_continuation_of_a_repetition(model: Model, logits: Float32) -> None:
    """After 1 2 3 4 1 2 3, token 4 loses multiplier * base ** (3 - allowed_length)."""
    step = steps.DRY(1.0, 2.0, 2, 64, [])
    left = after(model, [step], logits, 11, 12, 13, 14, 11, 12, 13)
    np.testing.assert_allclose(left, logits - 2.0 * (np.arange(N) == 14), rtol=1e-5)
    left = after(model, [step], logits, 12, 13, prompt=[11, 12, 13, 14, 11])
    np.testing.assert_allclose(left, logits - 2.0 * (np.arange(N) == 14), rtol=1e-5)


def test_logit_bias_adds_and_forbids(model: Model, logits: Float32) -> None:
    """A number is added; -inf forbids."""
    left = after(model, [steps.LogitBias({3: 2.5, 5: -np.inf, 7: -1})], logits)
    expected = logits.copy()
    expected[[3, 7]] += np.float32([2.5, -1.0])
    expected[5] = -np.inf
    np.testing.assert_allclose(left, expected, rtol=1e-6)


def test_xtc_excludes_the_top_choices(model: Model, logits: Float32) -> None:
    """With probability 1, all above the threshold but the least of them go."""
    left = after(model, [steps.XTC(1.0, 0.1)], logits)
    probabilities = softmax(logits)
    above = [int(i) for i in np.argsort(-probabilities) if probabilities[i] >= 0.1]
    assert len(above) >= 2
    assert set(range(N)) - set(above[:-1]) == kept(left)


def test_greedy_takes_the_best(model: Model, logits: Float32) -> None:
    """The highest logit, whatever the seed."""
    assert int(logits.argmax()) == Sampler(temperature=0).sample_logits(logits, model)


@pytest.mark.parametrize(
    "chain",
    [
        [steps.Distribution(5)],
        [steps.TopK(8), steps.Distribution(5)],
        [steps.Temperature(2.0), steps.Distribution(5)],
    ],
    ids=str,
)
def test_draws_follow_the_distribution(
    chain: list[steps.Step], model: Model, logits: Float32
) -> None:
    """Chi-square of 4,000 draws over the tokens expected at least 5 times, at 5 deviations."""
    draws = 4000
    expected = draws * softmax(after(model, chain[:-1], logits))
    sampler = Sampler(chain=chain, model=model)
    counts = np.bincount([sampler.sample_logits(logits) for _ in range(draws)], minlength=N)
    assert 0 == counts[expected == 0].sum()
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], max(expected[~often].sum(), 1e-9))
    chi_square = ((observed - wanted) ** 2 / wanted).sum()
    degrees = len(wanted) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5
