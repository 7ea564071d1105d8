"""Changes of the KV cache that fail: what cannot be finished is forgotten, and fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda import Adapter, Context, Engine, Model, Sampler
from llcuda.engine.metrics import StepRecord
from llcuda.engine.speculation import Drafter
from llcuda.errors import ArgumentError, NoRoomError, UnsupportedError
from tests.support.waiting import ENDLESS, PATIENCE, eventually

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
EXACT: dict[str, Any] = {"ctx_size": 64, "threads": 1, "flash_attention": False}


class FailingCall:
    """Raises UnsupportedError for some calls of a function, and counts all.

    Args:
        function: The function.
        fails: Whether the call of this number, from 0, fails.
    """

    def __init__(self, function: Callable[..., None], fails: Callable[[int], bool]) -> None:
        self.count = 0
        self._function, self._fails = function, fails

    def __call__(self, *arguments: Any) -> None:
        """Call the function, or fail."""
        self.count += 1
        if self._fails(self.count - 1):
            raise UnsupportedError("this memory cannot do that")
        self._function(*arguments)


# --- shifts ---


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("llama", {}, True),
        ("gemma3", {"swa_full": True}, True),
        ("gemma3", {"swa_full": False, "ubatch_size": 32}, False),
        ("qwen2vl", {}, False),
    ],
)
def test_what_can_shift(
    model_files: dict[str, Path], kind: str, options: dict[str, Any], expected: bool
) -> None:
    """M-RoPE and short windows cannot, which `can_shift` tells without changing anything."""
    with Model(model_files[kind]) as model, Context(model, ctx_size=512, **options) as context:
        for _ in range(2):
            assert context.memory.can_shift == expected
            context.decode([5, 6, 7])
        assert range(6) == context.memory.range()
        if not expected:
            with pytest.raises(UnsupportedError):
                context.memory.shift(-1, begin=2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2vl", {}),
        ("mamba", {}),
        ("gemma3", {"swa_full": False, "ubatch_size": 32}),
        ("gemma3", {"unified_kv": True, "n_parallel": 2}),
    ],
)
def test_a_shift_that_is_impossible_is_refused_at_submit(
    model_files: dict[str, Path], kind: str, options: dict[str, Any]
) -> None:
    """The error names the model; the other ways to overflow work."""
    with Model(model_files[kind]) as model, Engine(model, ctx_size=512, **options) as engine:
        with pytest.raises(ArgumentError, match=rf"overflow='shift': .* {kind}\.gguf") as raised:
            engine.submit([5, 6, 7], overflow="shift")
        assert "overflow" == raised.value.parameter
        done = engine.submit([5, 6, 7], overflow="truncate", max_tokens=999, **GREEDY).result(
            PATIENCE
        )
        assert ("context", 509) == (done.finish_reason, len(done.tokens))


@pytest.mark.parametrize("call", ["shift", "remove"])
def test_nothing_of_a_failed_shift_is_reused(
    model: Model, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A later prompt with the same beginning is computed whole; the neighbour goes on."""
    prompt = model.tokenize("Once upon a time there was a fox who lived in a forest")
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 0, **GREEDY}
    with Engine(model, **EXACT) as engine:
        begun = engine.submit(prompt, max_tokens=25, **GREEDY).result(PATIENCE).tokens
        expected = engine.submit([*prompt, *begun, 7, 8], **asked).result(PATIENCE)
        neighbour = engine.submit([9, *prompt], max_tokens=40, **GREEDY).result(PATIENCE)
    with Engine(model, n_parallel=2, **EXACT) as engine:
        memory = engine.context.memory
        failing_call = FailingCall(getattr(memory, call), lambda number: number == 0)
        monkeypatch.setattr(memory, call, failing_call)
        with engine.loop.hold():
            failing = engine.submit(prompt, overflow="shift", max_tokens=200, **GREEDY)
            beside = engine.submit([9, *prompt], max_tokens=40, **GREEDY)
        with pytest.raises(UnsupportedError):
            failing.result(PATIENCE)
        assert neighbour.tokens == beside.result(PATIENCE).tokens
        later = engine.submit([*prompt, *begun, 7, 8], **asked).result(PATIENCE)
        assert failing_call.count
        assert 1 >= later.cached_tokens  # of the neighbour, BOS at most
        assert expected.tokens == later.tokens
        assert [score.logprob for score in later.logprobs or ()] == pytest.approx(
            [score.logprob for score in expected.logprobs or ()], abs=1e-4
        )


def test_a_prompt_after_a_shifted_text_in_a_sliding_window(model_files: dict[str, Path]) -> None:
    """Only what `keep` left is reused, and its cells are there: others have not taken them."""
    prompt = list(range(100, 140))
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 0, **GREEDY}
    with Model(model_files["gemma3"]) as model:
        prompt.insert(0, model.bos or 0)
        with Engine(model, **EXACT) as engine:
            expected = engine.submit(prompt, **asked).result(PATIENCE)
        with Engine(model, **EXACT) as engine:
            shifting = [*prompt[:6], *range(3, 40)]
            engine.submit(shifting, overflow="shift", keep=6, max_tokens=60, **GREEDY).result(
                PATIENCE
            )
            for cached in (6, 40):
                later = engine.submit(prompt, **asked).result(PATIENCE)
                assert (expected.tokens, cached) == (later.tokens, later.cached_tokens)
                assert [score.logprob for score in later.logprobs or ()] == pytest.approx(
                    [score.logprob for score in expected.logprobs or ()], abs=1e-3
                )


