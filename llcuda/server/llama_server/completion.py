"""/completion and /infill: llama-server's own answers, whole or as one event for each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from llcuda.engine.detokenizer import Utf8Decoder
from llcuda.engine.engine import Engine, tokenize_prompt
from llcuda.engine.infill import InfillTokens
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request
from llcuda.errors import ArgumentError
from llcuda.native.model import Model
from llcuda.server.answer import FlushTimer, ResponseWriter, run_together
from llcuda.server.checks import (
    check_adapters,
    check_count,
    check_deadline,
    check_format,
    is_large,
)
from llcuda.server.chunks import event, json_text, usage
from llcuda.server.errors import ApiError, translate
from llcuda.server.gaps import ANSWER_SHARE, GapFields, gap_prompt
from llcuda.server.llama_server.probabilities import check_probabilities, probabilities
from llcuda.server.llama_server.protocol import GenerationBody, InfillBody, NativeCompletionBody
from llcuda.server.llama_server.settings import generation_settings
from llcuda.server.models import LoadedModel
from llcuda.server.submission import run_beside, submit_beside
from llcuda.server.timings import timings

_MISSING = object()
_GAP_FIELDS = GapFields("input_prefix", "input_suffix", "input_extra")


@dataclass
class Text:
    """One text to generate.

    Attributes:
        index: Its index among all texts.
        prompt: The tokens of its prompt.
        keywords: What it was submitted with.
        generation: The engine's request.
    """

    index: int
    prompt: list[int]
    keywords: dict[str, Any]
    generation: Request

    def cancel(self) -> None:
        """End the generation."""
        self.generation.cancel()


async def answer_native_completion(
    body: NativeCompletionBody,
    loaded: LoadedModel,
    writer: ResponseWriter,
    *,
    deadline: float | None,
) -> None:
    """Answer POST /completion."""
    await _answer(body, loaded, writer, deadline, partial(_completion_prompts, body))


async def answer_infill(
    body: InfillBody, loaded: LoadedModel, writer: ResponseWriter, *, deadline: float | None
) -> None:
    """Answer POST /infill; without a limit the answer has a quarter of the context at most."""
    if body.n_predict is None:
        limit = loaded.text_engine().ctx_size // ANSWER_SHARE
        body = body.model_copy(update={"n_predict": limit})
    await _answer(body, loaded, writer, deadline, partial(_gap_prompts, body))


def _completion_prompts(body: NativeCompletionBody, engine: Engine) -> Iterator[list[int]]:
    """Yield the tokens of each prompt; BOS stands before the first text of one."""
    model = engine.model
    limit = engine.ctx_size if body.overflow in (None, "error") else None
    for parts in body.prompts():
        if len(parts) == 1 and isinstance(parts[0], str):
            yield tokenize_prompt(model, parts[0], limit=limit)
            continue
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, str):
                tokens += model.tokenize(part, add_special=not tokens, parse_special=True)
            else:
                tokens += part
        yield tokens


def _gap_prompts(body: InfillBody, engine: Engine) -> Iterator[list[int]]:
    """Yield the tokens of the prompt with a gap."""
    marks = InfillTokens.of(engine.model)
    if marks is None:
        message = "this model fills no gaps: it has no tokens for the texts around one"
        raise ApiError(501, message, code="unsupported")
    yield gap_prompt(
        engine,
        marks,
        body.input_prefix + (body.prompt or ""),
        body.input_suffix,
        max_tokens=body.token_limit(),
        overflow=body.overflow,
        names=_GAP_FIELDS,
        files=[(file.filename, file.text) for file in body.input_extra or ()],
        suffix_first=bool(body.spm_infill),
    )


def _submit(
    body: GenerationBody,
    loaded: LoadedModel,
    deadline: float | None,
    prompts: Callable[[Engine], Iterator[list[int]]],
) -> list[Text]:
    """Queue every text, all or none."""
    engine = loaded.text_engine()
    check_adapters(loaded, body.lora)
    keywords = body.keywords(deadline, engine.ctx_size, engine.model)
    check_format(engine, keywords.get("response_format"))
    check_probabilities(body, keywords, engine.model)
    texts: list[Text] = []
    try:
        for number, tokens in enumerate(prompts(engine)):
            check_count(engine, body.candidates() + len(texts), "prompt")
            try:
                generations = engine.submit_n(tokens, body.candidates(), **keywords)
            except ArgumentError as error:
                if not number:
                    raise
                raise translate(error, {"prompt": f"prompt[{number}]"}) from error
            first = len(texts)
            texts += [
                Text(first + i, tokens, keywords, generation)
                for i, generation in enumerate(generations)
            ]
    except BaseException:
        for text in texts:
            text.cancel()
        raise
    return texts


async def _answer(
    body: GenerationBody,
    loaded: LoadedModel,
    writer: ResponseWriter,
    deadline: float | None,
    prompts: Callable[[Engine], Iterator[list[int]]],
) -> None:
    loaded.text_engine()
    texts = await submit_beside(
        partial(_submit, body, loaded, deadline, prompts),
        body.time_limit(deadline),
        compiles=body.response_format is not None,
        large=is_large(body),
    )
    results: dict[int, Completion] = {}

    async def follow(text: Text) -> None:
        events = _Events(body, loaded.model, text)
        timer = FlushTimer()
        reads = body.stream or body.t_max_predict_ms
        while reads and (piece := await timer.read(text.generation)):
            if events.overdue(piece):
                text.cancel()
            if body.stream and body.token_limit():
                await writer.write("".join(map(event, events.take(piece))))
        results[text.index] = completion = await text.generation
        if not writer.begun:
            check_deadline([completion])
        if body.stream:
            await writer.write(event(_final(body, loaded, text, completion)))

    def document(completions: Sequence[Completion]) -> str:
        finals = map(partial(_final, body, loaded), texts, completions)
        is_list = len(texts) > 1 and isinstance(body, NativeCompletionBody)
        return json_text(list(finals) if is_list else next(finals))

    try:
        await run_together([follow(text) for text in texts])
        completions = [results[text.index] for text in texts]
        writer.usage = usage(completions[:: body.candidates()], completions)
        if body.stream:
            await writer.end()
            return
        check_deadline(completions)
        await writer.json(await run_beside(is_large(body), document, completions))
    finally:
        for text in texts:
            text.cancel()


class _Events:
    """Makes an event of each token of a text.

    Args:
        body: The body of the request.
        model: The model.
        text: The text.
    """

    def __init__(self, body: GenerationBody, model: Model, text: Text) -> None:
        self._body, self._model, self._text = body, model, text
        self._decoder = Utf8Decoder()
        self._count = 0
        self._began: float | None = None
        self._has_line = False

    def overdue(self, piece: str) -> bool:
        """Whether the time for the text is over, which ends with a line."""
        limit = self._body.t_max_predict_ms or 0
        self._began = self._began or perf_counter()
        self._has_line = self._has_line or "\n" in piece
        passed = 1000 * (perf_counter() - self._began)
        return 0 < limit < passed and self._has_line

    def take(self, piece: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a piece of the text: each token with its part of it."""
        generation = self._text.generation
        rest = piece
        while rest and self._count < len(generation.tokens):
            token = generation.tokens[self._count]
            part = self._decoder.decode(self._model.piece_bytes(token))[: len(rest)]
            rest = rest[len(part) :]
            self._count += 1
            yield self._event(part, [token])
        if rest:  # the rest of a character that never became whole
            yield self._event(rest, [])

    def _event(self, content: str, tokens: list[int]) -> dict[str, Any]:
        text, count = self._text, self._count
        document: dict[str, Any] = {
            "index": text.index,
            "content": content,
            "tokens": tokens,
            "stop": False,
            "id_slot": text.generation.slot,
            "tokens_predicted": count,
            "tokens_evaluated": len(text.prompt),
        }
        if self._body.n_probs:
            scores = text.generation.logprobs[count - 1 : count] if tokens else []
            document["completion_probabilities"] = probabilities(
                self._body, self._model, text.keywords, scores
            )
        if self._body.timings_per_token:
            passed = 1000 * (perf_counter() - (self._began or perf_counter()))
            document["timings"] = {
                "prompt_n": len(text.prompt),
                "predicted_n": count,
                "predicted_ms": passed,
                "predicted_per_token_ms": passed / max(1, count - 1),
                "predicted_per_second": 1000 * (count - 1) / passed if passed else 0.0,
            }
        return document


