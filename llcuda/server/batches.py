"""Many requests in lines of JSON, as OpenAI's batches have them, answered by an application.

    async for answer in answer_lines(app, [read_line(1, data)], parallel=8): ...

The application answers in this process, without a connection: there is one way to answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from llcuda.errors import ArgumentError, shown
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.chunks import new_id
from llcuda.server.fields import field_of, text_of
from llcuda.server.leniency import HEADER
from llcuda.server.middleware import INSIDE

ENDPOINTS = (
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank",
    "/v1/classify", "/v1/score", "/v1/messages",
)  # fmt: skip
MAX_ID = 512  # characters
ATTEMPTS = 10
_ANSWER = b'{"id": "batch_req_'  # the beginning of a line of answers


@dataclass(frozen=True)
class BatchLine:
    """A request of a batch.

    Attributes:
        custom_id: The client's id of the request.
        url: The path that answers it.
        body: The body, as JSON.
    """

    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True)
class BatchAnswer:
    """The answer to a request of a batch.

    Attributes:
        custom_id: The client's id of the request.
        status: The HTTP status.
        document: The body of the answer.
        request_id: The id of the request in the log.
        ignored: What was ignored of the request; "" = nothing.
    """

    custom_id: str
    status: int
    document: Any
    request_id: str
    ignored: str

    def as_json(self) -> str:
        """Return the line of an output file, without its end."""
        response = {
            "status_code": self.status,
            "request_id": self.request_id,
            "body": self.document,
        }
        line = {"id": new_id("batch_req_"), "custom_id": self.custom_id, "response": response}
        return json.dumps({**line, "error": None}, ensure_ascii=False)


def read_line(number: int, data: bytes) -> BatchLine:
    """Return the request of a line.

    Args:
        number: The number of the line, from 1.
        data: The line.

    Raises:
        ArgumentError: It is not a request that a batch may have.
    """
    try:
        return _request(data)
    except ArgumentError as error:
        raise error.within(f"line {number}") from None


def _request(data: bytes) -> BatchLine:
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"expected a JSON object: {error}") from None
    if not isinstance(given, dict):
        raise ArgumentError(f"expected a JSON object, not {shown(given)}")
    custom_id = text_of("", given, "custom_id")
    if not 1 <= len(custom_id) <= MAX_ID:
        raise wrong_argument("custom_id", f"expected 1 to {MAX_ID} characters")
    method = given.get("method", "POST")
    if method != "POST":
        raise wrong_value("method", method, "expected POST")
    url = text_of("", given, "url")
    if url not in ENDPOINTS:
        raise wrong_value("url", url[:200], f"expected one of {', '.join(ENDPOINTS)}")
    body = field_of("", given, "body")
    if not isinstance(body, dict):
        raise wrong_value("body", body, "expected an object")
    if body.get("stream"):
        raise wrong_value("body.stream", body["stream"], "a batch has no streams")
    return BatchLine(custom_id, url, json.dumps(body).encode())


@dataclass(frozen=True)
class Answered:
    """The lines that a file of answers has.

    Attributes:
        refused: The ids of the requests, and whether their answers are refusals.
        wrong: The numbers of the wrong lines of the input that it tells of.
        size: Bytes of the whole lines.
    """

    refused: dict[str, bool]
    wrong: set[int]
    size: int


def read_answers(path: Path) -> Answered:
    """Return what a file of answers has, without a last line that is not whole.

    Args:
        path: The file; one that is missing has no lines.

    Raises:
        ArgumentError: A line is not an answer of a batch.
    """
    refused, wrong, size = dict[str, bool](), set[int](), 0
    if not path.exists():
        return Answered(refused, wrong, size)
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if not data.endswith(b"\n") and data.startswith(_ANSWER[: len(data)]):
                break
            try:
                line = json.loads(data)
                if (response := line["response"]) is None:
                    wrong.add(int(line["error"]["line"]))
                else:
                    refused[str(line["custom_id"])] = response["status_code"] != 200
            except (ValueError, KeyError, TypeError):
                raise ArgumentError(f"line {number}: is not an answer of a batch") from None
            size += len(data)
    return Answered(refused, wrong, size)


async def answer_lines(
    app: ASGIApp, lines: Iterable[BatchLine], parallel: int
) -> AsyncGenerator[BatchAnswer, None]:
    """Yield the answers as they are finished.

    Args:
        app: What `create_app` returned.
        lines: The requests; they are read as there is room for them.
        parallel: Most requests that are answered at once.
    """
    source = iter(lines)
    tasks: set[asyncio.Task[BatchAnswer]] = set()
    try:
        while True:
            while len(tasks) < parallel and (line := next(source, None)) is not None:
                tasks.add(asyncio.create_task(_answer(app, line)))
            if not tasks:
                return
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(app: ASGIApp, line: BatchLine) -> BatchAnswer:
    """Return the answer to a request; where the application is busy, after some more attempts."""
    for _ in range(ATTEMPTS):
        answer, retry = await _ask(app, line)
        if retry is None:
            break
        await asyncio.sleep(retry)
    return answer


async def _ask(app: ASGIApp, line: BatchLine) -> tuple[BatchAnswer, float | None]:
    """Send a request to an application as a server would.

    Returns:
        Its answer, and the seconds after which the request is to be repeated.
    """
    status, headers, parts = 0, dict[str, str](), list[bytes]()
    bodies = [line.body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update({k.decode(): v.decode("latin-1") for k, v in message["headers"]})
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        INSIDE: True,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": line.url,
        "raw_path": line.url.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(line.body)).encode()),
        ],
        "client": ("batch", 0),
        "server": ("localhost", 80),
    }
    await app(scope, receive, send)
    if (task := asyncio.current_task()) and task.cancelling():  # the answer only says so
        raise asyncio.CancelledError
    document = json.loads(b"".join(parts))
    request_id, ignored = headers.get("x-request-id", ""), headers.get(HEADER, "")
    answer = BatchAnswer(line.custom_id, status, document, request_id, ignored)
    retry = headers.get("retry-after", "")
    return answer, float(retry) if retry.isdigit() else None
