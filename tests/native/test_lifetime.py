"""Threads, signals, forks, and objects that outlive each other."""

from __future__ import annotations

import gc
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llcuda
from llcuda import Context, Model, Sampler, core
from llcuda import samplers as steps
from llcuda.errors import (
    ClosedError,
    ConcurrencyError,
    DecodeAbortedError,
    NoOutputError,
    OutOfMemoryError,
)
from llcuda.gguf_parser import GGUFReader
from tests.support import models
from tests.support.programs import run

Make = Callable[..., Context]
UNHELD = r"handle\.(owner|held)\.pointer"
LONG = {"ctx_size": 16384, "batch_size": 8192, "ubatch_size": 512}


def slow_decode(context: Context) -> None:
    """Decode for about a second, unless it is ended."""
    context.decode([5] * 16000)


@contextmanager
def cancelling(context: Context) -> Iterator[None]:
    """Cancel again and again: a cancel before a decode has begun is none of its own."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            context.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join()


class TestThreads:
    """One thread at a time in a context."""

    def test_cancel_from_another_thread(self, model: Model, make_context: Make) -> None:
        """The decode ends early with DecodeAbortedError; the context works on."""
        context = make_context(model, **LONG)
        with cancelling(context), pytest.raises(DecodeAbortedError):
            slow_decode(context)
        context.memory.clear()
        context.decode([1, 2, 3])
        assert np.isfinite(context.logits()).all()

    def test_a_cancel_while_nothing_runs_hits_nothing(self, context: Context) -> None:
        """The next decode is not touched by it more than once."""
        context.decode([1])
        context.cancel()
        try:
            context.decode([2])
        except DecodeAbortedError:
            context.decode([2])
        assert 2 == context.n_past()

    def test_a_second_thread_is_told_so(self, model: Model, make_context: Make) -> None:
        """Every use while another thread decodes is a ConcurrencyError, close() too."""
        context = make_context(model, **LONG)
        context.decode([1])
        sampler = Sampler(model=model)

        begun = threading.Event()

        def work() -> None:
            begun.set()
            with pytest.raises(DecodeAbortedError):
                slow_decode(context)

        worker = threading.Thread(target=work)
        worker.start()
        begun.wait()
        time.sleep(0.1)
        try:
            for use in (
                lambda: context.decode([1]), lambda: context.decode_batch([1], [0]),
                context.logits, context.output_indices, context.n_past, context.memory.clear,
                context.save_state, context.reset_timings, lambda: context.timings, context.close,
                lambda: context.set_threads(1), lambda: context.set_adapters({}),
                lambda: sampler.sample(context), lambda: context.top_logprobs(1),
            ):  # fmt: skip
                with pytest.raises(ConcurrencyError):
                    use()
        finally:
            context.cancel()
            worker.join()
        assert not context.closed
        context.close()

    def test_one_model_in_many_threads(self, model: Model, make_context: Make) -> None:
        """Contexts of their own on a shared model give what one gives alone."""
        reference = make_context(model)
        reference.decode([1, 2, 3])
        expected = reference.logits().copy()
        results: list[Any] = []

        def work() -> None:
            with Context(model, ctx_size=256, threads=1) as context:
                for _ in range(20):
                    context.memory.clear()
                    context.decode([1, 2, 3])
                    results.append(np.array_equal(expected, context.logits()))
                    results.append("the cat" == model.detokenize(model.tokenize("the cat", False)))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [True] * 160 == results

    def test_loads_in_many_threads(self, model_files: dict[str, Path]) -> None:
        """Good and bad files at once; each thread gets its own error."""
        results: list[str] = []

        def work(name: str) -> None:
            for _ in range(5):
                try:
                    with Model(model_files[name]) as model:
                        results.append(model.metadata["general.architecture"])
                except llcuda.errors.ModelError as error:
                    results.append(
                        "adapter" if "architecture" in str(error) or name == "lora" else ""
                    )

        workers = [threading.Thread(target=work, args=(name,)) for name in model_files]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sorted([*models.BUILDERS, "adapter"] * 5) == sorted(results)


class TestSignals:
    """Ctrl-C."""

    PROGRAM = """
import os, signal, sys, threading, time
import llcuda
model = llcuda.Model(sys.argv[1])
context = llcuda.Context(model, threads=1, ctx_size=16384, batch_size=8192)
def interrupt():
    begun.wait()
    time.sleep(0.1)
    pressed.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
started = time.perf_counter()
context.decode([5] * 8000)
half = time.perf_counter() - started
context.memory.clear()
begun, pressed = threading.Event(), []
threading.Thread(target=interrupt).start()
try:
    begun.set()
    context.decode([5] * 16000)
    print("done")
