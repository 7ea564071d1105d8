"""/v1/chat/completions and /v1/responses: conversations, whole or as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from llcuda.chat.parser import ChatDelta
from llcuda.chat.session import Chat, ChatCompletion
from llcuda.chat.template import ChatTemplate
from llcuda.engine.engine import Engine
from llcuda.engine.outputs import Completion
from llcuda.errors import ArgumentError
from llcuda.server.chunks import DONE, Chunks, Scores, event, finish_reason, new_id, now, usage
from llcuda.server.completions import check_deadline, check_format, refuse_too_many, together
from llcuda.server.errors import ApiError, translate
from llcuda.server.models import Loaded
from llcuda.server.protocol import ChatBody
from llcuda.server.responses import Answer, ResponsesBody
from llcuda.server.sse import Output, Pace, translated

THINKING = "enable_thinking"  # what templates call it that know on and off only


def submit(loaded: Loaded, body: ChatBody, deadline: float | None) -> list[Chat[Completion]]:
    """Queue every answer, all or none; seeds count up. Renders and tokenizes: takes a while."""
    engine, model, count = loaded.writer(), loaded.model, body.n or 1
    template = loaded.spec.parameters.get("template")
    refuse_too_many(engine, count, "n")
    given = body.engine_parameters(deadline, engine.params.ctx_size, model.vocab_size)
    check_format(engine, given.get("response_format"))
    most = body.most_tokens()
    if most is not None:
        given["max_tokens"] = most
    given["logprobs"] = body.alternatives()
    variables = {**(body.chat_template_kwargs or {})}
    if body.reasoning_effort is not None:
        variables |= _effort(ChatTemplate.of(model, template).source, body.reasoning_effort)
    chats: list[Chat[Completion]] = []
    try:
        for i in range(count):
            if "seed" in given and i:
                given["seed"] = (given["seed"] + 1) % 2**32
            chats.append(
                engine.chat(
                    body.messages,
                    tools=body.tools,
                    tool_choice="auto" if body.tool_choice is None else body.tool_choice,
                    template=template,
                    template_variables=variables,
                    **given,
                )
            )
    except BaseException as error:
        for chat in chats:
            chat.cancel()
        named = isinstance(error, ArgumentError) and error.parameter == "response_format"
        if named and body.response_format is None:
            # The tools' schemas were made into a response_format.
            raise translate(error, {"response_format": "tools"}) from error
        raise
    return chats


def _effort(template: str, effort: str) -> dict[str, Any]:
    """Return the variables that tell a template how much to think; ApiError where none does."""
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort}
    if THINKING in template:
        return {THINKING: effort not in ("none", "minimal")}
    unknown = "reasoning_effort: this model's chat template does not know it"
    raise ApiError(400, unknown, param="reasoning_effort", code="unsupported_parameter")


async def _deltas(
    engine: Engine, chat: Chat[Completion], body: ChatBody
) -> AsyncIterator[tuple[ChatDelta, dict[str, Any] | None]]:
    """Yield what has come and its log-probabilities, whenever an event may be written.

    Calls after the first one are dropped where the client asks for one at a time.
    """
    pace, scores = Pace(), Scores(engine.model, chat.request.params.shown_tokens)
    more = True
    while more:
        delta = await pace.read(chat)
        more = bool(delta)
        logprobs = None
        if body.logprobs and delta.text:
            logprobs = scores.as_chat(scores.take(delta.text, chat.request.logprobs))
        if body.parallel_tool_calls is False:
            delta.tool_calls = [call for call in delta.tool_calls if not call["index"]]
        yield delta, logprobs


async def _submitted(
    loaded: Loaded, body: ChatBody, deadline: float | None
) -> list[Chat[Completion]]:
    """Queue beside the event loop; a client that leaves meanwhile takes its answers along."""
    work = asyncio.ensure_future(asyncio.to_thread(submit, loaded, body, deadline))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_cancel_all)
        raise


def _cancel_all(work: asyncio.Future[list[Chat[Completion]]]) -> None:
    if not work.cancelled() and work.exception() is None:
        for chat in work.result():
            chat.cancel()


async def chat(body: ChatBody, loaded: Loaded, output: Output, *, deadline: float | None) -> None:
    """Answer POST /v1/chat/completions."""
    engine, wants_usage = loaded.writer(), body.wants_usage()
    chats = await _submitted(loaded, body, deadline)
    fields = {"id": new_id("chatcmpl-"), "created": now(), "model": loaded.spec.name}
    try:
        if body.stream:
            fields["object"] = "chat.completion.chunk"
            await _stream(body, engine, chats, fields, wants_usage, output)
        else:
            fields["object"] = "chat.completion"
            made = [await one for one in chats]
            check_deadline([one.completion for one in made])
            choices = [_choice(body, engine, i, chats[i], one) for i, one in enumerate(made)]
            spent = _usage(made)
            await output.json({**fields, "choices": choices, "usage": spent})
    finally:
        for one in chats:
            one.cancel()


def _usage(answers: list[ChatCompletion[Completion]]) -> dict[str, Any]:
    completions = [answer.completion for answer in answers]
    return usage(completions[:1], completions, sum(answer.reasoning_tokens for answer in answers))


def _choice(
    body: ChatBody,
    engine: Engine,
    index: int,
    chat: Chat[Completion],
    made: ChatCompletion[Completion],
) -> dict[str, Any]:
    message = made.message
    if body.parallel_tool_calls is False and message.get("tool_calls"):
        message = {**message, "tool_calls": message["tool_calls"][:1]}
    logprobs = None
    if body.logprobs:
        scores = Scores(engine.model, chat.request.params.shown_tokens)
        taken = scores.take(made.completion.text, made.completion.logprobs or [])
        logprobs = scores.as_chat(taken)
    return {
        "index": index,
        "message": {"refusal": None, **message},
        "logprobs": logprobs,
        "finish_reason": finish_reason(made.finish_reason),
    }


async def _stream(
    body: ChatBody,
    engine: Engine,
    chats: list[Chat[Completion]],
    fields: dict[str, Any],
    wants_usage: bool,
    output: Output,
) -> None:
    if wants_usage:
        fields = {**fields, "usage": None}
    made: dict[int, ChatCompletion[Completion]] = {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None, scores: Any = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}
        return event({**fields, "choices": [choice]})

    async def follow(index: int, chat: Chat[Completion]) -> None:
        plain = Chunks(fields, index, '"delta":{"content":', '},"logprobs":')
        events = chunk(index, {"role": "assistant", "content": ""}, None)
        async for delta, scores in _deltas(engine, chat, body):
            if delta.reasoning or delta.tool_calls:
                shown: dict[str, Any] = {}
                if delta.reasoning:
                    shown["reasoning_content"] = delta.reasoning
                if delta.content:
                    shown["content"] = delta.content
                if delta.tool_calls:
                    shown["tool_calls"] = delta.tool_calls
                events += chunk(index, shown, None, scores)
            elif delta.content or scores:
                events += plain.text(delta.content, scores)
            if events and delta:
                await output.write(events)
                events = ""
        made[index] = completed = await chat
        if not output.begun:
            check_deadline([completed.completion])
        await output.write(events + chunk(index, {}, finish_reason(completed.finish_reason)))

    await together([follow(i, one) for i, one in enumerate(chats)])
    ending = ""
    if wants_usage:
        every = [made[i] for i in range(len(chats))]
        ending = event({**fields, "choices": [], "usage": _usage(every)})
    await output.end(ending + DONE)


async def respond(
    body: ResponsesBody, loaded: Loaded, output: Output, *, deadline: float | None
) -> None:
    """Answer POST /v1/responses."""
    asked, engine = body.as_chat(), loaded.writer()
    [chat] = await _submitted(loaded, asked, deadline)
    answer = Answer(body, loaded.spec.name)
    try:
        if body.stream:
            await _stream_response(asked, engine, chat, answer, output)
        else:
            await _write(asked, engine, chat, answer, None)
            await output.json(answer.document)
    finally:
        chat.cancel()


async def _stream_response(
    asked: ChatBody, engine: Engine, chat: Chat[Completion], answer: Answer, output: Output
) -> None:
    await output.write(answer.begin())
    try:
        await _write(asked, engine, chat, answer, output)
    except Exception as error:
        await output.end(answer.failed(translated(error)))
    else:
        await output.end()


async def _write(
    asked: ChatBody, engine: Engine, chat: Chat[Completion], answer: Answer, output: Output | None
) -> None:
    """Read a chat into an answer, and write its events."""
    write: Callable[[str], Any] | None = output.write if output else None
    async for delta, scores in _deltas(engine, chat, asked):
        content = scores["content"] if scores else []
        events = answer.add(delta.content, delta.reasoning, delta.tool_calls, content)
        if write and events:
            await write(events)
    made = await chat
    check_deadline([made.completion])
    complete = made.completion.finish_reason == "stop"
    events = answer.end(_usage([made]), complete)
    if write:
        await write(events)
