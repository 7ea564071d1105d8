from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any

import pytest

from llcuda.engine.config import EngineParams
from llcuda.engine.request import RequestParams
from llcuda.errors import ArgumentError
from llcuda.keywords import given_params
from llcuda.params import ContextParams, ModelParams, SamplingParams

REFUSED: list[tuple[type, dict[str, Any]]] = [
    (ModelParams, {"gpu_layers": -1}),
    (ModelParams, {"gpu_layers": 1.5}),
    (ModelParams, {"gpu_layers": True}),
    (ModelParams, {"main_gpu": -1}),
    (ModelParams, {"split_mode": "diagonal"}),
    (ModelParams, {"split_mode": None}),
    (ModelParams, {"tensor_split": [-1.0]}),
    (ModelParams, {"tensor_split": [math.nan]}),
    (ModelParams, {"tensor_split": 3}),
    (ModelParams, {"devices": "CPU"}),
    (ModelParams, {"devices": 5}),
    (ModelParams, {"devices": [5]}),
    (ModelParams, {"mmap": 1}),
    (ModelParams, {"mlock": "yes"}),
    (ModelParams, {"overrides": {"": 1}}),
    (ModelParams, {"overrides": {"k" * 128: 1}}),
    (ModelParams, {"overrides": {"a\0b": 1}}),
    (ModelParams, {"overrides": {"k": "v" * 128}}),
    (ModelParams, {"overrides": {"k": "a\0b"}}),
    (ModelParams, {"overrides": {"k": "\ud800"}}),
    (ModelParams, {"overrides": {"\ud800": 1}}),
    (ModelParams, {"overrides": {"k": 2**63}}),
    (ModelParams, {"overrides": {"k": None}}),
    (ModelParams, {"overrides": {3: 1}}),
    (ModelParams, {"overrides": [1]}),
    (ContextParams, {"ctx_size": 0}),
    (ContextParams, {"ctx_size": 2**31}),
    (ContextParams, {"ctx_size": "4096"}),
    (ContextParams, {"ctx_size": 2**30, "sequences": 2, "batch_size": 8}),
    (ContextParams, {"sequences": 0}),
    (ContextParams, {"sequences": 257}),
    (ContextParams, {"batch_size": 0}),
    (ContextParams, {"batch_size": 2, "sequences": 3}),
    (ContextParams, {"ubatch_size": 0}),
    (ContextParams, {"outputs_max": -1}),
    (ContextParams, {"outputs_max": 1, "sequences": 2}),
    (ContextParams, {"threads": 0}),
    (ContextParams, {"threads": 513}),
    (ContextParams, {"threads_batch": 0}),
    (ContextParams, {"flash_attention": 2}),
    (ContextParams, {"flash_attention": "on"}),
    (ModelParams, {"bf16_to_f16": "auto"}),
    (ContextParams, {"cuda_graphs": True}),
    (ContextParams, {"cuda_graphs": "never"}),
    (ContextParams, {"type_k": "q2_k"}),
    (ContextParams, {"type_k": ["f16"]}),
    (ContextParams, {"type_v": "q8_0", "flash_attention": False}),
    (ContextParams, {"rope_scaling": "cubic"}),
    (ContextParams, {"rope_freq_base": -1.0}),
    (ContextParams, {"rope_freq_base": math.nan}),
    (ContextParams, {"rope_freq_scale": math.inf}),
    (ContextParams, {"yarn_orig_ctx": 1.5}),
    (ContextParams, {"pooling": "max"}),
    (ContextParams, {"attention": "sparse"}),
    (ContextParams, {"embeddings": 1}),
    (SamplingParams, {"temperature": -0.1}),
    (SamplingParams, {"temperature": math.nan}),
    (SamplingParams, {"temperature": math.inf}),
    (SamplingParams, {"temperature": "hot"}),
    (SamplingParams, {"top_p": 1.1}),
    (SamplingParams, {"top_p": -0.1}),
    (SamplingParams, {"min_p": 2}),
    (SamplingParams, {"typical_p": -1}),
    (SamplingParams, {"top_k": -1}),
    (SamplingParams, {"top_k": 1.0}),
    (SamplingParams, {"repeat_penalty": 0}),
    (SamplingParams, {"frequency_penalty": math.inf}),
    (SamplingParams, {"presence_penalty": None}),
    (SamplingParams, {"penalty_last_n": -1}),
    (SamplingParams, {"penalty_last_n": 2**31}),
    (SamplingParams, {"dry_multiplier": -1}),
    (SamplingParams, {"dry_base": 0.5}),  # which llama.cpp would ignore
    (SamplingParams, {"dry_breakers": "text"}),
    (SamplingParams, {"dry_breakers": [5]}),
    (SamplingParams, {"dry_breakers": ["a\0b"]}),
    (SamplingParams, {"xtc_probability": 1.5}),
    (SamplingParams, {"xtc_threshold": -1}),
    (SamplingParams, {"mirostat": 3}),
    (SamplingParams, {"adaptive_target": 2}),
    (SamplingParams, {"adaptive_decay": 1}),
    (SamplingParams, {"seed": -1}),
    (SamplingParams, {"seed": 2**32}),
    (SamplingParams, {"min_keep": -1}),
    (SamplingParams, {"logit_bias": {-1: 1.0}}),
    (SamplingParams, {"logit_bias": {1: math.nan}}),
    (SamplingParams, {"logit_bias": {1: math.inf}}),
    (SamplingParams, {"logit_bias": {1: 1e39}}),  # infinite in 32 bits
    (SamplingParams, {"logit_bias": {1: "x"}}),
    (SamplingParams, {"logit_bias": {"1": 1.0}}),
    (SamplingParams, {"logit_bias": [1]}),
    (SamplingParams, {"grammar": 5}),
    (SamplingParams, {"grammar": b"root"}),
    (SamplingParams, {"grammar_root": None}),
]

