"""The engine's results in OpenAI's shapes: ids, usage, log-probabilities, chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Sequence
from json.encoder import encode_basestring
from typing import Any

from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.native.model import Model

NEVER = -9999.0  # OpenAI's log-probability of an impossible token; JSON has no -Infinity
ENCODED_AT_ONCE = 16  # elements of a list, each of which may have a thousand values
DONE = "data: [DONE]\n\n"


def new_id(prefix: str) -> str:
    """Return a random id, e.g. "cmpl-3f..."."""
    return f"{prefix}{secrets.token_hex(12)}"


def unix_time() -> int:
    """Return the time, in seconds since 1970."""
    return int(time.time())


def finish_reason(reason: str) -> str:
    """Return OpenAI's finish reason: "length" also for a full context and for a deadline."""
    return "length" if reason in ("context", "timeout", "cancelled") else reason


def usage(
    prompts: Sequence[Completion], completions: Sequence[Completion], reasoning: int | None = None
) -> dict[str, Any]:
    """Return the usage of a request.

    Args:
        prompts: One completion of each prompt.
        completions: All completions.
        reasoning: Tokens of the reasoning; None for an API without reasoning.
    """
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


def _number(logprob: float) -> float:
    return max(logprob, NEVER)


class LogprobFormatter:
    """Gives the log-probabilities of each piece of a text in OpenAI's shapes.

    Tokens that were sampled but are not shown, such as those of a stop text, are left out.

    Args:
        model: The model, for the text of tokens.
        shown_tokens: Control tokens that have a text in the result.
        echo: The prompt, where the result begins with it.
    """

    def __init__(self, model: Model, shown_tokens: Collection[int] = (), echo: str = "") -> None:
        self._model, self._echo = model, echo
        self._shown_tokens = shown_tokens
        self._text_bytes = self._token_bytes = self._count = self._offset = 0

    def take(self, text: str, all_scores: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        """Return the log-probabilities of the next piece of text.

        Args:
            text: The piece.
            all_scores: Log-probabilities of all tokens so far.
        """
        self._text_bytes += len(text.encode())
        begin = self._count
        while self._count < len(all_scores) and self._token_bytes < self._text_bytes:
            token = all_scores[self._count].token
            self._token_bytes += len(self._model.piece_bytes(token, token in self._shown_tokens))
            self._count += 1
        return list(all_scores[begin : self._count])

    def as_text(self, scores: Sequence[TokenLogprob | int]) -> dict[str, Any]:
        """Return the object of /v1/completions; an int is a token without a log-probability."""
        pieces, offsets = [], []
        for score in scores:
            token = score if isinstance(score, int) else score.token
            name, piece = self._name(token), self._model.piece(token)
            if not piece and self._echo.startswith(name, self._offset):
                piece = name  # a control token that the prompt writes
            pieces.append(name)
            offsets.append(self._offset)
            self._offset += len(piece)
        return {
            "tokens": pieces,
            "token_logprobs": [
                None if isinstance(score, int) else _number(score.logprob) for score in scores
            ],
            "top_logprobs": [
                None if isinstance(score, int) else self._top(score) for score in scores
            ],
            "text_offset": offsets,
        }

    def _top(self, score: TokenLogprob) -> dict[str, float]:
        """Return text -> log-probability, of two tokens with the same text the more probable."""
        top: dict[str, float] = {}
        for token, logprob in score.top:
            top.setdefault(self._name(token), _number(logprob))
        return top

    def _name(self, token: int) -> str:
        """Return the text of a token, for a control token its name."""
        return self._model.piece_bytes(token, special=True).decode(errors="replace")

    def as_chat(self, scores: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the object of /v1/chat/completions."""
        content = [
            self._entry(score.token, score.logprob)
            | {"top_logprobs": [self._entry(token, logprob) for token, logprob in score.top]}
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        piece = list(self._model.piece_bytes(token, special=True))
        return {"token": self._name(token), "logprob": _number(logprob), "bytes": piece}
