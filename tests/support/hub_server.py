"""A Hugging Face Hub on this machine, and a user of it: what huggingface_hub downloads models by.

Repositories are dictionaries of file contents. The server notes each request and how many bytes of
each file it sent, and can be told to break off, hold or falsify a transfer, to lock a repository,
or to fail.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

from tests.support.waiting import eventually

ASK = """
import json, sys, time
from llcuda import hub
from llcuda.errors import LlcudaError

time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
PREPARE
for name, arguments, options in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"value": str(getattr(hub, name)(*arguments, **options))}))
    except LlcudaError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        print(json.dumps({"message": str(error), "kinds": kinds}))
"""


@dataclass
class Hub:
    """The state of the server.

    gated, private: repositories that nobody may read, or see, but for who sends `token`.
    broken: file -> how many bytes of it one answer sends before the connection ends, once for each
    number; held: file -> how many bytes of it the next answer sends before it waits for `resume`;
    false: file -> what is sent instead; tags: file -> its ETag instead of the SHA-256.
    ranges: whether a range is served, ignored (the whole file is sent) or refused (416).
    elsewhere: files are on a server with another name, as on the hub's content network.
    chunks: file -> its key in the chunk store at the address `chunk_store` (hf_xet's).
    labels: repository -> its tags; versions: repository -> revision -> its files, beside those of
    `repos`, which are the newest. failing: answer 503. sent: file -> bytes; bearers: paths that a
    token was sent to.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    token: str = ""
    broken: dict[str, list[int]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    false: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ranges: Literal["served", "ignored", "refused"] = "served"
    elsewhere: bool = False
    chunks: dict[str, str] = field(default_factory=dict)
    chunk_store: str = ""
    labels: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    failing: bool = False
    requests: list[str] = field(default_factory=list)
    bearers: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    resume: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Return the files of a revision; None for an unknown one."""
        if revision in ("main", self.commit(repo)):
            return self.repos[repo]
        others = self.versions.get(repo, {})
        commits = {self.commit(repo, name): files for name, files in others.items()}
        return {**commits, **others}.get(revision)

    def commit(self, repo: str, revision: str = "main") -> str:
        """Return the commit of a branch or tag: it changes with its files."""
        files = self.repos[repo] if revision == "main" else self.versions[repo][revision]
        text = "".join(f"{name} {etag(files[name])}\n" for name in sorted(files))
        return hashlib.sha1(text.encode()).hexdigest()


@functools.lru_cache(maxsize=32)
def etag(content: bytes) -> str:
    """Return what names a file's content."""
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep stderr for the tests."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        span = self.headers.get("Range", "")
        self.hub.requests.append(" ".join(filter(None, (self.command, path, span))))
        if "Authorization" in self.headers:
            self.hub.bearers.append(path)
        if self.hub.failing:
            self._send(503, {}, b"")
        elif path.startswith("api/models/") and "/xet-read-token/" in path:
            self._chunk_token()
        elif path.startswith("api/models/"):
            repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
            self._model_info(repo, revision or "main")
        elif path.startswith("chunks/"):
            self.hub.resume.wait()
        else:
            repo, _, rest = path.removeprefix("elsewhere/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(repo, revision, name, span, body)

    def _chunk_token(self) -> None:
        token = {"accessToken": "any", "exp": 2**40, "casUrl": self.hub.chunk_store}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(token).encode())

    def _model_info(self, repo: str, revision: str) -> None:
        if self._refused(repo, gate=False):
            return
        files = self.hub.files(repo, revision)
        if files is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": etag(data)[:40],
                "lfs": {"sha256": etag(data), "size": len(data), "pointerSize": 130},
            }
            for name, data in files.items()
        ]
        info = {"id": repo, "modelId": repo, "sha": self._commit(repo, revision)}
        info |= {"siblings": siblings, "tags": self.hub.labels.get(repo, [])}
        content = json.dumps({**info, "private": False, "gated": False}).encode()
        self._send(200, {"Content-Type": "application/json"}, content)

    def _commit(self, repo: str, revision: str) -> str:
        known = revision in ("main", *self.hub.versions.get(repo, {}))
        return self.hub.commit(repo, revision) if known else revision

    def _file(self, repo: str, revision: str, name: str, span: str, body: bool) -> None:
        hub = self.hub
        moved = self.path.startswith("/elsewhere/")
        if not moved and self._refused(repo, gate=True):
            return
        files = hub.files(repo, revision)
        if files is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        commit = self._commit(repo, revision)
        headers = {"X-Repo-Commit": commit}
        data = files.get(name)
        if data is None:
            self._send(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"")
            return
        headers["ETag"] = f'"{hub.tags.get(name, etag(data))}"'
        if name in hub.chunks:
            route = f"{hub.url}/api/models/{repo}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": hub.chunks[name], "X-Xet-Refresh-Route": route}
        if hub.elsewhere and not moved:
            headers |= {"X-Linked-ETag": headers.pop("ETag"), "X-Linked-Size": str(len(data))}
            headers["Location"] = f"http://localhost:{hub.port}/elsewhere{self.path}"
            self._send(302, headers, b"")
            return
        if body and name in hub.false:
            data = hub.false[name]
        status, first = 200, 0
        if span and hub.ranges == "refused":
            status, data = 416, b""
        elif span and hub.ranges == "served":
            begin, _, end = span.removeprefix("bytes=").partition("-")
            status, first, size = 206, int(begin), len(data)
            data = data[: int(end) + 1] if end else data
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{size}"
        self._send(status, headers, data[first:], name if body else "")

    def _refused(self, repo: str, gate: bool) -> bool:
        hub = self.hub
        known = hub.token and self.headers.get("Authorization") == f"Bearer {hub.token}"
        if repo not in hub.repos or (repo in hub.private and not known):
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
        elif gate and repo in hub.gated and not known:
            self._send(403, {"X-Error-Code": "GatedRepo"}, b"")
        else:
            return False
        return True

    def _send(self, status: int, headers: dict[str, str], content: bytes, name: str = "") -> None:
        """Answer; name: the file that `content` is a part of."""
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.hub
        cuts = hub.broken.get(name)
        if cuts:
            content = content[: cuts.pop(0)]
            self.close_connection = True
        first = hub.held.pop(name, len(content))
        try:
            self._write(name, content[:first])
            if first < len(content):
                hub.resume.wait()
                self._write(name, content[first:])
        except ConnectionError:  # the client is dead
            self.close_connection = True

    def _write(self, name: str, content: bytes) -> None:
        self.wfile.write(content)
        self.hub.sent[name] += len(content)


