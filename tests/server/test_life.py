"""Clients that leave, servers that end, and models that come and go."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llcuda import demo_model
from llcuda.errors import ArgumentError, LlcudaError, ModelNotFoundError
from llcuda.server.app import create_app
from llcuda.server.bodies import BodyRoute
from llcuda.server.middleware import Limits
from llcuda.server.models import ModelPool, ModelSpec
from tests.support.server import Served, demo, is_error, post_bytes, refuses, serve_process, served
from tests.support.waiting import ENDLESS, eventually

PATH = "/v1/completions"
LONG = {"prompt": "Once upon a time", **ENDLESS}
SMALL_BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
SEND_BUFFER = Path("/proc/sys/net/ipv4/tcp_wmem")  # least, default and largest size


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_its_slot(server: Served, stream: bool, n: int) -> None:
    """A connection that is cut ends its texts, all of them, whether streamed or not."""
    gone = server.service.traffic.client_disconnects
    with server.connect(post_bytes(PATH, {**LONG, "stream": stream, "n": n})) as connection:
        assert eventually(lambda: server.unfinished() == n)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert eventually(server.idle)
    assert gone + 1 == server.service.traffic.client_disconnects
    assert 200 == server.post("/v1/completions", prompt="a", max_tokens=1).status_code


def test_a_client_that_leaves_the_queue(server: Served) -> None:
    """One that waits and leaves is not computed."""
    with contextlib.ExitStack() as stack:
        for _ in range(6):  # four slots
            connection = server.connect(post_bytes(PATH, LONG))
            stack.callback(connection.close)
        assert eventually(lambda: server.unfinished() == 6)
        connection.close()
        assert eventually(lambda: server.unfinished() == 5)
    assert eventually(server.idle)


def test_a_slow_reader_harms_no_other(server: Served) -> None:
    """Who asks for a stream and does not read holds no slot longer than its text."""
    asked = {"prompt": "a", "stream": True, "logprobs": 20, **ENDLESS, "max_tokens": 3000}
    connection = server.connect(post_bytes(PATH, asked))
    try:
        assert 200 == server.post("/v1/completions", prompt="b", max_tokens=20).status_code
        assert eventually(lambda: not server.unfinished())
    finally:
        connection.close()
    assert eventually(server.idle)


def test_the_same_id_twice(server: Served) -> None:
    """Requests that call themselves alike are two requests, whose answers differ."""
    headers = {"x-request-id": "same", "idempotency-key": "same"}
    body = {"prompt": "a", "max_tokens": 3}
    answers = [server.client.post("/v1/completions", json=body, headers=headers) for _ in range(2)]
    assert [200, 200] == [answer.status_code for answer in answers]
    assert ["same", "same"] == [answer.headers["x-request-id"] for answer in answers]
    assert 2 == len({answer.json()["id"] for answer in answers})


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_thousand_connections_at_once() -> None:
    """1,000 clients at once: each gets its text, or is told to come again; none hangs."""
    with served(demo(n_parallel=16, ctx_size=64, queue_size=2000)) as server:
        before = _open_files()

        async def ask(i: int) -> bytes:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(post_bytes(PATH, {"prompt": f"{i}", "max_tokens": 2, "ignore_eos": True}))
            answer = await reader.readuntil(b"\r\n")
            writer.close()
            await writer.wait_closed()
            return answer

        async def ask_all() -> list[bytes]:
            return list(await asyncio.gather(*(ask(i) for i in range(1000))))

        assert {b"HTTP/1.1 200 OK\r\n"} == set(asyncio.run(ask_all()))
        assert eventually(server.idle)
        assert eventually(lambda: _open_files() <= before + 4)


# --- several models ---


def test_routes_are_built_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI makes the handlers of included routes late, while the event loop waits."""
    built: list[str] = []
    make = BodyRoute.get_route_handler

    def get_route_handler(route: BodyRoute) -> Any:
        built.append(route.path)
        return make(route)

    monkeypatch.setattr(BodyRoute, "get_route_handler", get_route_handler)
    with served(demo(), preload=False) as server:
        before = len(built)
        assert before
        for path in ("/v1/models", "/none", "/props", "/v1/files"):
            server.client.get(path)
        assert before == len(built)


