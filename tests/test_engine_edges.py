"""The engine at its edges: failures, bad input, what it lets go of, and what it reports."""

import asyncio
import gc
import logging
import random
import shutil
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Engine, Model, Request, RequestParams, request
from llcuda.errors import (
    ArgumentError,
    BatchError,
    ClosedError,
    ConcurrencyError,
    DecodeError,
    ModelNotFoundError,
    QueueFullError,
)
from llcuda.speculation import NGRAM, Drafter
from tests.programs import run

ENDLESS: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True, "overflow": "shift"}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, n_parallel=4, ctx_size=512, threads=1) as made:
        yield made


def hold(engine: Engine) -> Callable[[], None]:
    """Keep the worker from its next step until the returned function is called."""
    gate = threading.Event()
    engine._desk.put(partial(gate.wait, 10))
    return gate.set


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what the worker does after it has woken its readers."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


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
            engine.submit("Once upon a time", max_tokens=5).result(10)
        snapshot = engine.metrics.snapshot()
        engine.submit("Once upon a time", max_tokens=5).result(10)
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
            engine.submit("One day", max_tokens=1).result(10)
            assert len(seen) == engine.metrics.snapshot()["throughput"]["total_requests"] == count


def test_a_request_knows_how_full_its_steps_were(model: Model) -> None:
    """mean_rows counts the decode steps that it took part in, and no other."""
    seen: list[Any] = []
    with Engine(model, n_parallel=4, ctx_size=256, threads=1, on_request=seen.append) as engine:
        for lengths in ([9], [9] * 4, [1], [21, 11]):
            go_on = hold(engine)
            requests = [engine.submit("Once", max_tokens=n, ignore_eos=True) for n in lengths]
            go_on()
            for one in requests:
                one.result(10)
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
        done = engine.submit("Tom had a ball. Tom had a ball. Tom had", **asked).result(10)
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
        assert len(engine.submit("One day", max_tokens=3, ignore_eos=True).result(10).tokens) == 3
        assert len(engine.submit("One day", max_tokens=1, ignore_eos=True).result(10).tokens) == 1
    assert caplog.text.count("a hook of the engine raised") == 3 + 1 + 2


# --- reuse ---


def test_nothing_is_copied_from_an_emptied_slot(model_files: dict[str, Path]) -> None:
    """A kept text that cannot be cut is emptied; who was to copy from it computes its own."""
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    text = [i % 250 + 1 for i in range(490)]
    prompts = [[*text[:250], *tail] for tail in ([7, 7], [9, 9, 9], [8])]
    sizes: dict[str, Any] = {"ctx_size": 512, "threads": 1, "swa_full": False, "ubatch_size": 16}
    with Model(model_files["gemma3"]) as gemma:
        with Engine(gemma, n_parallel=3, cache_size=2048, **sizes) as engine:
            engine.submit(text, **asked).result(10)
            go_on = hold(engine)
            requests = [engine.submit(prompt, **asked) for prompt in prompts]
            go_on()
            shared = [one.result(10) for one in requests]
        fresh = []
        for prompt in prompts:
            with Engine(gemma, **sizes) as engine:
                fresh.append(engine.submit(prompt, **asked).result(10))
    assert [one.tokens for one in shared] == [one.tokens for one in fresh]


