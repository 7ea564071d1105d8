"""The checks that every request passes first: host, key, limits, size of the body.

Plain ASGI: nothing here stands between an answer and its client.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llcuda.params import check_number, wrong_value
from llcuda.server.answer import RECORD, ResponseWriter
from llcuda.server.errors import RETRY_SECONDS, ApiError, translate_and_log
from llcuda.server.leniency import HEADER, Ignored, collect_ignored
from llcuda.server.log import CLIENT_LEFT, REQUEST_ID, RequestRecord
from llcuda.server.page import PREFIX
from llcuda.server.tracing import trace_request

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

KEYLESS_PATHS = ("/", "/docs", "/health")  # besides the page's files
UPLOADS = ("/v1/files", "/files")  # whose bodies are written to the disk as they come
INSIDE = "llcuda.inside"  # the key of an ASGI scope that this process made itself
MIN_SECONDS = 0.001
FREE_BYTES = 2**16  # of each body that do not count; `Limits.requests` bounds these
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: Largest size of a request's body.
        total_body_bytes: Largest size of the bodies of all unanswered requests; None = 16 of the
            largest size. The first 64 KiB of each body do not count, so that small requests are
            taken on beside large ones.
        body_seconds: Longest time until the body has arrived.
        requests: Largest number of requests at once, those that wait included.
        file_bytes: Largest size of a file that is uploaded.
        total_file_bytes: Largest size of all files, those that batches write included.
        deadline: Seconds of a request, after which it ends with what there is; None = no deadline.

    Raises:
        ArgumentError: A limit is not a number, or not above 0, or the limit of all bodies is below
            that of one.
    """

    body_bytes: int = 16 * 2**20
    total_body_bytes: int | None = None
    body_seconds: float = 30.0
    requests: int = 2048
    deadline: float | None = 600.0
    file_bytes: int = 200_000_000
    total_file_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        check_number("body_bytes", self.body_bytes, "int", 1)
        if self.total_body_bytes is not None:
            check_number("total_body_bytes", self.total_body_bytes, "int", self.body_bytes)
        check_number("body_seconds", self.body_seconds, "number", MIN_SECONDS)
        check_number("requests", self.requests, "int", 1)
        if self.deadline is not None:
            check_number("deadline", self.deadline, "number", MIN_SECONDS)
        check_number("file_bytes", self.file_bytes, "int", 1)
        check_number("total_file_bytes", self.total_file_bytes, "int", self.file_bytes)