def test_models_share_a_budget() -> None:
    """With room for one, the other is unloaded when it is idle, and never while it is in use."""
    takes = sum(device.needed for device in demo().memory_needed(demo_model()))
    with served(demo("one"), demo("two"), memory_budget=takes * 3 // 2) as server:
        models = server.service.models
        for name in ("one", "two", "one", "two"):
            answer = server.post("/v1/completions", model=name, prompt="a", max_tokens=2)
            assert (200, name) == (answer.status_code, answer.json()["model"])
            assert [name] == list(models.loaded)
        assert (4, 3) == (models.loads, models.unloads)
        is_error(server.post("/v1/completions", prompt="a"), 400, "model")
        with server.client.stream(
            "POST", "/v1/completions", json={**LONG, "model": "two", "stream": True}
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            refused = server.post("/v1/completions", model="one", prompt="a")
            is_error(refused, 503)
            assert "retry-after" in refused.headers
            assert ["two"] == list(models.loaded)
        assert eventually(lambda: not models.loaded["two"].users)
        answer = server.post("/v1/completions", model="one", prompt="a", max_tokens=2)
        assert 200 == answer.status_code
        assert {"one": True, "two": False} == {
            model["id"]: model["loaded"] for model in server.client.get("/v1/models").json()["data"]
        }


def test_many_ask_for_a_model_that_is_not_loaded() -> None:
    """It is loaded once, while others are answered."""
    with served(demo(), demo("other")) as server:
        statuses: list[int] = []

        def ask() -> None:
            answer = server.post("/v1/completions", model="other", prompt="a", max_tokens=2)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [200] * 8 == statuses
        assert 2 == server.service.models.loads


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    """What fails is said, and tried again; the others go on."""
    gone = tmp_path / "model.gguf"
    gone.write_bytes(demo_model().read_bytes())
    with served(demo(), ModelSpec("gone", str(gone))) as server:
        gone.rename(tmp_path / "elsewhere")
        for _ in range(2):
            answer = server.post("/v1/completions", model="gone", prompt="a")
            assert str(tmp_path) not in is_error(answer, 503)["message"]
        assert 200 == server.post("/v1/completions", model="demo", prompt="a").status_code
        (tmp_path / "elsewhere").rename(gone)
        assert 200 == server.post("/v1/completions", model="gone", prompt="a").status_code


def test_wrong_settings_are_errors_at_the_start() -> None:
    """Before any request: no file, a wrong parameter, a model beyond the budget, a name twice."""
    with pytest.raises(ModelNotFoundError):
        create_app([ModelSpec("a", "no-such-model.gguf")])
    with pytest.raises(ArgumentError, match="n_parallel"):
        create_app([demo(n_parallel=0)])
    with pytest.raises(TypeError, match="colour"):
        create_app([demo(colour=1)])
    with pytest.raises(ArgumentError, match="memory_budget: demo alone takes"):
        create_app([demo()], memory_budget=1000)
    for specs in ([], [demo(), demo()], [demo("")]):
        with pytest.raises(LlcudaError, match="names of its own"):
            ModelPool(specs)


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pooling": "max"}, "pooling='max': expected one of mean, cls, last, rank"),
        ({"pooling": "none"}, "pooling='none': expected one of mean, cls, last, rank"),
        ({"pooling": 5}, "pooling=5: expected one of mean, cls, last, rank"),
        ({"pooling": "rank"}, r"pooling='rank': demo\.gguf has no classifier"),
        ({"bare_tool_calls": "no"}, "bare_tool_calls='no': expected True or False"),
        ({"template": "nope"}, "template='nope'"),
        ({"template": "{% if"}, "does not parse"),
        ({"template": 5}, "template"),
    ],
    ids=str,
)
def test_settings_of_requests_are_checked_at_the_start(
    parameters: dict[str, Any], message: str, preload: bool
) -> None:
    """A pooling and a template that this model cannot have, also where it is loaded later."""
    with pytest.raises(ArgumentError, match=message):
        create_app([demo(**parameters)], preload=preload)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ("demo", {}, r"models='demo': expected a list of ModelSpec; give \["),
        (demo(), {}, "models=ModelSpec.*: expected a list of ModelSpec"),
        (["demo"], {}, r"models=\['demo'\]: expected a list of ModelSpec"),
        ([demo()], {"keys": "secret"}, "^keys: expected a list of texts, none of them empty"),
        ([demo()], {"keys": ["secret", ""]}, "^keys: expected a list of texts"),
        ([demo()], {"hosts": "localhost"}, "^hosts: expected a list of texts"),
        ([demo()], {"cors_origins": "http://a"}, "^cors_origins: expected a list of texts"),
        ([demo()], {"limits": 5}, "limits=5: expected Limits"),
        ([demo()], {"preload": "no"}, "preload='no': expected True or False"),
        ([demo()], {"memory_budget": -5}, "memory_budget=-5: expected a whole number"),
    ],
)
def test_wrong_types_are_errors_at_the_start(
    models: Any, options: dict[str, Any], message: str
) -> None:
    """The argument is named, and a key is not shown."""
    with pytest.raises(ArgumentError, match=message) as caught:
        create_app(models, **options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Limits, {"deadline": 0}, "deadline=0: expected a number at least"),
        (Limits, {"requests": 1.5}, "requests=1.5: expected a whole number at least 1"),
        (ModelSpec, {"name": "a", "source": 5}, "source=5: expected a text"),
        (ModelSpec, {"name": "a", "source": "demo", "parameters": 5}, "parameters=5: expected a"),
    ],
)
def test_settings_of_wrong_types(kind: type, values: dict[str, Any], message: str) -> None:
    """Limits and models are checked when they are made."""
    with pytest.raises(ArgumentError, match=message):
        kind(**values)


