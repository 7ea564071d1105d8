"""From the engine's results to OpenAI's answers: ids, usage, log-probabilities, chunks.

Chunks of a stream are made of templates: only their text is encoded as JSON.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Sequence
from json.encoder import encode_basestring
from typing import Any

from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.native.model import Model

NEVER = -9999.0  # OpenAI's log-probability of what cannot come; JSON has no -Infinity
DONE = "data: [DONE]\n\n"


def new_id(prefix: str) -> str:
    """Return an id, e.g. "cmpl-3f..."; no two are alike, whatever ids clients send."""
    return f"{prefix}{secrets.token_hex(12)}"


def now() -> int:
    """Return the time, in seconds since 1970."""
    return int(time.time())


def finish_reason(reason: str) -> str:
    """Return OpenAI's word: "length" also for a full context and for a deadline."""
    return "length" if reason in ("context", "timeout", "cancelled") else reason


def usage(
    prompts: Sequence[Completion], made: Sequence[Completion], reasoning: int | None = None
) -> dict[str, Any]:
    """Return the usage.

    prompts: one completion of each prompt; made: all; reasoning: tokens of it, None where no such
    thing is known.
    """
    prompt = sum(one.prompt_tokens for one in prompts)
    answer = sum(len(one.tokens) for one in made)
    spent: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in prompts)},
    }
    if reasoning is not None:
        spent["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return spent


class Chunks:
    """The events of one choice of a stream, around their text.

    fields: what each event has besides its choices, e.g. {"id": "cmpl-1", ...}; before, after:
    JSON around the text in the choice, e.g. '"text":' and ',"logprobs":'.
    """

    def __init__(self, fields: dict[str, Any], index: int, before: str, after: str) -> None:
        head = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1]
        self._head = f'data: {head},"choices":[{{"index":{index},{before}'
        self._after = after

    def text(self, text: str, logprobs: Any = None, reason: str | None = None) -> str:
        """Return an event with a text."""
        scores = "null" if logprobs is None else json.dumps(logprobs, ensure_ascii=False)
        ending = "null" if reason is None else f'"{reason}"'
        return (
            f"{self._head}{encode_basestring(text)}{self._after}{scores},"
            f'"finish_reason":{ending}}}]}}\n\n'
        )


def event(document: dict[str, Any], name: str | None = None) -> str:
    """Return one event of a stream."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


def _number(logprob: float) -> float:
    return max(logprob, NEVER)


class Scores:
    """Hands out a text's log-probabilities along with the text that they belong to.

    What was sampled but is not shown, such as a stop text, is left out. named: control tokens that
    have a text in the result.
    """

    def __init__(self, model: Model, named: Collection[int] = ()) -> None:
        self._model = model
        self._named = named
        self._shown = self._given = self._count = self._offset = 0

    def take(self, text: str, all_scores: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        """Return the scores of further `text`; all_scores: of all tokens so far."""
        self._shown += len(text.encode())
        begin = self._count
        while self._count < len(all_scores) and self._given < self._shown:
            token = all_scores[self._count].token
            self._given += len(self._model.piece_bytes(token, token in self._named))
            self._count += 1
        return list(all_scores[begin : self._count])

    def as_text(self, scores: Sequence[TokenLogprob | int]) -> dict[str, Any]:
        """Return the object of /v1/completions; an int is a token without a score."""
        pieces, offsets = [], []
        for score in scores:
            token = score if isinstance(score, int) else score.token
            pieces.append(self._name(token))
            offsets.append(self._offset)
            self._offset += len(self._model.piece(token))
        found = [None if isinstance(score, int) else score for score in scores]
        return {
            "tokens": pieces,
            "token_logprobs": [None if one is None else _number(one.logprob) for one in found],
            "top_logprobs": [None if one is None else self._top(one) for one in found],
            "text_offset": offsets,
        }

    def _top(self, score: TokenLogprob) -> dict[str, float]:
        """Return text -> log-probability; of two tokens with one text the more probable."""
        top: dict[str, float] = {}
        for token, logprob in score.top:
            top.setdefault(self._name(token), _number(logprob))
        return top

    def _name(self, token: int) -> str:
        """Return a token's text; of a control token its name."""
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
