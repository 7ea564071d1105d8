"""Checks of a request for texts that need its engine: before it is queued, and of its result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llcuda.engine.engine import Engine
from llcuda.engine.outputs import Completion
from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.errors import deadline_exceeded
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import AdapterScale, Body
from llcuda.structured import compile_response_format
from llcuda.structured.escaped_lark import escaped_rules
from llcuda.structured.grammar import INPUT_GRAMMAR

LARGE_REQUEST = 2**16  # bytes; a larger body may take seconds to render and to tokenize


def is_large(body: Body) -> bool:
    """Whether a request waits for other large ones, so that it keeps no small one waiting."""
    return body.size > LARGE_REQUEST


def check_count(engine: Engine, count: int, param: str) -> None:
    """Raise ArgumentError for more texts than the queue ever holds."""
    room = engine.params.n_parallel + engine.params.queue_size
    if count > room:
        raise wrong_argument(param, f"{count} texts at once, expected at most {room}")


def check_adapters(loaded: LoadedModel, asked: Sequence[AdapterScale] | None) -> None:
    """Raise ArgumentError unless a request asks for the scales that all requests have.

    Args:
        loaded: The model.
        asked: The scales; those left out are 0. None asks for nothing.
    """
    if asked is None:
        return
    if given_scales(loaded, "lora", asked) != [*loaded.adapters.values()]:
        rule = f"the scales are those of all requests, {json.dumps(loaded.adapter_scales())}"
        raise wrong_argument("lora", f"{rule}; POST /lora-adapters changes them")


def given_scales(loaded: LoadedModel, place: str, given: Sequence[AdapterScale]) -> list[float]:
    """Return the scale that a request gives each adapter; those left out get 0.

    Args:
        loaded: The model.
        place: The place of the scales, for an error.
        given: The scales.

    Raises:
        ArgumentError: There is no such adapter.
    """
    scales = [0.0] * len(loaded.adapters)
    for i, item in enumerate(given):
        if item.id >= len(scales):
            rule = f"expected an adapter from 0 to {len(scales) - 1}"
            if not scales:
                rule = "there are no adapters; start the server with --adapter FILE"
            raise wrong_value(f"{place}[{i}].id", item.id, rule)
        scales[item.id] = item.scale
    return scales


def check_format(engine: Engine, response_format: dict[str, Any] | None) -> None:
    """Compile a response_format, which is kept, so that its errors name the field."""
    try:
        compile_response_format(engine.model, response_format)
    except (ArgumentError, UnsupportedError) as error:
        error.parameter = error.parameter or "response_format"
        raise


def check_input_grammar(engine: Engine, tool: Mapping[str, Any], place: str) -> None:
    """Compile the grammar of a tool's input, so that its errors are of the grammar as it is given.

    It may take long.

    Args:
        engine: The engine.
        tool: The tool.
        place: The place of the grammar, for an error.
    """
    function = tool.get("function")
    lark = function.get(INPUT_GRAMMAR) if isinstance(function, dict) else None
    if isinstance(lark, str):
        try:
            escaped_rules(lark)
            compile_response_format(engine.model, {"type": "lark", "grammar": lark})
        except ArgumentError as error:
            problem = error.problem.removeprefix("response_format: ")
            raise wrong_argument(place, problem) from error


def check_deadline(completions: Sequence[Completion]) -> None:
    """Raise ApiError if the deadline left no text at all."""
    empty = [not done.tokens and done.finish_reason == "timeout" for done in completions]
    if empty and all(empty):
        raise deadline_exceeded()