def _final(
    body: GenerationBody, loaded: LoadedModel, text: Text, completion: Completion
) -> dict[str, Any]:
    """Return the object of a whole text, which in a stream is the last event."""
    model, generation = loaded.model, text.generation
    tokens = completion.tokens if body.token_limit() else []
    content = completion.text if body.token_limit() else ""
    stopped = completion.finish_reason == "stop"
    word = completion.stop_text
    document: dict[str, Any] = {
        "index": text.index,
        "content": "" if body.stream else content,
        "tokens": list(tokens) if body.return_tokens and not body.stream else [],
        "id_slot": generation.slot,
        "stop": True,
        "model": loaded.spec.name,
        "tokens_predicted": len(tokens),
        "tokens_evaluated": completion.prompt_tokens,
        "generation_settings": generation_settings(body, text.keywords, loaded, completion.seed),
        "prompt": model.detokenize(text.prompt, special=True),
        "has_new_line": "\n" in content,
        "truncated": completion.finish_reason == "context" or bool(completion.dropped_tokens),
        "stop_type": ("word" if word is not None else "eos") if stopped else "limit",
        "stopping_word": word or "",
        "tokens_cached": completion.prompt_tokens + len(tokens),
        "timings": timings([completion]),
    }
    if body.n_probs and not body.stream:
        scores = (completion.logprobs or [])[: len(tokens)]
        document["completion_probabilities"] = probabilities(body, model, text.keywords, scores)
    if body.response_fields:
        return _fields(document, body.response_fields)
    return document


def _fields(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that were asked for; "a/b" is the field b of the object a."""
    chosen: dict[str, Any] = {}
    for name in names:
        here: Any = document
        for part in name.split("/"):
            here = here.get(part, _MISSING) if isinstance(here, dict) else _MISSING
        if here is not _MISSING:
            chosen[name] = here
    return chosen
