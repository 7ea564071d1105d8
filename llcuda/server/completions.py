"""/v1/completions: texts continued as they are, many at once, whole or as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from llcuda.engine.engine import Engine
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request as Generation
from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.server.chunks import DONE, Chunks, Scores, event, finish_reason, new_id, now, usage
from llcuda.server.errors import ApiError, translate
from llcuda.server.models import Loaded
from llcuda.server.protocol import DEFAULT_MAX_TOKENS, CompletionBody
from llcuda.server.sse import Output, Pace
from llcuda.structured import compile_response_format

LONG_TEXT = 2000  # characters; what is longer is tokenized beside the event loop


@dataclass
class Choice:
    """A text that is made. tokens: of its prompt; shown: what of the prompt is echoed."""

    index: int
    tokens: list[int]
    shown: str
    generation: Generation


def refuse_too_many(engine: Engine, count: int, param: str) -> None:
    """Raise ApiError for more texts than the queue ever holds."""
    most = engine.params.n_parallel + engine.params.queue_size
    if count > most:
        raise ApiError(400, f"{param}: {count} texts at once, at most {most}", param=param)


def check_deadline(made: Sequence[Completion]) -> None:
    """Raise ApiError where the deadline left no text at all."""
    if made and all(one.finish_reason == "timeout" and not one.tokens for one in made):
        late = "the deadline passed before the first token"
        raise ApiError(503, late, code="deadline_exceeded", retry=1)


def check_format(engine: Engine, form: dict[str, Any] | None) -> None:
    """Compile a response_format, which is kept, so that its errors name it."""
    try:
        compile_response_format(engine.model, form)
    except (ArgumentError, UnsupportedError) as error:
        named = error.parameter == "response_format"
        message = error.problem if named else f"response_format: {error.problem}"
        raise ApiError(400, message, param="response_format") from error


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at once; the first error cancels the others."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def submit(engine: Engine, body: CompletionBody, deadline: float | None) -> list[Choice]:
    """Queue every candidate of every prompt, all or none."""
    prompts, candidates = body.prompts(), body.candidates()
    refuse_too_many(engine, len(prompts) * candidates, "prompt")
    model = engine.model
    given = body.engine_parameters(deadline, engine.params.ctx_size, model.vocab_size)
    check_format(engine, given.get("response_format"))
    given["max_tokens"] = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    given["logprobs"] = body.logprobs
    if body.logprobs is None and candidates > (body.n or 1):
        given["logprobs"] = 0  # best_of compares them
    given["echo"] = bool(body.echo and (body.logprobs is not None or body.max_tokens == 0))
    choices: list[Choice] = []
    try:
        for number, prompt in enumerate(prompts):
            tokens = _tokens(engine, prompt)
            shown = ""
            if body.echo:
                shown = prompt if isinstance(prompt, str) else model.detokenize(tokens)
            try:
                made = engine.submit_n(tokens, candidates, **given)
            except ArgumentError as error:
                if len(prompts) == 1:
                    raise
                refusal = translate(error)
                refusal.message = f"prompt {number}: {refusal.message}"
                raise refusal from error
            choices += [Choice(len(choices) + i, tokens, shown, one) for i, one in enumerate(made)]
    except BaseException:
        for choice in choices:
            choice.generation.cancel()
        raise
    return choices


def _tokens(engine: Engine, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    return engine.model.tokenize(prompt) if prompt else []


async def complete(
    body: CompletionBody, loaded: Loaded, output: Output, *, deadline: float | None
) -> None:
    """Answer POST /v1/completions."""
    engine, name, wants_usage = loaded.writer(), loaded.spec.name, body.wants_usage()
    size = sum(len(prompt) for prompt in body.prompts())
    if size > LONG_TEXT or body.response_format is not None:
        choices = await asyncio.to_thread(submit, engine, body, deadline)
    else:
        choices = submit(engine, body, deadline)
    fields = {"id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": name}
    try:
        if body.stream:
            await _stream(body, engine, choices, fields, wants_usage, output)
        else:
            await _whole(body, engine, choices, fields, output)
    finally:
        for choice in choices:
            choice.generation.cancel()


async def _whole(
    body: CompletionBody,
    engine: Engine,
    choices: list[Choice],
    fields: dict[str, Any],
    output: Output,
) -> None:
    made = [await choice.generation for choice in choices]
    check_deadline(made)
    shown, candidates = body.n or 1, body.candidates()
    documents: list[dict[str, Any]] = []
    for first in range(0, len(choices), candidates):
        group = range(first, first + candidates)
        best = group if candidates == shown else sorted(group, key=lambda i: -_mean(made[i]))
        for i in best[:shown]:
            document = _choice(body, engine, choices[i], made[i])
            documents.append({**document, "index": len(documents)})
    spent = usage(made[::candidates], made)
    await output.json({**fields, "choices": documents, "usage": spent})


def _mean(made: Completion) -> float:
    """Return the mean log-probability of a text's tokens."""
    scores = made.logprobs or []
    return sum(score.logprob for score in scores) / max(len(scores), 1)


def _choice(
    body: CompletionBody, engine: Engine, choice: Choice, made: Completion
) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None:
        scores = Scores(engine.model)
        echoed: list[Any] = []
        if body.echo:
            echoed = [*choice.tokens[:1], *(made.prompt_logprobs or [])]
        logprobs = scores.as_text([*echoed, *scores.take(made.text, made.logprobs or [])])
    return {
        "text": choice.shown + made.text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(made.finish_reason),
    }


async def _stream(
    body: CompletionBody,
    engine: Engine,
    choices: list[Choice],
    fields: dict[str, Any],
    wants_usage: bool,
    output: Output,
) -> None:
    if wants_usage:
        fields = {**fields, "usage": None}
    made: dict[int, Completion] = {}

    async def follow(choice: Choice) -> None:
        chunks = Chunks(fields, choice.index, '"text":', ',"logprobs":')
        scores = Scores(engine.model)
        generation, pace, echo = choice.generation, Pace(), bool(body.echo)
        while True:
            text = await pace.read(generation)
            logprobs = None
            if body.logprobs is not None:
                echoed: list[Any] = []
                if echo:
                    echoed = [*choice.tokens[:1], *generation.prompt_logprobs]
                new = scores.take(text, generation.logprobs)
                logprobs = scores.as_text([*echoed, *new])
            if not text:
                break
            await output.write(chunks.text(choice.shown * echo + text, logprobs))
            echo = False
        made[choice.index] = completion = await generation
        if not output.begun:
            check_deadline([completion])
        reason = finish_reason(completion.finish_reason)
        await output.write(chunks.text(choice.shown * echo, logprobs if echo else None, reason))

    await together([follow(choice) for choice in choices])
    ending = ""
    if wants_usage:
        every = [made[choice.index] for choice in choices]
        ending = event({**fields, "choices": [], "usage": usage(every[:: body.n or 1], every)})
    await output.end(ending + DONE)
