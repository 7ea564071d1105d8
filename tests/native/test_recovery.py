"""Memory that runs out, here the machine's, where a limit plays the full GPU."""

from __future__ import annotations

import pytest

from llcuda.errors import (
    ContextError,
    DecodeError,
    LlcudaError,
    ModelError,
    OutOfMemoryError,
)
from llcuda.native.oom import oom_message
from tests.support.programs import run

# One arena: that of a thread would have room that the limit does not see.
LIMIT = """
import ctypes, resource, sys
ctypes.CDLL(None).mallopt(-8, 1)
from llcuda import Context, Model
from llcuda.errors import DecodeError, OutOfMemoryError

def limit(more=None):
    "Let the process take so many bytes more; a few MiB, or a stack that grows would end it."
    pages = int(open("/proc/self/statm").read().split()[0])
    most = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
"""

DECODE = """
asked = {"ctx_size": 4096, "batch_size": 4096, "ubatch_size": 4096, "threads": 1}
prompt = [5 + i % 90 for i in range(4000)]
with Model("demo") as model:
    with Context(model, **asked) as context:
        context.decode([5, 6, 7])
        limit(2**21)
        try:
            context.decode(prompt)
        except OutOfMemoryError as error:
            limit()
            print(error)
        for use in (lambda: context.decode([5]), context.logits, context.save_state):
            try:
                use()
            except DecodeError as error:
                print(error)
        print("this context has failed:", context.failed)
        context.renew()
        context.decode(prompt)
    with Context(model, **asked) as context:
        context.decode(prompt)
"""


def test_a_context_that_ran_out_of_memory_is_not_used_again() -> None:
    """Nobody knows what the CPU backend has done: the context says so; renewed it computes."""
    result = run(LIMIT + DECODE)
    assert result.returncode == 0, result.stderr
    first, *again = result.stdout.split("\nthis context")
    assert first.startswith("too little memory, ")
    assert "MiB are free" in first
    assert len(again) == 4
    assert all("failed before: renew() it" in text for text in again[:3])
    assert " has failed: True" == again[3].rstrip()


CONTEXT = """
with Model("demo") as model:
    limit(2**24)
    try:
        Context(model, ctx_size=65536)
    except OutOfMemoryError as error:
        limit()
        print(error)
    with Context(model, ctx_size=256) as context:
        context.decode([5])
"""


def test_a_context_out_of_memory_leaves_room_for_a_smaller_one() -> None:
    """The error says what to choose; the model stays usable."""
    result = run(LIMIT + CONTEXT)
    assert result.returncode == 0, result.stderr
    assert "a smaller ctx_size" in result.stdout


FULL = [("CUDA0", 5 * 2**20, 15000 * 2**20)]
ROOMY = [("CUDA0", 5 * 2**30, 15000 * 2**20)]
MALLOC = "allocating 4812.30 MiB on device 0: cudaMalloc failed: out of memory"


@pytest.mark.parametrize(
    ("lines", "kind", "places", "expected"),
    [
        (MALLOC, ModelError, FULL, "4,812 MiB more were asked of CUDA0, 5 of 15,000 MiB are free"),
        (MALLOC, ContextError, FULL, "give fewer gpu_layers, or a smaller ctx_size"),
        ("CUDA error: out of memory", DecodeError, ROOMY, "smaller ubatch_size"),
        # cuBLAS has words of its own
        ("CUDA error: the resource allocation failed", DecodeError, FULL, "too little memory"),
        ("CUDA error: the launch timed out", DecodeError, ROOMY, ""),
        ("failed to allocate buffer of size 1048576", ModelError, [], "1 MiB more were asked"),
        ("invalid magic", ModelError, FULL, ""),
    ],
)
def test_what_the_log_says_of_memory(
    lines: str, kind: type[LlcudaError], places: list[tuple[str, int, int]], expected: str
) -> None:
    """What was asked, what is free and what to do; nothing where the reason is another."""
    message = oom_message(lines, kind, lambda: places)
    assert bool(message) == bool(expected)
    assert expected in message


def test_it_is_the_error_of_what_was_tried() -> None:
    """Who catches the errors of loading, creating or decoding catches it too."""
    for kind in (ModelError, ContextError, DecodeError, MemoryError):
        assert issubclass(OutOfMemoryError, kind)
