"""Logits that stay on the device: here the CPU plays it, which computes but reduces nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Engine, Model, Sampler
from llcuda.errors import ArgumentError, NoOutputError
from llcuda.native.batch_sampler import BatchSampler
from tests.support.waiting import ENDLESS, PATIENCE

PROMPTS = ["Once upon a time", "One day, a fox", "The sun was high and Tom went to the lake", "A"]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """The demo model, on the CPU."""
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


def test_rows_are_those_that_are_copied(model: Model) -> None:
    """Logits, log-probabilities and sampled tokens equal those of a context that copies."""
    outputs: list[Any] = []
    for stays in (False, True):
        with Context(model, ctx_size=256, sequences=3, device_logits=stays) as context:
            samplers = [Sampler(seed=i, model=model, repeat_penalty=1.1) for i in range(3)]
            rows, tokens, texts = BatchSampler(context, samplers), [5, 6, 7], []
            for _ in range(20):
                context.decode_batch(tokens, [0, 1, 2])
                texts.append(tokens := rows.sample())  # type: ignore[assignment]
            outputs.append((texts, context.top_logprobs(3), np.array(context.logits(1))))
    assert outputs[0][:2] == outputs[1][:2]
    np.testing.assert_array_equal(outputs[0][2], outputs[1][2])


def test_only_the_last_micro_batch_can_be_read(model: Model) -> None:
    """Rows that a later micro-batch has overwritten are an error that says so, not other logits."""
    tokens = model.tokenize(PROMPTS[2])
    with (
        Context(model, ctx_size=256, ubatch_size=4, device_logits=True) as kept,
        Context(model, ctx_size=256, ubatch_size=4) as copied,
    ):
        for context in (kept, copied):
            context.decode(tokens, logits="all")
        np.testing.assert_array_equal(kept.logits(-1), copied.logits(-1))
        with pytest.raises(NoOutputError):
            kept.logits(0)
        kept.decode([5])
        assert kept.logits().shape == (model.vocab_size,)


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_an_engine_gives_the_same_texts(model: Model, n_parallel: int) -> None:
    """Prompts that end in a decode step, tokens delivered a step later: the same completions."""
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "stop": ["Lily", " the "]}
    outputs = []
    for stays in (False, True):
        with Engine(model, ctx_size=256, n_parallel=n_parallel, device_logits=stays) as engine:
            requests = [engine.submit(prompt, logprobs=1, **asked) for prompt in PROMPTS * 2]
            done = [request.result(PATIENCE) for request in requests]
            streams = ["".join(engine.submit(prompt, **asked)) for prompt in PROMPTS]
            outputs.append([(d.text, d.tokens, d.finish_reason) for d in done] + streams)
            assert all(d.prefill_seconds > 0 for d in done)
    assert outputs[0] == outputs[1]


def test_texts_join_while_others_run(model: Model) -> None:
    """A text that comes later decodes in the same steps as those that run already."""
    rows: list[int] = []
    with Engine(
        model,
        ctx_size=512,
        n_parallel=4,
        device_logits=True,
        on_step=lambda record: rows.append(record.rows),
    ) as engine:
        long = engine.submit(PROMPTS[0], **ENDLESS)
        next(stream := iter(long))
        asked: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True}
        with engine.loop.hold():
            joining = [engine.submit(prompt, **asked) for prompt in PROMPTS[1:]]
        assert [len(request.result(PATIENCE).tokens) for request in joining] == [20] * 3
        assert not long.done
        assert max(rows) == 4
        stream.close()  # type: ignore[attr-defined]


def test_an_engine_echoes_what_it_can_hold(model: Model) -> None:
    """Scores of a prompt longer than the rows of logits, with other texts beside it."""
    prompt = " ".join(PROMPTS * 3)
    outputs = []
    for stays in (False, True):
        with Engine(model, ctx_size=256, n_parallel=2, device_logits=stays) as engine:
            beside = engine.submit("Once", max_tokens=60, ignore_eos=True)
            done = engine.submit(prompt, max_tokens=1, echo=True, temperature=0).result(PATIENCE)
            assert len(beside.result(PATIENCE).tokens) == 60
            assert done.prompt_logprobs is not None
            outputs.append([report.logprob for report in done.prompt_logprobs])
    assert len(outputs[0]) == len(model.tokenize(prompt)) - 1
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-2)


def test_masks_forbid_tokens(model: Model) -> None:
    """A mask's bit says whether a token may be chosen; another row is not touched by it."""
    words = (model.vocab_size + 31) // 32
    mask = np.zeros(words, np.uint32)
    mask[3] = 0b1010
    with Context(model, ctx_size=256, sequences=2, device_logits=True) as context:
        context.decode_batch([5, 6], [0, 1])
        free = Sampler(temperature=0, model=model)
        expected = free.sample(context, 1)
        rows = BatchSampler(context, [Sampler(temperature=0, model=model), free])
        chosen = rows.sample(masks=[mask, None])
        logits = context.logits(0)
        assert chosen == [max((97, 99), key=lambda token: logits[token]), expected]
        nothing = rows.sample(masks=[np.zeros(words, np.uint32), None])
        assert isinstance(nothing[0], Exception)
        assert nothing[1] == expected
        assert rows.sample()[0] == int(np.argmax(logits))
        with pytest.raises(ArgumentError, match="expected"):
            rows.sample(masks=[mask[:-1], None])


def test_speculation_needs_copied_logits(model: Model) -> None:
    """Both together are refused."""
    with pytest.raises(ArgumentError, match="speculation"):
        Engine(model, ctx_size=256, speculation=4, device_logits=True)


def test_recurrent_models_copy_their_logits(model_files: dict[str, Path]) -> None:
    """Their states cannot be moved: refused for several texts, right for one."""
    with Model(model_files["mamba"], gpu_layers=0) as mamba:
        with pytest.raises(ArgumentError, match="cannot be moved"):
            Engine(mamba, ctx_size=256, n_parallel=3, device_logits=True)
        outputs = []
        for stays in (False, True):
            with Engine(mamba, ctx_size=256, device_logits=stays) as engine:
                asked: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
                outputs.append(
                    [engine.submit([10, 20, i], **asked).result(PATIENCE).tokens for i in (5, 6)]
                )
        assert outputs[0] == outputs[1]
