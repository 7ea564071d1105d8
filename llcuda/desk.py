"""Between the callers' threads and the worker's: an inbox, the count of who waits, the end.

The worker's thread refers to the desk, not to the engine: an engine that nobody holds any more
is collected, and closes as it goes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from llcuda.errors import ClosedError, DecodeError, LlcudaError, QueueFullError

if TYPE_CHECKING:
    from llcuda.worker import Worker

logger = logging.getLogger("llcuda.engine")


class Desk:
    """Commands for the worker, in order. `queue_size`: most requests that may wait."""

    def __init__(self, queue_size: int) -> None:
        self._queue_size = queue_size
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._draining = False
        self.closed: LlcudaError | None = None

    # --- for callers ---

    def put(self, command: Callable[[], None]) -> None:
        """Have the worker's thread call `command` between two steps."""
        self._inbox.put(command)

    def submit(self, commands: list[Callable[[], None]]) -> None:
        """Queue requests, all or none. Raises QueueFullError, or why the engine is closed."""
        with self._lock:
            if self.closed is not None:
                raise type(self.closed)(*self.closed.args) from self.closed.__cause__
            if self._waiting + len(commands) > self._queue_size:
                raise QueueFullError(
                    f"{self._waiting} requests wait, queue_size={self._queue_size}"
                )
            self._waiting += len(commands)
            for command in commands:
                self._inbox.put(command)

    def admitted(self) -> None:
        """Note that a request waits no longer."""
        with self._lock:
            self._waiting -= 1

    def close(self, drain: bool = False) -> None:
        """Refuse further requests; stop the worker now, or when what it has is done."""
        with self._lock:
            self.closed = self.closed or ClosedError("the engine is closed")
        self._inbox.put(self._drain if drain else self._stop)

    # --- the worker's thread ---

    def run(self, worker: Worker) -> None:
        """Step and obey until told to stop; then end every request and free the context."""
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
