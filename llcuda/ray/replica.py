"""A replica: the server of one process, called as ASGI over a handle of Ray Serve."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from starlette.types import Message

from llcuda.batch import plain
from llcuda.errors import ArgumentError, DecodeError, LlcudaError
from llcuda.native import library
from llcuda.ray.config import ClusterConfig
from llcuda.ray.forwarded import RECENT, ForwardedRequest, inside_request, replica_tag
from llcuda.ray.logs import log_into_serve
from llcuda.ray.metrics import MetricsBridge
from llcuda.server import create_app
from llcuda.server.chunks import ids_begin_with
from llcuda.server.deadline import ends_in
from llcuda.server.service import Service
from llcuda.server.tracing import otlp_provider

ADDED_BY_RAY = ("request_id", "idx_in_batch")  # to the bodies of rows
EVENTS = (b"text/event-stream", b"application/x-ndjson")
MAX_RECENT, MAX_RECENT_KEYS = 64, 32  # prompts, and hashes of each
GPU_SHARE = 0.9  # of a GPU's memory that replicas divide; the rest is CUDA's own


class ReplicaFailedError(LlcudaError):
    """A model of a replica has failed for good.

    Attributes:
        replica: Ray's id of the replica.
    """

    def __init__(self, message: str, replica: str) -> None:
        super().__init__(message, replica)
        self.replica = replica

    @property
    def problem(self) -> str:
        """The message."""
        return str(self.args[0])


class IncompleteAnswerError(LlcudaError):
    """The server of a replica ended an answer before its last byte."""


Head = tuple[int, list[tuple[bytes, bytes]]]  # the status and the headers of an answer
Part = tuple[Head | None, bytes, bool]  # the first has the head; the flag is set in the last


class Replica:
    """The server of one process.

    Args:
        config: The settings.
    """

    def __init__(self, config: ClusterConfig) -> None:
        log_into_serve()
        self._id: str = serve.get_replica_context().replica_id.unique_id
        endpoint = config.otlp_endpoint
        self._app: FastAPI = create_app(
            config.replica_models(),
            memory_budget=config.memory_budget or _gpu_share(config.num_gpus),
            hosts=(),
            limits=config.limits,
            strict=config.strict,
            tracer_provider=otlp_provider(endpoint) if endpoint else None,
        )
        self._service: Service = self._app.state.service
        self._recent: dict[tuple[str, tuple[bytes, ...]], None] = {}
        self._work: set[asyncio.Future[None]] = set()
        self._metrics: asyncio.Future[None] | None = None

    async def check_health(self) -> None:
        """Raise an error after a model has failed for good, so that Ray replaces the replica."""
        if self._metrics is None:
            self._metrics = asyncio.ensure_future(MetricsBridge().run(self._service))
        self._check_models()

    def _check_models(self) -> None:
        if (failure := self._service.models.failure()) is not None:
            raise ReplicaFailedError(failure.message, self._id)

    def record_routing_stats(self) -> dict[str, Any]:
        """Return the late prompts, from which every router learns what this replica has cached."""
        return {RECENT: [*self._recent]}

    async def answer(self, request: ForwardedRequest) -> AsyncIterator[Part]:
        """Answer a request: whole in one part, a stream of events as it comes.

        Args:
            request: The request.

        Raises:
            ReplicaFailedError: A model has failed for good.
            IncompleteAnswerError: The answer ended early.
        """
        self._check_models()
        if prefix := request.facts.prefix[:MAX_RECENT_KEYS]:
            entry = request.facts.model, prefix
            self._recent.pop(entry, None)
            self._recent[entry] = None
            if len(self._recent) > MAX_RECENT:
                del self._recent[next(iter(self._recent))]
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        disconnected = asyncio.Event()
        bodies = [request.body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await disconnected.wait()
            return {"type": "http.disconnect"}

        with ends_in(_seconds_left(request)), ids_begin_with(replica_tag(self._id)):
            work = asyncio.ensure_future(self._app(request.scope(), receive, messages.put))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        work.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            async for part in _parts(messages):
                if part[0] is not None and part[0][0] >= 500:
                    self._check_models()
                yield part
        finally:
            disconnected.set()

    async def chat(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answer a body of /v1/chat/completions, for `ray.data.llm`'s ServeDeploymentProcessor.

        Args:
            body: The body as a dict; Ray adds its own fields, which are left out.

        Raises:
            ArgumentError: The server refuses the body; a ValueError, which Ray takes for one row's.
            DecodeError: The server has failed, or is busy.
        """
        yield await self._document("/v1/chat/completions", body)

    async def completions(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answer a body of /v1/completions; see `chat`."""
        yield await self._document("/v1/completions", body)

    async def embeddings(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answer a body of /v1/embeddings; see `chat`."""
        yield await self._document("/v1/embeddings", body)

    async def _document(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: plain(value) for key, value in body.items() if key not in ADDED_BY_RAY}
        data = json.dumps({**given, "stream": False} if "stream" in given else given).encode()
        parts = [part async for part in self.answer(inside_request(path, data))]
        document: dict[str, Any] = json.loads(b"".join(part[1] for part in parts))
        assert parts[0][0] is not None
        status = parts[0][0][0]
        if status >= 400:
            message = document["error"]["message"]
            raise DecodeError(message) if status >= 429 else ArgumentError(message)
        return document

    async def __del__(self) -> None:
        """Free the models."""
        if self._metrics is not None:
            self._metrics.cancel()
        async with self._app.router.lifespan_context(self._app):
            pass


async def _parts(messages: asyncio.Queue[Message | None]) -> AsyncIterator[Part]:
    """Turn the messages of an ASGI application into parts."""
    head: Head | None = None
    is_stream = False
    body = b""
    while (message := await messages.get()) is not None:
        if message["type"] == "http.response.start":
            head = message["status"], [*message["headers"]]
            is_stream = dict(head[1]).get(b"content-type", b"").startswith(EVENTS)
            continue
        body += message.get("body", b"")
        is_last = not message.get("more_body")
        if is_last or (is_stream and messages.empty()):  # a whole answer is one part
            yield head, body, is_last
            head, body = None, b""
        if is_last:
            return
    raise IncompleteAnswerError("the answer ended early")


def _seconds_left(request: ForwardedRequest) -> float | None:
    """Return the seconds of a request, less those in which no replica had taken it."""
    if request.seconds is None or request.end is None:
        return None
    return min(request.seconds, max(0.0, request.end - time.time()))


def _gpu_share(num_gpus: float) -> int | None:
    """Return the bytes of a replica that has a part of a GPU; None for others."""
    if not 0 < num_gpus < 1:
        return None
    sizes = [device.total_memory for device in library.devices() if device.kind == "gpu"]
    return int(min(sizes) * num_gpus * GPU_SHARE) if sizes else None
