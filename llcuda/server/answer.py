"""Answers that coroutines write, whole or as events, and that end when their client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llcuda.chat.parser import ChatDelta
from llcuda.server.errors import ApiError, ErrorShape, translate_and_log
from llcuda.server.log import RequestRecord

RECORD = "llcuda.record"  # the key of an ASGI scope that holds its RequestRecord
FLUSH_SECONDS = 0.01  # between two events of one text; faster tokens share an event
EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # or nginx keeps events back
}


class Answer(Response):
    """An answer that a coroutine writes, and that ends with its client.

    The coroutine is cancelled when the client disconnects or the server shuts down. An exception of
    it becomes an error of the API: with its status, or as the last event of a stream.

    Args:
        work: Writes the answer.
        names: The API's names of the engine's parameters, where they differ.
    """

    def __init__(
        self,
        work: Callable[[ResponseWriter], Awaitable[None]],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._work = work
        self._names = names
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop."""
        record: RequestRecord = scope[RECORD]
        writer = ResponseWriter(send, record)
        work = asyncio.ensure_future(self._answer(writer))
        disconnect = asyncio.ensure_future(_disconnect(receive))
        stopped = False
        try:
            await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server ends; the client is told
            stopped = True
        finally:
            for task in (work, disconnect):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        record.usage = writer.usage
        if stopped and not writer.ended:
            leaving = ApiError(503, "the server is shutting down", code="unavailable", retry=5)
            await writer.refuse(leaving)

    async def _answer(self, writer: ResponseWriter) -> None:
        try:
            await self._work(writer)
        except Exception as error:
            await writer.refuse(translate_and_log(error, writer.request_id, self._names))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ResponseWriter:
    """Writes one answer: `json` once, or `write` for each event and then `end`.

    Args:
        send: Sends ASGI messages.
        record: The facts of the request.

    Attributes:
        request_id: The id of the request.
        stream_headers: The headers of an answer in events.
        begun: Whether the status and the headers are written.
        ended: Whether the whole answer is written.
        usage: The tokens of the request for the log, in OpenAI's form.
    """

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self._errors = ErrorShape.of(record)
        self.request_id = record.request_id
        self.stream_headers = EVENTS
        self.usage: Mapping[str, Any] = {}
        self.begun = self.ended = False

    async def json(
        self, document: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a whole answer.

        Args:
            document: The JSON document, or its text.
            status: The HTTP status.
            headers: Further headers.
        """
        text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
        body = text.encode()
        own = {"content-type": "application/json", "content-length": str(len(body))}
        await self._begin(status, {**own, **(headers or {})})
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def write(self, events: str) -> None:
        """Write events; the first ones begin the answer. Waits for a client that reads slowly."""
        if not self.begun:
            await self._begin(200, self.stream_headers)
        body = {"type": "http.response.body", "body": events.encode(), "more_body": True}
        await self._send(body)

    async def end(self, events: str = "") -> None:
        """Write the last events."""
        if not self.begun:
            await self._begin(200, self.stream_headers)
        self.ended = True
        await self._send({"type": "http.response.body", "body": events.encode()})

    async def relay(
        self, status: int, headers: Mapping[str, str], body: bytes, *, is_last: bool
    ) -> None:
        """Write a part of an answer that another process has written.

        Args:
            status: The HTTP status; the first part writes it.
            headers: The headers, alike.
            body: The bytes.
            is_last: Whether the answer ends with them.
        """
        if not self.begun:
            await self._begin(status, headers)
        self.ended = is_last
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def refuse(self, error: ApiError, headers: Mapping[str, str] | None = None) -> None:
        """Write an error as the whole answer, or as its last event.

        Args:
            error: The error.
            headers: Further headers of a whole answer.
        """
        if self.begun:
            await self.end(self._errors.last_event(error, self.request_id))
        else:
            body = self._errors.body(error, self.request_id)
            await self.json(body, error.status, {**error.headers, **(headers or {})})

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.begun = True
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


T = TypeVar("T", str, ChatDelta)
T_co = TypeVar("T_co", str, ChatDelta, covariant=True)


class Readable(Protocol[T_co]):
    """A request, whose pieces are texts, or a chat, whose pieces are deltas."""

    async def more(self) -> T_co:
        """Wait for a piece, and return all that has come; a false one at the end."""

    def take(self) -> T_co:
        """Return what has come and was not read; never waits."""


class FlushTimer:
    """Keeps the events of one text apart, so that fast tokens share an event."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = 0.0

    async def read(self, source: Readable[T]) -> T:
        """Return all that has come, as soon as the next event may be written.

        The first piece is not delayed, nor is one that comes slowly. A false piece is the end.
        """
        piece = await source.more()
        wait = self._next - self._loop.time()
        if piece and wait > 0:
            await asyncio.sleep(wait)
            piece += source.take()
        self._next = self._loop.time() + FLUSH_SECONDS
        return piece


async def run_together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at once; the first error cancels the others."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