def test_a_prompt_beside_a_shifted_text_that_runs(model: Model) -> None:
    """What it holds behind the tokens that `keep` left was computed with tokens that are gone."""
    sizes = {**EXACT, "ctx_size": 256}
    half = list(range(100, 227))  # as many as a shift drops
    prompt = [model.bos or 0, *half, 7, 8]
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 0, **GREEDY}
    with Engine(model, **sizes) as engine:
        expected = engine.submit(prompt, **asked).result(PATIENCE)
    with Engine(model, n_parallel=2, **sizes) as engine:
        shifting = engine.submit([model.bos or 0, *half, *half], temperature=0, **ENDLESS)
        assert eventually(lambda: len(shifting.tokens) > 2)
        later = engine.submit(prompt, **asked).result(PATIENCE)
        assert not shifting.done
        shifting.cancel()
    assert 1 >= later.cached_tokens
    assert expected.tokens == later.tokens
    assert [score.logprob for score in later.logprobs or ()] == pytest.approx(
        [score.logprob for score in expected.logprobs or ()], abs=1e-4
    )


def test_wrong_guesses_after_a_shift_in_a_sliding_window(
    model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are forgotten: no cell that the window hides was given to a guess."""
    monkeypatch.setattr(Drafter, "update", lambda *arguments: None)  # never silent
    asked: dict[str, Any] = {"overflow": "shift", "keep": 30, "ignore_eos": True, "top_k": 2}
    texts = []
    with Model(model_files["gemma3"]) as model:
        for speculation in (0, 2):
            sizes: dict[str, Any] = {"n_parallel": 4, "speculation": speculation, **EXACT}
            with Engine(model, type_k="f32", type_v="f32", **sizes) as engine:
                with engine.loop.hold():
                    requests = [
                        engine.submit([5, 6, 7, 8 + i] * 5, seed=1, max_tokens=150, **asked)
                        for i in range(4)
                    ]
                texts.append([request.result(PATIENCE).tokens for request in requests])
    assert texts[0] == texts[1]


def test_a_shift_changes_no_neighbour_that_shares_cells(model: Model) -> None:
    """With unified KV continuations share the prompt's cells, and both drop some of them."""
    prompt = model.tokenize("Once upon a time there was a fox who lived in a forest. " * 3)
    asked: dict[str, Any] = {"max_tokens": 60, "overflow": "shift", "ignore_eos": True}
    alone = []
    for seed in (5, 6):
        with Engine(model, **EXACT) as engine:
            alone.append(engine.submit(prompt, seed=seed, **asked).result(PATIENCE).tokens)
    with Engine(model, n_parallel=2, unified_kv=True, **EXACT) as engine:
        both = [request.result(PATIENCE) for request in engine.submit_n(prompt, 2, seed=5, **asked)]
    assert len(prompt) - 1 == both[1].cached_tokens
    assert alone == [completion.tokens for completion in both]


# --- evictions ---


def test_cells_whose_eviction_failed_are_not_built_upon(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails; the next prompt in the slot is computed in an empty one."""
    prompt = model.tokenize("Once upon a time there was a fox")
    with Engine(model, **EXACT) as engine:
        expected = engine.submit([9, 8, 7, *prompt], max_tokens=8, **GREEDY).result(PATIENCE)
    with Engine(model, n_parallel=2, **EXACT) as engine:
        for first in (5, 6):
            engine.submit([first, *prompt], max_tokens=8, **GREEDY).result(PATIENCE)
        decode, memory = engine.context.decode_batch, engine.context.memory

        def no_room(*arguments: Any) -> None:
            monkeypatch.setattr(engine.context, "decode_batch", decode)
            raise NoRoomError("the KV cache is full")

        removals = FailingCall(memory.remove, lambda number: number == 1)
        monkeypatch.setattr(engine.context, "decode_batch", no_room)
        monkeypatch.setattr(memory, "remove", removals)
        with pytest.raises(UnsupportedError):
            engine.submit([9, 8, 7, *prompt], max_tokens=8, **GREEDY).result(PATIENCE)
        for _ in range(2):
            with engine.loop.hold():
                later = [
                    engine.submit([9, 8, 7, *prompt], max_tokens=8, **GREEDY) for _ in range(2)
                ]
            assert [expected.tokens] * 2 == [request.result(PATIENCE).tokens for request in later]


def shifted_by_hand(model: Model, prompt: list[int], keep: int, count: int) -> list[int]:
    """Return the greedy continuation by Context and Sampler, with the shifts of an engine."""
    size, written = EXACT["ctx_size"], list(prompt)
    with Context(model, **EXACT) as context:
        sampler = Sampler(temperature=0, logit_bias=dict.fromkeys(model.eog_tokens, -1e30))
        context.decode(prompt)
        for _ in range(count):
            written.append(sampler.sample(context))
            if context.n_past() == size - 1:
                end = keep + (size - 1 - keep) // 2
                context.memory.remove(0, keep, end)
                context.memory.shift(keep - end, 0, end)
            context.decode(written[-1:])
    return written[len(prompt) :]


@pytest.mark.parametrize(("keep", "kept"), [(0, 1), (3, 3)], ids=["BOS", "3 tokens"])
def test_a_shift_keeps_the_beginning_and_no_more_is_reused(
    model: Model, keep: int, kept: int
) -> None:
    """BOS always stays. The later cells were computed with the dropped ones: they serve nobody."""
    prompt = model.tokenize("Once upon a time there was a fox who lived in a forest")
    assert (True, model.bos) == (model.adds_bos, prompt[0])
    count = 70 - len(prompt)  # one shift
    expected = shifted_by_hand(model, prompt, kept, count)
    asked: dict[str, Any] = {"max_tokens": 6, "logprobs": 0, **GREEDY}
    with Engine(model, **EXACT) as engine:
        done = engine.submit(
            prompt, overflow="shift", keep=keep, max_tokens=count, **GREEDY
        ).result(PATIENCE)
        assert expected == done.tokens
        whole = [*prompt, *done.tokens]
        left = [*whole[:kept], *whole[kept + (63 - kept) // 2 :]]
        later = engine.submit(left, **asked).result(PATIENCE)
    with Engine(model, **EXACT) as engine:
        alone = engine.submit(left, **asked).result(PATIENCE)
    assert kept == later.cached_tokens
    assert alone.tokens == later.tokens
    assert [score.logprob for score in alone.logprobs or ()] == pytest.approx(
        [score.logprob for score in later.logprobs or ()], abs=1e-4
    )


# --- adapters ---


@pytest.fixture
def tuned(model_files: dict[str, Path]) -> Iterator[tuple[Model, Adapter]]:
    """The tiny llama and its adapter."""
    with Model(model_files["llama"]) as model:
        yield model, Adapter(model, model_files["lora"])


def test_other_adapters_reuse_no_cells(tuned: tuple[Model, Adapter]) -> None:
    """Every answer is a fresh engine's, and what had the same adapters and scales is reused."""
    model, adapter = tuned
    prompt = list(range(3, 40))
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 0, **GREEDY}
    sizes: dict[str, Any] = {**EXACT, "cache_size": 64 * 4}
    changes: list[dict[Adapter, float]] = [{}, {adapter: 1.0}, {adapter: 2.0}, {adapter: 0.0}]
    alone = []
    for adapters in changes:
        with Engine(model, **EXACT) as engine:
            engine.context.set_adapters(adapters)
            done = engine.submit(prompt, **asked).result(PATIENCE)
            alone.append((done.tokens, [score.logprob for score in done.logprobs or ()]))
    assert alone[0] == alone[3]
    assert alone[0][1] != alone[1][1] != alone[2][1]
    with Engine(model, **sizes) as engine:
        for turn in range(2):
            for i, (adapters, expected) in enumerate(zip(changes, alone, strict=True)):
                engine.context.set_adapters(adapters)
                done = engine.submit([*prompt], **asked).result(PATIENCE)
                assert expected[0] == done.tokens
                logprobs = [score.logprob for score in done.logprobs or ()]
                assert expected[1] == pytest.approx(logprobs, abs=1e-4)
                assert done.cached_tokens == (36 if turn or i == 3 else 0)


def test_a_change_of_adapters_while_a_text_runs(tuned: tuple[Model, Adapter]) -> None:
    """Its cells are of both; later prompts with its beginning are computed anew."""
    model, adapter = tuned
    prompt = list(range(3, 40))
    asked: dict[str, Any] = {"max_tokens": 8, **GREEDY}
    with Engine(model, **EXACT) as engine:
        plain = engine.submit(prompt, **asked).result(PATIENCE)
        engine.context.set_adapters({adapter: 1.0})
        changed = engine.submit(prompt, **asked).result(PATIENCE)
    steps: list[StepRecord] = []

    def change(step: StepRecord) -> None:
        steps.append(step)
        if len(steps) == 10:
            engine.context.set_adapters({adapter: 1.0})

    with Engine(model, on_step=change, **EXACT) as engine:
        mixed = engine.submit(prompt, max_tokens=20, **GREEDY).result(PATIENCE)
        again = engine.submit(prompt, **asked).result(PATIENCE)
        assert (changed.tokens, 0) == (again.tokens, again.cached_tokens)
        engine.context.set_adapters({})
        again = engine.submit([*prompt, *mixed.tokens], **asked).result(PATIENCE)
        assert 0 == again.cached_tokens
        assert plain.tokens == engine.submit(prompt, **asked).result(PATIENCE).tokens