@dataclass
class Traffic:
    """Counters of the server.

    Attributes:
        answers: Answers by path and status.
        active: Requests that are being answered.
        body_bytes: Size of their bodies beyond the first 64 KiB of each.
        client_disconnects: Clients that disconnected before their answer was complete.
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    active: int = 0
    body_bytes: int = 0
    client_disconnects: int = 0


class RequestGuardMiddleware:
    """Refuses requests of unknown hosts, without a key, beyond a limit; counts and logs them.

    Args:
        app: The application behind it.
        limits: Limits of the server.
        traffic: Counters to write.
        keys: API keys, any of which is right; none = no key is needed.
        hosts: Names that clients may call the server by; none = any.
        strict: Whether to refuse a request of which something would be ignored.
        tracer: OpenTelemetry's tracer, which gets a span of each request; None = no traces.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        traffic: Traffic,
        keys: Iterable[str] = (),
        hosts: Iterable[str] = (),
        strict: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._traffic = traffic
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._hosts = frozenset(hosts)
        self._strict = strict
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[RECORD] = RequestRecord.of(scope)
        with collect_ignored(self._strict) as ignored, trace_request(self._tracer, scope, record):
            record.ignored = ignored.notes
            await self._answer(scope, receive, send, ignored)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ignored: Ignored) -> None:
        record: RequestRecord = scope[RECORD]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                # In place of the header of a server whose answer the application hands on.
                headers = [pair for pair in message["headers"] if pair[0].lower() != REQUEST_ID]
                headers.append((REQUEST_ID, record.request_id.encode()))
                if ignored.count:
                    headers.append((HEADER.encode(), str(ignored).encode()))
                message["headers"] = headers
            await send(message)
            if message["type"] == "http.response.body":
                record.complete = not message.get("more_body")

        self._traffic.active += 1
        share = _BodyShare(self._traffic, self._limits)
        try:
            receive_body = await self._check(scope, receive, share)
            await self._app(scope, receive_body, send_with_id)
        except ClientDisconnect:
            pass  # nobody reads an answer
        except Exception as error:
            refusal = translate_and_log(error, record.request_id)
            if record.status is None:
                closing = {"connection": "close"}  # a body may still be on its way
                await ResponseWriter(send_with_id, record).refuse(refusal, closing)
            else:  # the server closes the connection, because the answer is incomplete
                record.failed = True
        finally:
            share.give_back()
            self._traffic.active -= 1
            self._traffic.client_disconnects += record.final_status == CLIENT_LEFT
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._traffic.answers[path, record.final_status] += 1
            record.log()

    async def _check(self, scope: Scope, receive: Receive, share: _BodyShare) -> Receive:
        """Return what gives the application the whole body. Raises ApiError."""
        headers = dict(scope["headers"])
        path = scope["path"]
        if INSIDE not in scope:
            self._check_client(headers, path)
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        if not has_body or (path in UPLOADS and scope["method"] == "POST"):
            return receive
        bodies = [await self._body(headers, receive, share)]

        async def receive_body() -> Message:
            if not bodies:
                return await receive()
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        return receive_body

    def _check_client(self, headers: Mapping[bytes, bytes], path: str) -> None:
        """Refuse an unknown host, a wrong key, and one request too many."""
        self._check_host(headers)
        if path not in KEYLESS_PATHS and not path.startswith(PREFIX):
            self._check_key(headers)
            if self._traffic.active > self._limits.requests:
                busy = "the server is busy; try again later"
                raise ApiError(503, busy, code="overloaded", retry=1)

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse unknown names: a page on the web may let its own name point to this machine."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d*$", "", host).lower()
        if self._hosts and name not in self._hosts:
            error = wrong_value("Host", name, "expected a name of this server")
            raise ApiError(403, str(error), code="unknown_host")

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        """Compare with every key, in a time that does not depend on the keys."""
        if not self._keys:
            return
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        if not kind:  # Anthropic's clients
            kind, key = b"bearer", headers.get(b"x-api-key", b"")
        digest = hashlib.sha256(key.strip()).digest()
        matches = sum(hmac.compare_digest(digest, own) for own in self._keys)
        if kind.lower() != b"bearer" or not matches:
            message = "wrong API key" if key else "missing API key: send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")

    async def _body(
        self, headers: Mapping[bytes, bytes], receive: Receive, share: _BodyShare
    ) -> bytes:
        max_bytes = self._limits.body_bytes
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > max_bytes:
            raise body_too_large(max_bytes)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    part = message.get("body", b"")
                    size += len(part)
                    if size > max_bytes:
                        raise body_too_large(max_bytes)
                    share.grow(size)
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            problem = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise ApiError(408, problem) from None


class _BodyShare:
    """The part of the limit of all bodies that one request takes."""

    def __init__(self, traffic: Traffic, limits: Limits) -> None:
        self._traffic = traffic
        own_limit = limits.total_body_bytes
        self._limit = 16 * limits.body_bytes if own_limit is None else own_limit
        self._taken = 0

    def grow(self, size: int) -> None:
        """Reserve the bytes of a body. Raises ApiError when they exceed the budget."""
        further = max(0, size - FREE_BYTES) - self._taken
        if further > 0 and self._traffic.body_bytes + further > self._limit:
            busy = "the server holds too many large bodies; try again later"
            raise ApiError(503, busy, code="overloaded", retry=RETRY_SECONDS)
        self._taken += max(0, further)
        self._traffic.body_bytes += max(0, further)

    def give_back(self) -> None:
        """Leave it to other requests."""
        self._traffic.body_bytes -= self._taken
        self._taken = 0


def body_too_large(max_bytes: int) -> ApiError:
    """Return the error of a body above a limit."""
    message = f"the body is too large: at most {max_bytes} bytes"
    return ApiError(413, message, code="body_too_large", closes=True)
