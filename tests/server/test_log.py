"""The log: a line for each request, errors with their trace, and no text of a prompt."""

import asyncio
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from llcuda import demo_model
from llcuda.server.app import create_app
from llcuda.server.middleware import Limits, RequestGuardMiddleware, Traffic
from tests.support.server import Served, demo, is_error, post_bytes
from tests.support.waiting import ENDLESS, eventually

MESSAGES = [{"role": "user", "content": "Who are you?"}]
FIVE = {"max_tokens": 5, "ignore_eos": True}
OWN_ID = re.compile(r"req_[0-9a-f]{24}")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], dict[str, Any]]:
    """Return the fields of a request's line, by its id."""
    caplog.set_level(logging.INFO, "llcuda.server.access")

    def find(request_id: str) -> dict[str, Any]:
        def written() -> list[dict[str, Any]]:
            records = [r for r in caplog.records if r.name == "llcuda.server.access"]
            fields = [getattr(record, "fields") for record in records]  # noqa: B009
            return [entry for entry in fields if entry["request_id"] == request_id]

        assert eventually(lambda: bool(written()))
        [line] = written()
        return line

    return find


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Once upon", **FIVE}),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "stream": True, **FIVE}),
        ("/v1/chat/completions", {"messages": MESSAGES, **FIVE}),
        ("/v1/chat/completions", {"messages": MESSAGES, "stream": True, **FIVE}),
        ("/v1/embeddings", {"input": ["a", "Once upon a time"]}),
    ],
)
def test_a_line_for_each_request(
    server: Served, lines: Callable[[str], dict[str, Any]], path: str, body: dict[str, Any]
) -> None:
    """It has the method, the path, the status, the time, the tokens and the id."""
    answer = server.post(path, **body)
    line = lines(answer.headers["x-request-id"])
    assert ("POST", path, 200) == (line["method"], line["path"], line["status"])
    assert "127.0.0.1" == line["client"]
    assert line["seconds"] > 0
    options = {"stream_options": {"include_usage": True}} if "stream" in body else {}
    again = server.post(path, **body, **options)
    usage = json.loads(again.text.split("data: ")[-2] if options else again.text)["usage"]
    tokens = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    assert tokens == {name: line[name] for name in tokens}


@pytest.mark.parametrize("stream", [False, True])
def test_the_line_of_a_response(
    server: Served, lines: Callable[[str], dict[str, Any]], stream: bool
) -> None:
    """/v1/responses counts its tokens under other names."""
    answer = server.post("/v1/responses", input="Hi", max_output_tokens=5, stream=stream)
    text = answer.text.split("data: ")[-1]
    usage = json.loads(text)["response"]["usage"] if stream else answer.json()["usage"]
    line = lines(answer.headers["x-request-id"])
    expected = (usage["input_tokens"], usage["output_tokens"])
    assert expected == (line["prompt_tokens"], line["completion_tokens"])


