"""The ingress: it checks requests, and passes each on to a replica. It keeps no state.

A whole answer is asked for again until its last byte has come, a stream until its first. When a
replica is lost later, the stream ends with an error whose code is `replica_lost`: a sampled text
cannot be resumed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentHandle
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llcuda.ray.config import ClusterConfig
from llcuda.ray.forwarded import (
    UNSENT,
    ForwardedRequest,
    body_facts,
    owner_of,
)
from llcuda.ray.logs import log_into_serve
from llcuda.ray.replica import IncompleteAnswerError, Part, ReplicaFailedError
from llcuda.server.answer import RECORD, Answer, ResponseWriter
from llcuda.server.app import cors_options
from llcuda.server.errors import RETRY_SECONDS, ApiError, deadline_exceeded
from llcuda.server.files import FORM_BYTES
from llcuda.server.log import RequestRecord
from llcuda.server.middleware import UPLOADS, RequestGuardMiddleware, Traffic, body_too_large
from llcuda.server.models import ModelPool
from llcuda.server.tracing import otlp_provider, trace_headers, tracer_of

logger = logging.getLogger("llcuda.server")
ID = b"x-request-id"
GRACE = 5.0  # seconds that a replica has to send what it has when the deadline passes
OF_ONE_REPLICA = ("/slots", "/lora-adapters")  # paths whose POST changes a single process


class Ingress:
    """A process that takes requests; Ray Serve's proxies call it by ASGI.

    Args:
        replicas: The handle of the replicas.
        config: The settings.
    """

    def __init__(self, replicas: DeploymentHandle, config: ClusterConfig) -> None:
        log_into_serve()
        self._replicas = replicas
        self._config = config

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray calls this in the process that runs it."""
        config = self._config
        endpoint = config.otlp_endpoint
        app: ASGIApp = RequestGuardMiddleware(
            Forwarder(self._replicas, config),
            limits=config.limits,
            traffic=Traffic(),
            keys=config.keys,
            hosts=config.hosts,
            tracer=tracer_of(otlp_provider(endpoint)) if endpoint else None,
        )
        if config.cors_origins:
            app = CORSMiddleware(app, **cors_options(config.cors_origins))
        return _Frame(app)


class _Frame:
    """Fits an application to Ray's proxies: their route's prefix, and their X-Request-ID."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":  # the proxy adds the id
                headers = [pair for pair in message["headers"] if pair[0] != ID]
                message = {**message, "headers": headers}
            await send(message)

        path = scope["path"].removeprefix(scope.get("root_path", ""))
        await self._app({**scope, "path": path or "/", "root_path": ""}, receive, send_without_id)


async def _live(receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


class Forwarder:
    """Passes each request on to a replica.

    Args:
        replicas: The handle of the replicas.
        config: The settings.
    """

    def __init__(self, replicas: DeploymentHandle, config: ClusterConfig) -> None:
        self._replicas = replicas.options(method_name="answer", stream=True)
        self._config = config
        self._names: Mapping[str, str] = ModelPool(config.models).names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path = scope["path"]
        if self._config.most_replicas > 1 and scope["method"] == "POST":
            for beginning in OF_ONE_REPLICA:
                if path.startswith(beginning):
                    message = f"{beginning} changes one replica, and this server has several"
                    raise ApiError(501, message, code="unsupported")
        body = await self._body(scope, receive)
        facts = body_facts(body, self._names)
        if owner := owner_of(path):
            facts = replace(facts, owner=owner)
        limits = (self._config.limits.deadline, facts.timeout)
        seconds = min((limit for limit in limits if limit is not None), default=None)
        pairs = [(k, v) for k, v in scope["headers"] if k not in UNSENT]
        record: RequestRecord = scope[RECORD]
        own = {ID: record.request_id.encode(), **trace_headers()}
        request = ForwardedRequest(
            method=scope["method"],
            path=path,
            query=scope["query_string"],
            headers=(*(pair for pair in pairs if pair[0] not in own), *own.items()),
            client=scope.get("client"),
            body=body,
            seconds=seconds,
            end=None if seconds is None else time.time() + seconds,
            facts=facts,
        )

        async def work(writer: ResponseWriter) -> None:
            await self._answer(request, writer)

        await Answer(work)(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body, of which only that of an upload still has to come."""
        headers = dict(scope["headers"])
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return b""
        limits = self._config.limits
        most = limits.file_bytes + FORM_BYTES if scope["path"] in UPLOADS else limits.body_bytes
        seconds = limits.body_seconds * (1 + most // limits.body_bytes)
        parts, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise body_too_large(limits.file_bytes)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {seconds:g} s") from None

    async def _answer(self, request: ForwardedRequest, writer: ResponseWriter) -> None:
        """Write the answer of a replica, of another one when the first is lost."""
        failures = 0
        started = time.monotonic()
        whole = request.seconds
        while True:
            if whole is not None:
                seconds = whole - (time.monotonic() - started)
                if seconds <= 0:
                    raise deadline_exceeded()
                request = replace(request, seconds=seconds)
            try:
                await self._relay(request, writer)
                return
            except ReplicaFailedError as error:
                refusal = ApiError(503, error.problem, code="model_failed", retry=1)
                request = replace(request, avoided=request.avoided | {error.replica})
            except (RayError, RayServeException) as error:
                refusal = _lost(error)
            if writer.begun or failures >= self._config.retries:
                raise refusal
            failures += 1
            logger.warning("%s is sent to another replica", writer.request_id)

    async def _relay(self, request: ForwardedRequest, writer: ResponseWriter) -> None:
        """Write the parts that a replica sends."""
        status, shown = 0, dict[str, str]()
        async with _parts(self._replicas.remote(request), request.seconds) as parts:
            async for head, body, is_last in parts:
                if head is not None:
                    status = head[0]
                    shown = {k.decode(): v.decode("latin-1") for k, v in head[1] if k != ID}
                await writer.relay(status, shown, body, is_last=is_last)


@asynccontextmanager
async def _parts(response: Any, seconds: float | None) -> AsyncIterator[AsyncIterator[Part]]:
    """Read the parts of a response, whose replica stops when the block ends early."""
    ended = False

    async def read() -> AsyncIterator[Part]:
        nonlocal ended
        try:
            async with asyncio.timeout(None if seconds is None else seconds + GRACE):
                part = await anext(response)
        except TimeoutError:
            raise deadline_exceeded() from None
        yield part
        async for part in response:
            yield part
        ended = True

    try:
        yield read()
    finally:
        if not ended:
            response.cancel()


def _lost(error: Exception) -> ApiError:
    """Return the error of an answer that no replica gives; raise what another one cannot mend."""
    if isinstance(error, BackPressureError):
        busy = "the server's queue is full; try again later"
        raise ApiError(429, busy, code="rate_limit_exceeded", retry=RETRY_SECONDS)
    if isinstance(error, DeploymentUnavailableError):
        broken = "the server has no replica that starts"
        raise ApiError(503, broken, code="unavailable", retry=RETRY_SECONDS)
    if isinstance(error, TaskCancelledError):
        raise ApiError(503, "the replica is being removed", code="replica_lost", retry=1)
    if isinstance(error, RayTaskError) and not isinstance(error, IncompleteAnswerError):
        raise error
    message = "the replica that wrote this answer was lost; ask again"
    return ApiError(503, message, code="replica_lost", retry=RETRY_SECONDS)
