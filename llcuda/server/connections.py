"""The sockets of the server, and the limits of a connection until a whole request head came."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llcuda.errors import ArgumentError
from llcuda.params import wrong_value

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


def check_certificate(
    certificate: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None
) -> None:
    """Raise ArgumentError for a certificate or a key that TLS cannot use."""
    if certificate is None:
        raise wrong_value("tls_key", os.fspath(key or ""), "has no certificate", "give tls_cert")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:  # an encrypted key would be asked for on stdin
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        name, path = ("tls_cert", certificate) if key is None else ("tls_key", key)
        problem, remedy = str(error), "give PEM files, the key unencrypted"
        if key is None and _lacks_key(Path(certificate)):
            problem, remedy = "the file has no private key", "give tls_key"
        rule = f"the certificate and its key cannot be used: {problem}"
        raise wrong_value(name, os.fspath(path), rule, remedy) from None


def _lacks_key(certificate: Path) -> bool:
    try:
        content = certificate.read_bytes()
    except (OSError, ValueError):
        return False
    return b"CERTIFICATE-----" in content and b"PRIVATE KEY-----" not in content


@contextmanager
def listen_unix(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket, whose file is removed at the end.

    Args:
        path: The file; one that no process listens on is replaced.

    Raises:
        ArgumentError: The path cannot be used, or a process listens on it.
    """
    if "\0" in os.fspath(path):
        raise wrong_value("uds", os.fspath(path), "contains a NUL character")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if not probe.connect_ex(os.fspath(path)):
                    raise wrong_value("uds", os.fspath(path), "another process listens there")
            path.unlink()
        listener.bind(os.fspath(path))
        listener.listen(2048)
    except (OSError, ValueError) as error:
        listener.close()
        if isinstance(error, ArgumentError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise wrong_value("uds", os.fspath(path), f"cannot listen there: {reason}") from error
    with listener:
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink()


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
        in_use = error.errno == errno.EADDRINUSE
        raise ArgumentError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            parameter="host",
            remedy="stop the program that listens there, or give another port" if in_use else None,
        ) from error
    return listener
