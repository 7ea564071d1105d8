"""Tool loops: Python functions are called as a model asks for them, until it answers.

The loop is a generator that yields what is to be done, a function without arguments. One driver
does it at once, the other in a coroutine. Knows nothing of the engine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, Unpack

from llcuda.chat.messages import check_messages, check_tools, plain_data
from llcuda.chat.parser import ChatDelta
from llcuda.chat.session import Chat, ChatCompletion, CompletionT, conversation
from llcuda.chat.tool_calls import ToolCall
from llcuda.chat.tool_schema import call_arguments
from llcuda.display import code, folded, text_block
from llcuda.errors import shown
from llcuda.keywords import RunKeywords, explain_keywords, split_keywords
from llcuda.params import check_choice, check_number, wrong_argument, wrong_value

ON_ERROR = ("result", "raise")
Tool: TypeAlias = Callable[..., Any] | tuple[Callable[..., Any], Mapping[str, Any]]
Work: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A call that was made, or refused, and what the model was told of it.

    Attributes:
        call: The call.
        content: The text that the model got as its result.
        error: Why there is no result; None where there is one.
    """

    call: ToolCall
    content: str
    error: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class ToolRun(Generic[CompletionT]):
    """The result of `run`; str() is the content of the last answer.

    Attributes:
        answer: The last answer of the model.
        messages: The whole conversation, which another `run` or `chat` can go on with. Calls that
            were left because of max_turns are made first then.
        results: Every call with its result, in their order.
        turns: Number of answers of the model.
        finish_reason: "max_turns" where calls were left, otherwise that of `answer`.
    """

    answer: ChatCompletion[CompletionT]
    messages: list[dict[str, Any]]
    results: list[ToolResult]
    turns: int
    finish_reason: str

    @property
    def content(self) -> str:
        """The content of the last answer."""
        return self.answer.content

    @property
    def parsed(self) -> Any:
        """What the last answer holds by its `response_format`; see `ChatCompletion.parsed`."""
        return self.answer.parsed

    def to_dict(self) -> dict[str, Any]:
        """Return the run as data for JSON."""
        return {
            "answer": self.answer.to_dict(),
            "messages": self.messages,
            "results": [dataclasses.asdict(result) for result in self.results],
            "turns": self.turns,
            "finish_reason": self.finish_reason,
        }

    def __str__(self) -> str:
        return self.content

    def __repr__(self) -> str:
        calls = f"{len(self.results)} calls in {self.turns} turns"
        return f"<llcuda.ToolRun {self.content!r}: {calls}, {self.finish_reason}>"

    def _repr_html_(self) -> str:
        """Return the calls with their results, folded, and the last answer."""
        made = "".join(
            f"<div>{code(str(result.call))}</div>{text_block(result.content)}"
            for result in self.results
        )
        calls = folded(f"{len(self.results)} calls of tools", made) if made else ""
        return calls + self.answer._repr_html_()


