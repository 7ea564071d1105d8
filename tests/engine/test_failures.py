"""Errors, what goes away under the engine, and who would wait for ever."""

import asyncio
import contextlib
import shutil
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llcuda import Engine, Model, Request
from llcuda.engine.request import copy_of
from llcuda.errors import (
    BatchError,
    ClosedError,
    ConcurrencyError,
    DecodeError,
    ModelNotFoundError,
)
from tests.support.programs import run
from tests.support.waiting import ENDLESS, PATIENCE, eventually

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
    copy = copy_of(error)
    assert (type(copy), str(copy), copy.args) == (type(error), str(error), error.args)
    assert copy is not error
    assert copy.__cause__ is error
    assert vars(copy) == vars(error)


def test_an_exception_that_cannot_be_copied() -> None:
    """It is raised itself."""
    error = UniqueError(key=1)
    assert copy_of(error) is error


def test_tracebacks_do_not_pile_up(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result() of every request of a failed step raises an exception of its own."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1) as engine:

        def explode(*arguments: Any) -> None:
            raise DecodeError("boom")

        monkeypatch.setattr(engine.context, "decode_batch", explode)
        with engine.loop.hold():
            requests = [engine.submit("Once", max_tokens=5) for _ in range(2)]
        raised = []
        for request in requests * 5:
            with pytest.raises(DecodeError, match="boom") as caught:
                request.result(PATIENCE)
            raised.append(caught.value)
        monkeypatch.undo()
    assert len(set(map(id, raised))) == 10
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in raised}) == 1
    cause = raised[0].__cause__
    assert {error.__cause__ for error in raised} == {cause}
    assert "explode" in "".join(traceback.format_exception(cause))


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
        with engine.loop.hold():
            engine.context.close()
    for request in requests:
        with pytest.raises(ClosedError, match=r"the model or the context .* was closed"):
            request.result(PATIENCE)
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
    engine.submit("One day", max_tokens=2).result(PATIENCE)
    model.close()
    for prompt in ("One day", [1, 20]):
        with pytest.raises(ClosedError, match="closed"):
            engine.submit(prompt)
    engine.close()
    assert engine.context.closed


def test_closing_the_model_before_the_engine_frees_both() -> None:
    """With a shifted text in flight too."""
    before = threading.active_count()
    model = Model("demo")
    engine = Engine(model, ctx_size=64, threads=1)
    running = engine.submit("Once", **ENDLESS)
    pieces = iter(running)
    assert all(next(pieces) for _ in range(80))
    model.close()
    engine.close()
    with pytest.raises(ClosedError):
        running.result(PATIENCE)
    assert threading.active_count() == before
    assert engine.context.closed


def test_a_model_file_removed_from_disk(model: Model, tmp_path: Path) -> None:
    """A loaded file stays readable for who has it open."""
    path = tmp_path / "model.gguf"
    shutil.copy(model.path, path)
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    with Model(path) as loaded, Engine(loaded, ctx_size=256, threads=1) as engine:
        before = engine.submit("Once upon a time", **asked).result(PATIENCE)
        path.unlink()
        with Engine(loaded, ctx_size=256, threads=1) as another:
            after = another.submit("Once upon a time", **asked).result(PATIENCE)
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
    assert len(running.result(PATIENCE).tokens) == 200
    assert engine.submit("One day", max_tokens=1).result(PATIENCE).tokens
    task._log_destroy_pending = False


@pytest.mark.parametrize("kept", [0, 3], ids=["slots of running texts", "slots of cached prefixes"])
def test_texts_that_move_stay_the_same(model: Model, kept: int) -> None:
    """Texts end in any order, others move into their slots: every text is what it is alone."""
    lengths = [40, 3, 25, 7, 60, 12, 33, 5]
    prompts = [f"{i} Once upon a time" for i in range(len(lengths))]
    asked: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    with Engine(model, ctx_size=256) as e:
        alone = [
            e.submit(prompt, max_tokens=n, **asked).result(PATIENCE).tokens
            for prompt, n in zip(prompts, lengths, strict=True)
        ]
    with Engine(model, n_parallel=4, ctx_size=256, cache_size=256 * (4 + kept)) as e:
        requests = [
            e.submit(prompt, max_tokens=n, **asked)
            for prompt, n in zip(prompts, lengths, strict=True)
        ]
        together = [request.result(PATIENCE).tokens for request in requests]
    assert together == alone


def test_a_thread_that_reads_the_context_harms_no_request(model: Model) -> None:
    """It gets a ConcurrencyError while the engine computes; the engine waits for its calls."""
    read: list[Any] = []
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with Engine(model, n_parallel=4, ctx_size=256, threads=1) as engine:
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                with contextlib.suppress(ConcurrencyError):
                    read.append(engine.context.timings.decode_tokens)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            for _ in range(5):
                requests = [engine.submit("Once upon", **asked) for _ in range(4)]
                assert [20] * 4 == [len(request.result(PATIENCE).tokens) for request in requests]
        finally:
            done.set()
            thread.join()
    assert read == sorted(read)


# --- who would wait for ever ---

FORK = """
import asyncio, os, signal, sys, threading

locks = []

def noted(make):
    def note():
        lock = make()
        if sys._getframe(1).f_globals["__name__"].startswith("llcuda"):
            locks.append(lock)
        return lock
    return note

threading.Lock, threading.RLock = noted(threading.Lock), noted(threading.RLock)
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


assert len(locks) > 4
for lock in locks:
    hold(lock)
for work in sys.argv[1:]:
    child = os.fork()
    if not child:
        signal.alarm(120)
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
        engine.submit("Once", max_tokens=2).result(PATIENCE)
        assert eventually(lambda: raised == [ConcurrencyError])
        assert (
            len(engine.submit("Once", max_tokens=3, ignore_eos=True).result(PATIENCE).tokens) == 3
        )
