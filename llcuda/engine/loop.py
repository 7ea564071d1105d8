"""EngineLoop: the engine's thread, the messages to it, and its step.

The thread refers to the loop, not to the engine: an engine that nobody holds any more is
collected, and its loop ends with the last unfinished request.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llcuda.engine.config import EngineParams
from llcuda.engine.metrics import EngineLoad, Reporter
from llcuda.engine.model_runner import Batch, DraftBatch, ModelRunner
from llcuda.engine.output_processor import OutputProcessor
from llcuda.engine.request import Request, copy_of
from llcuda.engine.scheduler import CacheChange, CopyPrefix, Move, Scheduler, SchedulerOutput
from llcuda.engine.sequence import Sequence, now
from llcuda.engine.slots import SlotState, slot_states
from llcuda.errors import (
    ClosedError,
    ConcurrencyError,
    DecodeError,
    DeviceLostError,
    ForkError,
    LlcudaError,
    ModelChangedError,
    NoRoomError,
    QueueFullError,
    UnsupportedError,
)
from llcuda.native.context import Context
from llcuda.native.library import close_at_exit

logger = logging.getLogger("llcuda.engine")
MOST_FAILURES = 5  # of the context, without a text that ended in between; then it is tried out
_this_thread = threading.local()


def in_hook() -> bool:
    """Whether this is the thread of an engine, which calls the hooks too."""
    return hasattr(_this_thread, "loop")


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue sequences."""

    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request with what it has."""

    request: Request


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop when every request has ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop now."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait between two steps.

    Attributes:
        reached: Set when the loop waits.
        released: Ends the wait.
        seconds: The time after which it ends anyway.
    """

    seconds: float
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Call:
    """Do something with the KV cache between two steps.

    Attributes:
        work: Is given the scheduler and the context.
        outcome: Gets the result, or the exception.
    """

    work: Callable[[Scheduler, Context], Any]
    outcome: Future[Any] = field(default_factory=Future)


Message = Submit | Cancel | Drain | Stop | Hold | Call
Result = TypeVar("Result")


class UnfinishedCount:
    """Counts the unfinished requests of an engine.

    Args:
        parallel: The number of requests that run at once.
        queue_size: The number of requests that may wait beside them.

    Attributes:
        value: The number of unfinished requests.
    """

    def __init__(self, parallel: int, queue_size: int) -> None:
        self.value = 0
        self._parallel, self._queue_size = parallel, queue_size
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        """Count requests that are submitted.

        Raises:
            QueueFullError: There is no room for all of them.
        """
        limit = self._parallel + self._queue_size
        with self._lock:
            if self.value + number > limit:
                raise QueueFullError(
                    f"{number} more requests, {self.value} are unfinished: expected at most "
                    f"{limit} in all, n_parallel={self._parallel} that run and "
                    f"queue_size={self._queue_size} that wait"
                )
            self.value += number

    def end_one(self) -> None:
        """Count a request that has ended."""
        with self._lock:
            self.value -= 1


