"""Queues the texts of a request beside the event loop, and lets go of them with their client."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol, TypeVar

from llcuda.server.errors import deadline_exceeded
from llcuda.structured.trial import cancellable, check_cancelled

COMPILING_THREADS = 8


class Cancellable(Protocol):
    """A queued text."""

    def cancel(self) -> None:
        """End it."""


T = TypeVar("T", bound=Cancellable)


async def submit_beside(
    submit: Callable[[], list[T]], deadline: float | None, *, compiles: bool
) -> list[T]:
    """Queue texts in another thread.

    When the client disconnects meanwhile, or the deadline passes, compilations end, and what is
    queued afterwards is cancelled.

    Args:
        submit: Queues the texts, all or none.
        deadline: Seconds, or None.
        compiles: Whether a format is compiled, which must not keep other requests waiting.

    Raises:
        ApiError: The deadline passed.
    """
    cancelled = threading.Event()
    context = contextvars.copy_context()

    def run() -> list[T]:
        with cancellable(cancelled):
            check_cancelled()
            return submit()

    executor = _compiling_threads() if compiles else None
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


@cache
def _compiling_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COMPILING_THREADS, thread_name_prefix="llcuda-submit")


def _cancel_all(work: asyncio.Future[list[T]]) -> None:
    if not work.cancelled() and work.exception() is None:
        for text in work.result():
            text.cancel()
