"""Tokens drawn by the GPU: their distribution, and what masks forbid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llcuda import Context, Engine, Model, Sampler
from llcuda.native.batch_sampler import BatchSampler
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.gpu

ROWS = 64
DRAWS = 100_000
Float64 = npt.NDArray[np.float64]


@pytest.fixture
def context(gpu_demo: Model) -> Iterator[Context]:
    """As many rows of logits as a batch of 64 texts has, all alike."""
    with Context(
        gpu_demo, ctx_size=256, sequences=ROWS, unified_kv=False, device_logits=True
    ) as opened:
        opened.decode_batch([5] * ROWS, list(range(ROWS)))
        yield opened


def expected_shares(logits: Float64, asked: dict[str, Any]) -> dict[int, float]:
    """Return each token's probability by the definitions: top_k, top_p, min_p, temperature."""
    logits = logits.copy()
    for token, bias in asked.get("logit_bias", {}).items():
        logits[token] += bias
    order = np.argsort(-logits, kind="stable")[: asked["top_k"] or None]
    weights = np.exp(logits[order] - logits[order[0]])
    if asked["top_p"] < 1:
        cut = int(np.searchsorted(np.cumsum(weights / weights.sum()), asked["top_p"])) + 1
        order = order[:cut]
    if min_p := asked.get("min_p"):
        order = order[logits[order] >= logits[order[0]] + math.log(min_p)]
    weights = np.exp((logits[order] - logits[order[0]]) / asked["temperature"])
    return dict(zip(order.tolist(), (weights / weights.sum()).tolist(), strict=True))


@pytest.mark.parametrize(
    "asked",
    [
        {"top_k": 40, "top_p": 0.9, "temperature": 0.7},
        {"top_k": 0, "top_p": 0.95, "temperature": 1.3},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.02, "temperature": 1.0},
        {"top_k": 0, "top_p": 1.0, "temperature": 1.0},
        {"top_k": 40, "top_p": 1.0, "temperature": 1.0, "logit_bias": {7: 8.0, 11: 9.0}},
        {"top_k": 0, "top_p": 0.95, "temperature": 1.0, "logit_bias": {7: 8.0, 11: 9.0}},
    ],
)
def test_draws_follow_the_softmax(asked: dict[str, Any], context: Context, gpu_demo: Model) -> None:
    """Chi-square over 100,000 draws: within 4 standard deviations, and nothing is drawn outside."""
    assert context.samples_on_device
    shares = expected_shares(np.array(context.logits(0), dtype=np.float64), asked)
    rows = BatchSampler(
        context, [Sampler(seed=1000 + i, model=gpu_demo, **asked) for i in range(ROWS)]
    )
    draws = [rows.sample() for _ in range(-(-DRAWS // ROWS))]
    counts = np.bincount(np.array(draws, dtype=np.int64).ravel(), minlength=gpu_demo.vocab_size)
    total = counts.sum()
    assert counts[list(shares)].sum() == total
    large = {token: share * total for token, share in shares.items() if share * total >= 20}
    # The rarest together, as one more cell.
    rest = total - sum(large.values())
    terms = [(counts[token] - share) ** 2 / share for token, share in large.items()]
    if rest >= 20:
        terms.append((total - counts[list(large)].sum() - rest) ** 2 / rest)
    freedom = max(len(terms) - 1, 1)
    assert abs(sum(terms) - freedom) / math.sqrt(2 * freedom) < 4


@pytest.mark.sanitizer
def test_masks_forbid_tokens(context: Context, gpu_demo: Model) -> None:
    """A row's mask holds for its row only; where it forbids all, that row is an error."""
    mask = np.zeros((gpu_demo.vocab_size + 31) // 32, np.uint32)
    mask[3] = 0b1010
    rows = BatchSampler(context, [Sampler(temperature=0, model=gpu_demo) for _ in range(ROWS)])
    free = rows.sample()
    logits = np.array(context.logits(0))
    best = 97 if logits[97] > logits[99] else 99
    masks = [mask, None] * (ROWS // 2)
    assert rows.sample(masks=masks) == [best, free[1]] * (ROWS // 2)
    tokens = rows.sample(masks=[mask * 0, *masks[1:]])
    assert isinstance(tokens[0], Exception)
    assert tokens[1:] == rows.sample(masks=masks)[1:]


def test_a_seed_gives_its_text_beside_any_others(gpu_demo: Model) -> None:
    """Row by row the same tokens, whatever the other rows are asked for."""
    options: Any = {"ctx_size": 256, "sequences": ROWS, "unified_kv": False, "device_logits": True}
    asked: Any = {"seed": 7, "top_k": 0, "top_p": 0.9, "model": gpu_demo}
    texts = []
    with Context(gpu_demo, **options) as context:
        for others in ({"top_k": 40}, {"temperature": 0.0}, {"top_k": 0, "repeat_penalty": 1.2}):
            context.memory.clear()
            samplers = [Sampler(model=gpu_demo, **others) for _ in range(ROWS - 1)]
            rows, text = BatchSampler(context, [Sampler(**asked), *samplers]), [5] * ROWS
            for _ in range(30):
                context.decode_batch(text, list(range(ROWS)))
                text = [5 if isinstance(token, Exception) else token for token in rows.sample()]
                texts.append(text[0])
    assert texts[:30] == texts[30:60] == texts[60:]


def test_functions_over_logits_leave_the_other_rows_alone(gpu_demo: Model) -> None:
    """Their row is sampled on the host, with a mask too; the others are as before."""
    word = gpu_demo.tokenize(" ball", add_special=False)[0]

    def only(tokens: Any, logits: Any) -> None:
        logits[:] = -np.inf
        logits[word] = 0

    asked: Any = {"max_tokens": 12, "ignore_eos": True}
    texts = []
    for changed in ({}, {"logits_processor": only, "min_tokens": 6}):
        # A new engine each time: a cached prefix would change the shapes, and so the rounding.
        with Engine(gpu_demo, n_parallel=4, ctx_size=256) as engine:
            with engine.loop.hold():
                requests = [engine.submit("Once", seed=i, **asked) for i in range(3)]
                own = engine.submit("Once", seed=3, **asked, **changed)
            texts.append([request.result(PATIENCE).tokens for request in requests])
            assert engine.context.samples_on_device
            last = own.result(PATIENCE).tokens
    assert last == [word] * 12
    assert texts[0] == texts[1]


def test_logits_of_the_cpu_are_sampled_there(cpu_demo: Model) -> None:
    """A CPU beside a GPU computes in pinned memory, which is CUDA's by its type."""
    with Model("demo", gpu_layers=0) as beside:
        texts = []
        for model, stays in ((cpu_demo, False), (beside, True)):
            with Context(model, ctx_size=256, sequences=3, device_logits=stays) as context:
                rows = BatchSampler(context, [Sampler(seed=i, model=model) for i in range(3)])
                tokens, text = [5, 6, 7], []
                for _ in range(20):
                    context.decode_batch(tokens, [0, 1, 2])
                    text.append(tokens := rows.sample())  # type: ignore[assignment]
                assert not context.samples_on_device
                texts.append(text)
    assert texts[0] == texts[1]
