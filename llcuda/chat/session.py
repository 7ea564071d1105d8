"""Chat with a model: messages in, a message out, whole or as it is written.

    answer = engine.chat([{"role": "user", "content": "Hello"}]).result()
    print(answer.message["content"])

`start` renders the messages, submits the prompt through a function that it is given, and returns
the Chat. Knows nothing of the engine.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import secrets
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, Unpack

from llcuda._lazy import explain_names, field_of
from llcuda._pickling import stays_in_process
from llcuda.chat.messages import check_tools, plain_data
from llcuda.chat.parser import ChatDelta, ChatParser
from llcuda.chat.prompt import Prompt
from llcuda.chat.tool_calls import ToolCall
from llcuda.chat.turns import INSTRUCTIONS, drop_oldest, role_of
from llcuda.display import code, folded, show_stream, small, text_block, token_table
from llcuda.errors import ClosedError
from llcuda.keywords import TextKeywords, check_keywords
from llcuda.native.model import Model
from llcuda.params import check_flag, check_number, wrong_argument, wrong_value
from llcuda.structured import Relaxation
from llcuda.structured.classes import read_answer

TOOL_TEMPLATE = "tool_use"  # the name of a template that models have for conversations with tools
RESERVED = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "model",
        "self",
    }
)


class TextCompletion(Protocol):
    """The part of a finished request's result that a chat reads."""

    @property
    def text(self) -> str:
        """The text as the model wrote it."""

    @property
    def tokens(self) -> Sequence[int]:
        """The sampled tokens."""

    @property
    def finish_reason(self) -> str:
        """The reason of the end."""

    @property
    def stop_text(self) -> str | None:
        """The stop text that ended the text; None where none did."""

    @property
    def logprobs(self) -> Sequence[Any] | None:
        """The log-probabilities of the tokens; None where they were not asked for."""

    def figures(self) -> str:
        """Return tokens, time, rate and finish reason in one line."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data for JSON."""


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # a default keeps the annotation `Chat` valid as it is

    from llcuda.chat.template import ChatTemplate

    CompletionT = TypeVar("CompletionT", bound=TextCompletion, default=Any)
    CompletionT_co = TypeVar("CompletionT_co", bound=TextCompletion, covariant=True)
else:
    from typing import TypeVar

    CompletionT = TypeVar("CompletionT")
    CompletionT_co = TypeVar("CompletionT_co", covariant=True)


class TextRequest(Protocol[CompletionT_co]):
    """A handle for one running generation request, as far as a chat reads it."""

    @property
    def params(self) -> Any:
        """The parameters of the request."""

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of the prompt."""

    @property
    def logprobs(self) -> Sequence[Any]:
        """The log-probabilities of the tokens so far, where they were asked for."""

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""

    def cancel(self) -> None:
        """End the request as soon as the running step is over."""

    def result(self, timeout: float | None = None) -> CompletionT_co:
        """Wait for the end and return the completion."""

    def take(self) -> str:
        """Return the text that has come and was not read; never waits."""

    async def more(self) -> str:
        """Wait for text and return all that has come; "" at the end."""

    def __iter__(self) -> Iterator[str]: ...
    def __await__(self) -> Generator[Any, None, CompletionT_co]: ...
    def __aiter__(self) -> AsyncIterator[str]: ...


@explain_names
class Message(dict[str, Any]):
    """OpenAI's message of an assistant: a dict."""


