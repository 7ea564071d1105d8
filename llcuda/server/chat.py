"""Answers /v1/chat/completions and /v1/responses, whole or as events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from llcuda.chat.parser import ChatDelta
from llcuda.chat.prompt import Prompt
from llcuda.chat.session import Chat, ChatCompletion, chat_prompt
from llcuda.chat.template import ChatTemplate
from llcuda.engine.engine import Engine
from llcuda.engine.logprobs import LogprobFormatter
from llcuda.engine.outputs import Completion
from llcuda.errors import ArgumentError
from llcuda.params import seed_after, wrong_value
from llcuda.server.answer import FlushTimer, ResponseWriter, run_together
from llcuda.server.checks import (
    check_adapters,
    check_count,
    check_deadline,
    check_format,
    check_input_grammar,
    is_large,
)
from llcuda.server.chunks import (
    DONE,
    ChunkFormatter,
    event,
    finish_reason,
    json_text,
    new_id,
    unix_time,
    usage,
)
from llcuda.server.custom_tools import CUSTOM
from llcuda.server.errors import translate, translate_and_log
from llcuda.server.leniency import ignore
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import ChatBody, ResponsesBody
from llcuda.server.response_store import ResponseStore, StoredResponse
from llcuda.server.responses import ResponseBuilder, as_chat, check_formats, input_items
from llcuda.server.submission import run_beside, submit_beside
from llcuda.server.timings import build_info, timings

THINKING = "enable_thinking"  # the variable of templates that know on and off only


async def answer_chat(
    body: ChatBody, loaded: LoadedModel, writer: ResponseWriter, *, deadline: float | None
) -> None:
    """Answer POST /v1/chat/completions."""
    engine, wants_usage = loaded.text_engine(), body.wants_usage()
    chats = await submit_chats(loaded, body, deadline, is_large(body))
    fields: dict[str, Any] = {"id": new_id("chatcmpl-"), "created": unix_time()}
    fields |= {"model": loaded.spec.name, "system_fingerprint": build_info()}
    try:
        if body.stream:
            fields["object"] = "chat.completion.chunk"
            await _stream(body, engine, chats, fields, wants_usage, writer)
        else:
            fields["object"] = "chat.completion"
            answers = [await chat for chat in chats]
            check_deadline([answer.completion for answer in answers])
            writer.usage = chat_usage(answers)
            document = partial(_document, body, engine, chats, answers, fields, writer.usage)
            if body.logprobs:  # it may have millions of numbers
                await writer.json(await run_beside(is_large(body), document))
            else:
                await writer.json(document())
    finally:
        for chat in chats:
            chat.cancel()


async def answer_response(
    body: ResponsesBody,
    loaded: LoadedModel,
    writer: ResponseWriter,
    *,
    deadline: float | None,
    store: ResponseStore,
) -> None:
    """Answer POST /v1/responses."""
    earlier: Sequence[dict[str, Any]] = ()
    if body.previous_response_id is not None:
        earlier = store.get(body.previous_response_id, "previous_response_id").items
    chat_body, engine = as_chat(body, earlier, store), loaded.text_engine()
    [chat] = await submit_chats(loaded, chat_body, deadline, is_large(body))
    response = ResponseBuilder(body, loaded.spec.name)
    try:
        check_formats(body, chat.relaxed, restricted=chat.request.params.guide is not None)
    except BaseException:
        chat.cancel()
        raise

    def keep() -> None:
        if body.store is not False:
            items, output = input_items(body), response.document["output"]
            size = body.size + len(json.dumps(output))
            conversation = [*earlier, *items, *output]
            store.add(StoredResponse(response.document, items, conversation, size))

    try:
        if not body.stream:
            async for _ in _response_events(chat_body, engine, chat, response, writer):
                pass
            keep()
            document: Any = response.document
            if body.wants_logprobs():  # which may be many
                document = await run_beside(is_large(body), json_text, document)
            await writer.json(document)
            return
        await writer.write(response.begin())
        try:
            async for events in _response_events(chat_body, engine, chat, response, writer):
                if response.document["usage"]:  # the last events: the client may go on at once
                    keep()
                await writer.write(events)
        except Exception as error:
            await writer.end(response.failed(translate_and_log(error, writer.request_id)))
        else:
            await writer.end()
    finally:
        chat.cancel()


async def submit_chats(
    loaded: LoadedModel, body: ChatBody, deadline: float | None, large: bool
) -> list[Chat[Completion]]:
    """Queue the answers of a request beside the event loop: templates and tools take time.

    Args:
        loaded: The model.
        body: The request.
        deadline: Deadline of the server in seconds, or None.
        large: Whether the request is one of the large ones, which wait for each other only.
    """
    return await submit_beside(
        partial(_submit_all, loaded, body, deadline),
        body.time_limit(deadline),
        compiles=body.response_format is not None or bool(body.tools),
        large=large,
    )


def _submit_all(
    loaded: LoadedModel, body: ChatBody, deadline: float | None
) -> list[Chat[Completion]]:
    """Queue every answer of a request, all or none; seeds count up.

    Renders and tokenizes, which may take long.
    """
    engine, model, count = loaded.text_engine(), loaded.model, body.n or 1
    template = loaded.spec.parameters.get("template")
    check_count(engine, count, "n")
    check_adapters(loaded, body.lora)
    parameters = body.submit_keywords(deadline, engine.ctx_size, model.vocab_size)
    check_format(engine, parameters.get("response_format"))
    for i, tool in enumerate(body.tools or ()):
        if tool.get("type") == CUSTOM:
            rule = "expected function; /v1/responses takes custom tools"
            raise wrong_value(f"tools[{i}].type", CUSTOM, rule)
        check_input_grammar(engine, tool, f"tools[{i}].format.definition")
    max_tokens = body.token_limit()
    if max_tokens is not None:
        parameters["max_tokens"] = max_tokens
    parameters["logprobs"] = body.logprob_alternatives()
    bare_tool_calls = body.bare_tool_calls
    if bare_tool_calls is None:
        bare_tool_calls = loaded.spec.parameters.get("bare_tool_calls", True)
    variables, reasoning_limit = _reasoning(body, ChatTemplate.of(model, template))
    chats: list[Chat[Completion]] = []
    try:
        for i in range(count):
            if "seed" in parameters and i:
                parameters["seed"] = seed_after(parameters["seed"], 1)
            chats.append(
                engine.chat(
                    body.messages,
                    tools=body.tools,
                    tool_choice="auto" if body.tool_choice is None else body.tool_choice,
                    template=template,
                    template_variables=variables,
                    bare_tool_calls=bare_tool_calls,
                    continue_final_message=body.continue_final_message,
                    add_generation_prompt=body.add_generation_prompt,
                    max_reasoning_tokens=reasoning_limit,
                    **parameters,
                )
            )
        for part in chats[0].relaxed:
            ignore(f"tools.{part.tool}{part.place}", part.reason)
    except BaseException as error:
        for chat in chats:
            chat.cancel()
        wrong_format = isinstance(error, ArgumentError) and error.parameter == "response_format"
        if wrong_format and body.response_format is None:  # it was made of the tools' schemas
            raise translate(error, {"response_format": "tools"}) from error
        raise
    return chats


def prompt_of(body: ChatBody, loaded: LoadedModel) -> Prompt:
    """Return the prompt that a request would submit. Renders and tokenizes, which may take long.

    Args:
        body: The body of the request.
        loaded: The model.
    """
    template = loaded.spec.parameters.get("template")
    variables, _ = _reasoning(body, ChatTemplate.of(loaded.model, template))
    return chat_prompt(
        loaded.model,
        body.messages,
        tools=None if body.tool_choice == "none" else body.tools,
        template=template,
        template_variables=variables,
        continue_final_message=body.continue_final_message,
        add_generation_prompt=body.add_generation_prompt,
    )


def _reasoning(body: ChatBody, template: ChatTemplate) -> tuple[dict[str, Any], int | None]:
    """Return the variables of the template, and the most tokens of the reasoning."""
    variables, limit = {**(body.chat_template_kwargs or {})}, body.reasoning_limit()
    effort = body.effort()
    if limit is None and "thinking_budget" not in template.source:
        limit = variables.pop("thinking_budget", None)
    if variables.get(THINKING) is False and THINKING not in template.source:
        effort = effort or "none"
    if effort is not None and "reasoning_effort" in template.source:
        variables["reasoning_effort"] = effort
    elif effort is not None and THINKING in template.source:
        variables[THINKING] = effort not in ("none", "minimal")
    elif effort == "none":  # which a limit does, whatever the template knows
        limit = 0
    elif effort is not None:
        name = body.places.get("reasoning_effort", "reasoning_effort")
        ignore(name, "this model's chat template does not know it")
    return variables, limit


def _document(
    body: ChatBody,
    engine: Engine,
    chats: list[Chat[Completion]],
    answers: list[ChatCompletion[Completion]],
    fields: dict[str, Any],
    totals: Mapping[str, Any],
) -> str:
    """Return a whole answer as JSON."""
    choices = [
        _choice(body, engine, index, answer, chats[index].request.params.shown_tokens)
        for index, answer in enumerate(answers)
    ]
    times = timings([answer.completion for answer in answers])
    return json_text({**fields, "choices": choices, "usage": totals, "timings": times})


def _choice(
    body: ChatBody,
    engine: Engine,
    index: int,
    answer: ChatCompletion[Completion],
    shown_tokens: Collection[int],
) -> dict[str, Any]:
    message, completion = answer.message, answer.completion
    if body.parallel_tool_calls is False and message.get("tool_calls"):
        message = {**message, "tool_calls": message["tool_calls"][:1]}
    logprobs = None
    if body.logprobs:
        scores = LogprobFormatter(engine.model, shown_tokens)
        logprobs = scores.as_chat(scores.take(completion.text, completion.logprobs or []))
    return {
        "index": index,
        "message": {"refusal": None, **message},
        "logprobs": logprobs,
        "finish_reason": finish_reason(answer.finish_reason),
    }


async def _stream(
    body: ChatBody,
    engine: Engine,
    chats: list[Chat[Completion]],
    fields: dict[str, Any],
    wants_usage: bool,
    writer: ResponseWriter,
) -> None:
    if wants_usage:
        fields = {**fields, "usage": None}
    answers: dict[int, ChatCompletion[Completion]] = {}

    def chunk(
        index: int, delta: dict[str, Any], reason: str | None, scores: Any = None, **more: Any
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}
        return event({**fields, "choices": [choice], **more})

    async def follow(index: int, chat: Chat[Completion]) -> None:
        contents = ChunkFormatter(fields, index, '"delta":{"content":', '},"logprobs":')
        events = chunk(index, {"role": "assistant", "content": None}, None)
        async for delta, scores in read_deltas(engine, chat, body):
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
                events += contents.text(delta.content, scores)
            if events and delta:
                await writer.write(events)
                events = ""
        answers[index] = answer = await chat
        if not writer.begun:
            check_deadline([answer.completion])
        # With usage the last chunk of all has the times.
        times = {} if wants_usage else {"timings": timings([answer.completion])}
        reason = finish_reason(answer.finish_reason)
        await writer.write(events + chunk(index, {}, reason, **times))

    await run_together([follow(index, chat) for index, chat in enumerate(chats)])
    ending = ""
    ordered = [answers[index] for index in range(len(chats))]
    writer.usage = chat_usage(ordered)
    if wants_usage:
        times = timings([answer.completion for answer in ordered])
        ending = event({**fields, "choices": [], "usage": writer.usage, "timings": times})
    await writer.end(ending + DONE)


async def _response_events(
    body: ChatBody,
    engine: Engine,
    chat: Chat[Completion],
    response: ResponseBuilder,
    writer: ResponseWriter,
) -> AsyncIterator[str]:
    """Read an answer into a response, and yield the events of it."""
    async for delta, scores in read_deltas(engine, chat, body):
        logprobs = scores["content"] if scores else []
        if events := response.add(delta.content, delta.reasoning, delta.tool_calls, logprobs):
            yield events
    answer = await chat
    check_deadline([answer.completion])
    writer.usage = chat_usage([answer])
    yield response.end(writer.usage, answer.finish_reason in ("stop", "tool_calls"))


async def read_deltas(
    engine: Engine, chat: Chat[Completion], body: ChatBody
) -> AsyncIterator[tuple[ChatDelta, dict[str, Any] | None]]:
    """Yield the deltas of an answer with their log-probabilities, as events may be written.

    Calls after the first one are dropped unless the client takes parallel calls.
    """
    timer, scores = FlushTimer(), LogprobFormatter(engine.model, chat.request.params.shown_tokens)
    more = True
    while more:
        delta = await timer.read(chat)
        more = bool(delta)
        logprobs = None
        if body.logprobs and delta.text:
            logprobs = scores.as_chat(scores.take(delta.text, chat.request.logprobs))
        if body.parallel_tool_calls is False:
            delta.tool_calls = [call for call in delta.tool_calls if not call["index"]]
        yield delta, logprobs


def chat_usage(answers: Sequence[ChatCompletion[Completion]]) -> dict[str, Any]:
    """Return the usage of a request in OpenAI's form.

    Args:
        answers: Its answers, each to the same prompt.
    """
    completions = [answer.completion for answer in answers]
    return usage(completions[:1], completions, sum(answer.reasoning_tokens for answer in answers))
