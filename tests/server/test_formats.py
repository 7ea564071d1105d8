"""Formats that take long to compile: what they cost other requests, and the server's end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llcuda import Model
from llcuda.structured import trial
from tests.server.test_chat import TEMPLATE
from tests.support.grammars import endless_format
from tests.support.processes import trials
from tests.support.server import Served, demo, is_error, post_bytes, refuses, serve_process, served
from tests.support.waiting import ENDLESS, eventually

CHAT = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bounds: only the request's end can end a compilation."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 300)
    monkeypatch.setattr(trial, "WALL_SECONDS", 300)
    monkeypatch.setattr(trial, "MEMORY_BYTES", 4 << 30)


@pytest.mark.usefixtures("unbounded")
@pytest.mark.parametrize(
    ("path", "prompt"), [("completions", {"prompt": "a"}), ("chat/completions", {"messages": CHAT})]
)
def test_a_deadline_ends_a_compilation(server: Served, path: str, prompt: dict[str, Any]) -> None:
    """The stream that runs goes on, others begin, and the process ends."""
    with httpx.stream(
        "POST", f"{server.url}/v1/completions",
        json={"prompt": "Once", "stream": True, **ENDLESS}, timeout=120, trust_env=False,
    ) as stream:  # fmt: skip
        events = (line for line in stream.iter_lines() if line)

        def go_on() -> None:
            for _ in range(20):
                next(events)
            short = server.post("/v1/completions", prompt="a", max_tokens=1)
            regex = {"type": "regex", "regex": "meanwhile"}
            formatted = server.post("/v1/completions", prompt="a", response_format=regex)
            assert [200, 200] == [short.status_code, formatted.status_code]

        started = time.monotonic()
        go_on()
        deadline = max(2, 10 * (time.monotonic() - started))  # of a machine that is as busy
        answers: list[httpx.Response] = []
        asked = {**prompt, "response_format": endless_format(), "timeout": deadline}
        thread = threading.Thread(
            target=lambda: answers.append(server.post(f"/v1/{path}", **asked))
        )
        thread.start()
        assert eventually(lambda: len(trials()) > 0)
        go_on()
        assert not answers
        thread.join()
    error = is_error(answers[0], 503)
    assert ("deadline_exceeded", "the deadline passed before the first token") == (
        error["code"],
        error["message"],
    )
    assert eventually(lambda: trials() == [])
    assert eventually(server.idle)


@pytest.mark.usefixtures("unbounded")
def test_a_client_that_leaves_ends_its_compilations() -> None:
    """Those of formats and of tools."""
    rows = {"type": "array", "prefixItems": [{"multipleOf": 90_000 + i} for i in range(2000)]}
    parameters = {"type": "object", "properties": {"rows": rows}, "required": ["rows"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    path = "/v1/chat/completions"
    with served(demo(template=TEMPLATE)) as server:
        for body in (
            {"response_format": endless_format()},
            {"response_format": endless_format(1)},
            {"tools": [tool], "tool_choice": "required"},
        ):
            with server.connect(post_bytes(path, {"messages": CHAT, **body})):
                assert eventually(lambda: len(trials()) > 0)
            assert eventually(lambda: trials() == [])
        assert eventually(server.idle)


def test_the_vocabulary_is_read_when_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the first request with a format or with tools, which would stop all streams."""
    reads: list[Model] = []
    pieces = Model.pieces
    monkeypatch.setattr(Model, "pieces", lambda model: reads.append(model) or pieces(model))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with served(demo(template=TEMPLATE)) as server:
        assert 1 == len(reads)
        for body in ({"response_format": {"type": "json_object"}}, {"tools": [tool]}):
            answer = server.post("/v1/chat/completions", messages=CHAT, max_tokens=2, **body)
            assert 200 == answer.status_code
    assert 1 == len(reads)


def test_a_refusal_names_the_field(server: Served) -> None:
    """In the client's words, without a path or a call."""
    refused = server.post("/v1/completions", prompt="a", response_format=endless_format())
    error = is_error(refused, 400, "response_format")
    assert "takes more than" in error["message"]


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`llcuda serve` on a free port."""
    with serve_process("--drain", "60") as running:
        yield running


def test_compilations_do_not_hold_up_the_end(process: tuple[subprocess.Popen[str], str]) -> None:
    """A second SIGTERM ends them, and the server, whatever waits."""
    running, url = process
    bodies = [{"prompt": "a", "response_format": endless_format(i)} for i in range(12)]
    statuses: list[int] = []

    def ask(body: dict[str, Any]) -> None:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120, trust_env=False)
            statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    metrics = f"{url}/metrics"
    assert eventually(lambda: "active 13" in httpx.get(metrics, trust_env=False).text)
    running.send_signal(signal.SIGTERM)
    assert eventually(lambda: refuses(url))
    running.send_signal(signal.SIGTERM)
    assert 0 == running.wait(120)
    for thread in threads:
        thread.join()
    assert 503 in statuses
    assert running.stderr is not None
    assert "Traceback" not in running.stderr.read()


def test_errors_name_the_clients_field(server: Served) -> None:
    """A format under another server's name is refused under that name, without internal kinds."""
    blank = server.post("/completion", prompt="a", grammar=" ")
    assert is_error(blank, 400, "grammar")["message"].startswith("grammar")
    asked = {"prompt": "a", "guided_regex": "("}
    assert (
        "response_format"
        not in is_error(server.post("/v1/completions", **asked), 400, "guided_regex")["message"]
    )
    kind = server.post("/v1/completions", prompt="a", response_format={"type": "json"})
    message = is_error(kind, 400, "response_format")["message"]
    assert "tools" not in message
    assert 'give {"type": "json_object"}' in message
