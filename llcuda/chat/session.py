"""Chat with a model: messages in, a message out, whole or as it is written.

    answer = engine.chat([{"role": "user", "content": "Hello"}]).result()
    print(answer.message["content"])

A face over chat (templates), chat_split (reasoning and calls) and the engine's requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llcuda.chat.formats import Syntax
from llcuda.chat.messages import check_tools
from llcuda.chat.parser import ChatDelta, Splitter
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request
from llcuda.errors import ArgumentError

if TYPE_CHECKING:
    from llcuda.engine.engine import Engine

FOR_TOOLS = "tool_use"  # the name of a template that models have for conversations with tools


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """What a chat came to; str() is the content.

    message: OpenAI's message of an assistant, {"role", "content"}, "reasoning_content" and
        "tool_calls" where there are some; it can be the next conversation's.
    finish_reason: "tool_calls", or that of `completion`: "stop", "length", ...
    completion: the engine's, with tokens, times, and the text as the model wrote it.
    """

    message: dict[str, Any]
    finish_reason: str
    completion: Completion

    def __str__(self) -> str:
        return self.message["content"] or ""


class Chat:
    """A handle on an answer that is being written; made by `Engine.chat`.

    ::

        chat.result()                 # waits, returns a ChatCompletion
        for delta in chat: ...        # a ChatDelta for each piece of text
        await chat                    # the same in a coroutine; cancelling the task cancels it
        async for delta in chat: ...

    One reader may iterate; one that leaves its loop early cancels the request.
    """

    def __init__(self, request: Request, syntax: Syntax, prompt: str, tools: list[Any]) -> None:
        self.request = request
        self._syntax = syntax
        self._prompt = prompt
        functions = [tool["function"] for tool in tools]
        self._tools = {f["name"]: f["parameters"] for f in functions} or None
        self._nonce = secrets.token_hex(8)

    def _splitter(self) -> Splitter:
        return Splitter(self._syntax, self._prompt, self._tools, self._new_id)

    def _new_id(self, index: int) -> str:
        """Return the id of a call: nine letters and digits, as Mistral's templates want them."""
        return hashlib.blake2s(f"{self._nonce}/{index}".encode()).hexdigest()[:9]

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self.request.done

    def cancel(self) -> None:
        """End it as soon as the step that runs is over; finish reason "cancelled"."""
        self.request.cancel()

    def result(self, timeout: float | None = None) -> ChatCompletion:
        """Wait for the end and return the answer; TimeoutError after `timeout` seconds."""
        return self._completed(self.request.result(timeout))

    def _completed(self, completion: Completion) -> ChatCompletion:
        splitter = self._splitter()
        parts = [splitter.feed(completion.text), splitter.flush()]
        content = "".join(part.content for part in parts)
        reasoning = "".join(part.reasoning for part in parts)
        calls: list[dict[str, Any]] = []
        for call in (call for part in parts for call in part.tool_calls):
            if "id" in call:
                calls.append({key: call[key] for key in ("id", "type", "function")})
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        called = calls and completion.finish_reason == "stop"
        reason = "tool_calls" if called else completion.finish_reason
        return ChatCompletion(message, reason, completion)

    def __iter__(self) -> Iterator[ChatDelta]:
        splitter = self._splitter()
        with contextlib.closing(iter(self.request)) as texts:  # type: ignore[type-var]
            for text in texts:
                if delta := splitter.feed(text):
                    yield delta
        if delta := splitter.flush():
            yield delta

    def __await__(self) -> Generator[Any, None, ChatCompletion]:
        completion = yield from self.request.__await__()
        return self._completed(completion)

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        splitter = self._splitter()
        async with contextlib.aclosing(aiter(self.request)) as texts:  # type: ignore[type-var]
            async for text in texts:
                if delta := splitter.feed(text):
                    yield delta
        if delta := splitter.flush():
            yield delta


class Chats:
    """An engine's chat: Engine and InferenceEngine have it."""

    def _running(self) -> Engine:
        raise NotImplementedError

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        response_format: Any = None,
        template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> Chat:
        """Queue an answer to `messages`, and return its handle.

        messages: {"role", "content"} each, in OpenAI's shapes; content may be a list of text parts.
        tools: OpenAI's definitions, or Python functions with type hints. tool_choice: "auto",
            "none", "required", or {"type": "function", "function": {"name"}}. Arguments follow the
            tools' schemas where the model writes them as JSON; not for "strict": False.
        response_format: what the content follows, see `llcuda.structured.compile`.
        template: the name of one of the model's templates, or the text of another one; None = the
            main one, with tools the one that the model has for them. template_variables: what else
            it knows, e.g. {"enable_thinking": False}.
        parameters: as those of `submit`; max_tokens is what the context has room for. Stops end the
            text as the model writes it, reasoning and calls included.
        Raises ArgumentError for messages or tools of other shapes, for a model without a template,
        and with what the template raises; otherwise as `submit`.
        """
        from llcuda.chat.constraint import guide_of
        from llcuda.chat.template import ChatTemplate, template_names  # Jinja, for those who chat

        engine = self._running()
        if not isinstance(template_variables or {}, Mapping):
            raise ArgumentError(
                f"template_variables={template_variables!r}: expected a mapping",
                parameter="template_variables",
            )
        taken = {"messages", "tools", "add_generation_prompt", "model", "self"}
        if taken := taken.intersection(template_variables or ()):
            raise ArgumentError(
                f"template_variables: {min(taken)!r} is not for the caller",
                parameter="template_variables",
            )
        checked = check_tools(tools) if tools is not None else []
        _check_choice(tool_choice, [tool["function"]["name"] for tool in checked])
        shown = checked if tool_choice != "none" else []
        if template is None and shown and FOR_TOOLS in template_names(engine.model):
            template = FOR_TOOLS
        program = ChatTemplate.of(engine.model, template)
        prompt = program.prompt(engine.model, messages, shown or None, **(template_variables or {}))
        guide = guide_of(
            engine.model,
            program.syntax,
            prompt.text,
            tools=shown,
            tool_choice=tool_choice,
            response_format=response_format,
            shown=program.shown_tokens,
        )
        if guide is not None:
            if parameters.get("guide") is not None:
                raise ArgumentError(
                    "guide: with tools or response_format there is one already", parameter="guide"
                )
            parameters["guide"] = guide
        room = engine.params.ctx_size - len(prompt.tokens)
        parameters.setdefault("max_tokens", max(1, room))
        ends = {*parameters.pop("stop_tokens", ()), *program.end_tokens}
        request = engine.submit(
            prompt.tokens, stop_tokens=ends, shown_tokens=program.shown_tokens, **parameters
        )
        return Chat(request, program.syntax, prompt.text, shown)


def _check_choice(choice: Any, names: Sequence[str]) -> None:
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or name not in names:
            raise ArgumentError(
                f"tool_choice={choice!r}: expected a function that tools= has",
                parameter="tool_choice",
            )
    elif choice not in ("auto", "none", "required"):
        raise ArgumentError(
            f"tool_choice={choice!r}: expected auto, none, required or a function",
            parameter="tool_choice",
        )
    elif choice == "required" and not names:
        raise ArgumentError("tool_choice='required': there are no tools", parameter="tool_choice")
