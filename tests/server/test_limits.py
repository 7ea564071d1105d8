"""Keys, hosts, origins, sizes, queues."""

import socket
from collections.abc import Iterator

import httpx
import openai
import pytest

from llcuda.server.middleware import Limits
from tests.support.server import Served, demo, is_error, post_bytes, served
from tests.support.waiting import ENDLESS, eventually

KEYS = ("first key", "zweiter-schlüssel")
KEY = f"Authorization: Bearer {KEYS[0]}"
LONG = {"prompt": "Once upon a time", **ENDLESS}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """A server with keys, one origin, and limits that are easily reached."""
    with served(
        demo(n_parallel=1, queue_size=1), keys=KEYS, cors_origins=["https://page.example"],
        limits=Limits(body_bytes=2000),
    ) as server:  # fmt: skip
        server.client.headers["authorization"] = f"Bearer {KEYS[0]}"
        yield server


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x",
     "Bearer first", f"{KEYS[0]}", "Bearer \xff\xfe"],
)  # fmt: skip
def test_without_a_key(guarded: Served, header: str | None) -> None:
    """Nothing but /health answers without a key, or with a wrong one."""
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in (
        ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nothing"),
        ("POST", "/v1/completions"),
    ):  # fmt: skip
        answer = httpx.request(method, guarded.url + path, headers=headers, trust_env=False)
        error = is_error(answer, 401)
        assert ("authentication_error", "invalid_api_key") == (error["type"], error["code"])
        assert "Bearer" == answer.headers["www-authenticate"]
    assert 200 == httpx.get(f"{guarded.url}/health", headers=headers, trust_env=False).status_code


def test_each_key_opens(guarded: Served) -> None:
    """All keys are right, not only ASCII."""
    for key in KEYS:
        headers = {"authorization": f"bearer {key}".encode()}
        assert 200 == guarded.client.get("/v1/models", headers=headers).status_code
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_origins(guarded: Served, server: Served) -> None:
    """Pages of one origin may ask; without the option none may."""
    ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
    allowed = guarded.client.options("/v1/completions", headers=ask)
    assert "https://page.example" == allowed.headers["access-control-allow-origin"]
    for running, origin in ((guarded, "https://evil.example"), (server, "https://page.example")):
        answer = running.client.options("/v1/completions", headers={**ask, "origin": origin})
        assert "access-control-allow-origin" not in answer.headers
        answer = running.client.get("/v1/models", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


def test_pages_of_this_machine() -> None:
    """The origin "localhost" is each of its ports, and no name that begins alike."""
    with served(demo(), preload=False, cors_origins=["localhost", "https://a.example"]) as running:
        for origin in (
            "http://localhost", "http://localhost:3000", "https://127.0.0.1:8", "http://[::1]:5173",
            "https://a.example",
        ):  # fmt: skip
            answer = running.client.get("/v1/models", headers={"origin": origin})
            assert origin == answer.headers["access-control-allow-origin"]
            assert "x-llcuda-ignored" in answer.headers["access-control-expose-headers"]
        for origin in (
            "http://localhost.evil.example", "http://evil.example", "null", "localhost",
            "http://localhost:3000.evil.example", "http://127.0.0.2", "file://localhost",
        ):  # fmt: skip
            answer = running.client.get("/v1/models", headers={"origin": origin})
            assert "access-control-allow-origin" not in answer.headers


def test_foreign_hosts(server: Served) -> None:
    """A name that was made to point here is refused; a page cannot post without asking first."""
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", ""):
        is_error(server.client.get("/v1/models", headers={"host": host}), 403)
    for host in ("localhost", f"LOCALHOST:{server.address[1]}", "127.0.0.1", "[::1]:1"):
        assert 200 == server.client.get("/v1/models", headers={"host": host}).status_code
    plain = {"content-type": "text/plain", "origin": "https://evil.example"}
    body = b'{"prompt": "a"}'
    is_error(server.client.post("/v1/completions", content=body, headers=plain), 400)


def test_large_bodies(guarded: Served) -> None:
    """A body beyond the limit is refused before it is read, or as soon as it is too long."""
    is_error(guarded.post("/v1/completions", prompt="a" * 3000), 413)

    def parts() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * 100

    headers = {"content-type": "application/json"}
    is_error(guarded.client.post("/v1/completions", content=parts(), headers=headers), 413)
    assert 200 == guarded.post("/v1/completions", prompt="a", max_tokens=1).status_code


def test_a_body_that_does_not_come() -> None:
    """It is waited for, but not for ever."""
    with (
        served(limits=Limits(body_seconds=0.5)) as server,
        server.connect(post_bytes("/v1/completions", LONG)[:-1]) as connection,
    ):
        assert b"HTTP/1.1 408" in _all(connection)


def _all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_full_queue(guarded: Served) -> None:
    """429 when the engine's queue is full, with the time to come again."""
    sent = post_bytes("/v1/completions", LONG, KEY)
    with guarded.connect(sent), guarded.connect(sent):  # one runs, one waits
        assert eventually(lambda: guarded.unfinished() == 2)
        refused = guarded.post("/v1/completions", prompt="a", max_tokens=1)
        error = is_error(refused, 429)
        assert ("rate_limit_error", "1") == (error["type"], refused.headers["retry-after"])
    assert eventually(guarded.idle)


def test_a_busy_server() -> None:
    """503 beyond the number of requests that it takes on; /health still answers."""
    with (
        served(limits=Limits(requests=1)) as server,
        server.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        refused = server.client.get("/v1/models")
        assert "overloaded" == is_error(refused, 503)["code"]
        assert "1" == refused.headers["retry-after"]
        assert 200 == server.client.get("/health").status_code


def test_too_many_at_once_is_one_error(guarded: Served) -> None:
    """More texts than the queue ever holds are refused for good, before any is computed."""
    is_error(guarded.post("/v1/completions", prompt=["a"] * 5), 400, "prompt")
    is_error(guarded.post("/v1/completions", prompt="a", n=5), 400, "prompt")
    assert eventually(guarded.idle)