# Each numeric field -> its least and its largest value.
RANGES: dict[str, tuple[float, float]] = {
    "repeat_penalty": (1e-6, 1e6), "frequency_penalty": (-1e6, 1e6),
    "presence_penalty": (-1e6, 1e6), "penalty_last_n": (0, 2**20), "dry_multiplier": (0, 1e6),
    "dry_base": (1, 1e6), "dry_allowed_length": (0, 2**31 - 1), "dry_last_n": (0, 2**20),
    "top_n_sigma": (-1e6, 1e6), "top_k": (0, 2**31 - 1), "typical_p": (0, 1), "top_p": (0, 1),
    "min_p": (0, 1), "xtc_probability": (0, 1), "xtc_threshold": (0, 1), "temperature": (0, 1e6),
    "dynatemp_range": (0, 1e6), "dynatemp_exponent": (0, 1e6), "mirostat": (0, 2),
    "mirostat_tau": (0, 1e6), "mirostat_eta": (0, 1e6), "adaptive_target": (-1, 1),
    "adaptive_decay": (0, 0.99), "min_keep": (0, 2**31 - 1), "seed": (0, 2**32 - 2),
}  # fmt: skip


def test_every_numeric_field_has_a_range() -> None:
    """A new field fails here until the table above names its range."""
    fields = dataclasses.fields(SamplingParams)
    assert {f.name for f in fields if f.type in ("int", "float", "int | None")} == RANGES.keys()


@pytest.mark.parametrize("field", RANGES)
def test_a_number_is_refused_beyond_its_range(field: str) -> None:
    """Both ends are values, what lies beyond them is none, nor is what is no number."""
    low, high = RANGES[field]
    for value in (low, high):
        assert value == getattr(SamplingParams(**{field: value}), field)
    whole = type(getattr(SamplingParams(), field)) is not float
    beyond = (low - 1, high + 1) if whole else (math.nextafter(low, -math.inf), high * 1.001)
    for wrong in (*beyond, math.nan, math.inf, -math.inf, True, "1", *([low + 0.5] * whole)):
        with pytest.raises(ArgumentError) as error:
            SamplingParams(**{field: wrong})
        assert field == error.value.parameter


