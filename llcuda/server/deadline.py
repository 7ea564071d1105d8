"""The rest of the time of a request that another process has received."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from llcuda.server.middleware import MIN_SECONDS

_end: ContextVar[float | None] = ContextVar("llcuda_deadline", default=None)


@contextmanager
def ends_in(seconds: float | None) -> Iterator[None]:
    """Let the request that the block answers end after some seconds.

    Args:
        seconds: The seconds; None = the server's limit alone.
    """
    token = _end.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(token)


def seconds_left() -> float | None:
    """Return the seconds that this request has left; None where nobody said."""
    end = _end.get()
    return None if end is None else max(MIN_SECONDS, end - time.monotonic())
