"""The engine's results in OpenAI's shapes: ids, usage, chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Any

from llcuda.engine.outputs import Completion
from llcuda.server.tracing import trace_phases

ENCODED_AT_ONCE = 16  # elements of a list, each of which may have a thousand values
DONE = "data: [DONE]\n\n"


_tag: ContextVar[str] = ContextVar("llcuda_id_tag", default="")


@contextmanager
def ids_begin_with(tag: str) -> Iterator[None]:
    """Let the ids that the block makes begin with a tag, by which the process is known.

    Args:
        tag: At most 8 hexadecimal digits.
    """
    token = _tag.set(tag)
    try:
        yield
    finally:
        _tag.reset(token)


def new_id(prefix: str) -> str:
    """Return a random id, e.g. "cmpl-3f..."; see `ids_begin_with`."""
    tag = _tag.get()
    return f"{prefix}{tag}{secrets.token_hex(12)[len(tag) :]}"


def unix_time() -> int:
    """Return the time, in seconds since 1970."""
    return int(time.time())


def iso_time(seconds: float) -> str:
    """Return a time in UTC, as ISO 8601 has it.

    Args:
        seconds: Seconds since 1970.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def finish_reason(reason: str) -> str:
    """Return OpenAI's finish reason: "length" also for a full context and for a deadline."""
    return "length" if reason in ("context", "timeout", "cancelled") else reason


def usage(
    prompts: Sequence[Completion], completions: Sequence[Completion], reasoning: int | None = None
) -> dict[str, Any]:
    """Return the usage of a request, whose texts have just ended; its trace gets their phases.

    Args:
        prompts: One completion of each prompt.
        completions: All completions.
        reasoning: Tokens of the reasoning; None for an API without reasoning.
    """
    trace_phases(completions)
    prompt_tokens = sum(completion.prompt_tokens for completion in prompts)
    completion_tokens = sum(len(completion.tokens) for completion in completions)
    cached_tokens = sum(completion.cached_tokens for completion in prompts)
    document: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    if reasoning is not None:
        document["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return document


class ChunkFormatter:
    """Writes the events of one choice of a stream; only their text is encoded as JSON each time.

    Args:
        fields: Fields of each event beside its choices, e.g. {"id": "cmpl-1", ...}.
        index: Index of the choice.
        before: JSON before the text in the choice, e.g. '"text":'.
        after: JSON after the text, e.g. ',"logprobs":'.
    """

    def __init__(self, fields: dict[str, Any], index: int, before: str, after: str) -> None:
        head = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1]
        self._head = f'data: {head},"choices":[{{"index":{index},{before}'
        self._after = after

    def text(self, text: str, logprobs: Any = None, reason: str | None = None) -> str:
        """Return an event with a text.

        Args:
            text: The text.
            logprobs: Its log-probabilities, as an object or as JSON.
            reason: The finish reason, in the last event.
        """
        scores = logprobs if isinstance(logprobs, str) else json.dumps(logprobs, ensure_ascii=False)
        ending = "null" if reason is None else f'"{reason}"'
        return (
            f"{self._head}{encode_basestring(text)}{self._after}{scores},"
            f'"finish_reason":{ending}}}]}}\n\n'
        )


def event(document: dict[str, Any], name: str | None = None) -> str:
    """Return one event of a stream."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


def json_text(value: Any) -> str:
    """Return a document as JSON, a long list of it in parts.

    Python's lock is held while `json.dumps` runs, so that other threads go on between the parts.
    """
    if isinstance(value, dict):
        fields = [f"{json.dumps(name)}: {json_text(field)}" for name, field in value.items()]
        return f"{{{', '.join(fields)}}}"
    if isinstance(value, list):
        if len(value) <= ENCODED_AT_ONCE:
            return f"[{', '.join(map(json_text, value))}]"
        steps = range(0, len(value), ENCODED_AT_ONCE)
        parts = [
            json.dumps(value[i : i + ENCODED_AT_ONCE], ensure_ascii=False)[1:-1] for i in steps
        ]
        return f"[{', '.join(parts)}]"
    return json.dumps(value, ensure_ascii=False)
