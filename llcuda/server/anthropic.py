"""Anthropic's API, /v1/messages, over the chat of OpenAI's API.

A request becomes a ChatBody; the deltas of its answer become Anthropic's blocks and events.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from llcuda.chat.parser import ChatDelta
from llcuda.chat.session import ChatCompletion
from llcuda.engine.outputs import Completion
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.answer import RECORD, ResponseWriter
from llcuda.server.bodies import BodyRoute
from llcuda.server.chat import chat_usage, prompt_of, read_deltas, submit_chats
from llcuda.server.checks import check_deadline, is_large
from llcuda.server.chunks import event, iso_time, new_id
from llcuda.server.fields import call_arguments, field_of, text_of
from llcuda.server.leniency import ignore
from llcuda.server.log import RequestRecord
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import (
    MAX_MESSAGES,
    Body,
    ChatBody,
    Hint,
    Label,
    LimitFromZero,
    ModelBody,
    Objects,
    Overflow,
    Probability,
    Temperature,
    Texts,
    Tools,
    Unsupported,
)
from llcuda.server.service import ERRORS, Service
from llcuda.server.submission import run_beside

SIGNATURE = "unsigned"  # clients drop thinking without one from the next request


class ThinkingBody(Body):
    """Whether the model reasons, and how long at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    display: Literal["summarized", "omitted"] | None = None


class ToolChoiceBody(Body):
    """Which tools the model may call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputBody(Body):
    """The effort and the format of the answer."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class CountTokensBody(ModelBody):
    """POST /v1/messages/count_tokens: count the tokens of a prompt."""

    engine_names: ClassVar[Mapping[str, str]] = {
        "prompt": "messages",
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "reasoning_effort": "thinking",
        "max_reasoning_tokens": "thinking.budget_tokens",
    }

    messages: Objects = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | Objects | None = None
    tools: Tools | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputBody | None = None
    output_format: dict[str, Any] | None = Field(None, description="Or output_config.format.")
    cache_control: Label = None
    mcp_servers: Unsupported = None
    speed: Annotated[Any, Hint("standard")] = None


class MessagesBody(CountTokensBody):
    """POST /v1/messages: answer a conversation."""

    max_tokens: LimitFromZero = None
    stop_sequences: Texts | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: int | None = None
    overflow: Overflow = None
    metadata: Label = None
    service_tier: Annotated[Any, Hint("auto", "standard_only")] = None


def anthropic_routes(service: Service) -> APIRouter:
    """Return the routes of Anthropic's API, with and without /v1.

    Args:
        service: The state of the server.
    """
    router = APIRouter(responses=ERRORS, route_class=BodyRoute)
    deadline = service.limits.deadline

    @router.post("/messages")
    async def messages(body: MessagesBody) -> Response:
        """Answer a conversation, in Anthropic's shapes."""
        return service.answer(body, partial(_answer, deadline=deadline))

    @router.post("/messages/count_tokens")
    async def count_tokens(body: CountTokensBody) -> Response:
        """Count the tokens of a conversation."""
        return service.answer(body, _answer_count)

    routes = APIRouter()
    routes.include_router(router, prefix="/v1")
    routes.include_router(router, include_in_schema=False)
    return routes


def is_anthropic(request: Request) -> bool:
    """Whether a client of Anthropic's API asks, on a path that OpenAI's API has too.

    Args:
        request: The request.
    """
    record: RequestRecord = request.scope[RECORD]
    return record.is_anthropic


def described_model(name: str, created: int, ctx_size: int | None) -> dict[str, Any]:
    """Return a model in Anthropic's shape.

    Args:
        name: Its name.
        created: Since when it is served, in seconds since 1970.
        ctx_size: Tokens of its context; None = it is not loaded, or generates no text.
    """
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": iso_time(created),
        "lifecycle": "active",
        "max_input_tokens": ctx_size,
        "max_tokens": ctx_size,
    }