except KeyboardInterrupt:
    print("interrupted", time.perf_counter() - pressed[0] < half)
context.memory.clear()
context.decode([1, 2, 3])
print(context.n_past())
"""

    def test_ctrl_c_ends_a_long_decode(self, model_files: dict[str, Path]) -> None:
        """KeyboardInterrupt long before the decode's own end, and the context is usable."""
        result = run(self.PROGRAM, model_files["llama"])
        assert ("interrupted True\n3\n", "") == (result.stdout, result.stderr)

    def test_what_a_signal_handler_raises_reaches_the_caller(
        self, model: Model, make_context: Make
    ) -> None:
        """Any handler's exception ends the decode, as the same object."""
        error = TimeoutError("mine")

        def handler(number: int, frame: Any) -> None:
            raise error

        context = make_context(model, **LONG)
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError) as caught:
                slow_decode(context)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert error is caught.value

    def test_loading_leaves_fault_handlers_alone(self, model_files: dict[str, Path]) -> None:
        """Faulthandler's report of a real fault is there after a load."""
        program = (
            "import sys, faulthandler, ctypes, llcuda\n"
            "faulthandler.enable()\n"
            "llcuda.Context(llcuda.Model(sys.argv[1]), threads=1)\n"
            "ctypes.string_at(0)\n"
        )
        result = run(program, model_files["llama"])
        assert -signal.SIGSEGV == result.returncode
        assert "Segmentation fault" in result.stderr