def test_the_lines_of_what_is_refused(
    server: Served, lines: Callable[[str], dict[str, Any]]
) -> None:
    """A line without tokens; a path cannot end the line."""
    for method, path, status, shown in (
        ("POST", "/v1/completions", 400, "/v1/completions"),
        ("GET", "/v1/completions?key=secret", 405, "/v1/completions"),
        ("GET", "/a%0AGET%20/b", 404, "/a%0AGET%20/b"),
        ("GET", "/" + "x" * 1000, 404, "/" + "x" * 199),
        ("GET", "/health", 200, "/health"),
    ):
        answer = server.client.request(method, path)
        line = lines(answer.headers["x-request-id"])
        assert (method, shown, status) == (line["method"], line["path"], line["status"])
        assert line["completion_tokens"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_no_failure(
    server: Served, lines: Callable[[str], dict[str, Any]], stream: bool
) -> None:
    """It is counted and logged as 499, as nginx has it, whether its answer had begun or not."""
    request_id = f"leaves-{stream}"
    before = dict(server.service.traffic.answers)
    body = {"prompt": "Once", "stream": stream, **ENDLESS}
    sent = post_bytes("/v1/completions", body, f"X-Request-ID: {request_id}")
    with server.connect(sent) as connection:
        assert eventually(lambda: server.unfinished() == 1)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert 499 == lines(request_id)["status"]
    after = server.service.traffic.answers.items()
    changed = {key: count - before.get(key, 0) for key, count in after}
    assert {("/v1/completions", 499): 1} == {key: count for key, count in changed.items() if count}
    assert 'llcuda_http_requests_total{path="/v1/completions",status="499"}' in (
        server.client.get("/metrics").text
    )


def test_a_client_that_leaves_within_its_body(
    server: Served, lines: Callable[[str], dict[str, Any]]
) -> None:
    """No status of the server's: nobody read one."""
    head = "X-Request-ID: half\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
    server.connect(f"POST /v1/completions HTTP/1.1\r\n{head}".encode()).close()
    assert 499 == lines("half")["status"]


@pytest.mark.parametrize(
    ("method", "path", "body", "seam"),
    [
        ("POST", "/v1/completions", {"prompt": "a"}, "llcuda.server.completions.new_id"),
        ("POST", "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 3},
         "llcuda.server.completions.finish_reason"),
        ("POST", "/v1/responses", {"input": "a", "stream": True, "max_output_tokens": 3},
         "llcuda.server.chat.check_deadline"),
        ("GET", "/v1/models/demo", {}, "llcuda.server.models.ModelPool.named"),
    ],
    ids=["whole", "stream", "responses", "no model"],
)  # fmt: skip
def test_a_failure_is_logged_with_its_trace(
    server: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    method: str, path: str, body: dict[str, Any], seam: str,
) -> None:  # fmt: skip
    """The answer names the request, and so does the log, once, with the trace."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("what happened")

    with monkeypatch.context() as patch:
        patch.setattr(seam, fails)
        answer = server.client.request(method, path, json=body or None)
    request_id = answer.headers["x-request-id"]
    assert f"internal error; the server's log says more about {request_id}" in answer.text
    assert "what happened" not in answer.text
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ("llcuda.server", f"request {request_id} failed") == (record.name, record.getMessage())
    assert "what happened" in logging.Formatter().format(record)


@pytest.mark.parametrize(
    ("sent", "adopted"),
    [
        ("3f2a-77", True), ("a" * 128, True), ("trace:1/2=3+4@5_6.7", True), ("", False),
        ("a" * 129, False), ("two words", False), ("tab\tinside", False), ("é", False),
        ("-option", False), ('"quoted"', False), ("{}", False),
    ],
)  # fmt: skip
def test_ids_of_clients(server: Served, sent: str, adopted: bool) -> None:
    """A sane one is the id of the request; any other is replaced."""
    headers = {"x-request-id": sent.encode("latin-1")}
    answer = httpx.get(f"{server.url}/health", headers=headers, trust_env=False)
    [own] = answer.headers.get_list("x-request-id")
    assert (sent == own) if adopted else OWN_ID.fullmatch(own)


def test_one_id_when_an_answer_of_another_server_is_handed_on() -> None:
    """The id of the request takes the place of the one that the answer has."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"X-Request-ID": "another", "x-kept": "1"}
        await PlainTextResponse("", headers=headers)(scope, receive, send)

    async def ask() -> httpx.Response:
        guarded = RequestGuardMiddleware(application, Limits(), Traffic())
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/", headers={"x-request-id": "sent"})

    answer = asyncio.run(ask())
    assert ["sent"] == answer.headers.get_list("x-request-id")
    assert "1" == answer.headers["x-kept"]


def test_no_text_of_a_prompt_is_logged(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Not even at the level of llama.cpp's own messages, and not in an error about the text."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("llcuda").setLevel(logging.DEBUG)
    word = "PRIVATE"
    try:
        for path, body in (
            ("/v1/completions", {"prompt": word}),
            ("/v1/completions", {"prompt": word, "stop": [word], "temperature": word}),
            ("/v1/completions", {"prompt": word * 2000}),
            ("/v1/completions", {"prompt": word, "response_format": {"type": word}}),
            ("/v1/chat/completions", {"messages": [{"role": word, "content": word}]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": word}]}),
            ("/v1/responses", {"input": word, "max_output_tokens": 3}),
            ("/v1/embeddings", {"input": word}),
            ("/tokenize", {"content": word}),
        ):
            server.post(path, **body)
        last = server.client.post("/v1/completions", content=f'{{"{word}": 1'.encode())
        is_error(last, 400)
        assert eventually(lambda: last.headers["x-request-id"] in caplog.text)
    finally:
        logging.getLogger("llcuda").setLevel(logging.NOTSET)
    ours = [record for record in caplog.records if record.name.startswith("llcuda")]
    assert not [text for text in map(logging.Formatter().format, ours) if word in text]


def test_an_embedded_server_leaves_logging_alone() -> None:
    """`create_app` in another's program adds no handler and sets no level."""

    def state() -> list[tuple[str, int, list[logging.Handler], bool]]:
        loggers = [logging.getLogger(name) for name in ("", "llcuda", "llcuda.server", "uvicorn")]
        return [(one.name, one.level, list(one.handlers), one.propagate) for one in loggers]

    before = state()
    create_app([demo()], preload=False)
    assert before == state()


def _serve(*options: str, expect: Callable[[str], None]) -> list[str]:
    """Run `llcuda serve` while `expect` asks it; return the lines of its stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "llcuda", "serve", "--port", "0", "--threads", "1", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert match
        try:
            expect(match[0])
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=120)
    return errors.splitlines()


def _ask_for_health(url: str) -> None:
    assert 200 == httpx.get(f"{url}/health", trust_env=False).status_code


def test_serve_logs_to_stderr(tmp_path: Path) -> None:
    """A line for each request, and the trace of a model that cannot be loaded, as JSON."""
    file = tmp_path / "gone.gguf"
    file.write_bytes(demo_model().read_bytes())
    ids: list[str] = []

    def ask(url: str) -> None:
        file.unlink()
        body = {"model": "gone", "prompt": "a"}
        answer = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=120)
        ids.append(answer.headers["x-request-id"])
        assert ids[0] in is_error(answer, 503)["message"]

    lines = _serve("demo", f"gone={file}", "--log-format", "json", expect=ask)
    documents = [json.loads(line) for line in lines]
    [failure] = [entry for entry in documents if entry["level"] == "error"]
    assert ("llcuda.server", ids[0]) == (failure["logger"], failure["request_id"])
    assert "ModelNotFoundError" in failure["trace"]
    [line] = [entry for entry in documents if entry["logger"] == "llcuda.server.access"]
    assert ("POST", "/v1/completions", 503) == (line["method"], line["path"], line["status"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_levels_of_the_log() -> None:
    """The context, a line for each request, and none from the level of warnings on."""
    first, line, last = _serve("demo", expect=_ask_for_health)
    size = "context: 1,024 tokens for each of 4 sequences (the model was trained on 1,024)"
    assert (
        f" INFO llcuda.engine: {size}; ctx_size (--ctx-size on the command line) changes it"
        in first
    )
    pattern = r".* INFO llcuda\.server\.access: GET /health 200 in \d+\.\d{3} s, req_\w{24}"
    assert re.fullmatch(pattern, line)
    assert re.fullmatch(r".* INFO llcuda\.server: unloading demo", last)
    assert [] == _serve("demo", "--log-level", "warning", expect=_ask_for_health)