def test_a_memory_that_fails_for_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be reused is computed; what could not even be emptied fails its request."""
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    with Engine(model, ctx_size=256, threads=1) as engine:
        first = engine.submit(range(20, 80), **asked).result(10)
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
        again = engine.submit(range(20, 80), **asked).result(10)
        assert (again.tokens, again.reused_tokens) == (first.tokens, 0)
        left = 2
        with pytest.raises(ConcurrencyError):
            engine.submit(range(20, 80), **asked).result(10)
        last = engine.submit(range(20, 80), **asked).result(10)
        assert (last.tokens, last.reused_tokens) == (first.tokens, 0)


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
        for one in requests:
            one.result(10)
        left = [weakref.ref(one) for one in requests]
        del requests, one

        def gone() -> bool:
            gc.collect()
            return all(ref() is None for ref in left)

        assert eventually(gone)


def test_a_closed_engine_lets_go_of_the_model(model: Model) -> None:
    """Without the garbage collector, and although its requests are kept."""
    gc.disable()
    try:
        with Model(model.path) as own:
            owner = weakref.ref(own._handle.owner)
            with Engine(own, n_parallel=2, ctx_size=256, threads=1, queue_size=1) as engine:
                kept = [engine.submit("Once", max_tokens=5), engine.submit("Once", **ENDLESS)]
                kept[0].result(10)
                with pytest.raises(QueueFullError):
                    for _ in range(9):
                        kept.append(engine.submit("Once", **ENDLESS))
        assert owner() is None
    finally:
        gc.enable()


# --- errors ---


class OddError(Exception):
    """Its constructor wants other arguments than those it keeps."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"code {code}: {why}")
        self.code = code


class UniqueError(Exception):
    """Cannot be made again at all."""

    def __new__(cls, *, key: int) -> "UniqueError":
        """Want what is not kept."""
        return super().__new__(cls, key)

    def __init__(self, *, key: int) -> None:
        super().__init__(key)


@pytest.mark.parametrize(
    "error",
    [
        DecodeError("x"),
        BatchError("x"),
        ModelNotFoundError(2, "no such file", "x.gguf"),
        OSError(5, "input/output error"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyError("x"),
        SystemExit(3),
        OddError(3, why="because"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_for_each_caller(error: BaseException) -> None:
    """The copy is of the same type, says the same, and has the first one as its cause."""
    copy = request._copy(error)
    assert (type(copy), str(copy), copy.args) == (type(error), str(error), error.args)
    assert copy is not error
    assert copy.__cause__ is error
    assert vars(copy) == vars(error)


def test_an_exception_that_cannot_be_copied() -> None:
    """It is raised itself."""
    error = UniqueError(key=1)
    assert request._copy(error) is error


def test_tracebacks_do_not_pile_up(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result() of every request of a failed step raises an exception of its own."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1) as engine:

        def explode(*arguments: Any) -> None:
            raise DecodeError("boom")

        monkeypatch.setattr(engine.context, "decode_batch", explode)
        go_on = hold(engine)
        requests = [engine.submit("Once", max_tokens=5) for _ in range(2)]
        go_on()
        raised = []
        for one in requests * 5:
            with pytest.raises(DecodeError, match="boom") as caught:
                one.result(10)
            raised.append(caught.value)
        monkeypatch.undo()
    assert len(set(map(id, raised))) == 10
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in raised}) == 1
    cause = raised[0].__cause__
    assert {error.__cause__ for error in raised} == {cause}
    assert "explode" in "".join(traceback.format_exception(cause))


# --- bad input ---

TOKENS = [1, 20, 30, 40]


@pytest.mark.parametrize(
    "prompt",
    [
        tuple(TOKENS),
        range(20, 24),
        [np.int64(token) for token in TOKENS],
        *(np.array(TOKENS, dtype=kind) for kind in ("int32", "int64", "uint16")),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_prompts_of_tokens(engine: Engine, prompt: Any) -> None:
    """Any sequence of whole numbers, and an array of them in one dimension."""
    done = engine.submit(prompt, max_tokens=5, temperature=0).result(10)
    assert done.tokens == engine.submit(list(prompt), max_tokens=5, temperature=0).result(10).tokens


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([True], "True: expected a whole number"),
        ([1.5], "1.5: expected a whole number"),
        ([1, None], "None: expected a whole number"),
        ([[1, 2]], "expected a whole number"),
        ([-1], "token -1: expected 0 to 2559"),
        ([1, 2560], "token 2560: expected 0 to 2559"),
        ([2**70], "expected 0 to 2559"),
        (np.array([1.0, 2.0]), "1.0: expected a whole number"),
        (np.array([True]), "True: expected a whole number"),
        (np.array([[1, 2]]), "one dimension, not ndarray"),
        (np.array(5), "one dimension, not ndarray"),
        (np.array([], dtype=int), "the prompt is empty"),
        ((), "the prompt is empty"),
        (5, "not int"),
        (True, "not bool"),
        ({1: 2}, "not dict"),
        ({1, 2}, "not set"),
        (bytearray(b"x"), "not bytearray"),
    ],
    ids=repr,
)
def test_prompts_that_are_refused(engine: Engine, prompt: Any, says: str) -> None:
    """Each is an ArgumentError that says what was given."""
    with pytest.raises(ArgumentError, match=says):
        engine.submit(prompt)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"stop": 5}, "stop=5: expected a list of texts"),
        ({"stop": True}, "stop=True"),
        ({"stop": {"a": 1}}, "stop={'a': 1}: expected a list"),
        ({"stop": b"x"}, "stop=b'x': expected a list"),
        ({"stop": [b"x"]}, "not b'x'"),
        ({"stop": ["a", ""]}, "none of them empty, not ''"),
        ({"stop": ["\ud800"]}, "surrogate"),
        ({"stop_tokens": 5}, "stop_tokens=5: expected a list of tokens"),
        ({"stop_tokens": "5"}, "stop_tokens='5': expected a list"),
        ({"stop_tokens": [True]}, "stop_tokens=True"),
        ({"stop_tokens": [1.0]}, "stop_tokens=1.0"),
        ({"stop_tokens": [-1]}, "stop_tokens=-1"),
        ({"stop_tokens": None}, "stop_tokens=None"),
        ({"params": {"max_tokens": 3}}, "expected RequestParams"),
        ({"sampling": "greedy"}, "expected SamplingParams"),
        ({"params": RequestParams(), "max_tokens": 3}, "not both"),
    ],
    ids=repr,
)
def test_parameters_that_are_refused(engine: Engine, asked: dict[str, Any], says: str) -> None:
    """Each is an ArgumentError that names it."""
    with pytest.raises(ArgumentError, match=says):
        engine.submit("x", **asked)


