"""A model over two GPUs, and an engine on each."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from llcuda import Engine, InferenceEngine, Model, detect_cuda, device, memory_needed
from llcuda.core import Device, DType, Tensor, get_device_count, get_device_properties
from llcuda.errors import ModelError
from llcuda.native import library
from tests.gpu.test_computing import PROMPTS, greedy
from tests.support.greedy import check_greedy
from tests.support.programs import run
from tests.support.waiting import PATIENCE

MIB = 2**20

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
            answers = [request.result(PATIENCE).tokens for request in requests]
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
            tokens_by_gpu[name] = [request.result(PATIENCE).tokens for request in requests]

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


def test_the_layers_are_divided() -> None:
    """By free memory, or by the shares that are asked for; one GPU can have all of them."""
    first, second = gpu_names()[:2]

    def weights(**parameters: Any) -> dict[str, int]:
        needed = memory_needed("demo", gpu_layers=99, ctx_size=256, **parameters)
        return {part.name: part.model for part in needed if part.kind == "gpu"}

    both = weights(devices=[first, second], split_mode="layer")
    assert both.keys() == {first, second}
    assert min(both.values()) > 0
    shares = weights(devices=[first, second], split_mode="layer", tensor_split=[3, 1])
    assert shares[first] > shares[second] > 0
    assert sum(both.values()) == sum(shares.values()) == weights(devices=[second])[second]


def test_load_model_over_two_gpus(cpu_demo: Model, capsys: pytest.CaptureFixture[str]) -> None:
    """All layers by the automatic settings, four texts at once, sampled and greedy."""
    with InferenceEngine() as engine:
        engine.load_model("demo", split_mode="layer", n_parallel=4, devices=gpu_names()[:2])
        assert f"GPU Layers: {cpu_demo.layer_count + 1}" in capsys.readouterr().out
        texts = engine.batch_infer(PROMPTS, max_tokens=40, temperature=0)
        for prompt, completion in zip(PROMPTS, texts, strict=True):
            begin = cpu_demo.tokenize(prompt)
            expected = greedy(cpu_demo, prompt, 40)[: len(begin) + len(completion.tokens)]
            check_greedy([*begin, *completion.tokens], expected, cpu_demo)
        asked: dict[str, Any] = {"max_tokens": 40, "seed": 7, "ignore_eos": True}
        sampled = [engine.infer(PROMPTS[0], **asked).tokens for _ in range(2)]
        assert sampled[0] == sampled[1]
        assert 40 == len(sampled[0])


def test_load_model_on_each_gpu(cpu_demo: Model) -> None:
    """The automatic settings keep to the GPU that is named; both engines answer at once."""
    asked: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
    names = gpu_names()[:2]
    with InferenceEngine() as first, InferenceEngine() as second:
        for engine, name in zip((first, second), names, strict=True):
            engine.load_model("demo", devices=[name], n_parallel=4, silent=True)
            assert [name] == list(engine.model.params.devices or ())
            assert cpu_demo.layer_count + 1 == engine.model.params.gpu_layers
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda e: e.batch_infer(PROMPTS, **asked), (first, second)))
        first.unload_model()
        again = second.batch_infer(PROMPTS, **asked)  # not harmed by the other's end
    for prompt, *completions in zip(PROMPTS, *answers, again, strict=True):
        begin, expected = cpu_demo.tokenize(prompt), greedy(cpu_demo, prompt, 40)
        for completion in completions:
            text = [*begin, *completion.tokens]
            check_greedy(text, expected[: len(text)], cpu_demo)


def test_memory_is_taken_on_the_gpu_that_is_named() -> None:
    """A large cache of an engine on the second GPU is no memory of the first."""
    names = gpu_names()[:2]
    with Model("demo", gpu_layers=99, devices=[names[1]]) as model:
        with Engine(model, ctx_size=256) as engine:
            engine.submit("Once", max_tokens=2).result(60)
        before = [device.free_memory(i) or 0 for i in range(2)]
        with Engine(model, ctx_size=2**16) as engine:
            engine.submit("Once", max_tokens=2).result(60)
            taken = [free - (device.free_memory(i) or 0) for i, free in enumerate(before)]
    cells = 8 * (2 * 64) * 2 * 2 * 2**16  # layers, numbers of 2 heads, a key and a value, bytes
    assert taken[1] >= cells
    assert taken[0] < cells / 4


def test_one_visible_gpu_is_the_one_that_is_named() -> None:
    """CUDA_VISIBLE_DEVICES leaves one GPU, which is then the first for every part of llcuda."""
    program = """
import json, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[1]
from llcuda import InferenceEngine, detect_cuda
from llcuda.core import get_device_count
from llcuda.native import library
names = [d.name for d in library.devices() if d.kind == "gpu"]
with InferenceEngine() as engine:
    engine.load_model("demo", silent=True)
    text = engine.infer("Once upon a time", max_tokens=5, temperature=0).text
print(json.dumps([names, len(detect_cuda()["gpus"]), get_device_count(), text]))
"""
    answers = []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[:2]
    for name in visible:
        result = run(program, name, timeout=300)
        assert 0 == result.returncode, result.stderr
        answers.append(json.loads(result.stdout.splitlines()[-1]))
    assert ["CUDA0"] == answers[0][0] == answers[1][0]
    assert answers[0][1:] == answers[1][1:]
    assert [1, 1] == answers[0][1:3]


def test_the_driver_and_cuda_count_the_same_gpus() -> None:
    found = detect_cuda()["gpus"]
    assert get_device_count() == len(found) == len(gpu_names())
    for index, gpu in enumerate(found):
        properties = get_device_properties(index)
        assert gpu["name"] == properties.name
        major, minor = properties.compute_capability_major, properties.compute_capability_minor
        assert gpu["compute_capability"] == f"{major}.{minor}"


def test_tensors_on_two_gpus() -> None:
    """A copy has the same values, a product stays on its GPU, and two GPUs do not mix."""
    values = np.random.default_rng(3).normal(0, 1, (64, 64)).astype(np.float32)
    first = Tensor.from_numpy(values, device=0)
    second = first.to(1)
    assert ["cuda:0", "cuda:1"] == [str(tensor.device) for tensor in (first, second)]
    assert np.array_equal(values, second.numpy())
    assert np.array_equal(values, second.to(0).numpy())
    products = [(tensor @ tensor) for tensor in (first, second)]
    assert ["cuda:0", "cuda:1"] == [str(product.device) for product in products]
    assert np.allclose(products[0].numpy(), products[1].numpy(), atol=0.05)
    with pytest.raises(RuntimeError, match="same device"):
        first @ second


def test_memory_of_tensors_is_the_gpus_own() -> None:
    """An allocation on the second GPU is seen there, and given back."""
    before = [Device.get_free_memory(i) for i in range(2)]
    tensor = Tensor.zeros([64 * MIB], dtype=DType.Float32, device=1)
    taken = [free - Device.get_free_memory(i) for i, free in enumerate(before)]
    assert taken[1] >= 256 * MIB - 2 * MIB
    assert taken[0] < 64 * MIB
    del tensor
    assert Device.get_free_memory(1) > before[1] - 64 * MIB
