"""LogprobFormatter: log-probabilities of an answer in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from llcuda.engine.outputs import TokenLogprob
from llcuda.native.model import Model

NEVER = -9999.0  # OpenAI's log-probability of an impossible token; JSON has no -Infinity


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
            name, piece = self._model.token_name(token), self._model.piece(token)
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
        """Return text -> log-probability, of two tokens with the same text the more probable.

        The sampled token is always there, as in OpenAI's API, also where it is none of the best.
        """
        top: dict[str, float] = {}
        for token, logprob in (*score.top, (score.token, score.logprob)):
            top.setdefault(self._model.token_name(token), _number(logprob))
        return top

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
        return {"token": self._model.token_name(token), "logprob": _number(logprob), "bytes": piece}


def _number(logprob: float) -> float:
    return max(logprob, NEVER)