@pytest.mark.parametrize(("kind", "given"), REFUSED, ids=lambda value: str(value)[-60:])
def test_a_value_out_of_bounds_is_named(kind: type, given: dict[str, Any]) -> None:
    """Each is an ArgumentError that names the parameter, and whose message begins with it."""
    with pytest.raises(ArgumentError) as caught:
        kind(**given)
    parameter = str(caught.value.parameter)
    assert parameter.partition("[")[0] in given
    assert str(caught.value).startswith(parameter)


@pytest.mark.parametrize("kind", [ModelParams, ContextParams, SamplingParams])
def test_an_unknown_keyword_is_a_type_error(kind: type) -> None:
    """Nothing swallows a typing error."""
    with pytest.raises(TypeError, match="temprature"):
        kind(temprature=1)


@pytest.mark.parametrize("kind", [ModelParams, ContextParams, SamplingParams])
def test_parameters_are_frozen_and_equal_by_value(kind: type) -> None:
    """They can be shared and compared."""
    first = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), first, 1)
    assert kind() == kind()


@pytest.mark.parametrize(
    "kind", [ModelParams, ContextParams, SamplingParams, EngineParams, RequestParams]
)
def test_every_field_is_in_the_docstring(kind: type) -> None:
    """A parameter that nobody can read about is none."""
    text = inspect.getdoc(kind) or ""  # Python 3.13 removes the indentation itself
    assert [] == [f.name for f in dataclasses.fields(kind) if f"\n    {f.name}: " not in text]


def test_the_random_seed_of_llama_cpp_is_no_seed() -> None:
    """2**32 - 1 would draw anew each time, so it is refused; the one before is a seed."""
    assert SamplingParams(seed=2**32 - 2).seed == 2**32 - 2
    with pytest.raises(ArgumentError):
        SamplingParams(seed=2**32 - 1)


@pytest.mark.parametrize("wrong", [{}, 5, SamplingParams()])
def test_params_of_another_type(wrong: object) -> None:
    """params= takes an object of its own type only."""
    with pytest.raises(ArgumentError, match="expected ContextParams"):
        given_params(ContextParams, wrong, {})  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (ModelParams, {"gpu_layers": -1}, "2,147,483,647; 99 = all layers, 0 = the CPU"),
        (ContextParams, {"threads": -1}, "from 1 to 512; leave it out for the default"),
        (ContextParams, {"flash_attention": "auto"}, "; None = where the device has it"),
        (EngineParams, {"cache_size": -1}, "at least 1; None = n_parallel x ctx_size"),
        (SamplingParams, {"seed": -1}, "from 0 to 4,294,967,294; None = at random"),
        (SamplingParams, {"top_k": -1}, "0 turns it off"),
        (SamplingParams, {"top_p": None}, "expected a number from 0 to 1; 1 turns it off"),
        (SamplingParams, {"penalty_last_n": -1}, "give ctx_size to count the whole text"),
        (SamplingParams, {"repeat_penalty": 0}, "from 0.000001 to 1,000,000; 1 turns it off"),
        (SamplingParams, {"adaptive_decay": 1}, "from 0 to 0.99"),
        (SamplingParams, {"logit_bias": {1: "x"}}, "logit_bias[1]='x': expected a number"),
        (RequestParams, {"max_tokens": None}, "out of a chat, give ctx_size's number elsewhere"),
        (RequestParams, {"timeout": -1}, "expected a number at least 0; None = no limit"),
    ],
)  # fmt: skip
def test_peers_values_get_a_remedy(kind: type, given: dict[str, Any], says: str) -> None:
    """-1 and None of other libraries: the message says what stands for them, in plain numbers."""
    with pytest.raises(ArgumentError, match=re.escape(says) + "$") as caught:
        kind(**given)
    assert str(caught.value).startswith(next(iter(given)))


def test_a_long_value_is_cut() -> None:
    """A message does not repeat a whole list or text."""
    with pytest.raises(
        ArgumentError, match=r"^devices='x+\.\.\.: expected a list of texts$"
    ) as caught:
        ModelParams(devices="x" * 10_000)
    assert len(str(caught.value)) < 300
