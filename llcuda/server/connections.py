"""The sockets of the server, and the limits of a connection until a whole request head came."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llcuda.errors import ArgumentError

CLIENT_TIMEOUT_MS = 60_000  # a client that reads nothing for so long is disconnected
MAX_HEAD_BYTES = 2**16  # of a request's line and headers
HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class GuardedProtocol(HttpToolsProtocol):
    """Closes a connection over which no whole head of a request comes in time, or a large one.

    uvicorn has a limit for idle connections, but it ends with the first byte of a next request and
    begins with the first answer. The limit here begins with the connection and with each answer,
    and ends with a whole head; its length is uvicorn's `timeout_keep_alive`.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head_timer: asyncio.TimerHandle | None = None
        self._reading_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head of a request grows too large."""
        self._head_bytes += len(data)  # which a whole request within the data sets back
        super().data_received(data)
        too_large = self._reading_head and self._head_bytes > MAX_HEAD_BYTES
        if too_large and not self.transport.is_closing():
            self.transport.write(HEAD_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._end_wait()
        self._reading_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Read the head of the next request."""
        self._reading_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has come already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._end_wait()
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, whose connections end when a client reads nothing any more."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_TIMEOUT_MS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ArgumentError(
            f"cannot listen on {host}:{port}: {error.strerror}", parameter="host"
        ) from error
    return listener
