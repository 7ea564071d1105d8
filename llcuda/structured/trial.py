"""Tries large formats out in a process of its own before this process compiles them.

llguidance's compiler can be neither bounded nor stopped: a few bytes can take minutes and
gigabytes. A process can. A small format, which `llcuda.structured.cost` proves to be cheap, is not
tried.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from llcuda.errors import GrammarError
from llcuda.params import default_threads

CPU_SECONDS = 2.0
WALL_SECONDS = 60.0  # on a busy machine
MEMORY_BYTES = 256 << 20
STACK_BYTES = 256 << 20  # of a thread that compiles, which recurses; touched as far as it is used
MASK_SECONDS = 0.2
MAX_FORCED = 8192  # tokens that a beginning may force; longer ones never end
ENDLESS = (
    f"every text that satisfies it begins with the same {MAX_FORCED} tokens, or none ever ends"
)
STEPS = 6  # tokens of a text that is followed before the first one
POLL_SECONDS = 0.02
REMEDY = "write fewer or smaller repetitions, patterns and rules"

_NO_TEXT = "Unsatisfiable schema: "
_EMPTY_PATTERN = re.compile(rf"{_NO_TEXT}Regex is empty:[^\n]*")
CHILD = Path(__file__).with_name("trial_child.py")
_cancelled: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)
_slots = threading.BoundedSemaphore(max(1, default_threads() // 2))


@contextlib.contextmanager
def cancellable(cancelled: threading.Event) -> Iterator[None]:
    """Let `cancelled` end the compilations of the block, which then raise CancelledError."""
    token = _cancelled.set(cancelled)
    try:
        yield
    finally:
        _cancelled.reset(token)


def check_cancelled() -> None:
    """Raise CancelledError if the compilations of this block are cancelled."""
    cancelled = _cancelled.get()
    if cancelled is not None and cancelled.is_set():
        raise CancelledError("the compilation was cancelled")


@contextlib.contextmanager
def acquired(lock: threading.Lock | threading.Semaphore) -> Iterator[None]:
    """Hold a lock; waiting for it can be cancelled."""
    while not lock.acquire(timeout=POLL_SECONDS):
        check_cancelled()
    try:
        yield
    finally:
        lock.release()


def try_out(source: str, limits: Mapping[str, Any]) -> None:
    """Compile a grammar in a process of its own, within bounds of time and memory.

    Args:
        source: The grammar as llguidance gets it; it names no tokens.
        limits: Keywords of llguidance's LLParserLimits.

    Raises:
        GrammarError: llguidance refuses the grammar, or it passes a bound.
        CancelledError: The event of `cancellable` was set.
    """
    package = importlib.util.find_spec("llguidance")
    assert package is not None
    assert package.origin is not None
    job = {
        "source": source,
        "limits": dict(limits),
        "packages": str(Path(package.origin).parents[1]),
        "cpu_seconds": CPU_SECONDS,
        "memory_bytes": MEMORY_BYTES,
        "stack_bytes": STACK_BYTES,
        "mask_seconds": MASK_SECONDS,
        "max_forced": MAX_FORCED,
        "endless": ENDLESS,
        "steps": STEPS,
    }
    with acquired(_slots):
        check_cancelled()
        error = _run(json.dumps(job).encode())
    if error is not None:
        raise error


def readable(error: str) -> str:
    """Return an error of llguidance without the state that follows in it."""
    text = error.partition("<non-verbose/>")[0].partition("<backtrace>")[0].strip()
    text = _EMPTY_PATTERN.sub(f"{_NO_TEXT}no text follows its pattern, format and lengths", text)
    text = text.replace(f"{_NO_TEXT}anyOf is empty", f"{_NO_TEXT}no value is allowed")
    if text == "NoExtensionBias":
        text = (
            "no token continues the text: the grammar never ends, as a rule that consists of "
            "itself, or a pattern allows a name and none is left"
        )
    if text.startswith("panic"):
        text = f"llguidance fails on it: {text.splitlines()[0]}"
    lines = [line[:200] for line in text.splitlines()[:8]]
    return "\n".join(lines) or "it cannot be followed"


def _run(job: bytes) -> GrammarError | None:
    """Run the process and return its refusal, None without one."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(job)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD)],
                stdin=stdin,
                stdout=subprocess.PIPE,  # which holds the whole answer
                stderr=subprocess.DEVNULL,
                # With RUST_BACKTRACE=1, each error that is dropped on the way costs milliseconds.
                env={**os.environ, "RUST_LIB_BACKTRACE": "0"},
                start_new_session=True,  # Ctrl-C reaches this process, which then ends the other
            )
        except (OSError, ValueError) as error:
            return _refused(f"it is large, and the process that tries it out fails: {error}")
    deadline = time.monotonic() + WALL_SECONDS
    with process:
        assert process.stdout is not None
        try:
            while process.poll() is None and time.monotonic() < deadline:
                check_cancelled()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
            if process.returncode != 0:
                return _refused(_reason(process.returncode), REMEDY)
            problem = json.loads(process.stdout.read())["error"]
            return None if problem is None else _refused(readable(problem))
        finally:
            process.kill()


def _reason(code: int | None) -> str:
    """Return why the process ended without an answer; None is one that still ran."""
    if code is None or code == -signal.SIGPROF:
        return f"it takes more than {CPU_SECONDS:g} s to compile"
    if code == -signal.SIGSEGV:
        return "it is nested too deeply"
    if code in (-signal.SIGABRT, -signal.SIGKILL):
        return f"it takes more than {MEMORY_BYTES >> 20} MiB to compile"
    return f"it is large, and the process that tries it out ended with {code}"


def _refused(problem: str, remedy: str | None = None) -> GrammarError:
    return GrammarError(f"response_format: {problem}", parameter="response_format", remedy=remedy)
