"""A Hugging Face Hub on this machine: the endpoints that huggingface_hub downloads models by.

Repositories are dictionaries of file contents. The server notes each request, and can be told to
break off a transfer, to lock a repository, or to fail.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """The state of the server.

    gated, private: repositories that nobody may read, or see; broken: file -> how many bytes of it
    one answer sends before the connection ends, once for each number; failing: answer 503.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    broken: dict[str, list[int]] = field(default_factory=dict)
    failing: bool = False
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
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
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, repo: str) -> str:
        """Return the repository's version: it changes with its files."""
        files = self.repos[repo]
        text = "".join(f"{name} {etag(files[name])}\n" for name in sorted(files))
        return hashlib.sha1(text.encode()).hexdigest()


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
        if self.hub.failing:
            self._send(503, {}, b"")
        elif path.startswith("api/models/"):
            self._model_info(path.removeprefix("api/models/").split("/revision/")[0])
        else:
            repo, _, rest = path.partition("/resolve/")
            self._file(repo, rest.partition("/")[2], span, body)

    def _model_info(self, repo: str) -> None:
        if self._refused(repo, gate=False):
            return
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": etag(data)[:40]}
            for name, data in self.hub.repos[repo].items()
        ]
        info = {"id": repo, "modelId": repo, "sha": self.hub.commit(repo), "siblings": siblings}
        content = json.dumps({**info, "private": False, "gated": False, "tags": []}).encode()
        self._send(200, {"Content-Type": "application/json"}, content)

    def _file(self, repo: str, name: str, span: str, body: bool) -> None:
        if self._refused(repo, gate=True):
            return
        commit = {"X-Repo-Commit": self.hub.commit(repo)}
        data = self.hub.repos[repo].get(name)
        if data is None:
            self._send(404, {**commit, "X-Error-Code": "EntryNotFound"}, b"")
            return
        first = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        headers = {**commit, "ETag": f'"{etag(data)}"', "Accept-Ranges": "bytes"}
        if span:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cuts = self.hub.broken.get(name) if body else None
        self._send(206 if span else 200, headers, data[first:], body, cuts.pop(0) if cuts else None)

    def _refused(self, repo: str, gate: bool) -> bool:
        hub = self.hub
        if repo not in hub.repos or repo in hub.private:
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
        elif gate and repo in hub.gated:
            self._send(403, {"X-Error-Code": "GatedRepo"}, b"")
        else:
            return False
        return True

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        content: bytes,
        body: bool = True,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content[:cut])
        self.close_connection = self.close_connection or cut is not None
