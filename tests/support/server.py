"""A server in a thread of this process, on a port of 127.0.0.1 that the system chooses."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from llcuda import Engine
from llcuda.server.app import create_app, uvicorn_config
from llcuda.server.connections import listen
from llcuda.server.models import ModelSpec
from tests.support.waiting import PATIENCE, eventually

# What a client does not know: calls, keywords, types and values of Python.
PYTHON = re.compile(
    r"\b(None|True|False|NoneType|dict|str|int|float|bool|tuple|TypedDict|dataclass|Pydantic"
    r"|Engine\w*|Sampl\w+|Model|Embedder|ChatTemplate|[a-z_]+\(\)|\w+=(True|False|None|'\w+'))\b"
    r"|\w\(\)|[a-z]=,|\bllcuda\.\w"
)
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")

TLS = Path(__file__).parent / "tls"  # of localhost, for these tests only
CERTIFICATE, KEY = TLS / "certificate.pem", TLS / "key.pem"

PARAMETERS: dict[str, Any] = {"threads": 1, "ctx_size": 512, "n_parallel": 4, "pooling": "mean"}


def demo(name: str = "demo", **parameters: Any) -> ModelSpec:
    """The demo model to serve."""
    return ModelSpec(name, "demo", parameters={**PARAMETERS, **parameters})


class Served:
    """A running server. url: its root; client: asks it."""

    def __init__(self, app: FastAPI, address: tuple[str, int]) -> None:
        self.app = app
        self.address = address
        self.url = f"http://127.0.0.1:{address[1]}"
        self.service = app.state.service
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    @property
    def engine(self) -> Engine:
        """The demo model's engine."""
        engine: Engine = self.service.models.loaded["demo"].engine
        return engine

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Ask."""
        return self.client.post(path, json=body)

    def connect(self, data: bytes) -> socket.socket:
        """Return a connection over which this was sent as it is."""
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def unfinished(self, engine: Engine | None = None) -> int:
        """Return how many requests of an engine, by default the demo model's, run or wait."""
        load = (engine or self.engine).load()
        return load.running + load.waiting

    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.unfinished() and not self.service.traffic.active


def post_bytes(path: str, body: Any, *headers: str) -> bytes:
    """Return a POST request as it is sent, with more lines of its head."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(data)}", *headers, "", ""])
    return head.encode() + data


def refuses(url: str) -> bool:
    """Whether a server takes no connections."""
    try:
        httpx.get(f"{url}/health", trust_env=False, timeout=PATIENCE)
    except httpx.HTTPError:
        return True
    return False


@contextmanager
def serve_process(*options: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `llcuda serve` for the demo model on a free port; yield the process and its URL."""
    command = [sys.executable, "-m", "llcuda", "serve", "demo", "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        match = re.search(r"https?://127\.0\.0\.1:\d+", line)
        assert match, line
        yield running, match[0]
        running.kill()


@contextmanager
def served(*models: ModelSpec, idle_seconds: float = 30, **options: Any) -> Iterator[Served]:
    """Run a server for as long as the block runs."""
    app = create_app(models or [demo()], **options)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn_config(app, 5, idle_seconds))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert eventually(lambda: server.started or not thread.is_alive())
        running = Served(app, listener.getsockname())
        try:
            yield running
        finally:
            running.client.close()
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


def is_error(answer: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """Assert OpenAI's shape of an error, without a trace; return it."""
    assert status == answer.status_code, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert isinstance(error["message"], str)
    assert not PYTHON.search(QUOTED.sub("''", error["message"])), error["message"]
    assert "Traceback" not in answer.text
    assert "llcuda/" not in answer.text
    if param is not None:
        assert param == error["param"]
    return error
