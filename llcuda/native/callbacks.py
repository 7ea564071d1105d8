"""The Python functions that C calls. None raises through C.

What one raises is kept, C gets an error code, and the Python caller of the C function raises
the exception again, unchanged, through `reraise`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

logger = logging.getLogger("llcuda.native")
logging.getLogger("llcuda").addHandler(logging.NullHandler())  # a library prints nothing unasked

# ggml's levels to Python's. llama.cpp's INFO is a page for each model: DEBUG here.
LOG_LEVELS = {1: 5, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}

_kept = threading.local()
_Function = TypeVar("_Function", bound=Callable[..., Any])


def keep(kind: Any, error: BaseException, trace: Any) -> None:
    """Keep what a callback raised, for the caller on this thread."""
    _kept.error = error.with_traceback(trace)


def reraise() -> None:
    """Raise what the last callback on this thread raised, if it raised."""
    error = getattr(_kept, "error", None)
    if error is not None:
        _kept.error = None
        raise error


@contextlib.contextmanager
def repeats_unsaid() -> Iterator[None]:
    """Keep llama.cpp's warnings on this thread from the log: what comes next says them again."""
    thread = threading.get_ident()

    def wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno < logging.WARNING

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def define(ffi: Any) -> None:
    """Give the binding its callbacks; each finds its object behind the C pointer."""
    # What C holds of a Python step beyond the sampler that made it: handles of clones.
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
        return bool(ffi.from_handle(user_data)(fraction))

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
