"""A context that fails for good is made anew: what ran in the failed step fails, the rest goes on.

llama.cpp fails an assertion in the first decode after positions of a tiny LFM2 were shifted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda import Adapter, Engine, InferenceEngine, Model
from llcuda.engine.metrics import StepRecord
from llcuda.errors import (
    BatchError,
    ContextError,
    DecodeAbortedError,
    DecodeError,
    DeviceLostError,
    NoRoomError,
    OutOfMemoryError,
)
from tests.support import models
from tests.support.failures import break_context, keep_broken
from tests.support.programs import run
from tests.support.waiting import PATIENCE, eventually

SIZES: dict[str, Any] = {"ctx_size": 128, "threads": 1, "flash_attention": False}
PROMPTS = [[5 + i, *range(10, 40), 6 + i] for i in range(5)]
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
MIXED: list[dict[str, Any]] = [
    {**GREEDY, "max_tokens": 30},
    {"temperature": 1, "seed": 3, "max_tokens": 30, "ignore_eos": True, "logprobs": 1},
    {**GREEDY, "max_tokens": 30, "response_format": {"type": "regex", "regex": "([a-z]{9} )+"}},
    {
        **GREEDY,
        "max_tokens": 30,
        "echo": True,
        "min_tokens": 30,
        "logits_processor": lambda tokens, logits: logits.__setitem__(tokens[-4:], -1e9),
    },
]


@pytest.fixture(scope="module")
def lfm2(model_files: dict[str, Path]) -> Iterator[Model]:
    """The hybrid model with a sliding window."""
    with Model(model_files["lfm2"]) as model:
        yield model


def fail_once(engine: Engine) -> None:
    """Have a request fail with its context."""
    engine.submit(PROMPTS[0], max_tokens=1).result(PATIENCE)
    with engine.loop.hold():
        break_context(engine)
        failing = engine.submit(PROMPTS[1], **GREEDY)
    with pytest.raises(DecodeError, match="assertion failed"):
        failing.result(PATIENCE)


class At:
    """A hook that does something after the n-th step."""

    def __init__(self, n: int, act: Callable[[], Any]) -> None:
        self._left, self._act = n, act

    def __call__(self, step: StepRecord) -> None:
        """Count, and act."""
        self._left -= 1
        if self._left == 0:
            self._act()


def results(engine: Engine, asked: list[dict[str, Any]]) -> list[Any]:
    """Return what is to be equal of each request, run alone."""
    done = [
        engine.submit(prompt, **parameters).result(PATIENCE)
        for prompt, parameters in zip(PROMPTS, asked, strict=False)
    ]
    return [facts(completion) for completion in done]


def facts(completion: Any) -> tuple[Any, ...]:
    """Return text and scores, these as far as rounding leaves them equal."""
    scores = [*(completion.logprobs or ()), *(completion.prompt_logprobs or ())]
    return completion.text, completion.tokens, [round(s.logprob, 2) for s in scores]


# --- what fails, and what goes on ---


def test_a_failed_prefill_step_fails_the_new_prompt_alone(lfm2: Model) -> None:
    """Running texts and waiting ones end as they do alone, with scores, guides and seeds."""
    with Engine(lfm2, **SIZES) as engine:
        alone = results(engine, MIXED)
        last = facts(engine.submit(PROMPTS[4], max_tokens=9, **GREEDY).result(PATIENCE))
    new: list[Any] = []

    def act() -> None:
        new.append(engine.submit([9, 9, 9], **GREEDY))
        new.append(engine.submit(PROMPTS[4], max_tokens=9, **GREEDY))
        break_context(engine)

    with Engine(lfm2, n_parallel=5, on_step=At(9, act), **SIZES) as engine:
        with engine.loop.hold():
            requests = [
                engine.submit(prompt, **parameters)
                for prompt, parameters in zip(PROMPTS, MIXED, strict=False)
            ]
        pieces = ["".join(request) for request in requests]
        done = [request.result(PATIENCE) for request in requests]
        failing, waiting = new
        with pytest.raises(DecodeError, match="assertion failed"):
            failing.result(PATIENCE)
        assert alone == [facts(completion) for completion in done]
        assert [text for text, _, _ in alone] == pieces
        assert last == facts(waiting.result(PATIENCE))
        snapshot = engine.metrics.snapshot()
    assert {"recoveries": 1} == snapshot["recovery"]
    assert {"DecodeError": 1} == snapshot["errors"]
    assert 5 == snapshot["throughput"]["total_requests"]


def test_a_failed_decode_step_fails_what_ran(lfm2: Model) -> None:
    """Readers get the text so far and the error; waiting requests are answered."""
    with Engine(lfm2, **SIZES) as engine:
        alone = results(engine, [{**GREEDY, "max_tokens": 20}] * 5)
    with Engine(
        lfm2, n_parallel=2, on_step=At(6, lambda: break_context(engine)), **SIZES
    ) as engine:
        with engine.loop.hold():
            requests = [engine.submit(prompt, max_tokens=20, **GREEDY) for prompt in PROMPTS]

        async def read() -> str:
            text = ""
            with pytest.raises(DecodeError, match="assertion failed"):
                async for piece in requests[0]:
                    text += piece
            return text

        assert alone[0][0].startswith(asyncio.run(read()))
        with pytest.raises(DecodeError):
            requests[1].result(PATIENCE)
        assert alone[2:] == [facts(request.result(PATIENCE)) for request in requests[2:]]
        with engine.loop.hold():
            assert ("running", False, None) == (engine.state, engine.closed, engine.failure)
            assert 0 == engine.load().running
        assert alone[:2] == results(engine, [{**GREEDY, "max_tokens": 20}] * 2)
        assert {"recoveries": 1} == engine.metrics.snapshot()["recovery"]


def test_no_cached_prefix_outlives_its_context(lfm2: Model) -> None:
    """The next prompt that begins alike is computed whole."""
    with Engine(lfm2, **SIZES) as engine:
        begun = engine.submit(PROMPTS[1], max_tokens=5, **GREEDY).result(PATIENCE)
        prompt = [*PROMPTS[1], *begun.tokens, 7]
        again = engine.submit(prompt, max_tokens=5, **GREEDY).result(PATIENCE)
        assert len(prompt) - 2 == again.cached_tokens
        fail_once(engine)
        later = engine.submit(prompt, max_tokens=5, **GREEDY).result(PATIENCE)
        assert (again.tokens, 0) == (later.tokens, later.cached_tokens)


def test_adapters_are_applied_again(lfm2: Model, tmp_path: Path) -> None:
    """With their scales; the context stays the object that it was."""
    metadata, tensors = models.lora()
    tensors = {name: values for name, values in tensors.items() if "ffn_down" in name}
    file = models.write(
        tmp_path / "lora.gguf", {**metadata, "general.architecture": "lfm2"}, tensors
    )
    asked = [{**GREEDY, "max_tokens": 9, "logprobs": 0}]
    adapter = Adapter(lfm2, file)
    with Engine(lfm2, **SIZES) as engine:
        context = engine.context
        plain = results(engine, asked)
        context.set_adapters({adapter: 2.0})
        tuned = results(engine, asked)
        fail_once(engine)
        assert context is engine.context
        assert tuned == results(engine, asked)
        context.set_adapters({})
        assert plain == results(engine, asked)
    assert plain != tuned


# --- the states ---


def test_a_context_that_always_fails_ends_the_engine(
    lfm2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five failures without a result in between, and of a text of the engine's own."""
    with Engine(lfm2, on_step=lambda step: break_context(engine), **SIZES) as engine:
        keep_broken(engine, monkeypatch)
        for i in range(5):
            with pytest.raises(DecodeError, match="assertion failed"):
                engine.submit(PROMPTS[i], **GREEDY).result(PATIENCE)
        assert eventually(lambda: engine.closed)
        assert "failed" == engine.state
        with pytest.raises(DecodeError, match=r"failed 6 times in a row; load the model again.*"):
            engine.submit(PROMPTS[0])
        assert "assertion failed" in str(engine.failure)
        assert {"recoveries": 4} == engine.metrics.snapshot()["recovery"]
    assert "failed" == engine.state
    assert engine.context.closed


