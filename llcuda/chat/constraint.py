"""Restricts the tokens of an answer: to a format behind the reasoning, or to calls that fit."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llcuda import structured
from llcuda.chat.formats import ChatSyntax, ToolCallFormat
from llcuda.chat.parser import ChatParser
from llcuda.chat.stream_reader import Reading, StreamReader, nothing
from llcuda.errors import SamplingError, UnsupportedError
from llcuda.guide import Guide
from llcuda.native.model import Model
from llcuda.params import wrong_argument

_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "$schema"}


def chat_guide(
    model: Model,
    syntax: ChatSyntax,
    prompt: str,
    *,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    response_format: Any,
    shown_tokens: frozenset[int],
) -> Guide | None:
    """Return the guide of one answer, None for an answer that is free.

    Args:
        model: The model that writes the answer.
        syntax: The delimiters of its template.
        prompt: The prompt, which may open the reasoning.
        tools: The tools that may be called, checked. Arguments follow their schemas, but for tools
            with "strict": False, and for models that do not write them as JSON.
        tool_choice: OpenAI's.
        response_format: The format of the content.
        shown_tokens: Control tokens that are part of the text.

    Raises:
        ArgumentError: The tools or the format cannot be honoured.
        UnsupportedError: A call is demanded of a model that does not write calls as JSON.
    """
    form = structured.compile_response_format(model, response_format)
    calls = syntax.tool_calls
    demanded = bool(tools) and tool_choice not in ("auto", "none")
    if form is not None and tools:
        raise wrong_argument(
            "response_format", "expected none with tools, unless tool_choice is 'none'"
        )
    if tools and calls is not None and calls.body:
        waits = bool(calls.begin) and not demanded
        form = structured.compile(model, _tool_format(calls, tools, tool_choice, waits))
        if waits:
            return ToolCallGuide(model, form.guide, syntax, prompt, shown_tokens)
    elif demanded:
        raise UnsupportedError(
            f"tool_choice={tool_choice!r}: expected 'auto' or 'none', because this model does not "
            "write calls as JSON, and none can be demanded",
            parameter="tool_choice",
            remedy="use tool_choice='auto'",
        )
    if form is None:
        return None
    if not syntax.opens_channel(prompt) and syntax.open_reasoning(prompt) is None:
        return form.guide()
    return ReasoningGuide(model, form.guide, syntax, prompt, shown_tokens)


def _tool_format(
    calls: ToolCallFormat,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    inside: bool,
) -> dict[str, Any]:
    """Return the format of an answer's calls, or the one of the text inside of one call."""
    strict = [strict_tool(tool) for tool in tools]
    if inside:
        return structured.tool_format(strict, "required", around=calls.inside, parallel=False)
    parallel = bool(calls.begin) and tool_choice == "required"
    return structured.tool_format(strict, tool_choice, around=calls.around, parallel=parallel)


def strict_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool that allows no further parameters; any if it is not strict."""
    function = tool["function"]
    schema = function["parameters"]
    if function.get("strict") is False:
        schema = {"type": "object"}
    elif schema.keys() <= _PLAIN:
        schema = {**schema, "additionalProperties": False}
    return {**tool, "function": {**function, "parameters": schema}}


def _detokenizer(model: Model, shown_tokens: frozenset[int]) -> Callable[[int], str]:
    """Return a function that returns the characters which the next token of a text completes."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda token: decode(model.piece_bytes(token, token in shown_tokens))


def _until_content(syntax: ChatSyntax, prompt: str, reader: StreamReader) -> Reading[None]:
    """Read up to the content of an answer whose prompt opens reasoning or a header."""
    if (reasoning := syntax.open_reasoning(prompt)) is not None:
        yield from reader.until(syntax.reasoning_ends(reasoning), nothing)
    elif (channels := syntax.channels) is not None:
        header: list[str] = []
        while not header or not channels.is_content("".join(header)):
            header = []
            yield from reader.until((channels.message,), header.append)


class ReasoningGuide:
    """Leaves the reasoning free, and has a guide restrict all that follows; see `llcuda.guide`.

    The answer cannot end within the reasoning.

    Args:
        model: The model that writes the answer.
        new_guide: Makes the guide of the text behind the reasoning.
        syntax: The delimiters of the model.
        prompt: The prompt of the answer.
        shown_tokens: Control tokens that are part of the text.
    """

    def __init__(
        self,
        model: Model,
        new_guide: Callable[[], Guide],
        syntax: ChatSyntax,
        prompt: str,
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._model = model
        self._new_guide = new_guide
        self._guide: Any = None
        self._detokenize = _detokenizer(model, shown_tokens)
        self._reader = StreamReader()
        self._reading = _until_content(syntax, prompt, self._reader)
        self._mask = np.full((model.vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
        for token in model.eog_tokens:
            self._mask[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)

    def mask(self) -> Any:
        """Return the tokens that may come next; within the reasoning all but those that end it."""
        return self._mask if self._guide is None else self._guide.mask()

    def forced(self) -> list[int]:
        """Return the tokens that come next without a choice."""
        return [] if self._guide is None else list(self._guide.forced())

    def accept(self, token: int) -> None:
        """Go on behind `token`."""
        if self._guide is not None:
            self._guide.accept(token)
            return
        self._reader.feed(self._detokenize(token))
        try:
            next(self._reading)
        except StopIteration:
            self._guide = self._new_guide()
            rest = self._reader.rest().lstrip()
            for token in self._model.tokenize(rest, add_special=False):
                self._guide.accept(token)


class ToolCallGuide:
    """Has guides restrict the calls of an answer, and leaves the rest free; see `llcuda.guide`.

    Args:
        model: The model that writes the answer.
        new_guide: Makes the guide of the text behind the delimiter of a call.
        syntax: The delimiters of the model.
        prompt: The prompt of the answer.
        shown_tokens: Control tokens that are part of the text.
    """

    def __init__(
        self,
        model: Model,
        new_guide: Callable[[], Guide],
        syntax: ChatSyntax,
        prompt: str = "",
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._model = model
        self._new_guide = new_guide
        self._guide: Any = None
        self._detokenize = _detokenizer(model, shown_tokens)
        self._parser = ChatParser(syntax, prompt, {}, read_call=self._read_call)

    def mask(self) -> Any:
        """Return the tokens that may come next, None for all."""
        return None if self._guide is None else self._guide.mask()

    def forced(self) -> list[int]:
        """Return the tokens that come next without a choice."""
        return [] if self._guide is None else list(self._guide.forced())

    def accept(self, token: int) -> None:
        """Go on behind `token`."""
        if self._guide is None:
            self._parser.feed(self._detokenize(token))
            return
        self._guide.accept(token)
        if not self._model.eog_tokens.isdisjoint(self._guide.forced()[:1]):  # the call is complete
            self._guide = None

    def _read_call(self, reader: StreamReader, delimiter: str) -> Reading[None]:
        """Begin a guide, and wait for its end."""
        if not delimiter:  # opened by the prompt, which demands no call
            return
        self._guide = self._new_guide()
        for token in self._model.tokenize(reader.rest(), add_special=False):
            try:
                self._guide.accept(token)
            except SamplingError:  # content with the delimiter in it
                self._guide = None
                return
        while self._guide is not None:
            yield
