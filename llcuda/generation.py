"""One text from one context: decode, sample, deliver, until an end.

The plain loop, for the command line and for scripts. It serves one text at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llcuda.errors import ArgumentError, NoRoomError
from llcuda.text import Utf8Decoder

if TYPE_CHECKING:
    from llcuda.native.context import Context
    from llcuda.native.sampler import Sampler


class Generation:
    """The continuation of `prompt`, as an iterator of text pieces.

    prompt: tokens, decoded as the continuation of sequence 0. max_tokens: at most so many are
    sampled. tokens: what was sampled so far, the end token not counted. finish_reason: None
    while it runs, then "stop" (the model ended the text), "length" (max_tokens) or "context"
    (no room for another token). Raises ArgumentError for an empty prompt or one that leaves no
    room for an answer.
    """

    def __init__(
        self, context: Context, sampler: Sampler, prompt: Sequence[int], max_tokens: int
    ) -> None:
        if not prompt:
            raise ArgumentError("the prompt is empty")
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens={max_tokens}: expected at least 1")
        if len(prompt) > context.ctx_size:
            raise ArgumentError(
                f"the prompt has {len(prompt)} tokens, the context holds {context.ctx_size}"
            )
        self._context = context
        self._sampler = sampler
        self._prompt = prompt
        self._max_tokens = max_tokens
        self.tokens: list[int] = []
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        context, model = self._context, self._context.model
        decoder = Utf8Decoder()
        context.decode(self._prompt)
        while True:
            token = self._sampler.sample(context)
            if model.is_eog(token):
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            if text := decoder.decode(model.piece_bytes(token)):
                yield text
            if len(self.tokens) == self._max_tokens:
                self.finish_reason = "length"
                break
            if not self._decode(token):
                self.finish_reason = "context"
                break
        if rest := decoder.flush():
            yield rest

    def _decode(self, token: int) -> bool:
        if self._context.n_past() >= self._context.ctx_size:
            return False
        try:
            self._context.decode([token])
        except NoRoomError:
            return False
        return True
