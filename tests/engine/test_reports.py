"""What the engine reports, reuses and lets go of."""

import gc
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import pytest

from llcuda import Engine, InferenceEngine, Model
from llcuda.errors import (
    ConcurrencyError,
    DecodeError,
    QueueFullError,
    SamplingError,
)
from tests.support.waiting import ENDLESS, PATIENCE, eventually

# --- reports ---


def test_a_failed_request_is_reported(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """on_request sees it as "error" with the exception's text; the metrics count an error only."""
    seen: list[Any] = []
    with Engine(model, ctx_size=256, threads=1, on_request=seen.append) as engine:
        whole = engine.context.decode_batch

        def fail_once(*arguments: Any) -> None:
            monkeypatch.setattr(engine.context, "decode_batch", whole)
            raise DecodeError("out of memory, say")

        monkeypatch.setattr(engine.context, "decode_batch", fail_once)
        with pytest.raises(DecodeError):
            engine.submit("Once upon a time", max_tokens=5).result(PATIENCE)
        snapshot = engine.metrics.snapshot()
        engine.submit("Once upon a time", max_tokens=5).result(PATIENCE)
    failed, good = seen
    assert (failed.finish_reason, failed.error) == ("error", "DecodeError: out of memory, say")
    assert (good.finish_reason, good.error) == ("length", None)
    assert failed.generated_tokens == 0 < failed.prompt_tokens
    assert failed.time_to_first_token_seconds is None
    assert failed.latency_seconds > 0
    assert snapshot["errors"] == {"DecodeError": 1}
    assert snapshot["finish_reasons"] == {}
    assert snapshot["latency"]["sample_count"] == snapshot["throughput"]["total_requests"] == 0


def test_reports_come_before_the_readers_wake(model: Model) -> None:
    """Who has a result finds it in the metrics and in what the hook collected."""
    seen: list[Any] = []
    with Engine(model, ctx_size=256, threads=1, on_request=seen.append) as engine:
        for count in range(1, 50):
            engine.submit("One day", max_tokens=1).result(PATIENCE)
            assert len(seen) == engine.metrics.snapshot()["throughput"]["total_requests"] == count


def test_a_request_knows_how_full_its_steps_were(model: Model) -> None:
    """mean_rows counts the decode steps that it took part in, and no other."""
    seen: list[Any] = []
    with Engine(model, n_parallel=4, ctx_size=256, threads=1, on_request=seen.append) as engine:
        for lengths in ([9], [9] * 4, [1], [21, 11]):
            with engine.loop.hold():
                requests = [engine.submit("Once", max_tokens=n, ignore_eos=True) for n in lengths]
            for request in requests:
                request.result(PATIENCE)
    # The first token comes from the prompt's step: 11 tokens are 10 decode steps.
    assert [record.mean_rows for record in seen] == [1, 4, 4, 4, 4, 0, 2, 1.5]


@pytest.mark.parametrize("speculation", [0, 4])
def test_the_parts_of_a_step(model: Model, speculation: int) -> None:
    """Decode, sample and deliver are parts of the step, and the batch's sums are theirs."""
    steps: list[Any] = []
    asked: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
    with Engine(
        model, ctx_size=256, threads=1, speculation=speculation, on_step=steps.append
    ) as engine:
        done = engine.submit("Tom had a ball. Tom had a ball. Tom had", **asked).result(PATIENCE)
        engine.close()  # the last step is recorded after its readers are woken
        batch = engine.metrics.snapshot()["batch"]
    for step in steps:
        parts = (step.decode_seconds, step.sample_seconds, step.deliver_seconds)
        assert min(parts) > 0
        assert sum(parts) < step.seconds
    assert len(done.tokens) == 30
    assert batch["steps"] == len(steps)
    for name in ("decode_seconds", "sample_seconds", "deliver_seconds", "seconds"):
        assert batch[name] == pytest.approx(sum(getattr(step, name) for step in steps))


def test_hooks_that_raise_harm_nobody(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a hook raises is logged once a call."""

    def leave(record: Any) -> None:
        raise SystemExit(3)

    with (
        caplog.at_level(logging.ERROR, "llcuda.engine"),
        Engine(model, ctx_size=256, threads=1, on_step=leave, on_request=leave) as engine,
    ):
        assert (
            len(engine.submit("One day", max_tokens=3, ignore_eos=True).result(PATIENCE).tokens)
            == 3
        )
        assert (
            len(engine.submit("One day", max_tokens=1, ignore_eos=True).result(PATIENCE).tokens)
            == 1
        )
    assert caplog.text.count("a hook of the engine raised") == 3 + 1 + 2


# --- reuse ---


def test_nothing_is_copied_from_an_emptied_slot(model_files: dict[str, Path]) -> None:
    """A cached prefix that cannot be cut is emptied; whoever was to copy it computes its own."""
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    text = [i % 250 + 1 for i in range(490)]
    prompts = [[*text[:250], *tail] for tail in ([7, 7], [9, 9, 9], [8])]
    sizes: dict[str, Any] = {"ctx_size": 512, "threads": 1, "swa_full": False, "ubatch_size": 16}
    with Model(model_files["gemma3"]) as gemma:
        with Engine(gemma, n_parallel=3, cache_size=2048, **sizes) as engine:
            engine.submit(text, **asked).result(PATIENCE)
            with engine.loop.hold():
                requests = [engine.submit(prompt, **asked) for prompt in prompts]
            shared = [request.result(PATIENCE) for request in requests]
        uncached = []
        for prompt in prompts:
            with Engine(gemma, **sizes) as engine:
                uncached.append(engine.submit(prompt, **asked).result(PATIENCE))
    assert [result.tokens for result in shared] == [result.tokens for result in uncached]


def test_a_memory_that_fails_for_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be reused is computed; what could not even be emptied fails its request."""
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    with Engine(model, ctx_size=256, threads=1) as engine:
        first = engine.submit(range(20, 80), **asked).result(PATIENCE)
        remove = engine.context.memory.remove
        left = 1

        def fail(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                remove(*arguments)
            else:
                raise ConcurrencyError("somebody looks at the context")

        monkeypatch.setattr(engine.context.memory, "remove", fail)
        again = engine.submit(range(20, 80), **asked).result(PATIENCE)
        assert (again.tokens, again.cached_tokens) == (first.tokens, 0)
        left = 2
        with pytest.raises(ConcurrencyError):
            engine.submit(range(20, 80), **asked).result(PATIENCE)
        last = engine.submit(range(20, 80), **asked).result(PATIENCE)
        assert (last.tokens, last.cached_tokens) == (first.tokens, 0)


# --- what is let go of ---


def test_an_idle_engine_holds_no_request(model: Model) -> None:
    """Finished, timed out or cancelled: nothing in the engine refers to it any more."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1) as engine:
        requests = [
            engine.submit("Once", max_tokens=5, timeout=100),
            engine.submit("Once", timeout=0.001, **ENDLESS),
            engine.submit("Once", **ENDLESS),
        ]
        requests[-1].cancel()
        for request in requests:
            request.result(PATIENCE)
        left = [weakref.ref(request) for request in requests]
        del requests, request

        def gone() -> bool:
            gc.collect()
            return all(ref() is None for ref in left)

        assert eventually(gone)


def test_a_closed_engine_lets_go_of_the_model(model: Model) -> None:
    """Without the garbage collector, and although its requests are kept."""
    gc.disable()
    try:
        with Model(model.path) as own:
            owner = weakref.ref(own.handle.owner)
            with Engine(own, n_parallel=2, ctx_size=256, threads=1, queue_size=1) as engine:
                kept = [engine.submit("Once", max_tokens=5), engine.submit("Once", **ENDLESS)]
                kept[0].result(PATIENCE)
                with pytest.raises(QueueFullError):
                    for _ in range(9):
                        kept.append(engine.submit("Once", **ENDLESS))
        assert owner() is None
    finally:
        gc.enable()


def fail_later(tokens: Any, logits: Any) -> None:
    """A logits_processor that fails for the third token of a text."""
    if len(tokens) == 12:
        raise ZeroDivisionError


FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hook": ({}, {}),
    "sampling": ({}, {"logit_bias": dict.fromkeys(range(2560), -math.inf)}),
    "first token": ({}, {"logits_processor": lambda tokens, logits: 1 / 0}),
    "later token": ({}, {"logits_processor": fail_later, "ignore_eos": True}),
    "beside guesses": ({"speculation": 4}, {"logits_processor": fail_later, "ignore_eos": True}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_request_keeps_no_memory(model: Model, failure: str) -> None:
    """Its error has frames of the engine's thread, and a notebook keeps it."""
    options, asked = FAILURES[failure]
    gc.disable()
    try:
        with Model(model.path) as own:
            weights = weakref.ref(own.handle.owner)
            with Engine(own, ctx_size=256, threads=1, **options) as engine:
                repeated = list(range(5, 15))
                engine.submit(repeated, max_tokens=20, ignore_eos=True).result(PATIENCE)
                if failure == "hook":
                    engine.context.hooks.append(lambda event: 1 / 0)
                failed = engine.submit(repeated, max_tokens=5, **asked)
                with pytest.raises((ZeroDivisionError, SamplingError)) as caught:
                    failed.result(PATIENCE)
        assert weights() is None
        assert failed.done
        assert caught.value.__traceback__ is not None
    finally:
        gc.enable()


def test_an_engine_that_nobody_holds_lets_go_of_the_model() -> None:
    """Without close() and without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        own = Model("demo")
        engine = Engine(own, ctx_size=256, threads=1)
        engine.submit("Once", max_tokens=5).result(PATIENCE)
        left = weakref.ref(own)
        del engine, own
        assert eventually(lambda: left() is None)
    finally:
        gc.enable()


def test_handles_say_what_they_are(model: Model) -> None:
    """A repr has the model, the size and the state; no address."""
    name = model.path.name
    engine = Engine(model, n_parallel=2, ctx_size=256, threads=1)
    assert repr(engine) == f"<llcuda.Engine on {name!r}: 2 x 256 tokens, 0 running, 0 waiting>"
    with engine.loop.hold():
        request = engine.submit([5, 6, 7], max_tokens=4, ignore_eos=True)
        assert repr(request) == "<llcuda.Request: 3 prompt tokens, 0 generated, unfinished>"
    request.result(PATIENCE)
    assert repr(request) == "<llcuda.Request: 3 prompt tokens, 4 generated, length>"
    chat = engine.chat([{"role": "user", "content": "Hi"}], max_tokens=1, ignore_eos=True)
    chat.result(PATIENCE)
    assert repr(chat) == f"<llcuda.Chat: {chat.request!r}>"
    request = engine.submit([5, 6, 7], **ENDLESS)
    engine.close()
    assert repr(request).endswith(" generated, failed with ClosedError>")
    assert repr(engine) == f"<llcuda.Engine on {name!r}: closed>"
    loaded = InferenceEngine()
    assert repr(loaded) == "<llcuda.InferenceEngine: no model>"
    loaded.load_model("demo", auto_start=False)
    assert repr(loaded) == "<llcuda.InferenceEngine: 'demo' is loaded at first use>"
    with loaded:
        loaded.load_model("demo", ctx_size=64, verbose=False)
        assert repr(loaded) == f"<llcuda.InferenceEngine: {loaded.engine!r}>"