def listed_models(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return models as one page of Anthropic's list.

    Args:
        models: What `described_model` returned.
    """
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]}
    return {"data": models, "has_more": False, **ends}


async def _answer(
    body: MessagesBody, loaded: LoadedModel, writer: ResponseWriter, *, deadline: float | None
) -> None:
    chat_body, engine = as_chat(body), loaded.text_engine()
    [chat] = await submit_chats(loaded, chat_body, deadline, is_large(body))
    shows_thinking = body.thinking is None or body.thinking.display != "omitted"
    headers = {"request-id": writer.request_id}  # as Anthropic's clients read it
    writer.stream_headers = {**writer.stream_headers, **headers}
    message = MessageBuilder(
        loaded.spec.name, chat.request.prompt_tokens, shows_thinking, body.max_tokens == 0
    )
    try:
        events = message.begin()
        async for delta, _ in read_deltas(engine, chat, chat_body):
            events += message.add(delta)
            if body.stream and delta:
                await writer.write(events)
                events = ""
        answer = await chat
        check_deadline([answer.completion])
        writer.usage = chat_usage([answer])
        events += message.end(answer)
        if body.stream:
            await writer.end(events)
        else:
            await writer.json(message.document, headers=headers)
    finally:
        chat.cancel()


async def _answer_count(body: CountTokensBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    chat_body = as_chat(body)
    loaded.text_engine()  # or the error that it generates no text
    prompt = await run_beside(is_large(body), prompt_of, chat_body, loaded)
    await writer.json({"input_tokens": len(prompt.tokens)})


def as_chat(body: CountTokensBody) -> ChatBody:
    """Return the conversation of a request as OpenAI's API has it.

    Args:
        body: The request.

    Raises:
        ArgumentError: A message, a block or a tool is not supported.
    """
    reader = _MessageReader(body.places)
    if body.system:
        reader.add("system", "system", _texts("system", body.system))
    for i, message in enumerate(body.messages):
        reader.read(f"messages[{i}]", message)
    choice, thinking, output = body.tool_choice, body.thinking, body.output_config
    effort = output.effort if output else None
    if thinking is not None and thinking.type != "adaptive":
        effort = (effort or "medium") if thinking.type == "enabled" else "none"
    elif effort is not None:
        body.places["reasoning_effort"] = "output_config.effort"
    chat_body = ChatBody.model_construct(
        model=body.model,
        messages=reader.messages,
        tools=_tools(body.tools or [], body.places) or None,
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        reasoning_effort=effort,
        max_reasoning_tokens=thinking.budget_tokens if thinking is not None else None,
        response_format=_response_format(body),
    )
    chat_body.places = body.places
    if isinstance(body, MessagesBody):
        chat_body.max_tokens = 1 if body.max_tokens == 0 else body.max_tokens
        chat_body.stop = body.stop_sequences
        chat_body.stream = body.stream
        chat_body.temperature = body.temperature
        chat_body.top_p = body.top_p
        chat_body.top_k = body.top_k
        chat_body.overflow = body.overflow
    return chat_body


class _MessageReader:
    """Turns Anthropic's messages into OpenAI's; neighbours of one role become one message.

    Args:
        places: Gets the client's names of the places in OpenAI's messages.
    """

    def __init__(self, places: dict[str, str]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._places = places

    def add(
        self, role: str, where: str, parts: list[dict[str, Any]], **fields: Any
    ) -> dict[str, Any]:
        """Append text to the last message if it has this role, or as a new message.

        Args:
            role: OpenAI's role.
            where: The client's place of the text.
            parts: The text.
            fields: Further fields of the message.
        """
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != role or role == "tool":
            last = {"role": role, "content": []}
            self.messages.append(last)
            self._places[f"messages[{len(self.messages) - 1}]"] = where
        place = f"messages[{len(self.messages) - 1}].content"
        for i in range(len(last["content"]), len(last["content"]) + len(parts)):
            self._places[f"{place}[{i}]"] = self._places[f"{place}[{i}].text"] = where
        last["content"] += parts
        last.update(fields)
        return last

    def read(self, where: str, message: dict[str, Any]) -> None:
        """Append a message."""
        role = text_of(where, message, "role")
        if role not in ("user", "assistant", "system"):
            raise wrong_value(f"{where}.role", role, "expected user or assistant")
        content = field_of(where, message, "content")
        where = f"{where}.content"
        if isinstance(content, str):
            self.add(role, where, _texts(where, content))
            return
        if not isinstance(content, list):
            raise wrong_value(where, content, "expected a text or a list")
        if role == "assistant":
            self.add(role, where, [])
        for i, block in enumerate(content):
            self._read_block(role, f"{where}[{i}]", block)

    def _read_block(self, role: str, where: str, block: Any) -> None:
        kind = text_of(where, block, "type")
        if kind in ("text", "document"):
            self.add(role, where, _text_block(where, block))
        elif kind == "tool_result" and role == "user":
            result = _texts(f"{where}.content", block.get("content") or "")
            if block.get("is_error"):
                result.insert(0, _part("Error: "))
            self.add("tool", where, result, tool_call_id=text_of(where, block, "tool_use_id"))
        elif kind == "tool_use" and role == "assistant":
            arguments = field_of(where, block, "input")
            if not isinstance(arguments, dict):
                raise wrong_value(f"{where}.input", arguments, "expected an object")
            function = {"name": text_of(where, block, "name"), "arguments": arguments}
            call = {"id": text_of(where, block, "id"), "type": "function", "function": function}
            calls = self.add(role, where, []).setdefault("tool_calls", [])
            place = f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}]"
            self._places |= {
                place: where,
                f"{place}.function": where,
                f"{place}.function.arguments": f"{where}.input",
            }
            calls.append(call)
        elif kind == "thinking" and role == "assistant":
            message = self.add(role, where, [])
            place = f"messages[{len(self.messages) - 1}].reasoning_content"
            self._places[place] = f"{where}.thinking"
            thinking = message.get("reasoning_content", "") + text_of(where, block, "thinking")
            message["reasoning_content"] = thinking
        elif kind == "redacted_thinking" and role == "assistant":
            ignore(where, "redacted thinking cannot be read")
        else:
            raise _wrong_block(where, kind)


def _wrong_block(where: str, kind: str) -> Exception:
    if kind in ("image", "document", "container_upload"):
        rule = "images and other files cannot be read yet, only text"
    else:
        rule = "expected text, thinking, tool_use or tool_result, each in a message of its role"
    return wrong_value(f"{where}.type", kind, rule)


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _texts(where: str, content: Any) -> list[dict[str, Any]]:
    """Return the parts of a text or of a list of text blocks."""
    if isinstance(content, str):
        return [_part(content)]
    if not isinstance(content, list):
        raise wrong_value(where, content, "expected a text or a list")
    return [part for i, block in enumerate(content) for part in _text_block(f"{where}[{i}]", block)]


def _text_block(where: str, block: Any) -> list[dict[str, Any]]:
    """Return the parts of a text, or of a document whose text is in the request."""
    kind = text_of(where, block, "type")
    if kind == "text":
        return [_part(text_of(where, block, "text"))]
    if kind != "document":
        raise _wrong_block(where, kind)
    source = field_of(where, block, "source")
    form = text_of(f"{where}.source", source, "type")
    if form == "text":
        parts = [_part(text_of(f"{where}.source", source, "data"))]
    elif form == "content":
        parts = _texts(f"{where}.source.content", field_of(f"{where}.source", source, "content"))
    else:
        rule = "files and addresses are not read; expected text or content"
        raise wrong_value(f"{where}.source.type", form, rule)
    heads = [block[name] for name in ("title", "context") if isinstance(block.get(name), str)]
    return [*(_part(f"{head}\n") for head in heads), *parts]


def _tools(tools: list[dict[str, Any]], places: dict[str, str]) -> list[dict[str, Any]]:
    """Return tools as OpenAI has them, without those that Anthropic's servers would run.

    Args:
        tools: The tools of a request.
        places: Gets the client's names of their places.
    """
    functions: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        kind = tool.get("type") or "custom"
        if kind != "custom":
            ignore(where, f"no tool of the type {str(kind)[:60]} is here")
            continue
        function = {
            "name": text_of(where, tool, "name"),
            "parameters": field_of(where, tool, "input_schema"),
        }
        for name in ("description", "strict"):
            if tool.get(name) is not None:
                function[name] = tool[name]
        place = f"tools[{len(functions)}]"
        places |= {
            place: where,
            f"{place}.function": where,
            f"{place}.function.parameters": f"{where}.input_schema",
        }
        functions.append({"type": "function", "function": function})
    return functions


def _tool_choice(choice: ToolChoiceBody | None) -> str | dict[str, Any] | None:
    if choice is None or choice.type != "tool":
        return {"any": "required"}.get(choice.type, choice.type) if choice else None
    if choice.name is None:
        raise wrong_argument("tool_choice.name", "missing")
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(body: CountTokensBody) -> dict[str, Any] | None:
    given = body.output_config.format if body.output_config else None
    where = "output_config.format"
    if given is None:
        given, where = body.output_format, "output_format"
    if given is None:
        return None
    body.places["response_format"] = where
    if text_of(where, given, "type") != "json_schema":
        return given  # another form of llcuda's
    schema = field_of(where, given, "schema")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}


class MessageBuilder:
    """Builds a message of deltas, and returns the events of each.

    Args:
        model: The name of the model.
        prompt_tokens: Tokens of the prompt.
        shows_thinking: Whether the text of the reasoning is part of it.
        is_empty: Whether the prompt is only read into the cache; the one token that the engine
            generates at least is left out.

    Attributes:
        document: The message as it is now.
    """

    def __init__(
        self, model: str, prompt_tokens: int, shows_thinking: bool, is_empty: bool = False
    ) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._shows_thinking = shows_thinking
        self._is_empty = is_empty
        self._open = False  # whether the last block is unfinished
        self._arguments = ""  # of the last block
        self.document: dict[str, Any] = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": prompt_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }

    def begin(self) -> str:
        """Return the first events."""
        return _event("message_start", message=self.document) + _event("ping")

    def add(self, delta: ChatDelta) -> str:
        """Return the events of a delta.

        Args:
            delta: The further reasoning, content and calls.
        """
        events = ""
        if self._is_empty:
            return events
        if delta.reasoning:
            events += self._opened("thinking", thinking="", signature="")
            if self._shows_thinking:
                self._blocks[-1]["thinking"] += delta.reasoning
                events += self._delta("thinking_delta", thinking=delta.reasoning)
        if delta.content:
            events += self._opened("text", text="")
            self._blocks[-1]["text"] += delta.content
            events += self._delta("text_delta", text=delta.content)
        for call in delta.tool_calls:
            function = call["function"]
            if "id" in call:
                events += self._closed()
                events += self._opened("tool_use", id=call["id"], name=function["name"], input={})
            if arguments := function.get("arguments"):
                self._arguments += arguments
                events += self._delta("input_json_delta", partial_json=arguments)
        return events

    def end(self, answer: ChatCompletion[Completion]) -> str:
        """Return the last events.

        Args:
            answer: The finished answer.
        """
        events, completion = self._closed(), answer.completion
        cached = completion.cached_tokens
        usage: dict[str, Any] = {
            "input_tokens": completion.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0 if self._is_empty else len(completion.tokens),
        }
        if answer.reasoning_tokens and not self._is_empty:
            usage["output_tokens_details"] = {"thinking_tokens": answer.reasoning_tokens}
        ending = {
            "stop_reason": "max_tokens" if self._is_empty else _stop_reason(answer),
            "stop_sequence": None if self._is_empty else completion.stop_text,
        }
        self.document |= {**ending, "usage": usage}
        events += _event("message_delta", delta=ending, usage=usage)
        return events + _event("message_stop")

    def _opened(self, kind: str, **fields: Any) -> str:
        """Return the events that begin a block, none if one of this type is unfinished."""
        if self._open and self._blocks[-1]["type"] == kind:
            return ""
        events = self._closed()
        self._blocks.append({"type": kind, **fields})
        self._open, self._arguments = True, ""
        index = len(self._blocks) - 1
        return events + _event("content_block_start", index=index, content_block=self._blocks[-1])

    def _delta(self, kind: str, **fields: Any) -> str:
        index = len(self._blocks) - 1
        return _event("content_block_delta", index=index, delta={"type": kind, **fields})

    def _closed(self) -> str:
        """Return the events that end the unfinished block."""
        if not self._open:
            return ""
        self._open, block, events = False, self._blocks[-1], ""
        if block["type"] == "thinking":
            block["signature"] = SIGNATURE
            events = self._delta("signature_delta", signature=SIGNATURE)
        elif block["type"] == "tool_use":
            block["input"] = call_arguments(self._arguments)
        return events + _event("content_block_stop", index=len(self._blocks) - 1)


def _event(kind: str, **fields: Any) -> str:
    return event({"type": kind, **fields}, kind)


def _stop_reason(answer: ChatCompletion[Completion]) -> str:
    """Return Anthropic's reason of the end; "max_tokens" also for a deadline."""
    reason = answer.finish_reason
    if reason == "stop":
        return "end_turn" if answer.completion.stop_text is None else "stop_sequence"
    others = {"tool_calls": "tool_use", "context": "model_context_window_exceeded"}
    return others.get(reason, "max_tokens")
