"""What restricts an answer's tokens: a format once the reasoning is over, or the calls in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llcuda.chat.formats import Calls, Syntax
from llcuda.errors import ArgumentError, SamplingError, UnsupportedError
from llcuda.guide import Guide
from llcuda.native.model import Model
from llcuda.structured import compiler as structured

_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "$schema"}
_KEPT = 256  # bytes in which a mark is looked for


def guide_of(
    model: Model,
    syntax: Syntax,
    prompt: str,
    *,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    response_format: Any,
    shown: frozenset[int],
) -> Guide | None:
    """Return what an answer to `prompt` is restricted by, None for nothing.

    shown: control tokens that are part of the text. Calls' arguments follow their tools' schemas,
    but for tools with "strict": False, and for models that do not write them as JSON. Raises
    ArgumentError for what cannot be honoured, UnsupportedError for calls that cannot be demanded.
    """
    form = structured.wanted(model, response_format)
    demanded = bool(tools) and tool_choice not in ("auto", "none")
    if form is not None and tools:
        raise ArgumentError(
            "response_format: with tools expected tool_choice='none', or no tools",
            parameter="response_format",
        )
    trigger = ""
    if tools and syntax.calls is not None and syntax.calls.pattern:
        trigger = "" if demanded else syntax.calls.begin
        form = structured.compile(model, _tool_format(syntax.calls, tools, tool_choice, trigger))
    elif demanded:
        raise UnsupportedError(
            f"tool_choice={tool_choice!r}: this model does not write calls as JSON, so that they "
            "cannot be demanded; use tool_choice='auto'",
            parameter="tool_choice",
        )
    if form is None:
        return None
    return ChatGuide(model, form.guide, _ends(syntax, prompt), trigger, shown, prompt)


def _tool_format(
    calls: Calls,
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any],
    trigger: str,
) -> dict[str, Any]:
    """Return the format of calls: all that may be written, or one of them behind a trigger."""
    told = [_told(tool) for tool in tools]
    if trigger:
        return structured.tool_format(told, "required", around=calls.inside, parallel=False)
    parallel = bool(calls.begin) and choice == "required"
    return structured.tool_format(told, choice, around=calls.around, parallel=parallel)


def _told(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool as it restricts: not what is not strict, and else with no other parameters."""
    function = tool["function"]
    schema = function["parameters"]
    if function.get("strict") is False:
        schema = {"type": "object"}
    elif schema.keys() <= _PLAIN:
        schema = {**schema, "additionalProperties": False}
    return {**tool, "function": {**function, "parameters": schema}}


def _ends(syntax: Syntax, prompt: str) -> tuple[str, ...]:
    """Return what ends the reasoning that a prompt has opened; nothing where it has not."""
    if syntax.channels is not None and prompt.rstrip().endswith(syntax.channels.start):
        return (syntax.channels.final,)
    opened = [end for begin, end in syntax.reasoning if prompt.rstrip().endswith(begin.rstrip())]
    return tuple(opened[:1])


class ChatGuide:
    """Follows one answer; see `llcuda.guide`.

    new: makes the guide of what is restricted. ends: marks before which nothing is, as the model
        reasons; the text cannot end there. trigger: what begins such a text, again and again; "" =
        all that follows the reasoning is one.
    """

    def __init__(
        self,
        model: Model,
        new: Callable[[], Guide] | Callable[[], Any],
        ends: tuple[str, ...],
        trigger: str,
        shown: frozenset[int],
        prompt: str,
    ) -> None:
        self._model = model
        self._new = new
        self._shown = shown
        self._trigger = trigger.encode()
        self._ends = [end.encode() for end in ends]
        self._text = prompt[-_KEPT:].encode()[-_KEPT:] if ends else b""
        self._guide: Any = None if ends or trigger else new()

    def mask(self) -> Any:
        """Return what may come next; while the model reasons, all but the end."""
        if self._guide is not None:
            return self._guide.mask()
        if not self._ends or self._trigger:
            return None
        mask = np.full((self._model.vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
        for token in self._model.eog_tokens:
            mask[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
        return mask

    def forced(self) -> list[int]:
        """Return the tokens that come next without a choice."""
        return [] if self._guide is None else list(self._guide.forced())

    def accept(self, token: int) -> None:
        """Go on behind `token`."""
        if self._guide is not None:
            self._guide.accept(token)
            if self._trigger and not self._model.eog_tokens.isdisjoint(self._guide.forced()[:1]):
                self._guide, self._text = None, b""
            return
        self._text += self._model.piece_bytes(token, token in self._shown)
        for mark in self._ends or [self._trigger]:
            if mark in self._text:
                self._found(self._text.partition(mark)[2])
                return
        self._text = self._text[-_KEPT:]

    def _found(self, rest: bytes) -> None:
        """Go on behind a mark. rest: what its last token had besides."""
        reasoned, self._ends, self._text = bool(self._ends), [], rest
        if reasoned and self._trigger:
            return
        self._guide = self._new()
        for token in self._model.tokenize(rest.lstrip() if reasoned else rest, add_special=False):
            try:
                self._guide.accept(token)
            except SamplingError:
                if not self._trigger:
                    raise
                self._guide, self._text = None, b""  # no call, but a text that has such a mark
                return
