"""The Python functions that C calls. None of them raises through C.

An exception in a callback is kept, and C gets an error code. The Python caller of the C function
raises the exception again, unchanged, through `reraise`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

logger = logging.getLogger("llcuda.native")
logging.getLogger("llcuda").addHandler(logging.NullHandler())  # a library prints nothing unasked

# ggml's levels to Python's. llama.cpp's INFO is a page for each model: DEBUG here.
LOG_LEVELS = {1: 5, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}

_raised = threading.local()
_exiting = threading.Event()
PARKED_SECONDS = 3600
_Function = TypeVar("_Function", bound=Callable[..., Any])


def keep(kind: Any, error: BaseException, trace: Any) -> None:
    """Keep the exception of a callback for the caller on this thread; cffi's onerror."""
    _raised.error = error.with_traceback(trace)


def reraise() -> None:
    """Raise the exception of the last callback on this thread, if it raised one.

    Raises:
        BaseException: That exception.
    """
    error = take_error()
    if error is not None:
        raise error


def take_error() -> BaseException | None:
    """Return the exception of the last callback on this thread, once, or None if there is none."""
    park_at_exit()
    error: BaseException | None = getattr(_raised, "error", None)
    _raised.error = None
    return error


def begin_exit() -> None:
    """End the C functions that report their progress, and park the threads that return from C."""
    _exiting.set()


def park_at_exit() -> None:
    """Hold the calling thread at exit, until the process ends, unless it is the main thread."""
    if _exiting.is_set() and threading.current_thread() is not threading.main_thread():
        while True:
            time.sleep(PARKED_SECONDS)


@contextlib.contextmanager
def without_repeated_warnings() -> Iterator[None]:
    """Keep llama.cpp's warnings on this thread out of the log: the next call repeats them."""
    thread = threading.get_ident()

    def is_new(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno < logging.WARNING

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def define(ffi: Any) -> None:
    """Define the callbacks of the binding; each finds its object behind the C pointer.

    Args:
        ffi: cffi's ffi of the binding.
    """
    # Handles of cloned Python steps, which C holds beyond the sampler that cloned them.
    clones: set[Any] = set()

    callback: Callable[..., Callable[[_Function], _Function]] = ffi.def_extern

    @callback()
    def llcuda_on_log(level: int, text: Any) -> None:
        line = ffi.string(text).decode(errors="replace")
        logger.log(LOG_LEVELS.get(level, logging.INFO), line)

    @callback(error=1, onerror=keep)
    def llcuda_on_signals() -> int:
        return 0  # a pending signal's handler runs as this function is entered, and may raise

    @callback(error=False, onerror=keep)
    def llcuda_on_progress(fraction: float, user_data: Any) -> bool:
        return not _exiting.is_set() and bool(ffi.from_handle(user_data)(fraction))

    @callback(error=1, onerror=keep)
    def llcuda_on_step_apply(handle: Any, data: Any, size: int, selected: Any, kept: Any) -> int:
        step = ffi.from_handle(handle)
        buffer = ffi.buffer(data, size * ffi.sizeof("llama_token_data"))
        selected[0], kept[0] = step.run(buffer, selected[0])
        return 0

    @callback(error=1, onerror=keep)
    def llcuda_on_step_accept(handle: Any, token: int) -> int:
        ffi.from_handle(handle).accept(token)
        return 0

    @callback(error=1, onerror=keep)
    def llcuda_on_step_reset(handle: Any) -> int:
        ffi.from_handle(handle).reset()
        return 0

    @callback(error=ffi.NULL, onerror=keep)
    def llcuda_on_step_clone(handle: Any) -> Any:
        clone = ffi.new_handle(ffi.from_handle(handle).clone())
        clones.add(clone)
        return clone

    @callback(onerror=keep)
    def llcuda_on_step_free(handle: Any) -> None:
        clones.discard(handle)
