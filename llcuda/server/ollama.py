"""Ollama's API, /api, over the chat and the completions of OpenAI's API.

Answers are streamed as lines of JSON unless `stream` is false. Models are those that the server was
started with: none can be pulled, made or deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

import llcuda
from llcuda.chat.session import ChatCompletion
from llcuda.chat.template import template_names
from llcuda.embeddings.embedder import Embedder
from llcuda.engine.infill import InfillTokens
from llcuda.engine.logprobs import LogprobFormatter
from llcuda.engine.outputs import Completion
from llcuda.gguf_parser import GGUFReader
from llcuda.hub.names import part_names
from llcuda.native.model import Model
from llcuda.native.quantization.plan import file_type_name
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.answer import EVENTS, FlushTimer, ResponseWriter
from llcuda.server.bodies import BodyRoute
from llcuda.server.chat import chat_usage, read_deltas, submit_chats
from llcuda.server.checks import check_deadline, is_large
from llcuda.server.chunks import finish_reason, iso_time, usage
from llcuda.server.completions import submit_completions
from llcuda.server.embeddings import compute
from llcuda.server.errors import ApiError
from llcuda.server.fields import call_arguments
from llcuda.server.gaps import ANSWER_SHARE
from llcuda.server.leniency import ignore
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import (
    MAX_MESSAGES,
    MAX_PROMPTS,
    Body,
    ChatBody,
    CompletionBody,
    Hint,
    ModelBody,
    Objects,
    Penalty,
    Probability,
    Stop,
    Tools,
    TopLogprobs,
    Unsupported,
)
from llcuda.server.service import ERRORS, Service, Work

LINES = {**EVENTS, "content-type": "application/x-ndjson"}
FOREVER = "9999-12-31T23:59:59Z"  # until when a loaded model is kept
NO_LIMITS = (0, -1, -2)  # of num_predict: without end, or as much as the context has room for
Unused = Annotated[Any, Hint()]
Format = str | dict[str, Any] | None
Shape = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]  # see `_Lines`


class OptionsBody(Body):
    """Options of a request; those that concern the loading of a model have no effect."""

    num_predict: int | None = Field(None, ge=-2, le=2**31 - 1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop = None
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = None
    top_p: Probability | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    num_ctx: Unused = None
    num_keep: Unused = None
    num_batch: Unused = None
    num_gpu: Unused = None
    num_thread: Unused = None
    main_gpu: Unused = None
    numa: Unused = None
    low_vram: Unused = None
    use_mmap: Unused = None
    use_mlock: Unused = None
    penalize_newline: Unused = None
    tfs_z: Unused = None

    def sampling(self) -> dict[str, Any]:
        """Return the fields of a SamplingBody."""
        fields = self.model_dump(exclude_none=True, include=set(_SAMPLING))
        return {_SAMPLING[name]: value for name, value in fields.items()}

    def token_limit(self) -> int | None:
        """Return the most tokens of the answer; None = what the context has room for."""
        return None if self.num_predict in NO_LIMITS else self.num_predict


_SAMPLING = {
    name: name
    for name in (
        "seed", "stop", "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty",
        "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
    )
} | {"repeat_last_n": "penalty_last_n"}  # fmt: skip


class _NamedBody(ModelBody):
    """A request to a model, which older clients call `name`."""

    name: str | None = None

    def model_name(self) -> str | None:
        """Return the name of the model."""
        return self.name if self.model is None else self.model


class GenerationBody(ModelBody):
    """What a text and a chat have in common."""

    engine_names: ClassVar[Mapping[str, str]] = {
        "prompt": "messages",
        "response_format": "format",
        "reasoning_effort": "think",
        "max_tokens": "options.num_predict",
        "logprobs": "top_logprobs",
        "penalty_last_n": "options.repeat_last_n",
        **{name: f"options.{name}" for name in _SAMPLING},
    }

    options: OptionsBody | None = None
    stream: bool | None = None
    format: Format = Field(None, description='"json", or a JSON schema.')
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    keep_alive: Unused = None

    @property
    def streams(self) -> bool:
        """Whether the answer is streamed."""
        return self.stream is not False

    @property
    def chosen(self) -> OptionsBody:
        """The options."""
        return self.options or OptionsBody.model_construct()

    def common_fields(self) -> dict[str, Any]:
        """Return the fields that a ChatBody and a CompletionBody have in common."""
        form = self.format
        if isinstance(form, str) and form not in ("", "json"):
            raise wrong_value("format", form, 'expected "json" or a JSON schema')
        response_format: dict[str, Any] | None = None
        if form == "json":
            response_format = {"type": "json_object"}
        elif isinstance(form, dict):
            schema = {"name": "format", "schema": form}
            response_format = {"type": "json_schema", "json_schema": schema}
        return {
            "model": self.model,
            "stream": self.stream,
            "response_format": response_format,
            **self.chosen.sampling(),
        }

    def chat_fields(self) -> dict[str, Any]:
        """Return the fields of a ChatBody but for its messages."""
        effort = {True: "medium", False: "none"}.get(self.think, self.think)  # type: ignore[arg-type]
        return {
            **self.common_fields(),
            "max_tokens": self.chosen.token_limit(),
            "reasoning_effort": effort,
            "logprobs": bool(self.logprobs),
            "top_logprobs": self.top_logprobs if self.logprobs else None,
            "overflow": "drop",
        }


class OllamaChatBody(GenerationBody):
    """POST /api/chat: answer a conversation."""

    messages: Annotated[Objects, Field(max_length=MAX_MESSAGES)] | None = None
    tools: Tools | None = None


class GenerateBody(GenerationBody):
    """POST /api/generate: answer a prompt, or continue it where `raw` is true."""

    engine_names: ClassVar[Mapping[str, str]] = {
        **GenerationBody.engine_names,
        "messages": "prompt",
        "prompt": "prompt",
    }

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    images: Unsupported = None
    template: Unsupported = None
    context: Unsupported = Field(None, description="Send a conversation to /api/chat instead.")


class EmbedBody(ModelBody):
    """POST /api/embed: turn texts into vectors."""

    engine_names: ClassVar[Mapping[str, str]] = {"texts": "input"}

    input: str | Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1)
    options: OptionsBody | None = None
    keep_alive: Unused = None


class OlderEmbedBody(ModelBody):
    """POST /api/embeddings: turn a text into a vector."""

    engine_names: ClassVar[Mapping[str, str]] = {"texts": "prompt"}

    prompt: str
    options: OptionsBody | None = None
    keep_alive: Unused = None


class ShowBody(_NamedBody):
    """POST /api/show: describe a model."""

    verbose: bool | None = None
    system: Unused = None
    template: Unused = None
    options: Unused = None


class PullBody(_NamedBody):
    """POST /api/pull: get a model."""

    stream: bool | None = None
    insecure: Unused = None


def ollama_routes(service: Service) -> APIRouter:
    """Return the routes of ollama's API.

    Args:
        service: The state of the server.
    """
    router = APIRouter(prefix="/api", responses=ERRORS, route_class=BodyRoute)
    deadline, models = service.limits.deadline, service.models

    def find(name: str | None) -> str:
        """Return the model of a name, of which `:latest` is no part unless it was given so."""
        if name is not None and name not in models.names:
            name = name.removesuffix(":latest")
        return models.find(name)

    def answer(body: ModelBody, work: Work) -> Response:
        body.model = find(body.model)
        return service.answer(body, work)

    @router.post("/chat")
    async def chat(body: OllamaChatBody) -> Response:
        """Answer a conversation."""
        return answer(body, partial(_answer_chat, deadline=deadline))

    @router.post("/generate")
    async def generate(body: GenerateBody) -> Response:
        """Answer a prompt."""
        return answer(body, partial(_answer_prompt, deadline=deadline))

    @router.post("/embed")
    async def embed(body: EmbedBody) -> Response:
        """Turn texts into vectors."""
        return answer(body, _answer_embed)

    @router.post("/embeddings")
    async def embeddings(body: OlderEmbedBody) -> Response:
        """Turn a text into a vector."""
        return answer(body, _answer_older_embed)

    @router.get("/version")
    async def version() -> dict[str, str]:
        """Return the version of llcuda."""
        return {"version": llcuda.__version__}

    @router.get("/tags")
    async def tags() -> dict[str, Any]:
        """List the models."""
        listed = await asyncio.to_thread(
            lambda: [_listed(name, models.paths[name]) for name in models.specs]
        )
        return {"models": listed}

    @router.get("/ps")
    async def ps() -> dict[str, Any]:
        """List the loaded models."""
        loaded = [(model, models.paths[name]) for name, model in models.loaded.items()]
        return {"models": await asyncio.to_thread(lambda: [_running(*pair) for pair in loaded])}

    @router.post("/show")
    async def show(body: ShowBody) -> Response:
        """Describe a model."""
        name = find(body.model_name())
        path, verbose = models.paths[name], bool(body.verbose)
        return JSONResponse(await asyncio.to_thread(_described, name, path, verbose))

    @router.post("/pull")
    async def pull(body: PullBody) -> Response:
        """Answer that a model is there, if it is."""
        name = body.model_name()
        if name is None:
            raise wrong_argument("model", "missing")
        if name.removesuffix(":latest") not in models.names:
            raise _fixed(f"{name[:200]}: no such model")
        media_type = "application/json" if body.stream is False else LINES["content-type"]
        return Response('{"status": "success"}\n', media_type=media_type)

    for path, method in (
        ("/push", "POST"), ("/create", "POST"), ("/copy", "POST"), ("/delete", "DELETE"),
        ("/blobs/{digest}", "POST"), ("/blobs/{digest}", "HEAD"),
    ):  # fmt: skip
        router.add_api_route(path, _refuse, methods=[method], include_in_schema=False)
    return router


async def _refuse(request: Request) -> Response:
    raise _fixed(f"{request.url.path}: not supported")


def _fixed(problem: str) -> ApiError:
    rule = "this server has the models that it was started with"
    remedy = "start it with others: llcuda serve MODEL ..."
    return ApiError(400, f"{problem}; {rule}; {remedy}", code="unsupported")


# --- texts ---


async def _answer_chat(
    body: OllamaChatBody, loaded: LoadedModel, writer: ResponseWriter, *, deadline: float | None
) -> None:
    lines = _Lines(body, loaded, writer, _message_fields)
    if not body.messages:
        await lines.end_at_once()
        return
    chat_body = ChatBody.model_construct(
        messages=chat_messages(body), tools=body.tools or None, **body.chat_fields()
    )
    chat_body.places = body.places
    await _follow_chat(lines, chat_body, deadline, is_large(body))


async def _answer_prompt(
    body: GenerateBody, loaded: LoadedModel, writer: ResponseWriter, *, deadline: float | None
) -> None:
    lines = _Lines(body, loaded, writer, _response_fields)
    if not body.prompt and not body.suffix:
        await lines.end_at_once()
        return
    prompt = body.prompt or ""
    has_template = loaded.spec.parameters.get("template") or template_names(loaded.model)
    if body.raw or body.suffix or not has_template:
        if body.system and not body.raw:
            prompt = f"{body.system}\n\n{prompt}"
        await _follow_text(lines, body, prompt, deadline)
        return
    messages = [{"role": "user", "content": prompt}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
        body.places["messages[0].content"] = "system"
    body.places[f"messages[{len(messages) - 1}].content"] = "prompt"
    chat_body = ChatBody.model_construct(messages=messages, **body.chat_fields())
    chat_body.places = body.places
    await _follow_chat(lines, chat_body, deadline, is_large(body))


async def _follow_chat(
    lines: _Lines, chat_body: ChatBody, deadline: float | None, large: bool
) -> None:
    engine = lines.loaded.text_engine()
    [chat] = await submit_chats(lines.loaded, chat_body, deadline, large)
    try:
        if chat.dropped_messages:
            ignore("messages", f"the oldest {chat.dropped_messages} do not fit into the context")
        async for delta, scores in read_deltas(engine, chat, chat_body):
            await lines.add(delta.content, delta.reasoning, scores["content"] if scores else None)
        answer = await chat
        check_deadline([answer.completion])
        lines.writer.usage = chat_usage([answer])
        await lines.end(answer.completion, _calls(answer))
    finally:
        chat.cancel()


async def _follow_text(
    lines: _Lines, body: GenerateBody, prompt: str, deadline: float | None
) -> None:
    limit, engine = body.chosen.token_limit(), lines.loaded.text_engine()
    if limit is None:
        limit = engine.ctx_size // ANSWER_SHARE if body.suffix else -1
    completion_body = CompletionBody.model_construct(
        prompt=prompt,
        suffix=body.suffix or None,
        max_tokens=limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        overflow="truncate",
        **body.common_fields(),
    )
    [choice] = await submit_completions(lines.loaded, completion_body, deadline)
    try:
        if dropped := choice.generation.dropped_tokens:
            ignore("prompt", f"the first {dropped} tokens do not fit into the context")
        timer, scores, more = FlushTimer(), LogprobFormatter(engine.model), True
        while more:
            text = await timer.read(choice.generation)
            more, logprobs = bool(text), None
            if body.logprobs:
                taken = scores.take(text, choice.generation.logprobs)
                logprobs = scores.as_chat(taken)["content"]
            await lines.add(text, "", logprobs)
        completion = await choice.generation
        check_deadline([completion])
        lines.writer.usage = usage([completion], [completion])
        await lines.end(completion, [])
    finally:
        choice.cancel()


class _Lines:
    """Writes an answer as lines, or collects it for one document.

    Args:
        body: The request.
        loaded: The model.
        writer: Writes the answer.
        shape: Makes the fields of a part from its content, reasoning and calls.
    """

    def __init__(
        self, body: GenerationBody, loaded: LoadedModel, writer: ResponseWriter, shape: Shape
    ) -> None:
        self.loaded = loaded
        self.writer = writer
        writer.stream_headers = LINES
        self._streams = body.streams
        self._shape = shape
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._scores: list[Any] = []

    def _line(self, fields: dict[str, Any], done: bool) -> dict[str, Any]:
        return {
            "model": self.loaded.spec.name,
            "created_at": iso_time(time.time()),
            **fields,
            "done": done,
        }

    async def add(self, content: str, reasoning: str, scores: list[Any] | None) -> None:
        """Write or keep a part of the answer."""
        if not self._streams:
            self._texts.append(content)
            self._reasoning.append(reasoning)
            self._scores += scores or []
        elif content or reasoning or scores:
            line = self._line(self._shape(content, reasoning, []), False)
            if scores:
                line["logprobs"] = scores
            await self.writer.write(_json_line(line))

    async def end(self, completion: Completion, calls: list[dict[str, Any]]) -> None:
        """Write the calls, and the line with the counts."""
        ending = {
            "done_reason": finish_reason(completion.finish_reason),
            "total_duration": _nanoseconds(completion.latency_seconds),
            "load_duration": 0,
            "prompt_eval_count": completion.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(completion.prefill_seconds),
            "eval_count": len(completion.tokens),
            "eval_duration": _nanoseconds(completion.decode_seconds),
        }
        if self._streams:
            last = self._line(self._shape("", "", calls), False) if calls else None
            line = self._line(self._shape("", "", []), True) | ending
            await self.writer.end((_json_line(last) if last else "") + _json_line(line))
            return
        texts = "".join(self._texts), "".join(self._reasoning)
        document = self._line(self._shape(*texts, calls), True) | ending
        if self._scores:
            document["logprobs"] = self._scores
        await self.writer.json(document)

    async def end_at_once(self) -> None:
        """Answer a request without a prompt, which has loaded the model."""
        line = self._line(self._shape("", "", []), True) | {"done_reason": "load"}
        await (self.writer.end(_json_line(line)) if self._streams else self.writer.json(line))


def _message_fields(content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _response_fields(content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"response": content, **({"thinking": reasoning} if reasoning else {})}


def _calls(answer: ChatCompletion[Completion]) -> list[dict[str, Any]]:
    """Return the calls of an answer, their arguments as objects."""
    return [
        {
            "id": call["id"],
            "function": {
                "index": i,
                "name": call["function"]["name"],
                "arguments": call_arguments(call["function"]["arguments"]),
            },
        }
        for i, call in enumerate(answer.message.get("tool_calls") or ())
    ]


def chat_messages(body: OllamaChatBody) -> list[dict[str, Any]]:
    """Return messages as OpenAI's API has them.

    Calls and their results get the ids that ollama's API may leave out, and empty fields, which
    clients send with every message, are left out.

    Args:
        body: The request.
    """
    kept = ("role", "content")
    messages = [
        {name: value for name, value in message.items() if value or name in kept}
        for message in body.messages or ()
    ]
    waiting: list[tuple[Any, Any]] = []  # ids and names of calls without a result
    for i, message in enumerate(messages):
        calls = message.get("tool_calls")
        for j, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                function = call.get("function")
                name = function.get("name") if isinstance(function, dict) else None
                waiting.append((call.setdefault("id", f"call_{i}_{j}"), name))
        if message.get("role") == "tool":
            _name_result(message, waiting)
    return messages


def _name_result(message: dict[str, Any], waiting: list[tuple[Any, Any]]) -> None:
    """Give a result the id of the first call that it may belong to."""
    name, own_id = message.get("tool_name") or message.get("name"), message.get("tool_call_id")
    known = [pair for pair in waiting if own_id in (None, pair[0])]
    if matches := [pair for pair in known if pair[1] == name] or known:
        waiting.remove(matches[0])
        message.setdefault("tool_call_id", matches[0][0])
    if name is not None:
        message.setdefault("name", name)


# --- vectors ---


async def _embedded(
    texts: list[str], loaded: LoadedModel, writer: ResponseWriter, **options: Any
) -> list[list[float]]:
    def work(embedder: Embedder) -> tuple[list[list[float]], int]:
        result = embedder.embed_counted(texts, **options)
        return result.values.tolist(), sum(result.token_counts)

    vectors: list[list[float]] = await compute(loaded, writer, work)
    return vectors


async def _answer_embed(body: EmbedBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    started = asyncio.get_running_loop().time()
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors: list[list[float]] = []
    writer.usage = {"prompt_tokens": 0, "total_tokens": 0}
    if texts:
        truncate, dimensions = body.truncate is not False, body.dimensions
        vectors = await _embedded(texts, loaded, writer, truncate=truncate, dimensions=dimensions)
    await writer.json({
        "model": loaded.spec.name,
        "embeddings": vectors,
        "total_duration": _nanoseconds(asyncio.get_running_loop().time() - started),
        "load_duration": 0,
        "prompt_eval_count": writer.usage["prompt_tokens"],
    })  # fmt: skip


async def _answer_older_embed(
    body: OlderEmbedBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    [vector] = await _embedded([body.prompt], loaded, writer, truncate=True)
    await writer.json({"embedding": vector})


# --- models ---


def _listed(name: str, path: Path) -> dict[str, Any]:
    """Return a line of the list of models."""
    with GGUFReader(path) as reader:
        details = _details(reader)
    status = path.stat()
    # of the name, the size and the time: a hash of the content would take long
    digest = hashlib.sha256(f"{name}/{status.st_size}/{status.st_mtime_ns}".encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": iso_time(status.st_mtime),
        "size": sum(path.with_name(part).stat().st_size for part in part_names(path.name)),
        "digest": digest,
        "details": details,
    }


def _running(loaded: LoadedModel, path: Path) -> dict[str, Any]:
    """Return a line of the list of loaded models."""
    line = _listed(loaded.spec.name, path)
    del line["modified_at"]
    context = loaded.engine.ctx_size if loaded.engine else loaded.embedder().ctx_size
    on_gpu = loaded.needs if loaded.spec.fitted(path).gpu_layers else 0
    return line | {"expires_at": FOREVER, "size_vram": on_gpu, "context_length": context}


def _details(reader: GGUFReader) -> dict[str, Any]:
    summary, metadata = reader.summary(), reader.metadata
    types = next(iter(summary.types), "")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": summary.architecture,
        "families": [summary.architecture],
        "parameter_size": _count(summary.parameters),
        "quantization_level": file_type_name(metadata.get("general.file_type", -1)) or types,
    }


def _described(name: str, path: Path, verbose: bool) -> dict[str, Any]:
    """Return the description of a model by the head of its file."""
    with GGUFReader(path) as reader:
        metadata = reader.metadata
        template = metadata.get("tokenizer.chat_template") or ""
        facts: dict[str, Any] = {}
        for key in metadata:
            if key == "tokenizer.chat_template":
                continue
            if metadata.count(key) is None:
                facts[key] = metadata[key]
            elif not verbose:  # an array, which is not even read
                facts[key] = None
            else:
                array = metadata[key]
                facts[key] = array.tolist() if isinstance(array, np.ndarray) else list(array)
        facts["general.parameter_count"] = reader.summary().parameters
        details = _details(reader)
        license_text = metadata.get("general.license.name") or metadata.get("general.license") or ""
    with Model(path, vocab_only=True) as model:
        fills_gaps = InfillTokens.of(model) is not None
    capabilities = ["completion", *(["insert"] if fills_gaps else [])]
    if "tools" in template:
        capabilities.append("tools")
    if any(word in template for word in ("enable_thinking", "reasoning", "<think>")):
        capabilities.append("thinking")
    if f"{details['family']}.pooling_type" in facts:
        capabilities = ["embedding"]
    return {
        "modelfile": f"FROM {name}",
        "parameters": "",
        "template": template,
        "license": license_text,
        "details": details,
        "model_info": facts,
        "capabilities": capabilities,
        "modified_at": iso_time(path.stat().st_mtime),
    }


def _count(number: int) -> str:
    """Return a number as ollama shows it, for example 494.03M."""
    for unit, form in ((1e9, "{:.1f}B"), (1e6, "{:.2f}M"), (1e3, "{:.2f}K")):
        if number >= unit:
            return form.format(number / unit)
    return str(number)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _json_line(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