# --- llcuda serve ---


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`llcuda serve` on a free port that logs no requests."""
    options = ("--parallel=1", "--drain=600", "--ctx-size=512", "--log-level=warning")
    with serve_process(*options) as running:
        yield running


def test_sigterm_drains(process: tuple[subprocess.Popen[str], str]) -> None:
    """What runs is finished, new connections are refused, and the exit is clean.

    The answer is larger than what lies between the server and a client that does not read, so that
    it is unfinished until the client reads on.
    """
    running, url = process
    body = {"prompt": "Once", "max_tokens": 3000, "ignore_eos": True, "overflow": "shift"}
    transport = httpx.HTTPTransport(socket_options=[SMALL_BUFFER])
    with (
        httpx.Client(transport=transport, timeout=120) as client,
        client.stream(
            "POST", f"{url}/v1/completions", json={**body, "logprobs": 100, "stream": True}
        ) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        running.send_signal(signal.SIGTERM)
        assert eventually(lambda: refuses(url))
        assert running.poll() is None
        rest = [line for line in lines if line]
    assert "data: [DONE]" == rest[-1]
    assert '"finish_reason":"length"' in rest[-2]
    assert sum(map(len, rest)) > int(SEND_BUFFER.read_text().split()[2]) + 2**20
    assert 0 == running.wait(120)
    assert running.stderr is not None
    assert "" == running.stderr.read()


def test_ctrl_c_and_an_endless_text(process: tuple[subprocess.Popen[str], str]) -> None:
    """Two times Ctrl-C end at once, without a trace."""
    running, url = process
    with httpx.stream(
        "POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=120, trust_env=False
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        running.send_signal(signal.SIGINT)
        assert eventually(lambda: refuses(url))
        running.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert "shutting down" in rest[-1]
    assert 130 == running.wait(120)
    assert running.stderr is not None
    assert "" == running.stderr.read()


def test_serve_says_what_is_wrong() -> None:
    """An address that is not here, a model that is not there: one message, without a trace."""
    for status, arguments, message in (
        (1, ["no-such-model"], "no model is called"),
        (2, ["demo", "--host", "203.0.113.1", "--port", "0"], "cannot listen on 203.0.113.1"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "llcuda", "serve", *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert status == result.returncode
        assert message in result.stderr
        assert "Traceback" not in result.stderr