class TestClosing:
    """Objects that are closed in any order."""

    def test_every_use_of_a_closed_context(self, model: Model, make_context: Make) -> None:
        """ClosedError, and close() again does nothing."""
        context = make_context(model)
        context.decode([1])
        memory = context.memory
        context.close()
        context.close()
        assert context.closed
        for use in (
            lambda: context.decode([1]), lambda: context.decode_batch([1], [0]), context.logits,
            context.embeddings, context.sequence_embedding, context.output_indices,
            context.n_past, memory.clear, memory.remove, lambda: memory.copy(0, 0),
            context.save_state, lambda: context.load_state(b"LLCUDAST" + b"\0" * 40),
            lambda: context.timings, context.reset_timings, context.cancel,
            lambda: context.set_threads(1), lambda: context.set_adapters({}),
            lambda: Sampler().sample(context), lambda: context.score([1, 2]),
            lambda: context.encode([1]), lambda: context.top_logprobs(1),
        ):  # fmt: skip
            with pytest.raises(ClosedError):
                use()
        assert "closed" in repr(context)

    def test_a_model_that_is_closed_first(self, model_files: dict[str, Path]) -> None:
        """Its contexts say so, and its memory goes with the last of them."""
        model = Model(model_files["llama"])
        context = Context(model, threads=1, ctx_size=256)
        context.decode([1])
        owner = weakref.ref(model.handle.owner)
        model.close()
        with pytest.raises(ClosedError, match="model"):
            context.decode([2])
        assert owner() is not None
        context.close()
        gc.collect()
        assert owner() is None

    def test_a_sampler_keeps_its_vocabulary(self, model_files: dict[str, Path]) -> None:
        """It works on after its model is closed and forgotten."""
        model = Model(model_files["llama"])
        sampler = Sampler(grammar='root ::= "a"+', model=model)
        logits = np.zeros(models.VOCABULARY)
        model.close()
        del model
        gc.collect()
        assert ord("a") == sampler.sample_logits(logits)

    def test_contexts_free_their_memory(self, model: Model) -> None:
        """A thousand contexts, closed or forgotten, leave nothing behind."""
        finalizers = []
        for number in range(1000):
            context = Context(model, ctx_size=256, threads=1)
            finalizers.append(context.handle.owner.finalizer)
            if number % 2:
                context.close()
        del context
        gc.collect()
        assert not any(finalizer.alive for finalizer in finalizers)

    @pytest.mark.parametrize("failure", ["token", "hook", "position", "sampling"])
    def test_an_error_keeps_no_memory(self, model_files: dict[str, Path], failure: str) -> None:
        """What is closed is freed, although a traceback has frames of its methods."""
        result = run(KEPT_ERROR, model_files["llama"], failure)
        assert (0, "") == (result.returncode, result.stderr)
        taken, kept, weights, frames = result.stdout.split()
        assert int(kept) < int(taken) / 2
        assert (weights, frames) == ("freed", "True")

    def test_a_context_that_has_no_room_keeps_no_weights(
        self, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who catches the error can load a smaller model at once."""
        model = Model(model_files["llama"])
        weights = weakref.ref(model.handle.owner)
        monkeypatch.setattr("llcuda.native.kv_size.UNCHECKED", 0)
        monkeypatch.setattr("llcuda.native.kv_size.available_memory", lambda: 0)
        with pytest.raises(OutOfMemoryError) as caught:
            Context(model, ctx_size=256, threads=1)
        model.close()
        assert weights() is None
        assert caught.value.__traceback__ is not None

    def test_closing_inside_a_step_or_hook(self, model: Model, make_context: Make) -> None:
        """A Python step cannot close the context that calls it; a hook can."""
        context = make_context(model)
        context.decode([1])
        step = steps.Python(lambda candidates: context.close())
        with pytest.raises(ConcurrencyError):
            Sampler(chain=[step, steps.Greedy()]).sample(context)
        context.hooks.append(lambda event: context.close())
        context.decode([1])
        with pytest.raises(ClosedError):
            context.decode([1])

    def test_leaving_without_closing(self, model_files: dict[str, Path]) -> None:
        """The interpreter ends in order, with everything open."""
        program = (
            "import sys, llcuda\n"
            "model = llcuda.Model(sys.argv[1])\n"
            "context = llcuda.Context(model, threads=2)\n"
            "context.decode([1, 2, 3])\n"
            "step = llcuda.steps.Python(lambda candidates: 3)\n"
            "sampler = llcuda.Sampler(chain=[step], model=model).clone()\n"
            "view = context.logits()\n"
        )
        result = run(program, model_files["llama"])
        assert (0, "", "") == (result.returncode, result.stdout, result.stderr)


# Keeps an error of a closed context, in a process that nothing else takes memory of; every block
# above 128 KiB is a mapping of its own, which ends with free().
KEPT_ERROR = """
import ctypes, sys, weakref
ctypes.CDLL(None).mallopt(-3, 2**17)
from pathlib import Path
from llcuda import Context, Model, Sampler
from llcuda.errors import LlcudaError

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def fail(event):
    raise ZeroDivisionError

file, failure = sys.argv[1:]
calls = {
    "token": lambda context: context.decode([10**6]),
    "hook": lambda context: (context.hooks.append(fail), context.decode([1])),
    "position": lambda context: context.decode([1], pos=-1),
    "sampling": lambda context: sampler.sample(context),
}
sampler = Sampler()
model = Model(file)
weights = weakref.ref(model.handle.owner)
before = resident_pages()
context = Context(model, ctx_size=2**17, threads=1, type_k="f32", type_v="f32")
taken = resident_pages() - before
try:
    calls[failure](context)
except (LlcudaError, ZeroDivisionError) as error:
    caught = error
context.close()
print(taken, resident_pages() - before)
sampler.close()
model.close()
print("freed" if weights() is None else "kept", caught.__traceback__ is not None)
"""


# Reads results of a decode, and writes into them after each event that ends them: decodes with more
# outputs, for which llama.cpp frees its buffer, a state, and the end of the context.
STALE = """
import gc, sys
import numpy as np
from llcuda import Context, Model, Sampler

path, kind, device = sys.argv[1:]
options = {} if kind == "logits" else {"embeddings": True}
pooling = {"sequence_embedding": "mean", "embeddings": "none"}.get(kind)
with Model(path) as model:
    context = Context(
        model, ctx_size=512, batch_size=512, threads=1, device_logits=device == "device",
        pooling=pooling, **options,
    )
    argument = 0 if kind == "sequence_embedding" else -1
    read = lambda: getattr(context, kind)(argument)
    context.decode([5, 6, 7])
    state = context.save_state()
    rows, copies = [read()], [read().copy()]
    events = [lambda n=n: (context.memory.clear(), context.decode([5] * n, logits="all"))
              for n in (40, 200, 450)]
    events += [lambda: context.load_state(state), lambda: context.decode([9]), context.close]
    for event in events:
        event()
        gc.collect()
        print(all(map(np.array_equal, rows, copies)), end=" ")
        for row, copy in zip(rows, copies):
            row[:] = copy[:] = -1
        if not context.closed and context.output_indices():
            rows.append(read())
            copies.append(rows[-1].copy())
del context
gc.collect()
print(all(map(np.array_equal, rows, copies)))
"""


@pytest.mark.parametrize("device", ["host", "device"])
@pytest.mark.parametrize("kind", ["logits", "embeddings", "sequence_embedding"])
def test_results_outlive_their_decode(kind: str, device: str, model_files: dict[str, Path]) -> None:
    """An array of results holds its values and may be written to, whatever the context does."""
    result = run(STALE, model_files["llama"], kind, device)
    assert (0, "True " * 6 + "True\n", "") == (result.returncode, result.stdout, result.stderr)


def test_a_write_after_a_decode_reaches_no_sampler(context: Context) -> None:
    """The next results are the model's."""
    context.decode([1, 2, 3])
    stale = context.logits()
    context.decode([4])
    expected = context.logits().copy()
    stale[:] = 0
    stale[77] = 1e4
    np.testing.assert_array_equal(expected, context.logits())
    assert int(expected.argmax()) == Sampler(temperature=0).sample(context)


def test_candidates_outlive_their_step(context: Context) -> None:
    """What a Python step was given is memory of its own."""
    given: list[Any] = []
    chain = [steps.Python(lambda candidates: given.append(candidates)), steps.Greedy()]
    sampler = Sampler(chain=chain)
    for token in range(5):
        context.decode([token])
        sampler.sample(context)
    copies = [candidates.copy() for candidates in given]
    context.close()
    sampler.close()
    gc.collect()
    for candidates, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(candidates, copy)
        candidates["logit"] = 0


def test_bytes_of_a_file_outlive_its_reader_and_its_model(model_files: dict[str, Path]) -> None:
    """Views of the mapped file and tensors of it keep the mapping."""
    with Model(model_files["llama"]) as model, GGUFReader(model_files["llama"]) as reader:
        context = Context(model, threads=1, ctx_size=256)
        name = reader.list_tensors()[0]
        view, expected = reader.get_tensor_data(name), reader.numpy(name)
        tensor = core.load_tensors(model_files["llama"], [name])[name]
    context.close()
    del reader, model, context
    gc.collect()
    np.testing.assert_array_equal(np.frombuffer(view, np.float32), expected.reshape(-1))
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_no_output_after_an_abort(model: Model, make_context: Make) -> None:
    """An aborted decode leaves no logits to mistake for its own."""
    context = make_context(model, **LONG)
    with cancelling(context), pytest.raises(DecodeAbortedError):
        slow_decode(context)
    with pytest.raises(NoOutputError):
        context.logits()


def test_everything_refuses_a_closed_model(model_files: dict[str, Path]) -> None:
    """After model.close() its context reads nothing, and a piece read before is an error too."""
    model = Model(model_files["llama"])
    context = Context(model, threads=1)
    context.decode([1, 2, 3])
    sampler = Sampler(temperature=0)
    sampler.sample(context)
    model.piece(3)
    model.close()
    uses: list[Callable[[], Any]] = [
        lambda: context.logits(),
        lambda: context.top_logprobs(1),
        lambda: context.memory.clear(),
        lambda: context.save_state(),
        lambda: sampler.sample(context),
        lambda: model.piece(3),
    ]
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    context.close()
    context.close()


def test_a_cancel_while_nothing_runs_is_forgotten(context: Context) -> None:
    """It is for the decode that runs; the next one is whole."""
    context.cancel()
    context.decode([1, 2, 3])
    assert context.n_past() == 3


COMPUTE = {
    "decode": "context.memory.clear(); context.decode([5] * 400)",
    "one token": "context.memory.clear(); context.decode([5])",
    "tokenize": "model.tokenize('Once upon a time there was a fox. ' * 3000)",
    "quantize": "quantize('demo', sys.argv[1], 'Q8_0', requantize=True, threads=1)",
}


@pytest.mark.parametrize("name", COMPUTE)
def test_exit_with_a_daemon_thread_in_c(name: str, tmp_path: Path) -> None:
    """Python's exit waits for the thread or cancels it; it neither crashes nor says anything."""
    program = f"""
import sys, threading, time
from llcuda import Context, Model, quantize

model = Model("demo", gpu_layers=0)
context = Context(model, ctx_size=1024, batch_size=1024)

def compute():
    while True:
        {COMPUTE[name]}
        computed.set()

computed = threading.Event()
threading.Thread(target=compute, daemon=True).start()
computed.wait()
sys.exit(7)
"""
    for _ in range(3):
        result = run(program, tmp_path / "m.gguf")
        assert (7, "") == (result.returncode, result.stderr)
    assert {"m.gguf"} >= {path.name for path in tmp_path.iterdir() if path.suffix != ".part"}


def test_a_call_keeps_the_owner_of_its_pointer() -> None:
    """No method passes the pointer of a handle on without a local variable for its owner."""
    package = Path(llcuda.__file__).parent
    users = [path for path in package.rglob("*.py") if re.search(UNHELD, path.read_text("utf-8"))]
    assert [] == users