def test_stops_of_many_kinds(engine: Engine, model: Model) -> None:
    """One text, any collection of texts, ten thousand of them; tokens as an array."""
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    whole = engine.submit("There was a", **asked).result(10)
    stop = model.piece(whole.tokens[5])
    expected = whole.text.split(stop)[0]
    many = [f"no such text {i}" for i in range(10_000)]
    for given in (stop, [stop], (stop,), {stop}, iter([stop]), [*many, stop]):
        assert engine.submit("There was a", stop=given, **asked).result(10).text == expected
    tokens = np.array(whole.tokens[5:6])
    done = engine.submit("There was a", stop_tokens=tokens, **asked).result(10)
    assert done.tokens == whole.tokens[: whole.tokens.index(whole.tokens[5])]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sequences": 3}, "n_parallel="),
        ({"embeddings": True}, "generates text"),
        ({"pooling": "mean"}, "generates text"),
        ({"attention": "non_causal"}, "generates text"),
        ({"on_step": 5}, "on_step=5: expected a function"),
        ({"on_request": "log"}, "on_request='log': expected a function"),
        ({"n_parallel": 4, "outputs_max": 4, "speculation": 2}, "outputs_max=4: .* = 12"),
        ({"swa_full": False, "ubatch_size": 8, "speculation": 8}, "less than ubatch_size=8"),
    ],
    ids=repr,
)
def test_what_no_engine_takes(model: Model, given: dict[str, Any], says: str) -> None:
    """Each is an ArgumentError that names it, and no thread is left."""
    before = threading.active_count()
    with pytest.raises(ArgumentError, match=says):
        Engine(model, **given)
    assert threading.active_count() == before


