"""The way of a body from its bytes to its model, within bounds of time and memory.

Python's lock is held while a JSON document becomes objects and while these are checked, so that the
number of values is bounded before: no body keeps other requests waiting for long.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.responses import Response

from llcuda.server.errors import ApiError
from llcuda.server.protocol import Body
from llcuda.server.validation import from_validation, with_meant_field

LARGE_BODY = 2**16  # bytes; a larger one is read beside the event loop, one after the other
MAX_VALUES = 2**20  # numbers, texts, names and the like in a body
MAX_CONTAINERS = 2**16  # lists and objects in a body, which cost ten times as much
PIECE = 2**16  # bytes that are searched at once
# A text, which may go on in the next piece.
TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)', re.DOTALL)


class BodyReader:
    """Reads bodies; the large ones on a thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "llcuda-body")

    async def read(self, kind: type[Body], request: Request) -> Body:
        """Return the body of a request. Raises ApiError."""
        data = b"".join([part async for part in request.stream()])  # which keeps no copy
        if _is_of_a_page(request.headers) and not _is_json(request.headers.get("content-type", "")):
            message = "the body is not sent as JSON: set Content-Type: application/json"
            raise ApiError(400, message)
        if len(data) <= LARGE_BODY:
            return parse_body(kind, data)
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # which collects what is ignored
        return await loop.run_in_executor(self._executor, context.run, parse_body, kind, data)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(cancel_futures=True)


class BodyRoute(APIRoute):
    """A route whose parameter `body`, if it has one, the application's BodyReader reads.

    Beside `body` it may have a parameter `request`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route."""
        parameters = get_type_hints(self.endpoint)
        kind: type[Body] | None = parameters.get("body")
        if kind is None:
            return super().get_route_handler()

        async def handle(request: Request) -> Response:
            reader: BodyReader = request.app.state.bodies
            given = {"request": request} if "request" in parameters else {}
            body = await reader.read(kind, request)
            response: Response = await self.endpoint(body, **given)
            return response

        return handle


def _is_of_a_page(headers: Mapping[str, str]) -> bool:
    """Return whether a page in a browser sends the request.

    A page of another origin can send forms and plain texts unasked, but no JSON. Others, such as
    `curl -d`, may leave the type of a body out.
    """
    return "origin" in headers or "sec-fetch-site" in headers


def _is_json(content_type: str) -> bool:
    header = Message()
    header["content-type"] = content_type
    subtype = header.get_content_subtype()
    is_json = subtype == "json" or subtype.endswith("+json")
    return header.get_content_maintype() == "application" and is_json


def parse_body(kind: type[Body], data: bytes) -> Body:
    """Return a body. Raises ApiError for invalid JSON and for a body of another shape."""
    _check_values(data)
    try:
        document = from_json(data)
    except ValueError as error:
        message = f"the body is not a JSON document in UTF-8: {error}"
        raise ApiError(400, message, code="invalid_json") from None
    try:
        body = kind.model_validate(document)
    except ValidationError as error:
        refusal = from_validation(error.errors(include_url=False), document)
        raise with_meant_field(refusal, kind, document) from None
    body.note_ignored()
    body.size = len(data)
    return body


def _check_values(data: bytes) -> None:
    """Refuse a document of too many values; characters within texts do not count."""
    if _values(data) <= MAX_VALUES and _containers(data) <= MAX_CONTAINERS:
        return
    values = containers = position = 0
    in_text = False
    while position < len(data):
        piece = data[position : position + PIECE]
        position += len(piece)
        outside, texts = TEXT.subn(rb"\1", b'"' * in_text + piece)  # leaves a text's last mark
        in_text = outside.count(b'"') < texts
        if outside.endswith(b"\\") and position < len(data):
            position -= 1  # half of an escape
        values += max(_values(outside), texts - 1)
        containers += _containers(outside)
        if values > MAX_VALUES or containers > MAX_CONTAINERS:
            rule = f"{MAX_VALUES:,} values in {MAX_CONTAINERS:,} lists and objects"
            message = f"the body has too many values: at most {rule}"
            raise ApiError(413, message, code="body_too_large")


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b":")


def _containers(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")