@dataclass
class Asker:
    """Calls functions of llcuda.hub in a new process that knows the server and one cache."""

    server: Hub
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a user who has only this server."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        no_proxy = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        own = {"HF_ENDPOINT": self.server.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        other = {"XDG_STATE_HOME": str(self.home / "state"), "OLLAMA_MODELS": str(self.home / "no")}
        return {**kept, **no_proxy, **own, **other, "HF_HUB_DISABLE_TELEMETRY": "1", **more}

    def start(self, program: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start a Python program as this user."""
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(
        self, *calls: tuple[str, list[Any], dict[str, Any]], prepare: str = "", **more: str
    ) -> list[dict[str, Any]]:
        """Return what each call returned or raised."""
        process = self.start(ASK.replace("PREPARE", prepare), json.dumps(calls), **more)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return [json.loads(line) for line in output.splitlines()]

    def path(self, name: str, filename: str | None = None, **more: Any) -> Path:
        """Return the path that a name resolves to."""
        (answer,) = self.calls(("resolve", [name, filename], {"progress": False}), **more)
        assert "value" in answer, answer
        return Path(answer["value"])

    def error(self, name: str, filename: str | None = None, **more: Any) -> tuple[str, list[str]]:
        """Return the message that a name leads to, and the names of the exception's classes."""
        (answer,) = self.calls(("resolve", [name, filename], {"progress": False}), **more)
        assert "message" in answer, answer
        return answer["message"], answer["kinds"]

    def partials(self) -> list[Path]:
        """Return the files that unfinished downloads left in the cache."""
        return list(self.home.rglob("*.incomplete"))

    def wait_for_bytes(self, count: int) -> None:
        """Wait until an unfinished file holds more than `count` bytes."""
        assert eventually(lambda: any(path.stat().st_size > count for path in self.partials()))