@explain_names
@dataclass(frozen=True, slots=True, repr=False)
class ChatCompletion(Generic[CompletionT]):
    """The answer of a chat; str() is its content. `answer["message"]` is `answer.message`.

    Attributes:
        message: OpenAI's message of an assistant: "role" and "content", and "reasoning_content"
            and "tool_calls" where the model wrote them. It can go into the next conversation.
        finish_reason: "tool_calls", or that of `completion`: "stop", "length", ...; "length" also
            where a stop text cuts a call.
        completion: The engine's result, with tokens, times, and the text as the model wrote it.
        reasoning_tokens: Number of tokens that hold some of "reasoning_content"; 0 when the model
            was closed before the answer was read.
        dropped_messages: Number of the oldest messages that overflow="drop" left out.
        response_format: The format of the content, which `parsed` reads; or None.
        continues: The content of the message that the answer continues, which stands before its
            own; "" for a new answer.
    """

    message: dict[str, Any]
    finish_reason: str
    completion: CompletionT
    reasoning_tokens: int = 0
    dropped_messages: int = 0
    response_format: Any = None
    continues: str = ""

    @property
    def content(self) -> str:
        """The text of the answer, without reasoning and calls; "" where there is none."""
        return self.message["content"] or ""

    @property
    def reasoning(self) -> str:
        """What the model wrote before its answer, if it reasons; "" where there is nothing."""
        return self.message.get("reasoning_content") or ""

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools, in the order in which the model wrote them.

        The last one has a `problem` where the answer was cut within it.
        """
        calls = [ToolCall.of(call) for call in self.message.get("tool_calls") or ()]
        if calls and not calls[-1].text:  # a call that is whole has at least {}
            calls[-1] = replace(calls[-1], problem="the call was cut before its arguments")
        return calls

    @property
    def parsed(self) -> Any:
        """What the content holds, by the `response_format`.

        An instance where the format is a class, Python's data where it is JSON; None for other
        formats, also for a CompiledGrammar, and for an answer that is nothing but calls.

        Raises:
            AnswerError: The content is cut off, or the class refuses it.
        """
        if not self.content and self.message.get("tool_calls"):
            return None
        text = self.continues + self.content
        return read_answer(text, self.response_format, self.finish_reason)

    def __getitem__(self, name: str) -> Any:
        return field_of(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as data for JSON: the attributes, without the format."""
        return {
            "message": self.message,
            "finish_reason": self.finish_reason,
            "reasoning_tokens": self.reasoning_tokens,
            "dropped_messages": self.dropped_messages,
            "continues": self.continues,
            "completion": self.completion.to_dict(),
        }

    def __str__(self) -> str:
        return self.content

    def __repr__(self) -> str:
        calls = "".join(f" {call}" for call in self.tool_calls)
        return f"<llcuda.ChatCompletion {self.content!r}{calls}: {self._figures()}>"

    def _repr_html_(self) -> str:
        """Return the answer for a notebook: reasoning, content, calls, figures, probabilities."""
        reasoning = folded("Reasoning", text_block(self.reasoning)) if self.reasoning else ""
        calls = "".join(f"<div>{code(str(call))}</div>" for call in self.tool_calls)
        scores = self.completion.logprobs
        table = token_table(scores) if scores else ""
        content = text_block(self.content) if self.content or not calls else ""
        return reasoning + content + calls + small(self._figures()) + table

    def _figures(self) -> str:
        dropped = f", {self.dropped_messages} messages dropped" if self.dropped_messages else ""
        return f"{self.completion.figures()}{dropped}"


