"""Checks of a request for texts that need its engine: before it is queued, and of its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llcuda.engine.engine import Engine
from llcuda.engine.outputs import Completion
from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.params import wrong_argument
from llcuda.server.errors import deadline_exceeded
from llcuda.server.protocol import Body
from llcuda.structured import compile_response_format

LARGE_REQUEST = 2**16  # bytes; a larger body may take seconds to render and to tokenize


def is_large(body: Body) -> bool:
    """Whether a request waits for other large ones, so that it keeps no small one waiting."""
    return body.size > LARGE_REQUEST


def check_count(engine: Engine, count: int, param: str) -> None:
    """Raise ArgumentError for more texts than the queue ever holds."""
    room = engine.params.n_parallel + engine.params.queue_size
    if count > room:
        raise wrong_argument(param, f"{count} texts at once, expected at most {room}")


def check_format(engine: Engine, response_format: dict[str, Any] | None) -> None:
    """Compile a response_format, which is kept, so that its errors name the field."""
    try:
        compile_response_format(engine.model, response_format)
    except (ArgumentError, UnsupportedError) as error:
        error.parameter = error.parameter or "response_format"
        raise


def check_deadline(completions: Sequence[Completion]) -> None:
    """Raise ApiError if the deadline left no text at all."""
    empty = [not done.tokens and done.finish_reason == "timeout" for done in completions]
    if empty and all(empty):
        raise deadline_exceeded()
