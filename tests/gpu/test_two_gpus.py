"""A model over two GPUs, and an engine on each."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from llcuda import Engine, Model
from llcuda.errors import ModelError
from llcuda.native import library
from tests.gpu.test_computing import PROMPTS, greedy
from tests.support.greedy import check_greedy

pytestmark = [pytest.mark.gpu, pytest.mark.gpu2]


def gpu_names() -> list[str]:
    """Return the names of the GPUs."""
    return [device.name for device in library.devices() if device.kind == "gpu"]


@pytest.mark.parametrize(
    "split",
    [
        {"split_mode": "layer"},
        {"split_mode": "layer", "tensor_split": [3, 1]},
        {"split_mode": "tensor"},
        {"split_mode": "none", "main_gpu": 1},
    ],
)
def test_a_model_over_two_gpus(split: dict[str, Any], cpu_demo: Model) -> None:
    """The CPU's greedy texts, by a context and by an engine with four texts at once."""
    devices = gpu_names()[:2]
    expected = [greedy(cpu_demo, prompt, 40) for prompt in PROMPTS]
    with Model("demo", gpu_layers=99, devices=devices, **split) as model:
        for prompt, text in zip(PROMPTS, expected, strict=True):
            check_greedy(greedy(model, prompt, 40), text, cpu_demo)
        with Engine(model, ctx_size=256, n_parallel=4) as engine:
            asked: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
            requests = [engine.submit(prompt, **asked) for prompt in PROMPTS]
            answers = [request.result(120).tokens for request in requests]
    for prompt, answer, text in zip(PROMPTS, answers, expected, strict=True):
        actual = [*cpu_demo.tokenize(prompt), *answer]
        check_greedy(actual, text[: len(actual)], cpu_demo)


def test_split_by_rows_is_refused() -> None:
    """llama.cpp's CUDA backend has "tensor" in its place, and says that it lacks this one."""
    with pytest.raises(ModelError, match="split buffers"):
        Model("demo", gpu_layers=99, split_mode="row", devices=gpu_names()[:2])


def test_an_engine_on_each_gpu(cpu_demo: Model) -> None:
    """Two models, two engines, two threads: each gives the CPU's greedy texts."""
    asked: dict[str, Any] = {"max_tokens": 60, "temperature": 0}
    tokens_by_gpu: dict[str, list[list[int]]] = {}

    def compute(name: str) -> None:
        with (
            Model("demo", gpu_layers=99, devices=[name]) as model,
            Engine(model, ctx_size=256, n_parallel=2) as engine,
        ):
            requests = [engine.submit(prompt, **asked) for prompt in PROMPTS]
            tokens_by_gpu[name] = [request.result(120).tokens for request in requests]

    threads = [threading.Thread(target=compute, args=[name]) for name in gpu_names()[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tokens_by_gpu) == gpu_names()[:2]
    for prompt, *answers in zip(PROMPTS, *tokens_by_gpu.values(), strict=True):
        expected, begin = greedy(cpu_demo, prompt, 60), cpu_demo.tokenize(prompt)
        for answer in answers:
            text = [*begin, *answer]
            check_greedy(text, expected[: len(text)], cpu_demo)