@explain_keywords
@dataclass(frozen=True, slots=True)
class RunParams:
    """What bounds a tool loop, and who is asked and told.

    Attributes:
        max_turns: The most answers of the model.
        approve: Called with each ToolCall before it is made. True makes it, False refuses it, a
            text refuses it too and is its result. Calls that cannot be made are not asked about.
        on_error: What becomes of a tool's exception. "result": the model gets it as the result of
            the call, and goes on. "raise": the caller gets it.
        on_message: Called with each message that joins the conversation.
        on_delta: Called with each ChatDelta of the answers while they are written.

    Raises:
        ArgumentError: A value is outside what is allowed.
    """

    max_turns: int = 10
    approve: Callable[[ToolCall], Any] | None = None
    on_error: str = "result"
    on_message: Callable[[dict[str, Any]], Any] | None = None
    on_delta: Callable[[ChatDelta], Any] | None = None

    def __post_init__(self) -> None:
        check_number("max_turns", self.max_turns, "int", 1)
        check_choice("on_error", self.on_error, ON_ERROR)
        for name in ("approve", "on_message", "on_delta"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise wrong_value(name, hook, "expected a function")


def run(
    chat: Callable[..., Chat[CompletionT]],
    messages: str | Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    /,
    **keywords: Unpack[RunKeywords],
) -> ToolRun[CompletionT]:
    """Answer messages, and call the tools that the model asks for until it asks for none.

    Args:
        chat: Queues an answer, as `Engine.chat` does.
        messages: The messages, or the text of a user.
        tools: Python functions with type hints, whose docstrings describe them; or pairs of a
            function and its definition in OpenAI's shape.
        **keywords: The fields of RunParams, and the keywords of `chat`. A tool_choice that demands
            a call holds for the first answer.

    Raises:
        ArgumentError: A parameter is wrong, or a tool is a coroutine function.
        Exception: With on_error="raise" that of a tool; that of a hook; that of `chat`.
    """
    loop = _Loop(messages, tools, keywords)
    on_delta = loop.params.on_delta
    for name, function in loop.functions.items():
        if inspect.iscoroutinefunction(function):
            raise wrong_argument("tools", f"{name} is a coroutine function", "use arun()")

    def done(work: Work) -> Any:
        value = work()
        if isinstance(value, Chat):
            try:
                for delta in value if on_delta is not None else ():
                    on_delta(delta)  # type: ignore[misc]
                return value.result()
            except BaseException:
                value.cancel()
                raise
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("this is a coroutine; arun() waits for it")
        return value

    steps = loop.steps(chat)
    try:
        work = next(steps)
        while True:
            try:
                value = done(work)
            except Exception as error:
                work = steps.throw(error)
            else:
                work = steps.send(value)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def arun(
    chat: Callable[..., Chat[CompletionT]],
    messages: str | Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    /,
    **keywords: Unpack[RunKeywords],
) -> ToolRun[CompletionT]:
    """Do what `run` does in a coroutine; cancelling the task cancels the answer.

    Tools and `approve` may be coroutine functions. Others run in another thread, so that the event
    loop goes on; a tool that runs when the task is cancelled runs to its end.

    Args:
        chat: As that of `run`.
        messages: As those of `run`.
        tools: As those of `run`.
        **keywords: As those of `run`.
    """
    loop = _Loop(messages, tools, keywords)
    on_delta = loop.params.on_delta

    async def done(work: Work) -> Any:
        queued: list[Any] = []
        left = threading.Event()

        def beside() -> Any:
            value = work()
            queued.append(value)
            if left.is_set():  # the task was cancelled meanwhile
                _cancel(value)
            return value

        try:
            value = await asyncio.to_thread(beside)
        except asyncio.CancelledError:
            left.set()
            for value in queued:
                _cancel(value)
            raise
        if isinstance(value, Chat) and on_delta is not None:
            try:
                async for delta in value:
                    on_delta(delta)
            except BaseException:
                value.cancel()
                raise
        return await value if inspect.isawaitable(value) else value

    steps = loop.steps(chat)
    try:
        work = next(steps)
        while True:
            try:
                value = await done(work)
            except Exception as error:
                work = steps.throw(error)
            else:
                work = steps.send(value)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _cancel(value: Any) -> None:
    """Cancel an answer that nobody waits for any more."""
    if isinstance(value, Chat):
        value.cancel()
    elif inspect.iscoroutine(value):
        value.close()


class _Loop:
    """The conversation of a run, and what its driver is to do next."""

    def __init__(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Tool],
        keywords: RunKeywords,
    ) -> None:
        given, self._keywords = split_keywords(keywords, RunParams, RunKeywords)
        self.params = RunParams(**given)
        system = self._keywords.pop("system", None)
        self._messages = _plain_messages(conversation(messages, system))
        self.functions, self._definitions = _read_tools(tools)
        self._results: list[ToolResult] = []

    def steps(self, chat: Callable[..., Any]) -> Generator[Work, Any, ToolRun[Any]]:
        """Yield what is to be done, get what came of it, and return the run."""
        calls = [ToolCall.of(call) for call in self._messages[-1].get("tool_calls") or ()]
        turns = 0
        while True:
            for call in calls:
                content, error = yield from self._make(call)
                self._results.append(ToolResult(call, content, error))
                self._add(
                    {
                        "role": "tool",
                        "tool_call_id": call.id,
                        "name": call.name,
                        "content": content,
                    }
                )
            answer = yield lambda: chat(self._messages, tools=self._definitions, **self._keywords)
            turns += 1
            self._add(answer.message)
            calls = answer.tool_calls
            if self._keywords.get("tool_choice", "auto") != "none":
                self._keywords["tool_choice"] = "auto"
            if not calls or turns == self.params.max_turns:
                reason = "max_turns" if calls else answer.finish_reason
                return ToolRun(answer, self._messages, self._results, turns, reason)

    def _add(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        if self.params.on_message is not None:
            self.params.on_message(message)

    def _make(self, call: ToolCall) -> Generator[Work, Any, tuple[str, str | None]]:
        """Make a call; return the text of its result, and why it has none."""
        function = self.functions.get(call.name)
        if function is None:
            names = ", ".join(self.functions) or "none"
            return _failed(f"no tool is called {shown(call.name)}; the tools are: {names}")
        if call.problem is not None:
            return _failed(call.problem)
        try:
            arguments = call_arguments(function, call.arguments)
        except ValueError as error:
            return _failed(str(error))
        approve = self.params.approve
        if approve is not None:
            decision = yield lambda: approve(call)
            if isinstance(decision, str):
                return decision, "refused"
            if not isinstance(decision, bool):
                rule = f"expected True, False or a text from it, not {shown(decision)}"
                raise wrong_argument("approve", rule)
            if not decision:
                return "error: the user does not allow this call", "refused"
        try:
            value = yield lambda: function(**arguments)
            return _text(value), None
        except Exception as error:
            if self.params.on_error == "raise":
                raise
            return _failed(f"{type(error).__name__}: {error}")


def _plain_messages(messages: Any) -> list[dict[str, Any]]:
    """Return a copy of the messages as plain data; the last one is checked, for its calls."""
    data = plain_data(messages, "messages") if len(messages) else None
    if not isinstance(data, list) or not isinstance(data[-1], dict) or data[-1].get("tool_calls"):
        check_messages(data[-1:] if isinstance(data, list) else messages)
    return data  # type: ignore[return-value]


def _failed(reason: str) -> tuple[str, str]:
    return f"error: {reason}", reason


def _text(value: Any) -> str:
    """Return the result of a tool as the text that the model reads: JSON, unless it is a text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """Return data for an object that JSON does not know; its text where there are none."""
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)


def _read_tools(tools: Any) -> tuple[dict[str, Callable[..., Any]], list[dict[str, Any]]]:
    """Return the functions by their tools' names, and the definitions."""
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise wrong_value("tools", tools, "expected a list of functions")
    functions, given = [], []
    for i, tool in enumerate(tools):
        pair = isinstance(tool, tuple) and len(tool) == 2
        function, definition = tool if pair else (tool, tool)
        if not callable(function) or isinstance(function, type):
            rule = "expected a function, or a pair of a function and its definition"
            raise wrong_argument(f"tools[{i}]", rule, "chat() takes definitions alone")
        functions.append(function)
        given.append(definition)
    definitions = check_tools(given)
    names = [definition["function"]["name"] for definition in definitions]
    return dict(zip(names, functions, strict=True)), definitions