@explain_names
@stays_in_process("its result()")
class Chat(Generic[CompletionT]):
    """A handle for an answer that is being written; made by `Engine.chat`.

    ::

        chat.result()                 # waits, returns a ChatCompletion
        for delta in chat: ...        # a ChatDelta for each piece of text
        await chat                    # the same in a coroutine; cancelling the task cancels it
        async for delta in chat: ...
        await chat.more()             # one ChatDelta of all that has come

    Only one reader may iterate; one that leaves its loop early cancels the request. Each way reads
    the text once: `result` after a loop returns what the loop has read.

    Attributes:
        request: The request that generates the text.
        dropped_messages: Number of the oldest messages that overflow="drop" left out.
        relaxed: The parts of tools' schemas that are not enforced, with the reasons.
        continues: The content of the message that the answer continues, "" for a new answer.
    """

    def __init__(
        self,
        request: TextRequest[CompletionT],
        parser: ChatParser,
        model: Model,
        dropped_messages: int = 0,
        response_format: Any = None,
        relaxed: Sequence[Relaxation] = (),
        continues: str = "",
    ) -> None:
        self.request = request
        self.continues = continues
        self.relaxed = relaxed
        self._response_format = response_format
        self.dropped_messages = dropped_messages
        self._parser = parser
        self._model = model
        self._lock = threading.Lock()  # result() may parse while another thread iterates
        self._parsed = 0  # characters
        self._unread: ChatDelta | None = None
        self._answer: ChatCompletion[CompletionT] | None = None

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self.request.done

    def cancel(self) -> None:
        """End the answer as soon as the running step is over; finish reason "cancelled"."""
        self.request.cancel()

    def result(self, timeout: float | None = None) -> ChatCompletion[CompletionT]:
        """Wait for the end and return the answer.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Raises:
            TimeoutError: The answer is not finished after `timeout` seconds; it goes on.
            LlcudaError: The request has failed.
        """
        return self._complete(self.request.result(timeout))

    def __getitem__(self, name: str) -> Any:
        """Wait for the end and return `result()[name]`."""
        return self.result()[name]

    @property
    def content(self) -> str:
        """The content of `result()`; waits for the end."""
        return self.result().content

    @property
    def message(self) -> dict[str, Any]:
        """The message of `result()`; waits for the end."""
        return self.result().message

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls of `result()`; waits for the end."""
        return self.result().tool_calls

    @property
    def parsed(self) -> Any:
        """What the content of `result()` holds, by the `response_format`; waits for the end."""
        return self.result().parsed

    def take(self) -> ChatDelta:
        """Return the delta of the text that has come and was not read; never waits.

        It takes the text from an iterator or `more`. The last delta comes with those.
        """
        return self._parse(self.request.take()) or ChatDelta()

    async def more(self) -> ChatDelta:
        """Wait for text and return the delta of all that has come; a false one at the end.

        Cancelling the task cancels the request.

        Raises:
            Exception: The exception of a request that failed.
        """
        while text := await self.request.more():
            if (delta := self._parse(text)) is not None:
                return delta
        return self._rest()

    def __iter__(self) -> Iterator[ChatDelta]:
        with contextlib.closing(iter(self.request)) as texts:  # type: ignore[type-var]
            for text in texts:
                if (delta := self._parse(text)) is not None:
                    yield delta
        if delta := self._rest():
            yield delta

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        async with contextlib.aclosing(aiter(self.request)) as texts:  # type: ignore[type-var]
            async for text in texts:
                if (delta := self._parse(text)) is not None:
                    yield delta
        if delta := self._rest():
            yield delta

    def __await__(self) -> Generator[Any, None, ChatCompletion[CompletionT]]:
        completion = yield from self.request.__await__()
        return self._complete(completion)

    def __str__(self) -> str:
        """Wait for the end and return the content."""
        return str(self.result())

    def _ipython_display_(self) -> None:
        """Show the answer in a notebook while it is written."""
        show_stream((delta.reasoning + delta.content for delta in self), self.result, self.cancel)

    def __repr__(self) -> str:
        return f"<llcuda.Chat: {self.request!r}>"

    def _parse(self, text: str) -> ChatDelta | None:
        """Return the delta of further text, None if it shows nothing; then it joins the next."""
        with self._lock:
            delta = self._unread
            if self._answer is None:  # otherwise all is parsed
                self._parsed += len(text)
                parsed = self._parser.feed(text)
                delta = parsed if delta is None else delta + parsed
            shows = bool(delta)
            self._unread = None if shows else delta
            return delta if shows else None

    def _rest(self) -> ChatDelta:
        """Return what is left when the text has ended."""
        self._complete(self.request.result())
        with self._lock:
            delta, self._unread = self._unread, None
        return ChatDelta() if delta is None else delta

    def _complete(self, completion: CompletionT) -> ChatCompletion[CompletionT]:
        """Parse what no reader has parsed, once, and return the answer."""
        with self._lock:
            if self._answer is None:
                parser = self._parser
                delta = parser.feed(completion.text[self._parsed :]) + parser.flush()
                self._unread = delta if self._unread is None else self._unread + delta
                message, reason = Message(parser.message()), completion.finish_reason
                if completion.stop_text is not None and parser.ends_within_call:
                    reason = "length"
                elif reason == "stop" and message.get("tool_calls"):
                    reason = "tool_calls"
                count = self._reasoning_tokens(completion)
                self._answer = ChatCompletion(
                    message,
                    reason,
                    completion,
                    count,
                    self.dropped_messages,
                    self._response_format,
                    self.continues,
                )
            return self._answer

    def _reasoning_tokens(self, completion: CompletionT) -> int:
        if not self._parser.reasoning_spans:
            return 0
        shown = self.request.params.shown_tokens
        pieces = (self._model.piece_bytes(token, token in shown) for token in completion.tokens)
        try:
            return count_pieces(pieces, completion.text, self._parser.reasoning_spans)
        except ClosedError:
            return 0


def count_pieces(pieces: Iterable[bytes], text: str, spans: Sequence[tuple[int, int]]) -> int:
    """Return how many tokens hold some of the text within spans, without the space around it.

    Args:
        pieces: The bytes of each token; together they begin with those of `text`.
        text: The text of the tokens, without a stop text.
        spans: Begin and end of each span in `text`, in characters, in their order.
    """
    stripped = []
    for begin, end in spans:
        inside = text[begin:end].rstrip()
        end = begin + len(inside)
        begin = end - len(inside.lstrip())
        if begin < end:
            stripped.append((begin, end))
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    count = position = 0
    for piece in pieces:
        begin = position
        position += len(decode(piece))
        while stripped and stripped[0][1] <= begin:
            del stripped[0]
        if not stripped:
            break
        count += bool(piece) and max(position, begin + 1) > stripped[0][0]
    return count


def start(
    submit: Callable[..., TextRequest[CompletionT]],
    model: Model,
    ctx_size: int,
    messages: str | Sequence[Mapping[str, Any]],
    /,
    *,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    tool_choice: str | Mapping[str, Any] = "auto",
    response_format: Any = None,
    template: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
    bare_tool_calls: bool = True,
    continue_final_message: bool | None = None,
    add_generation_prompt: bool | None = None,
    max_reasoning_tokens: int | None = None,
    **parameters: Unpack[TextKeywords],
) -> Chat[CompletionT]:
    """Queue an answer to `messages` and return its handle.

    Args:
        submit: Queues a list of tokens, with `parameters`, and returns the request.
        model: The model that `submit` generates with.
        ctx_size: Tokens of the context, for prompt and answer.
        messages: Objects with "role" and "content", in OpenAI's shapes; content may be a list of
            text parts. A text is the message of a user.
        system: The content of a system message before them; None = no further one.
        tools: OpenAI's definitions of tools, or Python functions with type hints.
        tool_choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.
            Arguments follow the schemas of their tools where the model writes them as JSON, but
            for tools with "strict": False. A keyword that cannot be enforced is left out, named in
            the log and in `relaxed` of the chat.
        response_format: The format of the content; see `llcuda.structured.compile`. With tools and
            tool_choice="auto" the answer is calls, or content in this format.
        template: The name of one of the model's templates, or the text of another one. None: the
            main template, and with tools the one that the model has for them.
        template_variables: Further variables of the template, such as {"enable_thinking": False}.
        bare_tool_calls: With tool_choice="auto", an answer that is nothing but JSON with the name
            of a tool and arguments that follow its schema, or a list or a fenced block of such
            JSON, is a call. False: only calls in the notation of the template are calls.
        continue_final_message: Whether the answer goes on with the last message, an assistant's;
            it then has what comes behind that message's text. None: if there is such a message, and
            `add_generation_prompt` is not True.
        add_generation_prompt: Whether the prompt ends with the beginning of a new answer. None:
            unless the last message is continued. False without such a message leaves to the model
            who speaks.
        max_reasoning_tokens: The most tokens of the reasoning, which then ends by its delimiter;
            None = no limit. Without effect where the template has no reasoning.
        **parameters: The keywords of `Engine.submit`. max_tokens is by default the room that the
            prompt leaves in the context. Stop texts end the text as the model writes it, reasoning
            and calls included. overflow="drop" drops the oldest turns of a conversation that
            leaves no room for max_tokens, or for a quarter of the context where that is less.

    Raises:
        ArgumentError: Messages or tools have other shapes, the model has no template, or the
            template raises an error.
        UnsupportedError: The model does not write calls as JSON, and `tool_choice` demands one.
        QueueFullError: As `submit` raises it; so are its other errors.
    """
    from llcuda.chat.constraint import (
        ReasoningBudget,
        ReasoningGuide,
        ToolCallGuide,
        chat_guide,
        strict_tool,
    )

    check_keywords(parameters, start, TextKeywords)
    variables = _variables(template_variables)
    check_flag("bare_tool_calls", bare_tool_calls)
    functions = check_tools(tools) if tools is not None else []
    _check_tool_choice(tool_choice, [tool["function"]["name"] for tool in functions])
    offered = functions if tool_choice != "none" else []
    program = _program(model, template, offered)
    if max_reasoning_tokens is not None:
        check_number("max_reasoning_tokens", max_reasoning_tokens, "int", 0)
    messages = conversation(messages, system)
    continues = _continues(messages, continue_final_message, add_generation_prompt, program)

    def render(messages: Sequence[Mapping[str, Any]], limit: int | None) -> Prompt:
        return program.prompt_up_to(
            limit,
            model,
            messages,
            offered or None,
            add_generation_prompt is not False,
            continues,
            variables=variables,
        )

    dropped = 0
    overflow = parameters.get("overflow", "error")
    if not isinstance(overflow, str):
        raise wrong_value("overflow", overflow, "expected a text")
    if overflow == "drop":
        overflow = parameters["overflow"] = "error"
        if "keep" in parameters:
            raise wrong_value("keep", parameters["keep"], 'has no effect with overflow="drop"')
        messages, dropped = _fitting(messages, render, ctx_size, parameters.get("max_tokens"))
    prompt = render(messages, ctx_size if overflow == "error" else None)
    constraint = chat_guide(
        model,
        program.syntax,
        prompt.opening,
        tools=offered,
        tool_choice=tool_choice,
        response_format=response_format,
        # Behind a result small models would write the same call for ever.
        bare_tool_calls=bare_tool_calls and role_of(messages[-1]) != "tool",
        shown_tokens=program.shown_tokens,
        begun="" if prompt.begins_reasoning else prompt.begun,
    )
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in offered}
    guide = constraint.guide
    # A guide takes the content to begin right behind the delimiter.
    ending = program.reasoning_ending(prompt.opening, with_space=guide is None)
    may_reason = guide is None or isinstance(guide, ReasoningGuide | ToolCallGuide)
    if ending and may_reason and max_reasoning_tokens is not None:
        parser = ChatParser(
            program.syntax, prompt.opening, schemas or None, begun=bool(prompt.begun)
        )
        shown = program.shown_tokens
        guide = ReasoningBudget(model, guide, parser, max_reasoning_tokens, ending, shown)
    if guide is not None:
        for name in ("guide", "grammar"):
            if parameters.get(name) is not None:
                rule = "expected none with tools, response_format or max_reasoning_tokens"
                raise wrong_argument(name, rule)
        parameters["guide"] = guide
    parameters.setdefault("max_tokens", max(1, ctx_size - len(prompt.tokens)))
    end_tokens = {*parameters.pop("stop_tokens", ()), *program.end_tokens}
    shown_tokens = {*parameters.pop("shown_tokens", ()), *program.shown_tokens}
    request = submit(prompt.tokens, stop_tokens=end_tokens, shown_tokens=shown_tokens, **parameters)
    bare_schemas = None
    if bare_tool_calls and tool_choice == "auto":
        strict = [strict_tool(tool)["function"] for tool in offered]
        bare_schemas = {function["name"]: function["parameters"] for function in strict}
        bare_schemas |= constraint.schemas
    parser = ChatParser(
        program.syntax,
        prompt.opening,
        schemas or None,
        bare_tools=bare_schemas,
        new_id=_call_ids(),
        begun=bool(prompt.begun),
    )
    return Chat(
        request,
        parser,
        model,
        dropped,
        response_format,
        constraint.relaxed,
        continues="" if prompt.begins_reasoning else prompt.begun,
    )


def chat_prompt(
    model: Model,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    template: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
    continue_final_message: bool | None = None,
    add_generation_prompt: bool | None = None,
) -> Prompt:
    """Return the prompt that `start` would submit.

    Args:
        model: The model whose template and vocabulary are used.
        messages: As those of `start`.
        system: As that of `start`.
        tools: As those of `start`.
        template: As that of `start`.
        template_variables: As those of `start`.
        continue_final_message: As that of `start`.
        add_generation_prompt: As that of `start`.

    Raises:
        ArgumentError: As `start` raises it.
    """
    offered = check_tools(tools) if tools is not None else []
    messages = conversation(messages, system)
    program = _program(model, template, offered)
    return program.prompt_up_to(
        None,
        model,
        messages,
        offered or None,
        add_generation_prompt is not False,
        _continues(messages, continue_final_message, add_generation_prompt, program),
        variables=_variables(template_variables),
    )


def _continues(
    messages: Sequence[Mapping[str, Any]],
    continue_final_message: bool | None,
    add_generation_prompt: bool | None,
    program: ChatTemplate,
) -> bool:
    """Return whether the answer goes on with the last message."""
    for name, flag in (
        ("continue_final_message", continue_final_message),
        ("add_generation_prompt", add_generation_prompt),
    ):
        if flag is not None:
            check_flag(name, flag)
    if continue_final_message and add_generation_prompt:
        rule = "cannot be given together with add_generation_prompt"
        remedy = "an answer is either continued or new; leave out one of them"
        raise wrong_value("continue_final_message", True, rule, remedy)
    if continue_final_message is not None or add_generation_prompt:
        return bool(continue_final_message)
    last = messages[-1] if messages else {}
    if role_of(last) != "assistant":
        return False
    fields = plain_data(last, f"messages[{len(messages) - 1}]")
    if fields.get("tool_calls"):
        return False
    reasoning = any(fields.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    return bool(fields.get("content")) or (reasoning and program.syntax.has_reasoning)


def _program(model: Model, template: str | None, offered: Sequence[Any]) -> ChatTemplate:
    """Return the template of a chat with these tools."""
    from llcuda.chat.template import ChatTemplate, template_names  # imports Jinja

    if template is None and offered and TOOL_TEMPLATE in template_names(model):
        template = TOOL_TEMPLATE
    return ChatTemplate.of(model, template)


def _variables(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping | None):
        raise wrong_value("template_variables", given, "expected a mapping")
    if reserved := RESERVED.intersection(given or ()):
        raise wrong_argument("template_variables", f"{min(reserved)!r} is set by llcuda")
    return given or {}


def conversation(
    messages: str | Sequence[Mapping[str, Any]], system: str | None = None
) -> Sequence[Mapping[str, Any]]:
    """Return the messages of a conversation.

    Args:
        messages: The messages, or the text of a user's.
        system: The content of a system message before them; None = no further one.

    Raises:
        ArgumentError: `system` is not a text, or the messages begin with a system message too, or
            are neither a text nor a list.
    """
    if isinstance(messages, str):
        return conversation([{"role": "user", "content": messages}], system)
    given: Any = messages
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        rule = f"expected a text or a list of messages, not {type(given).__name__}"
        raise wrong_argument("messages", rule)
    if system is None:
        return messages
    if not isinstance(system, str):
        raise wrong_value("system", system, "expected a text")
    if messages and role_of(messages[0]) in INSTRUCTIONS:
        rule = "the messages begin with a system message already"
        raise wrong_value("system", system, rule, "give one of them")
    return [{"role": "system", "content": system}, *messages]


def _fitting(
    messages: Sequence[Mapping[str, Any]],
    render: Callable[[Sequence[Mapping[str, Any]], None], Prompt],
    ctx_size: int,
    max_tokens: Any,
) -> tuple[Sequence[Mapping[str, Any]], int]:
    """Return the messages that leave room for an answer, and how many others were dropped."""
    given = max_tokens if isinstance(max_tokens, int) else ctx_size
    step = max(1, ctx_size // 4)
    room = max(1, min(given, step))
    return drop_oldest(
        messages,
        lambda rest: len(render(rest, None).tokens),
        ctx_size - room,
        step,
    )


def _call_ids() -> Callable[[int], str]:
    """Return what makes a call's id of its index: nine letters and digits, as Mistral wants it."""
    nonce = secrets.token_hex(8)
    return lambda index: hashlib.blake2s(f"{nonce}/{index}".encode()).hexdigest()[:9]


def _check_tool_choice(choice: Any, names: Sequence[str]) -> None:
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or name not in names:
            raise wrong_value("tool_choice", choice, "expected a function that is in tools")
    elif not isinstance(choice, str) or choice not in ("auto", "none", "required"):
        raise wrong_value("tool_choice", choice, "expected auto, none, required or a function")
    elif choice == "required" and not names:
        raise wrong_value("tool_choice", choice, "expected at least one tool")
