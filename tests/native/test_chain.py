"""The way of each sampling parameter: from its keyword to its step, and to what is drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llcuda import Model, Sampler
from llcuda import samplers as steps
from llcuda.params import SamplingParams
from tests.support.chains import Float32

# A plain draw, and few candidates, so that texts repeat themselves.
PLAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "seed": 11}
FEW: dict[str, Any] = {"top_k": 4}
DRY: dict[str, Any] = {**FEW, "dry_multiplier": 1.0}
XTC: dict[str, Any] = {"xtc_probability": 0.5}
GRAMMAR = "root ::= [a-z]*\nother ::= [0-9]*"

# Field -> a value that is not its default, the keywords it needs beside it, and its step.
FIELDS: dict[str, tuple[Any, dict[str, Any], steps.Step]] = {
    "logit_bias": ({3: 20.0}, {}, steps.LogitBias({3: 20.0})),
    "grammar": (GRAMMAR, {}, steps.Grammar(GRAMMAR)),
    "grammar_root": ("other", {"grammar": GRAMMAR}, steps.Grammar(GRAMMAR, "other")),
    "repeat_penalty": (1.5, {}, steps.Penalties(repeat=1.5)),
    "frequency_penalty": (0.5, {}, steps.Penalties(frequency=0.5)),
    "presence_penalty": (2.5, {}, steps.Penalties(presence=2.5)),
    "penalty_last_n": (1, {"presence_penalty": 2.5}, steps.Penalties(1, presence=2.5)),
    "dry_multiplier": (1.0, FEW, steps.DRY(1.0)),
    "dry_base": (4.0, DRY, steps.DRY(1.0, base=4.0)),
    "dry_allowed_length": (1, DRY, steps.DRY(1.0, allowed_length=1)),
    "dry_last_n": (8, DRY, steps.DRY(1.0, last_n=8)),
    "dry_breakers": (["g"], DRY, steps.DRY(1.0, breakers=["g"])),
    "top_n_sigma": (1.0, {}, steps.TopNSigma(1.0)),
    "top_k": (3, {}, steps.TopK(3)),
    "typical_p": (0.3, {}, steps.Typical(0.3)),
    "top_p": (0.3, {}, steps.TopP(0.3)),
    "min_p": (0.3, {}, steps.MinP(0.3)),
    "xtc_probability": (0.5, {}, steps.XTC(0.5, seed=11)),
    "xtc_threshold": (0.02, XTC, steps.XTC(0.5, 0.02, seed=11)),
    "temperature": (2.0, {}, steps.Temperature(2.0)),
    "dynatemp_range": (0.75, {}, steps.Temperature(1.0, 0.75)),
    "dynatemp_exponent": (3.0, {"dynatemp_range": 0.75}, steps.Temperature(1.0, 0.75, 3.0)),
    "mirostat": (2, {}, steps.MirostatV2(seed=11)),
    "mirostat_tau": (1.0, {"mirostat": 2}, steps.MirostatV2(1.0, seed=11)),
    "mirostat_eta": (0.9, {"mirostat": 2}, steps.MirostatV2(eta=0.9, seed=11)),
    "adaptive_target": (0.05, {}, steps.AdaptiveP(0.05, seed=11)),
    "adaptive_decay": (0.1, {"adaptive_target": 0.05}, steps.AdaptiveP(0.05, 0.1, seed=11)),
    "seed": (12, {}, steps.Distribution(12)),
    "min_keep": (5, {"top_p": 0.0}, steps.TopP(0.0, 5)),
}


def draws(model: Model, logits: Float32, keywords: dict[str, Any]) -> list[int]:
    """Return 60 tokens that a sampler draws from the same logits."""
    sampler = Sampler(model=model, **keywords)
    return [sampler.sample_logits(logits) for _ in range(60)]


def test_every_field_has_a_row() -> None:
    """A new field fails here until the table above moves it."""
    assert {field.name for field in dataclasses.fields(SamplingParams)} == FIELDS.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_a_keyword_reaches_its_step(field: str) -> None:
    """The step has the value, and only because the keyword was given."""
    value, beside, step = FIELDS[field]
    without = {**PLAIN, **beside}
    assert step in Sampler(**{**without, field: value}).chain
    assert step not in Sampler(**without).chain


@pytest.mark.parametrize("field", FIELDS)
def test_a_keyword_changes_what_is_drawn(field: str, model: Model, logits: Float32) -> None:
    """From the same logits, with the same seed, other tokens come."""
    value, beside, _ = FIELDS[field]
    without = {**PLAIN, **beside}
    assert draws(model, logits, {**without, field: value}) != draws(model, logits, without)


TUNED: dict[str, Any] = {
    "logit_bias": {3: -1.5}, "grammar": GRAMMAR, "grammar_root": "other",
    "repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3, "penalty_last_n": 32,
    "dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3, "dry_last_n": 64,
    "dry_breakers": ["."], "top_n_sigma": 2.0, "top_k": 20, "typical_p": 0.9, "top_p": 0.8,
    "min_p": 0.05, "xtc_probability": 0.4, "xtc_threshold": 0.2, "temperature": 1.5,
    "dynatemp_range": 0.5, "dynatemp_exponent": 2.0, "mirostat_tau": 4.0, "mirostat_eta": 0.2,
    "adaptive_decay": 0.8, "seed": 5, "min_keep": 2,
}  # fmt: skip
FIRST: list[steps.Step] = [
    steps.LogitBias({3: -1.5}),
    steps.Grammar(GRAMMAR, "other"),
    steps.Penalties(32, 1.1, 0.2, 0.3),
    steps.DRY(0.8, 1.5, 3, 64, ["."]),
]
FILTERS: list[steps.Step] = [
    steps.TopNSigma(2.0),
    steps.TopK(20),
    steps.Typical(0.9, 2),
    steps.TopP(0.8, 2),
    steps.MinP(0.05, 2),
    steps.XTC(0.4, 0.2, 2, 5),
]
TEMPERATURE = steps.Temperature(1.5, 0.5, 2.0)


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ({}, [*FILTERS, TEMPERATURE, steps.Distribution(5)]),
        ({"adaptive_target": 0.3}, [*FILTERS, TEMPERATURE, steps.AdaptiveP(0.3, 0.8, 5)]),
        ({"mirostat": 1}, [TEMPERATURE, steps.Mirostat(4.0, 0.2, seed=5)]),
        ({"mirostat": 2}, [TEMPERATURE, steps.MirostatV2(4.0, 0.2, 5)]),
        ({"temperature": 0}, [steps.Greedy()]),
    ],
    ids=repr,
)
def test_parameters_become_a_chain(given: dict[str, Any], after: list[steps.Step]) -> None:
    """All steps in their order; Mirostat replaces the filters, temperature=0 the draw too."""
    assert Sampler(**{**TUNED, **given}).chain == [*FIRST, *after]


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_draws_otherwise(version: int, model: Model, logits: Float32) -> None:
    """Neither version draws what a plain sampler or the other one draws."""
    texts = [draws(model, logits, {**PLAIN, "mirostat": other}) for other in (0, 1, 2)]
    chosen = texts.pop(version)
    assert chosen not in texts


@pytest.mark.parametrize(
    ("name", "values", "beside"),
    [
        ("mirostat_tau", (1.0, 5.0), {"mirostat": 1}),
        ("mirostat_eta", (0.1, 0.9), {"mirostat": 1}),
        ("top_n_sigma", (1.0, 2.0), {}),
        ("typical_p", (0.3, 0.9), {}),
        ("min_p", (0.05, 0.3), {}),
        ("xtc_probability", (0.5, 0.9), {}),
        ("adaptive_target", (0.05, 0.5), {}),
        ("dynatemp_range", (0.1, 0.75), {}),
        ("dry_multiplier", (0.8, 3.0), FEW),
    ],
)
def test_two_values_draw_two_texts(
    name: str, values: tuple[float, float], beside: dict[str, Any], model: Model, logits: Float32
) -> None:
    """The sampler has the value itself, not only the step."""
    first, second = (draws(model, logits, {**PLAIN, **beside, name: value}) for value in values)
    assert first != second