class EngineLoop:
    """Runs the steps of an engine on a thread of its own.

    Args:
        context: The context, which belongs to the thread from now on.
        params: The size of the engine.
        reporter: Is told of each step and of each request that ends.

    Attributes:
        closed: Why nothing more can be submitted; None while the engine is open.
        recovering: Whether the context failed and is made anew.
    """

    def __init__(self, context: Context, params: EngineParams, reporter: Reporter) -> None:
        model, device_logits = context.model, context.params.device_logits
        chunk_size, rows = params.batch_size, context.params.outputs_max or params.batch_size
        can_truncate = not (model.is_recurrent or model.is_hybrid)
        split_kv = not context.params.unified_kv
        self._context = context
        self._scheduler = Scheduler(
            context.params.sequences,
            params.n_parallel,
            chunk_size,
            can_truncate=can_truncate,
            can_copy_prefix=can_truncate,
            contiguous_slots=can_truncate and device_logits and split_kv,
            defer_last_prompt_token=device_logits,
            uncached_chunk_size=min(chunk_size, context.params.ubatch_size, rows),
        )
        self._runner = ModelRunner(context, params.speculation)
        # The processor is not given a method of the loop: a circle would keep the model in memory.
        self._unfinished = UnfinishedCount(params.n_parallel, params.queue_size)
        self._processor = OutputProcessor(
            self._scheduler, self._runner, reporter, self._unfinished.end_one
        )
        self._reporter = reporter
        self._failures = self._completed = 0  # failures since so many texts were complete
        self._process = os.getpid()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._draining = False
        self.closed: LlcudaError | None = None
        self.recovering = False
        self._thread = threading.Thread(target=self._run, name="llcuda-engine", daemon=True)

    # --- for callers, on any thread ---

    def start(self) -> None:
        """Start the thread; it is stopped before Python exits."""
        self._thread.start()
        close_at_exit(self)

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences, all or none.

        Raises:
            QueueFullError: There is no room for all of them.
            ForkError: This is a forked child.
            LlcudaError: The reason why the engine is closed.
        """
        self._check_process()
        with self._lock:
            if self.closed is not None:
                raise copy_of(self.closed)
            self._unfinished.add(len(sequences))
            self._messages.put(Submit(sequences))

    def cancel(self, request: Request) -> None:
        """End a request with what it has, between two steps."""
        self._messages.put(Cancel(request))

    def check_reader(self) -> None:
        """Check that waiting for a request can end.

        Raises:
            ForkError: This is a forked child.
            ConcurrencyError: This is a hook.
        """
        self._check_process()
        if getattr(_this_thread, "loop", None) is self:
            raise ConcurrencyError(
                "a hook cannot wait for a request: it runs on the thread that computes it"
            )

    def call(self, work: Callable[[Scheduler, Context], Result]) -> Result:
        """Do something with the KV cache between two steps, and return its result.

        Args:
            work: Is given the scheduler and the context, on the engine's thread.

        Raises:
            ConcurrencyError: This is a hook.
            ForkError: This is a forked child.
            LlcudaError: The reason why the engine is closed.
            Exception: What `work` raised.
        """
        self.check_reader()
        call = Call(work)
        with self._lock:
            if self.closed is not None:
                raise copy_of(self.closed)
            self._messages.put(call)
        result: Result = call.outcome.result()
        return result

    def slots(self) -> list[SlotState]:
        """Return what each slot of the KV cache holds at this moment."""
        return slot_states(self._scheduler)

    def load(self) -> EngineLoad:
        """Return how busy the engine is at this moment."""
        slots = self._scheduler.slots
        running = sum(slot.sequence is not None for slot in slots)
        return EngineLoad(
            running=running,
            waiting=max(0, self._unfinished.value - running),
            cells_used=sum(len(slot.tokens) for slot in slots),
            cells=len(slots) * self._context.ctx_size,
        )

    @contextmanager
    def hold(self, seconds: float = 60) -> Iterator[None]:
        """Hold the loop between two steps for as long as the block runs.

        A seam for tests and for tools that look at the context: requests that are submitted in the
        block start in one step.

        Args:
            seconds: The time after which the loop goes on in any case.
        """
        hold = Hold(seconds)
        self._messages.put(hold)
        hold.reached.wait(seconds)
        try:
            yield
        finally:
            hold.released.set()

    def check_closer(self) -> None:
        """Check that the engine can be closed from here.

        Raises:
            ConcurrencyError: This is a hook.
        """
        if threading.current_thread() is self._thread:
            raise ConcurrencyError("the engine cannot be closed from one of its hooks")

    def close(self, drain: bool = False, wait: bool = True) -> None:
        """Refuse further requests, and stop.

        In a forked child it does nothing: no thread is there, and the lock may be held for ever.

        Args:
            drain: Finish the requests first; another close() cuts that short.
            wait: Whether to wait for the end; the loop's own thread never waits.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self.closed = self.closed or ClosedError("the engine is closed")
        self._messages.put(Drain() if drain else Stop())
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def close_when_idle(self) -> None:
        """Refuse further requests, and stop when all have ended; for an engine that nobody holds.

        Waits for the end only if no request is unfinished.
        """
        self.close(drain=True, wait=not self._unfinished.value)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError(
                "this engine computes in the process that was forked, not in its child; load "
                "models after the fork, or start workers with multiprocessing's 'spawn'"
            )

    # --- the thread ---

    def _run(self) -> None:
        """Handle messages and step until told to stop; then end all requests, free the context."""
        _this_thread.loop = self
        try:
            self._context.claim()
            while True:
                while not self._messages.empty() or not self._scheduler.busy:
                    if self._draining and self._messages.empty():
                        raise _StopLoop
                    self._handle(self._messages.get())
                self.step()
        except _StopLoop:
            error: LlcudaError = ClosedError("the engine was closed before the request was done")
        except ClosedError as failure:
            error = ClosedError("the model or the context of this engine was closed under it")
            error.__cause__ = failure
        except DecodeError as failure:  # the GPU or the model's file, or again and again
            logger.error("the engine ends: %s", failure)
            error = failure
        except BaseException as failure:
            logger.exception("the engine's thread failed")
            error = DecodeError(f"the engine failed: {failure!r}")
            error.__cause__ = failure
        with self._lock:
            self.closed = self.closed or error
        while not self._messages.empty():  # they came while it stopped
            with suppress(_StopLoop):
                self._handle(self._messages.get())
        self._processor.fail_all(error)
        self._runner.close_released()
        self._context.close()

    def _handle(self, message: Message) -> None:
        match message:
            case Submit():
                for sequence in message.sequences:
                    if self._processor.register(sequence):
                        self._scheduler.add(sequence)
            case Cancel():
                self._processor.cancel(message.request)
            case Hold():
                message.reached.set()
                message.released.wait(message.seconds)
            case Call():
                try:
                    message.outcome.set_result(message.work(self._scheduler, self._context))
                except Exception as error:
                    message.outcome.set_exception(error)
            case Drain():
                self._draining = True
            case Stop():
                raise _StopLoop

    # --- the step ---

    def step(self) -> None:
        """Schedule, run, process: once."""
        started = now()
        scheduler, processor, context = self._scheduler, self._processor, self._context
        processor.end_overdue()
        if context.adapter_key is not scheduler.adapter_key:
            scheduler.change_adapters(context.adapter_key)
        scheduled = scheduler.schedule()
        if scheduled is None:
            return
        if scheduled.changes and not self._change_cache(scheduled.changes):
            return  # a prompt whose prefix could not be reused is scheduled again
        if not scheduled.sequences:
            return
        size, seconds = 0, (0.0, 0.0, 0.0)
        try:
            began = now()
            batch = self._launch(scheduled)
            scheduler.computed(scheduled)
            if context.adapter_key is not scheduler.adapter_key:  # changed before the decode
                scheduler.change_adapters(context.adapter_key)
            launched = now()
            processor.deliver()  # the tokens of the step before, while a GPU computes this one
            if scheduled.chunks is not None:
                processor.echo(scheduled.chunks)
            limits = processor.constrain(batch.sequences) if batch.is_constrained else ()
            delivered = now()
            tokens = batch.sample(*limits)
            sampled = now()
            if tokens:
                processor.process(batch, tokens, sampled)
            size, sampling = batch.size, batch.sample_seconds
            decoding = launched - began + sampled - delivered - sampling
            seconds = decoding, sampling, delivered - launched + now() - sampled
        except ClosedError:
            raise  # the model or the context was closed: nothing can be computed any more
        except Exception as error:
            if not isinstance(error, DecodeError):
                logger.exception("a step of the engine failed")
            is_final = isinstance(error, DeviceLostError | ModelChangedError)
            self.recovering = context.failed and not is_final
            processor.fail_step(scheduled, error)
            if is_final:
                raise
            if self.recovering:
                self._recover(error)
        processor.report(scheduled, size, seconds, now() - started)
        self._runner.close_released()

    def _change_cache(self, changes: list[CacheChange]) -> bool:
        """Change the KV cache as scheduled; False when a sequence has to start over.

        A sequence that was to copy from the slot of a failed change starts over too.
        """
        failed: set[int] = set()
        for i, change in enumerate(changes):
            try:
                if isinstance(change, CopyPrefix) and change.source in failed:
                    raise UnsupportedError("the cells to copy are not there")
                self._runner.change(change)
            except ClosedError:
                raise
            except LlcudaError as error:
                if isinstance(change, Move):  # then all are, and later ones may build on it
                    for move in reversed(changes[i:]):
                        self._scheduler.undo_move(move)  # type: ignore[arg-type]
                    break
                failed.add(change.seq_id)
                sequence = self._scheduler.requeue(change.seq_id)
                if sequence.skip_prefix_cache:
                    self._processor.fail(sequence, error)
                sequence.skip_prefix_cache = True
        return not failed

    def _launch(self, scheduled: SchedulerOutput) -> Batch | DraftBatch:
        """Decode a batch; when the KV cache is full, give up the cached prefixes and try again."""
        try:
            return self._runner.launch(scheduled)
        except NoRoomError:
            self._runner.clear(self._scheduler.evict_cached_prefixes())
            return self._runner.launch(scheduled)

    def _recover(self, error: Exception) -> None:
        """Make a context that failed anew; what was not in the failed step goes on.

        Requests alone must not end the engine for all others. So a context that has failed again
        and again computes a text of the engine's own: if that works, the requests were the cause.

        Raises:
            DeviceLostError: A GPU failed.
            DecodeError: The context fails again and again.
        """
        for sequence in self._scheduler.forget_cells():
            self._processor.fail(sequence, error)
        while True:
            if self._completed != self._processor.completed:
                self._completed, self._failures = self._processor.completed, 0
            self._failures += 1
            if self._failures > MOST_FAILURES:
                raise DecodeError(
                    f"this engine has ended, because its context failed {self._failures} times in "
                    f"a row; load the model again. The last failure: {error}"
                ) from error
            logger.error("the context failed and is made anew: %s", error)
            try:
                self._runner.renew()
                if self._failures == MOST_FAILURES:
                    self._runner.try_out()
                    self._failures = 0
            except (ClosedError, DeviceLostError):
                raise
            except LlcudaError as failure:
                error = failure
                time.sleep(0.1 * self._failures)  # for memory that others may free
            else:
                break
        self._reporter.recovered()
        self.recovering = False


class _StopLoop(BaseException):
    """Ends the thread's loop."""