def test_scores_of_a_prompt_need_room_for_its_logits(model: Model) -> None:
    """echo=True is refused where it would fail the step that it shares with others."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1, outputs_max=2) as engine:
        good = engine.submit("One day", max_tokens=20, ignore_eos=True)
        with pytest.raises(ArgumentError, match="outputs_max=0"):
            engine.submit("One day", echo=True, logprobs=0)
        assert len(good.result(10).tokens) == 20


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"ctx_size": 2048}, 1),
        ({"ctx_size": 1024}, 0),
        ({"ctx_size": 2048, "yarn_orig_ctx": 1024}, 0),
    ],
    ids=repr,
)
def test_a_context_beyond_the_training(
    model: Model, caplog: pytest.LogCaptureFixture, given: dict[str, int], lines: int
) -> None:
    """One warning with both numbers, unless positions are scaled on purpose."""
    with (
        caplog.at_level(logging.WARNING, "llcuda.engine"),
        Engine(model, threads=1, **given) as engine,
    ):
        engine.submit("One day", max_tokens=1).result(10)
    told = [record for record in caplog.records if record.name == "llcuda.engine"]
    assert len(told) == lines
    assert all("ctx_size=2048" in r.message and "1024" in r.message for r in told)


def test_speculation_on_a_recurrent_model(
    model_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """It is off, and one line of the log says so; the text is what it is without."""
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    texts = []
    with Model(model_files["mamba"]) as mamba, caplog.at_level(logging.WARNING, "llcuda.engine"):
        for speculation in (4, 0):
            with Engine(mamba, ctx_size=256, threads=1, speculation=speculation) as engine:
                texts.append(engine.submit([5, 6, 7] * 9, **asked).result(10).tokens)
    assert texts[0] == texts[1]
    assert [r.message for r in caplog.records if "speculation" in r.message] == [
        "speculation is off: mamba.gguf cannot forget a wrong guess"
    ]


# --- what goes away under it ---


@pytest.mark.parametrize("close", ["model", "context"])
def test_a_model_closed_under_the_engine(close: str) -> None:
    """Requests in flight get a ClosedError that says so, later ones too; close() works."""
    model = Model("demo")
    engine = Engine(model, n_parallel=2, ctx_size=64, threads=1)
    requests = [engine.submit("Once", **ENDLESS) for _ in range(4)]
    pieces = iter(requests[0])
    assert all(next(pieces) for _ in range(80))  # beyond the context: its older half is dropped
    if close == "model":
        model.close()
    else:
        engine._desk.put(engine.context.close)  # between two steps
    for one in requests:
        with pytest.raises(ClosedError, match=r"the model or the context .* was closed"):
            one.result(10)
    with pytest.raises(ClosedError):
        engine.submit("Once")
    engine.close()
    engine.close()
    assert engine.closed
    assert engine.context.closed
    assert engine.metrics.snapshot()["errors"] == {"ClosedError": 4}


def test_a_model_closed_under_an_idle_engine() -> None:
    """The next request is refused, whatever its prompt; close() works."""
    model = Model("demo")
    engine = Engine(model, ctx_size=64, threads=1)
    engine.submit("One day", max_tokens=2).result(10)
    model.close()
    for prompt in ("One day", [1, 20]):
        with pytest.raises(ClosedError, match="closed"):
            engine.submit(prompt)
    engine.close()
    assert engine.context.closed


def test_closing_the_model_before_the_engine_frees_both() -> None:
    """With a shifted text in flight too."""
    model = Model("demo")
    engine = Engine(model, ctx_size=64, threads=1)
    running = engine.submit("Once", **ENDLESS)
    pieces = iter(running)
    assert all(next(pieces) for _ in range(80))
    model.close()
    engine.close()
    with pytest.raises(ClosedError):
        running.result(10)
    assert not engine._thread.is_alive()
    assert engine.context.closed


def test_a_model_file_removed_from_disk(model: Model, tmp_path: Path) -> None:
    """A loaded file stays readable for who has it open."""
    path = tmp_path / "model.gguf"
    shutil.copy(model.path, path)
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    with Model(path) as loaded, Engine(loaded, ctx_size=256, threads=1) as engine:
        before = engine.submit("Once upon a time", **asked).result(10)
        path.unlink()
        with Engine(loaded, ctx_size=256, threads=1) as another:
            after = another.submit("Once upon a time", **asked).result(10)
    assert before.tokens == after.tokens


@pytest.mark.parametrize("reads", ["pieces", "result"])
def test_an_event_loop_closed_with_somebody_waiting(engine: Engine, reads: str) -> None:
    """Nobody is there to wake any more: the request ends, the engine goes on."""
    running = engine.submit("Once upon a time", max_tokens=200, ignore_eos=True)

    async def read() -> None:
        if reads == "result":
            await running
        async for _ in running:
            pass

    loop = asyncio.new_event_loop()
    task = loop.create_task(read())
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    assert len(running.result(10).tokens) == 200
    assert engine.submit("One day", max_tokens=1).result(10).tokens
    task._log_destroy_pending = False


@pytest.mark.parametrize("kept", [0, 3], ids=["slots for texts that run", "slots for kept texts"])
def test_texts_that_move_stay_the_same(model: Model, kept: int) -> None:
    """Texts end in any order, others move into their slots: every text is what it is alone."""
    lengths = [40, 3, 25, 7, 60, 12, 33, 5]
    prompts = [f"{i} Once upon a time" for i in range(len(lengths))]
    asked: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    with Engine(model, ctx_size=256) as e:
        alone = [
            e.submit(prompt, max_tokens=n, **asked).result(60).tokens
            for prompt, n in zip(prompts, lengths, strict=True)
        ]
    with Engine(model, n_parallel=4, ctx_size=256, cache_size=256 * (4 + kept)) as e:
        requests = [
            e.submit(prompt, max_tokens=n, **asked)
            for prompt, n in zip(prompts, lengths, strict=True)
        ]
        together = [request.result(60).tokens for request in requests]
    assert together == alone


# --- exactness ---

WORDS = """Once upon a time there was little fox named Tom who lived in the forest and liked to play
with his friend owl One day they found red ball"""


def salad(model: Model, dice: random.Random, length: int) -> list[int]:
    """Return so many tokens of random words."""
    return model.tokenize(" ".join(dice.choices(WORDS.split(), k=length)))[:length]


def test_without_flash_attention_results_are_exact() -> None:
    """Reuse and company change no bit of a text's log-probabilities, on the CPU.

    No prompt is kept whole: its last token would be computed alone, which may round otherwise.
    """
    dice = random.Random(8)
    with Model("demo", gpu_layers=0) as model:
        first = [salad(model, dice, length) for length in range(5, 151, 7)]
        kept = salad(model, dice, 150)
        prompts = [
            *first,
            *(kept[: 20 + 6 * i] + prompt[:10] for i, prompt in enumerate(first)),
        ]
        asked: list[dict[str, Any]] = [
            {
                "temperature": i % 2,
                "seed": i,
                "max_tokens": 5 + i,
                "ignore_eos": True,
                "logprobs": 1,
            }
            for i in range(len(prompts))
        ]
        sizes: dict[str, Any] = {"ctx_size": 256, "threads": 1, "flash_attention": False}
        alone = []
        for prompt, parameters in zip(prompts, asked, strict=True):
            with Engine(model, **sizes) as engine:
                alone.append(engine.submit(prompt, **parameters).result(60))
        with Engine(model, n_parallel=6, cache_size=256 * 12, **sizes) as engine:
            engine.submit(kept, max_tokens=1).result(60)
            go_on = hold(engine)
            requests = [
                engine.submit(prompt, **parameters)
                for prompt, parameters in zip(prompts, asked, strict=True)
            ]
            go_on()
            together = [request.result(60) for request in requests]
            snapshot = engine.metrics.snapshot()
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
    assert snapshot["reuse"]["ratio"] > 0.2
    assert snapshot["batch"]["mean_rows"] > 3


def test_guesses_change_no_result(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong ones, by turns with steps that guess nothing."""
    monkeypatch.setattr(Drafter, "judge", lambda *arguments: None)
    asked: dict[str, Any] = {
        "grammar": 'root ::= (" Tom had a ball." | " Mia saw the owl and the fox." | [a-z ]+) root',
        "max_tokens": 150,
        "ignore_eos": True,
        "logprobs": 0,
        "seed": 1,
        "temperature": 1,
    }
    sizes: dict[str, Any] = {"n_parallel": 2, "ctx_size": 256, "threads": 1}
    found = []
    for speculation in (0, 4):
        with Engine(model, speculation=speculation, flash_attention=False, **sizes) as engine:
            done = engine.submit("Tom had a ball.", **asked).result(60)
            found.append([report.logprob for report in done.logprobs or ()])
            steps = engine.metrics.snapshot()["batch"]["decode_steps"]
    assert 50 < steps < 140
    np.testing.assert_allclose(found[1], found[0], atol=0.3)


