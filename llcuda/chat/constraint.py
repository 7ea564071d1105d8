"""Restricts the tokens of an answer: to a format behind the reasoning, or to calls that fit."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from llcuda import structured
from llcuda.chat.formats import ChatSyntax, ToolCallFormat
from llcuda.chat.parser import ChatParser
from llcuda.chat.stream_reader import Reading, StreamReader, nothing
from llcuda.errors import SamplingError, UnsupportedError
from llcuda.guide import Guide
from llcuda.native.model import Model
from llcuda.params import wrong_argument


class Constraint(NamedTuple):
    """What restricts one answer.

    Attributes:
        guide: The guide; None for an answer that is free.
        relaxed: The parts of tools' schemas that are not enforced.
        schemas: The schemas that are, by the names of the tools; none where calls are not JSON.
    """

    guide: Guide | None
    relaxed: Sequence[structured.Relaxation] = ()
    schemas: Mapping[str, Any] = MappingProxyType({})


_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "$schema"}


def chat_guide(
    model: Model,
    syntax: ChatSyntax,
    prompt: str,
    *,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    response_format: Any,
    bare_tool_calls: bool,
    shown_tokens: frozenset[int],
    begun: str = "",
) -> Constraint:
    """Return what restricts one answer.

    Args:
        model: The model that writes the answer.
        syntax: The delimiters of its template.
        prompt: The prompt, which may open the reasoning.
        tools: The tools that may be called, checked. Arguments follow their schemas, but for tools
            with "strict": False, and for models that do not write them as JSON. Parts of schemas
            that cannot be honoured are left out.
        tool_choice: OpenAI's.
        response_format: The format of the content, which an answer of calls need not have.
        bare_tool_calls: Whether JSON without the delimiters of calls may be one beside a format.
        shown_tokens: Control tokens that are part of the text.
        begun: The beginning of the content, which the prompt ends with.

    Raises:
        ArgumentError: The format cannot be honoured, or `begun` does not follow it.
        UnsupportedError: A call is demanded of a model that does not write calls as JSON.
    """
    form = structured.compile_response_format(model, response_format)
    calls = syntax.tool_calls
    demanded = bool(tools) and tool_choice not in ("auto", "none")
    grammar: structured.ToolGrammar | None = None
    if tools and calls is not None and calls.body:
        waits = bool(calls.begin) and not demanded and form is None
        tool_format = _tool_format(
            calls, tools, "required" if form is not None and not demanded else tool_choice, waits
        )
        if form is not None and not demanded:
            bare = bool(calls.begin) and bare_tool_calls
            tool_format = structured.tools_or_content(tool_format, form, bare=bare, free=())
        grammar = structured.compile_tools(model, tool_format)
        if waits:
            new_guide = grammar.grammar.guide
            free = ToolCallGuide(model, new_guide, syntax, prompt, shown_tokens)
            return Constraint(free, grammar.relaxed, grammar.schemas)
    elif tools and calls is not None and form is not None and not demanded:
        tool_format = structured.tools_or_content(None, form, bare=False, free=calls.begins)
        grammar = structured.compile_tools(model, tool_format)
    elif demanded:
        raise UnsupportedError(
            f"tool_choice={tool_choice!r}: expected 'auto' or 'none', because this model does not "
            "write calls as JSON, and none can be demanded",
            parameter="tool_choice",
            remedy="use tool_choice='auto'",
        )
    form = form if grammar is None else grammar.grammar
    if form is None:
        return Constraint(None)
    guide: Guide = (
        form.guide()
        if not syntax.opens_channel(prompt) and not syntax.open_reasoning_ends(prompt)
        else ReasoningGuide(model, form.guide, syntax, prompt, shown_tokens, bool(tools))
    )
    if begun and not demanded:
        _begin(guide, model, begun)
    if grammar is None:
        return Constraint(guide)
    return Constraint(guide, grammar.relaxed, grammar.schemas)


def _begin(guide: Guide, model: Model, begun: str) -> None:
    """Let a guide go on behind the beginning of a content."""
    try:
        for token in model.tokenize(begun, add_special=False):
            guide.accept(token)
    except SamplingError:
        rule = "the answer that is to be continued does not follow response_format"
        raise wrong_argument("messages", rule) from None


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


def _until_content(
    syntax: ChatSyntax, prompt: str, reader: StreamReader, has_tools: bool
) -> Reading[bool]:
    """Read up to the content of an answer whose prompt opens reasoning or a header.

    Returns:
        Whether content comes; otherwise a message to a tool does.
    """
    if ends := syntax.open_reasoning_ends(prompt):
        yield from reader.until(ends, nothing)
    if (channels := syntax.channels) is not None:
        header: list[str] = []
        while not header or not channels.is_content("".join(header)):
            header = []
            yield from reader.until((channels.message,), header.append)
            if has_tools and channels.tool("".join(header)):
                return False
    return True


class ReasoningBudget:
    """Ends the reasoning after a number of tokens, and has a guide restrict the rest.

    Args:
        model: The model that writes the answer.
        guide: The guide of the answer; None for an answer that is free.
        parser: A parser of the answer.
        max_tokens: The most tokens of the reasoning, the text that ends it not counted.
        ending: The text that ends it.
        shown_tokens: Control tokens that are part of the text.
    """

    def __init__(
        self,
        model: Model,
        guide: Guide | None,
        parser: ChatParser,
        max_tokens: int,
        ending: str,
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._model = model
        self._guide: Any = guide
        self._parser = parser
        self._left = max_tokens
        self._ending = model.tokenize(ending, add_special=False, parse_special=True)
        self._forced: list[int] = []  # what is left of the ending that has begun
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown_tokens = shown_tokens
        self._parser.feed("")
        self._end_in_time()

    def mask(self) -> Any:
        """Return the tokens that may come next, None for all."""
        return None if self._guide is None else self._guide.mask()

    def forced(self) -> list[int]:
        """Return the tokens that come next without a choice."""
        if self._forced:
            return self._forced
        return list(self._guide.forced()) if hasattr(self._guide, "forced") else []

    def accept(self, token: int) -> None:
        """Go on behind `token`."""
        if self._guide is not None:
            self._guide.accept(token)
        was_inside = self._parser.in_reasoning
        piece = self._model.piece_bytes(token, token in self._shown_tokens)
        self._parser.feed(self._decoder.decode(piece))
        if self._forced:
            self._forced = self._forced[1:]
        elif self._parser.in_reasoning:
            self._left -= was_inside
            self._end_in_time()

    def _end_in_time(self) -> None:
        """Force the end of the reasoning if no more of it may come, behind a whole character."""
        if self._parser.in_reasoning and self._left <= 0 and not self._decoder.getstate()[0]:
            self._forced = list(self._ending)


class ReasoningGuide:
    """Leaves the reasoning free, and has a guide restrict all that follows; see `llcuda.guide`.

    The answer cannot end within the reasoning. A message to a tool is free, too.

    Args:
        model: The model that writes the answer.
        new_guide: Makes the guide of the text behind the reasoning.
        syntax: The delimiters of the model.
        prompt: The prompt of the answer.
        shown_tokens: Control tokens that are part of the text.
        has_tools: Whether there are tools to which a message may go.
    """

    def __init__(
        self,
        model: Model,
        new_guide: Callable[[], Guide],
        syntax: ChatSyntax,
        prompt: str,
        shown_tokens: frozenset[int] = frozenset(),
        has_tools: bool = False,
    ) -> None:
        self._model = model
        self._new_guide = new_guide
        self._guide: Any = None
        self._detokenize = _detokenizer(model, shown_tokens)
        self._reader = StreamReader()
        self._reading = _until_content(syntax, prompt, self._reader, has_tools)
        self._mask: Any = np.full((model.vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
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
        if self._mask is None:
            return
        self._reader.feed(self._detokenize(token))
        try:
            next(self._reading)
        except StopIteration as end:
            if not end.value:
                self._mask = None
                return
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
