"""`llcuda serve` as a process of its own: HTTPS on a port, slow clients, traces."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from llcuda.server.connections import MAX_HEAD_BYTES
from tests.support.collector import collecting
from tests.support.server import CERTIFICATE, KEY, post_bytes, serve_process
from tests.support.waiting import PATIENCE

# A path of each API, and where its errors have their message.
FACES: dict[str, tuple[str, ...]] = {
    "/v1/completions": ("error", "message"), "/v1/responses": ("error", "message"),
    "/v1/embeddings": ("error", "message"), "/v1/rerank": ("error", "message"),
    "/v1/files": ("error", "message"), "/v1/batches": ("error", "message"),
    "/v1/messages": ("error", "message"), "/api/chat": ("error",),
    "/completion": ("error", "message"), "/slots/0?action=save": ("error", "message"),
}  # fmt: skip


class Secure:
    """A server at an HTTPS address. client: asks it."""

    def __init__(self, url: str, client: httpx.Client, context: ssl.SSLContext) -> None:
        self.client = client
        parts = urlsplit(url)
        self.address = str(parts.hostname), int(parts.port or 0)
        self._context = context

    def connect(self, data: bytes) -> ssl.SSLSocket:
        """Return a connection over which this was sent as it is."""
        plain = socket.create_connection(self.address, timeout=PATIENCE)
        connection = self._context.wrap_socket(plain, server_hostname="localhost")
        connection.sendall(data)
        return connection


@pytest.fixture(scope="module")
def secure() -> Iterator[Secure]:
    """A process with a certificate, which waits half a second for a head and for a body."""
    waits = ("--body-timeout", "0.5", "--idle-timeout", "0.5", "--log-level", "warning")
    context = ssl.create_default_context(cafile=CERTIFICATE)
    with serve_process("--tls-cert", CERTIFICATE, "--tls-key", KEY, *waits) as (_, url):
        base = url.replace("127.0.0.1", "localhost")
        transport = httpx.HTTPTransport(verify=context)
        with httpx.Client(transport=transport, base_url=base, timeout=PATIENCE) as client:
            yield Secure(url, client, context)


def until_closed(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError), connection:
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_https(secure: Secure) -> None:
    """Whole answers and streams; who speaks no TLS, or trusts other certificates, gets nothing."""
    client, body = secure.client, {"prompt": "Once", "max_tokens": 2}
    assert {"status": "ok"} == client.get("/health").json()
    assert 2 == client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"]
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert "data: [DONE]" in list(answer.iter_lines())
    host, port = secure.address
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{host}:{port}/health", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{port}/health", trust_env=False)


def test_a_body_that_does_not_come(secure: Secure) -> None:
    """408 on every API, in its shape; the model goes on for others."""
    connections = {path: secure.connect(half_a_body(path)) for path in FACES}
    assert 200 == secure.client.get("/health").status_code
    for path, places in FACES.items():
        head, _, body = until_closed(connections[path]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408"), (path, head)
        message: Any = json.loads(body)
        for place in places:
            message = message[place]
        assert "0.5 s" in message, (path, body)


def half_a_body(path: str) -> bytes:
    """Return a request whose body has no end."""
    if path != "/v1/files":
        return post_bytes(path, {"model": "demo", "prompt": "Once"})[:-1]
    part = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nba'
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + part


def test_a_head_that_does_not_come(secure: Secure) -> None:
    """The connection is closed, and 431 ends one that is too large."""
    head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
    assert b"" == until_closed(secure.connect(head))
    answer = until_closed(secure.connect(head + b"a: " + b"b" * MAX_HEAD_BYTES))
    assert answer.startswith(b"HTTP/1.1 431")


# --- traces ---


def test_a_collector_gets_the_spans_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is below the client's span, its phases below it; none is lost at the end."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # only the end sends them
    trace, parent = bytes(range(16)), bytes(range(8))
    headers = {"traceparent": f"00-{trace.hex()}-{parent.hex()}-01"}
    with collecting() as collector:
        with serve_process("--otlp-endpoint", collector.url) as (running, url):
            for path, body in (
                ("/v1/completions", {"prompt": "Once", "max_tokens": 3, "ignore_eos": True}),
                ("/api/generate", {"prompt": "SECRET", "options": {"num_predict": 2}}),
            ):
                answer = httpx.post(
                    f"{url}{path}", json=body, headers=headers, timeout=PATIENCE, trust_env=False
                )
                assert 200 == answer.status_code
            running.send_signal(signal.SIGTERM)
            assert 0 == running.wait(PATIENCE)
        assert {"llcuda"} == collector.services
        found = collector.spans
    requests = [span for span in found if span.parent_span_id == parent]
    assert ["POST /v1/completions", "POST /api/generate"] == [span.name for span in requests]
    assert {trace} == {span.trace_id for span in found}
    for request in requests:
        phases = [span for span in found if span.parent_span_id == request.span_id]
        assert ["queue", "prefill", "decode"] == [span.name for span in phases]
        for span in phases:
            assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert "SECRET" not in "".join(map(str, found))
