"""What every request passes first: hosts, keys, limits, the whole body, an id.

Plain ASGI: nothing here stands between an answer and its client.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llcuda.server.chunks import new_id
from llcuda.server.errors import ApiError

OPEN = ("/", "/health")  # without a key
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass
class Limits:
    """What the server takes on.

    body_bytes: of a request; body_seconds: until it is there. requests: at once, those that wait
    too. deadline: seconds of a request, then it ends with what there is; None = none.
    """

    body_bytes: int = 16 * 2**20
    body_seconds: float = 30.0
    requests: int = 2048
    deadline: float | None = 600.0


@dataclass
class Traffic:
    """Counts of the server. answers: by path and status; gone: clients that left early."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    active: int = 0
    gone: int = 0

    def left(self) -> None:
        """Count a client that left before its answer was whole."""
        self.gone += 1


class Door:
    """The middleware.

    keys: any of them opens, none = open to all; hosts: names that the server is called by, none =
    any.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        traffic: Traffic,
        keys: Iterable[str] = (),
        hosts: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._limits = limits
        self._traffic = traffic
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = new_id("req_")
        status = 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        self._traffic.active += 1
        try:
            whole = await self._enter(scope, receive)
            await self._app(scope, whole, named)
        except ApiError as refusal:
            await _refuse(refusal, named)
        finally:
            self._traffic.active -= 1
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._traffic.answers[path, status] += 1

    async def _enter(self, scope: Scope, receive: Receive) -> Receive:
        headers = dict(scope["headers"])
        self._check_host(headers)
        if scope["path"] not in OPEN:
            self._check_key(headers)
            if self._traffic.active > self._limits.requests:
                busy = "the server is busy; try again later"
                raise ApiError(503, busy, code="overloaded", retry=1)
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return receive
        body = await self._body(headers, receive)
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return whole

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse foreign names: a page from elsewhere may have its name point to this machine."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d*$", "", host).lower()
        if self._hosts and name not in self._hosts:
            raise ApiError(403, f"the host {name[:100]!r} is not served here", code="unknown_host")

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        """Compare with every key, in a time that depends on neither."""
        if not self._keys:
            return
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        known = sum(hmac.compare_digest(given, own) for own in self._keys)
        if kind.lower() != b"bearer" or not known:
            wrong = "a wrong API key" if key else "no API key: send Authorization: Bearer KEY"
            raise ApiError(401, wrong, code="invalid_api_key")

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the body is not whole")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise _too_large(most)
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time") from None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large: at most {most} bytes", code="body_too_large")


async def _refuse(refusal: ApiError, send: Send) -> None:
    """Answer, and close the connection: a body may still be on its way."""
    body = json.dumps(refusal.as_dict()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= refusal.headers | {"connection": "close"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
