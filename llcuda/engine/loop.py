"""Between the callers' threads and the worker's: an inbox, the count of who is in, the end.

The worker's thread refers to the desk, not to the engine: an engine that nobody holds any more
is collected, and closes as it goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from llcuda.errors import (
    ClosedError,
    ConcurrencyError,
    DecodeError,
    ForkError,
    LlcudaError,
    QueueFullError,
)

if TYPE_CHECKING:
    from llcuda.engine.model_runner import Worker

logger = logging.getLogger("llcuda.engine")
_this_thread = threading.local()


def in_hook() -> bool:
    """Whether this is the thread of an engine's worker, which calls the hooks too."""
    return hasattr(_this_thread, "desk")


class Desk:
    """Commands for the worker, in order.

    queue_size, parallel: as many requests may be unfinished as both together.
    """

    def __init__(self, queue_size: int, parallel: int) -> None:
        self._queue_size = queue_size
        self._parallel = parallel
        self._process = os.getpid()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._draining = False
        self.closed: LlcudaError | None = None

    # --- for callers ---

    def put(self, command: Callable[[], None]) -> None:
        """Have the worker's thread call `command` between two steps."""
        self._inbox.put(command)

    def submit(self, commands: list[Callable[[], None]]) -> None:
        """Queue requests, all or none. Raises QueueFullError, ForkError, or why it is closed."""
        self._check_process()
        with self._lock:
            if self.closed is not None:
                raise type(self.closed)(*self.closed.args) from self.closed.__cause__
            if self._unfinished + len(commands) > self._queue_size + self._parallel:
                raise QueueFullError(
                    f"{len(commands)} more requests, {self._unfinished} are unfinished: expected "
                    f"at most {self._queue_size + self._parallel} in all, n_parallel="
                    f"{self._parallel} that run and queue_size={self._queue_size} that wait"
                )
            self._unfinished += len(commands)
            for command in commands:
                self._inbox.put(command)

    def check_reader(self) -> None:
        """Raise where waiting for a request would never end: in a forked child, and in a hook."""
        self._check_process()
        if getattr(_this_thread, "desk", None) is self:
            raise ConcurrencyError(
                "a hook cannot wait for a request: it runs on the thread that computes it"
            )

    def close(self, drain: bool = False) -> None:
        """Refuse further requests; stop the worker now, or when what it has is done.

        Does nothing in a forked child: no worker is there, and the lock may be held for ever.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self.closed = self.closed or ClosedError("the engine is closed")
        self._inbox.put(self._drain if drain else self._stop)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError(
                "this engine computes in the process that was forked, not in its child; load "
                "models after the fork, or start workers with multiprocessing's 'spawn'"
            )

    # --- the worker's thread ---

    def left(self) -> None:
        """Note that a request has ended."""
        with self._lock:
            self._unfinished -= 1

    def run(self, worker: Worker) -> None:
        """Step and obey until told to stop; then end every request and free the context."""
        _this_thread.desk = self
        try:
            while True:
                while not self._inbox.empty() or not worker.busy:
                    if self._draining and self._inbox.empty():
                        self._stop()
                    self._inbox.get()()
                worker.step()
        except _StopWork:
            error: LlcudaError = ClosedError("the engine was closed before the request was done")
        except ClosedError as failure:
            error = ClosedError("the model or the context of this engine was closed under it")
            error.__cause__ = failure
        except BaseException as failure:
            logger.exception("the engine's worker failed")
            error = DecodeError(f"the engine failed: {failure!r}")
            error.__cause__ = failure
        with self._lock:
            self.closed = self.closed or error
        while not self._inbox.empty():  # submitted while it stopped
            with contextlib.suppress(_StopWork):
                self._inbox.get()()
        worker.fail_all(error)
        worker.context.close()

    def _stop(self) -> None:
        raise _StopWork

    def _drain(self) -> None:
        self._draining = True


class _StopWork(BaseException):
    """Ends the worker's loop."""
