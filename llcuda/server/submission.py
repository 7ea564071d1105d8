"""Queues the texts of a request beside the event loop, and lets go of them with their client."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Protocol, TypeVar

from llcuda.server.errors import deadline_exceeded
from llcuda.structured.trial import cancellable, check_cancelled

COMPILING_THREADS = 8
_THREADS = ("llcuda-large", "llcuda-submit")


class Cancellable(Protocol):
    """A queued text."""

    def cancel(self) -> None:
        """End it."""


T = TypeVar("T", bound=Cancellable)
Result = TypeVar("Result")


async def submit_beside(
    submit: Callable[[], list[T]], deadline: float | None, *, compiles: bool, large: bool
) -> list[T]:
    """Queue texts in another thread.

    When the client disconnects meanwhile, or the deadline passes, compilations end, and what is
    queued afterwards is cancelled.

    Args:
        submit: Queues the texts, all or none.
        deadline: Seconds, or None.
        compiles: Whether a format is compiled, which must not keep other requests waiting.
        large: Whether the request is one of the large ones, which wait for each other only.

    Raises:
        ApiError: The deadline passed.
    """
    cancelled = threading.Event()
    context = contextvars.copy_context()

    def run() -> list[T]:
        with cancellable(cancelled):
            check_cancelled()
            return submit()

    executor = _large_thread() if large else _compiling_threads() if compiles else None
    work = asyncio.get_running_loop().run_in_executor(executor, context.run, run)
    try:
        async with asyncio.timeout(deadline):
            return await asyncio.shield(work)
    except TimeoutError:
        raise deadline_exceeded() from None
    finally:
        if not work.done():
            cancelled.set()
            work.add_done_callback(_cancel_all)


async def run_beside(large: bool, work: Callable[..., Result], *arguments: Any) -> Result:
    """Compute something in another thread.

    Args:
        large: Whether the request is one of the large ones, which wait for each other only.
        work: What to call.
        arguments: Its arguments.
    """
    executor = _large_thread() if large else None
    return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)


@cache
def _large_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=_THREADS[0])


@cache
def _compiling_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COMPILING_THREADS, thread_name_prefix=_THREADS[1])


def stop_threads(seconds: float) -> bool:
    """Let the threads of large and compiling requests end; return whether all have.

    Args:
        seconds: The longest time to wait for what runs; what waits is cancelled.
    """
    end = time.monotonic() + seconds
    for executor in (_large_thread, _compiling_threads):
        if executor.cache_info().currsize:
            executor().shutdown(wait=False, cancel_futures=True)
            executor.cache_clear()
    threads = [t for t in threading.enumerate() if t.name.startswith(_THREADS)]
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _cancel_all(work: asyncio.Future[list[T]]) -> None:
    if not work.cancelled() and work.exception() is None:
        for text in work.result():
            text.cancel()
