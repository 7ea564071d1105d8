"""Connections over which no request comes, or one that never ends."""

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from llcuda.errors import ArgumentError
from llcuda.server import serve
from llcuda.server.connections import MAX_HEAD_BYTES, listen_unix
from tests.support.server import CERTIFICATE, KEY, TLS, Served, post_bytes, served
from tests.support.waiting import ENDLESS, PATIENCE, eventually

PATH = "/v1/completions"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    """A server that waits for a request for half a second."""
    with served(idle_seconds=0.5) as server:
        yield server


def until_closed(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):  # what it did not read was on its way
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", GET[:30], GET[:-2], b"POST /tokenize HTTP/1.1\r\nContent-Length: 5\r\n"],
    ids=["nothing", "a letter", "half a header", "no end", "no body"],
)
@pytest.mark.parametrize("after", [b"", GET, GET * 3], ids=["first", "second", "pipelined"])
def test_half_a_head_is_not_waited_for(hasty: Served, after: bytes, sent: bytes) -> None:
    """The connection is closed, the first request of it or a later one."""
    with hasty.connect(after + sent) as connection:
        answers = until_closed(connection)
    assert after.count(b"GET") == answers.count(b"HTTP/1.1 200")


def test_a_head_that_trickles_in(hasty: Served) -> None:
    """A byte now and then does not make the time longer."""
    with hasty.connect(b"") as connection:
        connection.settimeout(0.05)
        sent = 0
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            while True:
                connection.sendall(GET[sent : sent + 1] if sent < len(GET) - 1 else b"x")
                sent += 1
                try:
                    closed = connection.recv(1) == b""
                except TimeoutError:
                    continue
                assert closed


def test_an_answer_may_take_longer(hasty: Served) -> None:
    """The time ends with the head: neither a body on its way nor a running text is cut."""
    sent = post_bytes(PATH, {"prompt": "a", "max_tokens": 2}, "Connection: close")
    with hasty.connect(b"") as idle, hasty.connect(sent[:-5]) as slow:
        assert b"" == until_closed(idle)  # it came before the other
        with hasty.engine.loop.hold():
            slow.sendall(sent[-5:])
            assert eventually(lambda: hasty.unfinished() == 1)
            with hasty.connect(b"") as idle:
                assert b"" == until_closed(idle)
        assert until_closed(slow).startswith(b"HTTP/1.1 200")


def test_a_connection_is_used_again(server: Served) -> None:
    """One after the other, at once and after a large body."""
    with server.connect(GET + GET) as connection:
        assert eventually(lambda: b"HTTP" in connection.recv(65536, socket.MSG_PEEK))
        connection.sendall(GET[:-2] + b"Connection: close\r\n\r\n")
        assert 3 == until_closed(connection).count(b"HTTP/1.1 200")
    for _ in range(2):
        answer = server.post("/tokenize", content="a" * 500_000)
        assert 200 == answer.status_code


@pytest.mark.parametrize("after", [b"", GET], ids=["first", "second"])
def test_a_head_has_a_largest_size(server: Served, after: bytes) -> None:
    """Beyond it 431, whatever the header; the largest ones of a browser pass."""
    for line in (b"a: b\r\n", b"a: " + b"b" * 3000 + b"\r\n"):
        with server.connect(after) as connection:
            if after:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall((GET[:-2] + line * MAX_HEAD_BYTES)[:MAX_HEAD_BYTES])
            connection.sendall(b"a")
            assert until_closed(connection).startswith(b"HTTP/1.1 431")
    with server.connect(GET[:-2] + b"Connection: close\r\na: " + b"b" * 30_000) as connection:
        connection.sendall(b"\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200")


def test_a_head_behind_a_running_request(server: Served) -> None:
    """One that grows while an answer before it is on its way is not kept either."""
    sent = post_bytes(PATH, {"prompt": "a", "stream": True, **ENDLESS})
    with server.connect(sent) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            for _ in range(10_000):
                connection.sendall(b"a: " + b"b" * 3000 + b"\r\n")
    assert eventually(server.idle)


def test_https_over_a_unix_socket(tmp_path: Path) -> None:
    """The start says where, and how to stop; Ctrl-C ends it and removes the socket."""
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # a server that was killed leaves it
    command = [sys.executable, "-m", "llcuda", "serve", "demo", "--threads", "1", "--uds", path]
    command += ["--tls-cert", CERTIFICATE, "--tls-key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert f"demo at https+unix://{quote(str(path), safe='')}/v1\n" == running.stdout.readline()
        assert "Press Ctrl-C to stop.\n" == running.stdout.readline()
        trusted = ssl.create_default_context(cafile=CERTIFICATE)
        transport = httpx.HTTPTransport(uds=str(path), verify=trusted)
        with httpx.Client(transport=transport, timeout=PATIENCE) as client:
            assert {"status": "ok"} == client.get("https://localhost/health").json()
        plain = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=plain) as client, pytest.raises(httpx.TransportError):
            client.get("http://localhost/health")
        with pytest.raises(ArgumentError, match="another process listens there"), listen_unix(path):
            pass
        running.send_signal(signal.SIGINT)
        assert 130 == running.wait(PATIENCE)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_key": KEY}, "tls_key=.*key.pem': has no certificate; give tls_cert"),
        (
            {"tls_cert": CERTIFICATE},
            "the certificate and its key cannot be used: the file has no private key; give tls_key",
        ),
        ({"tls_cert": KEY}, "cannot be used: .*PEM.*; give PEM files, the key unencrypted"),
        ({"tls_cert": KEY, "tls_key": CERTIFICATE}, "the certificate and its key cannot be used"),
        (
            {"tls_cert": CERTIFICATE, "tls_key": TLS / "encrypted.pem"},
            "give PEM files, the key unencrypted",
        ),
        ({"tls_cert": "/no/such"}, "tls_cert='/no/such'.*No such file"),
        ({"uds": "/no/such/folder/a.sock"}, "uds='/no/such/folder/a.sock': cannot listen there"),
        ({"uds": __file__}, "uds=.*: cannot listen there: Address already in use"),
        ({"uds": "a" * 200}, "uds=.*: cannot listen there: AF_UNIX path too long"),
        ({"uds": "a\0b"}, "uds=.*: contains a NUL"),
    ],
    ids=str,
)
def test_wrong_certificates_and_sockets(
    server: Served, options: dict[str, Any], message: str
) -> None:
    """Each is an error before the server begins, and asks nothing on stdin."""
    with pytest.raises(ArgumentError, match=message):
        serve(server.app, **options)
