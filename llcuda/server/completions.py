"""/v1/completions: continues texts without a chat template, many at once, whole or streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llcuda.engine.engine import Engine, tokenize_prompt
from llcuda.engine.infill import InfillTokens
from llcuda.engine.logprobs import LogprobFormatter
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request as Generation
from llcuda.errors import ArgumentError
from llcuda.native.model import Model
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.answer import FlushTimer, ResponseWriter, run_together
from llcuda.server.checks import (
    check_adapters,
    check_count,
    check_deadline,
    check_format,
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
from llcuda.server.errors import translate
from llcuda.server.gaps import GapFields, gap_prompt
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import DEFAULT_MAX_TOKENS, CompletionBody
from llcuda.server.submission import run_beside, submit_beside
from llcuda.server.timings import build_info, timings

LONG_TEXT = 2000  # characters; a longer text is tokenized beside the event loop


async def answer_completion(
    body: CompletionBody, loaded: LoadedModel, writer: ResponseWriter, *, deadline: float | None
) -> None:
    """Answer POST /v1/completions."""
    engine, name, wants_usage = loaded.text_engine(), loaded.spec.name, body.wants_usage()
    choices = await submit_completions(loaded, body, deadline)
    fields: dict[str, Any] = {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": unix_time(),
        "model": name,
        "system_fingerprint": build_info(),
    }
    try:
        if body.stream:
            await _stream(body, engine, choices, fields, wants_usage, writer)
        else:
            completions = [await choice.generation for choice in choices]
            check_deadline(completions)
            writer.usage = usage(completions[:: body.candidates()], completions)
            document = partial(_document, body, engine, choices, completions, fields, writer.usage)
            if body.logprobs is None:
                await writer.json(document())
            else:  # it may have millions of numbers
                await writer.json(await run_beside(is_large(body), document))
    finally:
        for choice in choices:
            choice.cancel()


@dataclass
class Choice:
    """One continuation.

    Attributes:
        index: Its index among all continuations.
        tokens: Tokens of its prompt.
        echo: The prompt, where it is part of the text.
        generation: The engine's request.
    """

    index: int
    tokens: list[int]
    echo: str
    generation: Generation

    def cancel(self) -> None:
        """End the generation."""
        self.generation.cancel()


async def submit_completions(
    loaded: LoadedModel, body: CompletionBody, deadline: float | None
) -> list[Choice]:
    """Queue every candidate of every prompt, all or none; beside the event loop if it takes time.

    Args:
        loaded: The model.
        body: The request.
        deadline: Deadline of the server in seconds, or None.
    """
    size = sum(map(len, body.prompts())) + len(body.suffix or "")
    if size <= LONG_TEXT and body.response_format is None:
        return _submit(loaded, body, deadline)
    return await submit_beside(
        partial(_submit, loaded, body, deadline),
        body.time_limit(deadline),
        compiles=body.response_format is not None,
        large=is_large(body),
    )


def _submit(loaded: LoadedModel, body: CompletionBody, deadline: float | None) -> list[Choice]:
    engine, prompts, candidates = loaded.text_engine(), body.prompts(), body.candidates()
    check_count(engine, len(prompts) * candidates, "prompt")
    check_adapters(loaded, body.lora)
    model = engine.model
    keywords = body.submit_keywords(deadline, engine.ctx_size, model.vocab_size)
    check_format(engine, keywords.get("response_format"))
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    keywords["max_tokens"] = engine.ctx_size if max_tokens == -1 else max_tokens
    keywords["logprobs"] = body.logprobs
    if body.logprobs is None and candidates > (body.n or 1):
        keywords["logprobs"] = 0  # best_of compares them
    keywords["echo"] = bool(body.echo and (body.logprobs is not None or body.max_tokens == 0))
    limit = engine.ctx_size if body.overflow in (None, "error") else None
    marks = _gap_tokens(body, model)
    choices: list[Choice] = []
    try:
        for number, prompt in enumerate(prompts):
            try:
                if marks is not None:
                    prompt = gap_prompt(
                        engine,
                        marks,
                        prompt,
                        body.suffix or "",
                        max_tokens=keywords["max_tokens"],
                        overflow=body.overflow,
                        names=GapFields("prompt", "suffix"),
                    )
                tokens = (
                    tokenize_prompt(model, prompt, body.parse_special is not False, limit)
                    if isinstance(prompt, str)
                    else prompt
                )
                echo = ""
                if body.echo:
                    echo = prompt if isinstance(prompt, str) else model.detokenize(tokens)
                generations = engine.submit_n(tokens, candidates, **keywords)
            except ArgumentError as error:
                if len(prompts) == 1:
                    raise
                raise translate(error, {"prompt": f"prompt[{number}]"}) from error
            first = len(choices)
            choices += [
                Choice(first + i, tokens, echo, generation)
                for i, generation in enumerate(generations)
            ]
    except BaseException:
        for choice in choices:
            choice.cancel()
        raise
    return choices


def _gap_tokens(body: CompletionBody, model: Model) -> InfillTokens | None:
    """Return the tokens around a gap, if the request has one."""
    if body.suffix is None:
        return None
    marks = InfillTokens.of(model)
    if marks is None and not body.suffix:
        return None
    if marks is None:
        rule = "this model fills no gaps: it has no tokens for the texts around one"
        raise wrong_argument("suffix", rule)
    if body.echo:
        raise wrong_value("echo", True, "a prompt with a suffix is not part of the text")
    return marks


def _document(
    body: CompletionBody,
    engine: Engine,
    choices: list[Choice],
    completions: list[Completion],
    fields: dict[str, Any],
    totals: Mapping[str, Any],
) -> str:
    """Return a whole answer as JSON."""
    wanted, candidates = body.n or 1, body.candidates()
    documents: list[dict[str, Any]] = []
    for first in range(0, len(choices), candidates):
        group = range(first, first + candidates)
        ranking = (
            group
            if candidates == wanted
            else sorted(group, key=lambda i: -_mean_logprob(completions[i]))
        )
        for i in ranking[:wanted]:
            document = _choice(body, engine, choices[i], completions[i])
            documents.append({**document, "index": len(documents)})
    document = {**fields, "choices": documents, "usage": totals}
    return json_text({**document, "timings": timings(completions)})


def _mean_logprob(completion: Completion) -> float:
    scores = completion.logprobs or []
    return sum(score.logprob for score in scores) / max(len(scores), 1)


def _choice(
    body: CompletionBody, engine: Engine, choice: Choice, completion: Completion
) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None:
        scores = LogprobFormatter(engine.model, echo=choice.echo)
        echoed: list[Any] = []
        if body.echo:
            echoed = [*choice.tokens[:1], *(completion.prompt_logprobs or [])]
        taken = scores.take(completion.text, completion.logprobs or [])
        logprobs = scores.as_text([*echoed, *taken])
    return {
        "text": choice.echo + completion.text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(completion.finish_reason),
    }


async def _stream(
    body: CompletionBody,
    engine: Engine,
    choices: list[Choice],
    fields: dict[str, Any],
    wants_usage: bool,
    writer: ResponseWriter,
) -> None:
    if wants_usage:
        fields = {**fields, "usage": None}
    completions: dict[int, Completion] = {}

    async def follow(choice: Choice) -> None:
        chunks = ChunkFormatter(fields, choice.index, '"text":', ',"logprobs":')
        scores = LogprobFormatter(engine.model, echo=choice.echo)
        generation, timer, echo = choice.generation, FlushTimer(), bool(body.echo)

        def echoed_logprobs() -> str:
            echoed: list[Any] = [*choice.tokens[:1], *generation.prompt_logprobs]
            return json_text(scores.as_text(echoed + scores.take(text, generation.logprobs)))

        while True:
            text = await timer.read(generation)
            logprobs: Any = None
            if body.logprobs is not None and echo:
                logprobs = await run_beside(is_large(body), echoed_logprobs)
            elif body.logprobs is not None:
                logprobs = scores.as_text(scores.take(text, generation.logprobs))
            if not text:
                break
            await writer.write(chunks.text(choice.echo * echo + text, logprobs))
            echo = False
        completions[choice.index] = completion = await generation
        if not writer.begun:
            check_deadline([completion])
        reason = finish_reason(completion.finish_reason)
        await writer.write(chunks.text(choice.echo * echo, logprobs if echo else None, reason))

    await run_together([follow(choice) for choice in choices])
    ending = ""
    ordered = [completions[choice.index] for choice in choices]
    writer.usage = usage(ordered[:: body.n or 1], ordered)
    if wants_usage:
        ending = event(
            {**fields, "choices": [], "usage": writer.usage, "timings": timings(ordered)}
        )
    await writer.end(ending + DONE)
