"""What a GPU computes: the texts of the CPU, with every type of KV cells, by several engines."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Engine, InferenceEngine, Model, Sampler, device, memory_needed
from llcuda.native import library
from llcuda.native.batch_sampler import BatchSampler
from tests.support.greedy import check_greedy
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.gpu

MIB = 2**20
PROMPTS = ["Once upon a time", "One day, a fox", "The sun was high and Tom went to the lake", "A"]
STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went "
    "to the park with her mom. She saw a dog. The dog was sad. Lily gave the ball to the dog. "
)


def greedy(model: Model, prompt: str, count: int = 100, **parameters: Any) -> list[int]:
    """Return the most probable continuation."""
    sampler, tokens = Sampler(temperature=0), model.tokenize(prompt)
    with Context(model, ctx_size=512, **parameters) as context:
        context.decode(tokens)
        for _ in range(count):
            tokens.append(sampler.sample(context))
            context.decode(tokens[-1:])
    return tokens


def test_the_layers_are_on_the_gpu(gpu_demo: Model, cpu_demo: Model) -> None:
    """The backend's devices are there, and the driver's GPUs can be used."""
    check = device.check_gpu_compatibility()
    assert check["compatible"], check["reason"]
    assert library.why_no_gpu() is None
    with Context(gpu_demo, ctx_size=256) as context:
        before = device.free_memory()
        with Context(gpu_demo, ctx_size=2**16) as large:
            large.decode([5])
            taken = device.free_memory()
        context.decode([5])
    assert before is not None and taken is not None
    cell = 8 * (2 * 64) * 2 * 2  # layers, numbers of 2 heads, a key and a value, bytes
    assert before - taken >= 2**16 * cell


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_cpus(
    prompt: str, flash: bool, gpu_demo: Model, cpu_demo: Model
) -> None:
    """Token by token but for ties, with and without flash attention."""
    actual, expected = (greedy(m, prompt, flash_attention=flash) for m in (gpu_demo, cpu_demo))
    check_greedy(actual, expected, cpu_demo)


@pytest.mark.parametrize(("kv", "most"), [("f16", 0.15), ("q8_0", 0.15), ("q4_0", 0.6)])
def test_kv_types_with_flash_attention(
    kv: str, most: float, gpu_demo: Model, cpu_demo: Model
) -> None:
    """The story's log-probability, a token: what the cells are rounded to moves it by little."""
    tokens = cpu_demo.tokenize(STORY)
    scores = []
    for model, kind in ((cpu_demo, "f16"), (gpu_demo, kv)):
        options = {"type_k": kind, "type_v": kind, "flash_attention": True}
        with Context(model, ctx_size=512, **options) as context:
            scores.append(context.score(tokens))
    assert float(np.abs(scores[0] - scores[1]).mean()) < most


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0},
        {},
        {"top_k": 100, "min_p": 0.05, "top_p": 1.0},
        {"repeat_penalty": 1.3, "penalty_last_n": 8, "logit_bias": {7: 3.0}},
    ],
)
def test_tokens_chosen_on_the_gpu_are_those_chosen_on_the_cpu(
    asked: dict[str, Any], rows: int, gpu_demo: Model
) -> None:
    """The same tokens whether logits stay on the GPU or are copied, greedy and with a seed."""
    generated = []
    for stays in (False, True):
        options: Any = {"sequences": rows, "unified_kv": False, "device_logits": stays}
        with Context(gpu_demo, ctx_size=256, **options) as context:
            samplers = [Sampler(model=gpu_demo, **{"seed": i, **asked}) for i in range(rows)]
            for sampler in samplers:
                sampler.accept_prompt(range(5, 20))
            chooser, tokens, texts = (
                BatchSampler(context, samplers),
                [5 + i for i in range(rows)],
                [],
            )
            for _ in range(60):
                context.decode_batch(tokens, list(range(rows)))
                tokens = [int(token) for token in chooser.sample()]  # type: ignore[arg-type]
                texts.append(tokens)
            generated.append(texts)
    assert generated[0] == generated[1]


def test_several_engines_on_one_gpu(gpu_demo: Model) -> None:
    """Three at once, two of them on one model, give the texts that each gives alone."""
    asked: dict[str, Any] = {"max_tokens": 60, "temperature": 0}

    def texts(engine: Engine) -> list[str]:
        return [engine.submit(prompt, **asked).result(PATIENCE).text for prompt in PROMPTS]

    with Engine(gpu_demo, ctx_size=256) as engine:
        alone = texts(engine)
    with Model("demo", gpu_layers=99) as other:
        engines = [Engine(model, ctx_size=256) for model in (gpu_demo, gpu_demo, other)]
        generated: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda e=engine: generated.append(texts(e)))  # type: ignore[misc]
            for engine in engines
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for engine in engines:
            engine.close()
    assert generated == [alone] * 3


def test_memory_returns_when_all_is_closed(gpu_demo: Model) -> None:
    """By NVML, after each of five rounds as much is free as after the first."""
    free = []
    for _ in range(6):
        with InferenceEngine() as engine:
            engine.load_model("demo", gpu_layers=99, n_parallel=8, ctx_size=1024, silent=True)
            engine.batch_infer(PROMPTS * 4, max_tokens=30)
        free.append(device.free_memory() or 0)
    assert min(free[1:]) >= free[0] - 2 * MIB


def test_bf16_copies_are_counted_and_freed() -> None:
    """On Hopper memory_needed tells of them, and a closed model leaves none; elsewhere none is."""
    options: dict[str, Any] = {"gpu_layers": 99, "devices": ["CUDA0"]}
    plain, copied = (
        memory_needed("demo", ctx_size=256, bf16_copies=copies, **options)[0].model
        for copies in (False, True)
    )
    assert (copied > plain) == (device.survey().gpus[0]["compute_capability"] == "9.0")
    free = []
    for _ in range(3):
        Model("demo", bf16_copies=True, **options).close()
        free.append(device.free_memory() or 0)
    assert min(free[1:]) >= free[0] - 2 * MIB