def test_requests_that_break_the_context_do_not_end_the_engine(lfm2: Model) -> None:
    """However many come in a row: each fails alone, and what waits is answered as ever."""
    hooks = [break_context]
    with Engine(lfm2, **SIZES) as engine:
        alone = results(engine, MIXED)
    with Engine(lfm2, on_step=lambda step: [h(engine) for h in hooks], **SIZES) as engine:
        for i in range(12):
            with pytest.raises(DecodeError, match="assertion failed"):
                engine.submit(PROMPTS[i % 5], **GREEDY).result(PATIENCE)
        hooks.clear()
        with engine.loop.hold():
            assert ("running", None) == (engine.state, engine.failure)
        assert 12 <= engine.metrics.snapshot()["recovery"]["recoveries"]
        assert alone == results(engine, MIXED)


def test_results_between_failures_let_it_go_on(lfm2: Model) -> None:
    """Twelve failures, with an answer before each."""
    with Engine(lfm2, **SIZES) as engine:
        for _ in range(12):
            fail_once(engine)
        with engine.loop.hold():
            assert "running" == engine.state
        assert {"recoveries": 12} == engine.metrics.snapshot()["recovery"]


def test_what_a_recovery_looks_like(lfm2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes requests meanwhile and says that it recovers; hold() waits for the end."""
    with Engine(lfm2, **SIZES) as engine:
        alone = results(engine, [{**GREEDY, "max_tokens": 9}])
        states: list[str] = []
        begun, go_on = threading.Event(), threading.Event()
        renew = engine.context.renew

        def watched() -> None:
            begun.set()
            go_on.wait(120)
            states.append(engine.state)
            renew()

        monkeypatch.setattr(engine.context, "renew", watched)
        fail_once(engine)
        assert begun.wait(120)
        assert ("recovering", False) == (engine.state, engine.closed)
        request = engine.submit(PROMPTS[0], max_tokens=9, **GREEDY)
        assert (0, 1) == (engine.load().running, engine.load().waiting)
        assert 0 == engine.load().cells_used
        threading.Timer(0.01, go_on.set).start()
        with engine.loop.hold():
            assert "running" == engine.state
        assert ["recovering"] == states
        assert alone == [facts(request.result(PATIENCE))]


@pytest.mark.parametrize("failures", [2, 9])
def test_a_context_that_cannot_be_made_again_is_tried_again(
    lfm2: Model, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Each trial counts as a failure; what waits meanwhile is answered, or told why."""
    with Engine(lfm2, **SIZES) as engine:
        renew, left = engine.context.renew, failures

        def full() -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OutOfMemoryError("too little memory")
            renew()

        monkeypatch.setattr(engine.context, "renew", full)
        fail_once(engine)
        request = engine.submit(PROMPTS[0], max_tokens=9, **GREEDY)
        if failures == 2:
            assert 9 == len(request.result(PATIENCE).tokens)
        else:
            with pytest.raises(DecodeError, match=r"failed 6 times in a row.* too little memory"):
                request.result(PATIENCE)


def test_a_lost_gpu_is_final(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request gets the error, those that wait too, and the engine is not asked again."""
    with Engine(model, **SIZES) as engine:

        def lose(*arguments: Any) -> None:
            raise DeviceLostError("a GPU failed")

        monkeypatch.setattr(engine.context, "decode_batch", lose)
        with engine.loop.hold():
            requests = [engine.submit("Once", max_tokens=5) for _ in range(3)]
        for request in requests:
            with pytest.raises(DeviceLostError, match="a GPU failed"):
                request.result(PATIENCE)
        assert eventually(lambda: engine.closed)
        with pytest.raises(DeviceLostError, match="a GPU failed"):
            engine.submit("Once")
        assert "failed" == engine.state
        assert {"recoveries": 0} == engine.metrics.snapshot()["recovery"]


@pytest.mark.parametrize(
    "error",
    [
        DecodeError("llama.cpp failed"),
        NoRoomError("no free KV cells"),
        DecodeAbortedError("cancelled"),
        BatchError("llama.cpp rejected the batch"),
        OutOfMemoryError("too little memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_step_that_the_context_survives_fails_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The neighbour goes on with its cells; nothing is recomputed."""
    with Engine(model, **SIZES) as engine:
        alone = engine.submit("Once", max_tokens=30, **GREEDY).result(PATIENCE)
        new: list[Any] = []

        def act() -> None:
            decode = engine.context.decode_batch

            def fail(tokens: Any, *arguments: Any) -> None:
                if len(tokens) > 1:
                    raise error
                decode(tokens, *arguments)

            monkeypatch.setattr(engine.context, "decode_batch", fail)
            new.append(engine.submit("One day", **GREEDY))

    with Engine(model, n_parallel=2, on_step=At(9, act), **SIZES) as engine:
        request = engine.submit("Once", max_tokens=30, **GREEDY)
        assert alone.tokens == request.result(PATIENCE).tokens
        with pytest.raises(type(error)):
            new[0].result(PATIENCE)
        monkeypatch.undo()
        assert 5 == len(engine.submit("One day", max_tokens=5, **GREEDY).result(PATIENCE).tokens)
        snapshot = engine.metrics.snapshot()
    assert {"recoveries": 0} == snapshot["recovery"]
    assert {type(error).__name__: 1} == snapshot["errors"]
    assert 3 == snapshot["batch"]["prefill_steps"]


# --- the engine of scripts ---


def test_an_inference_engine_goes_on_and_says_when_it_has_failed(
    model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """batch_infer raises the error of the prompts that ran; `is_loaded` is true until the end."""
    prompts = ["One day", "Once upon a time", "There was"]
    with InferenceEngine() as engine:
        hook = At(5, lambda: break_context(engine.engine))
        options: dict[str, Any] = {"silent": True, "gpu_layers": 0, "n_parallel": 3, **SIZES}
        engine.load_model(model_files["lfm2"], on_step=hook, **options)
        with pytest.raises(DecodeError, match="assertion failed"):
            engine.batch_infer(prompts, max_tokens=9, **GREEDY)
        assert engine.is_loaded
        done = engine.batch_infer(prompts, max_tokens=9, **GREEDY)
        assert [9] * 3 == [result.tokens_generated for result in done]
        assert {"recoveries": 1} == engine.get_metrics()["recovery"]
        engine.load_model(
            model_files["lfm2"], on_step=lambda step: break_context(engine.engine), **options
        )
        keep_broken(engine.engine, monkeypatch)
        for _ in range(5):
            with pytest.raises(DecodeError):
                engine.infer("One day", **GREEDY)
        assert eventually(lambda: not engine.is_loaded)
        with pytest.raises(DecodeError, match="load the model again"):
            engine.infer("One day")
        engine.load_model(model_files["lfm2"], **options)
        assert engine.is_loaded
        assert 9 == engine.infer("One day", max_tokens=9, **GREEDY).tokens_generated


# --- memory that runs out ---

OUT_OF_MEMORY = """
import ctypes, resource
ctypes.CDLL(None).mallopt(-8, 1)  # one arena, or that of a thread would have room of its own
from llcuda import Engine, Model
from llcuda.errors import OutOfMemoryError

SIZES = {
    "ctx_size": 4096, "batch_size": 4096, "ubatch_size": 4096, "threads": 1, "n_parallel": 3,
    "speculation": 4,
}
GREEDY = {"temperature": 0, "ignore_eos": True}
LONG = [5 + i % 90 for i in range(4000)]
TEXT = "Tom had a ball. Tom had a ball. Tom had a"

def limit(more=None):
    pages = int(open("/proc/self/statm").read().split()[0])
    most = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

def act(step):
    global steps, failing
    steps += 1
    if steps == 9:
        failing = engine.submit(LONG, max_tokens=1)
        limit(2**21)

steps, failing = 0, None
with Model("demo", gpu_layers=0) as model, Engine(model, on_step=act, **SIZES) as engine:
    request = engine.submit(TEXT, max_tokens=60, **GREEDY)
    done = request.result(120)
    try:
        failing.result(120)
    except OutOfMemoryError:
        limit()
        print("refused")
    again = engine.submit(TEXT, max_tokens=60, **GREEDY).result(120)
    print(done.tokens == again.tokens)
    print(engine.submit(LONG, max_tokens=1, **GREEDY).result(120).finish_reason)
    print(engine.metrics.snapshot()["recovery"]["recoveries"])
"""


def test_an_engine_that_ran_out_of_memory_goes_on() -> None:
    """The text beside the prompt that was too large is computed again, with its speculation."""
    result = run(OUT_OF_MEMORY)
    assert 0 == result.returncode, result.stderr
    assert ["refused", "True", "length", "1"] == result.stdout.split()


def test_an_idle_context_can_be_renewed(lfm2: Model, make_context: Callable[..., Any]) -> None:
    """It is empty; the results of its last decode are gone."""
    context = make_context(lfm2)
    context.decode([5, 6, 7])
    expected = context.logits().copy()
    context.memory.shift(-1, 0, 1)
    for _ in range(2):
        with pytest.raises(DecodeError):
            context.decode([8])
        assert context.failed
    context.renew()
    assert (False, range(0)) == (context.failed, context.memory.range())
    context.decode([5, 6, 7])
    assert (expected == context.logits()).all()
    context.close()
    with pytest.raises(Exception, match="closed"):
        context.renew()
    assert issubclass(OutOfMemoryError, ContextError)