def test_guesses_after_a_shift(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what followed the last tokens before, in the text as it is now."""
    guesses: list[tuple[list[int], list[int]]] = []
    draft = Drafter.draft

    def watch(self: Drafter, tokens: list[int]) -> list[int]:
        found = draft(self, tokens)
        if found:
            guesses.append((list(tokens), found))
        return found

    monkeypatch.setattr(Drafter, "draft", watch)
    monkeypatch.setattr(Drafter, "judge", lambda *arguments: None)
    asked: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "overflow": "shift"}
    with Engine(model, ctx_size=64, threads=1, speculation=4) as engine:
        grammar = 'root ::= " Tom had a ball." root'
        engine.submit("Tom had a ball.", grammar=grammar, **asked).result(60)
    assert len(guesses) > 50
    for tokens, found in guesses:
        places = range(NGRAM, len(tokens))
        assert any(
            tokens[place - NGRAM : place] == tokens[-NGRAM:]
            and tokens[place : place + len(found)] == found
            for place in places
        )


# --- how many ---


def test_what_the_queue_counts(model: Model) -> None:
    """As many as may run and wait are taken, all at once or one by one; the error says so."""
    sizes: dict[str, Any] = {"n_parallel": 3, "queue_size": 2, "ctx_size": 128, "threads": 1}
    with Engine(model, **sizes) as engine:
        for _ in range(3):
            go_on = hold(engine)
            requests = engine.submit_n("Once", 4, max_tokens=3)
            requests.append(engine.submit("One day", max_tokens=3))
            with pytest.raises(QueueFullError, match=r"1 more .*, 5 are .* at most 5 in all"):
                engine.submit("One day")
            go_on()
            for one in requests:
                one.result(10)
        with pytest.raises(QueueFullError, match=r"6 more .* n_parallel=3 .* queue_size=2"):
            engine.submit_n("Once", 6)
        requests = [engine.submit("Once", **ENDLESS) for _ in range(5)]
        for one in requests:
            one.cancel()
        for one in requests:
            one.result(10)
        assert len(engine.submit_n("Once", 5, max_tokens=1)) == 5


def test_unknown_parameters_are_named(engine: Engine) -> None:
    """The arguments of submit_n are none of submit's."""
    with pytest.raises(TypeError, match=r"unknown parameter n$"):
        engine.submit("x", n=3)


# --- scores and what was dropped ---


@pytest.mark.parametrize("length", [1, 2, 40, 200, 256])
def test_a_text_is_scored_without_a_token(model: Model, length: int) -> None:
    """max_tokens=0 with echo=True: the scores that a longer answer has, and the reason "length"."""
    tokens = model.tokenize("The fox was happy and went to the river. " * 40)[:length]
    sizes: dict[str, Any] = {"n_parallel": 2, "ctx_size": 256, "batch_size": 64, "threads": 1}
    with Engine(model, flash_attention=False, **sizes) as engine:
        beside = engine.submit("Once upon a time", max_tokens=50, ignore_eos=True)
        done = engine.submit(tokens, max_tokens=0, echo=True, logprobs=2).result(10)
        assert (done.text, done.tokens, done.finish_reason) == ("", [], "length")
        assert done.prompt_logprobs is not None
        assert [report.token for report in done.prompt_logprobs] == tokens[1:]
        assert all(len(report.top) == 2 for report in done.prompt_logprobs)
        assert done.prompt_tokens == length
        if length < 256:
            longer = engine.submit(tokens, max_tokens=1, echo=True, logprobs=2).result(10)
            assert longer.prompt_logprobs is not None
            expected = [report.logprob for report in longer.prompt_logprobs]
            reported = [report.logprob for report in done.prompt_logprobs]
            np.testing.assert_allclose(reported, expected, atol=0.1)
        assert len(beside.result(10).tokens) == 50
    with pytest.raises(ArgumentError, match="max_tokens=0"):
        RequestParams(max_tokens=0)


@pytest.mark.parametrize("overflow", ["truncate", "shift"])
def test_dropped_tokens_are_told(model: Model, overflow: str) -> None:
    """As a number, and in what is shown."""
    given = len(model.tokenize("fox " * 300))
    with Engine(model, ctx_size=64, threads=1) as engine:
        done = engine.submit("fox " * 300, overflow=overflow, max_tokens=3).result(10)
        whole = engine.submit("fox", overflow=overflow, max_tokens=3).result(10)
    assert done.dropped_tokens + done.prompt_tokens == given
    assert f"{done.dropped_tokens} tokens of the prompt dropped" in repr(done)
    assert whole.dropped_tokens == 0
    assert "dropped" not in repr(whole)


# --- who would wait for ever ---

FORK = """
import asyncio, os, signal, sys, threading
import llcuda
from llcuda.errors import LlcudaError

engine = llcuda.InferenceEngine()
engine.load_model("demo", silent=True, ctx_size=4096, gpu_layers=0, threads=1)
done = engine.submit("Once", max_tokens=2)
done.result()
running = engine.submit("Once", max_tokens=4000, ignore_eos=True)
go_on = threading.Event()

def hold(lock):
    ready = threading.Event()
    def own():
        with lock:
            ready.set()
            go_on.wait()
    threading.Thread(target=own, daemon=True).start()
    ready.wait()

async def wait():
    await running

async def read():
    async for _ in running:
        pass


for lock in (engine._lock, engine.metrics._lock, engine._engine._desk._lock, running._lock):
    hold(lock)
for work in sys.argv[1:]:
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            value = eval(work)
        except LlcudaError as error:
            value = type(error).__name__
        print(value, flush=True)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0, work
go_on.set()
engine.unload_model()
"""


def test_a_forked_child_does_not_wait() -> None:
    """What computes in the parent is a ForkError at once; results, numbers and the end are there.

    Whatever locks the parent's threads hold.
    """
    works = {
        "running.result()": "ForkError",
        "list(running)": "ForkError",
        "asyncio.run(wait())": "ForkError",
        "asyncio.run(read())": "ForkError",
        "engine.infer('Once')": "ForkError",
        "engine.infer([5, 6])": "ForkError",
        "engine.stream([5, 6])": "ForkError",
        "running.cancel()": "None",
        "len(done.result().tokens)": "2",
        "engine.get_metrics()['errors']": "{}",
        "engine.unload_model()": "None",
    }
    result = run(FORK, *works)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == list(works.values())


@pytest.mark.parametrize("read", [Request.result, list], ids=["result", "pieces"])
def test_a_hook_does_not_wait(model: Model, read: Callable[[Request], Any]) -> None:
    """Waiting for a request in a hook is a ConcurrencyError, and the engine goes on."""
    raised: list[Any] = []

    def hook(record: Any) -> None:
        if not raised:
            another = engine.submit("One day", max_tokens=5)
            try:
                read(another)
            except BaseException as error:
                raised.append(type(error))

    with Engine(model, ctx_size=256, threads=1, on_request=hook) as engine:
        engine.submit("Once", max_tokens=2).result(10)
        assert eventually(lambda: raised == [ConcurrencyError])
        assert len(engine.submit("Once", max_tokens=3, ignore_eos=True).result(10).tokens) == 3
