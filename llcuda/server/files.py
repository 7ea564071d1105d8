"""OpenAI's files and batches: /v1/files, /v1/batches."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message

from llcuda.params import wrong_argument, wrong_value
from llcuda.server.batches import ENDPOINTS
from llcuda.server.bodies import BodyRoute
from llcuda.server.errors import ApiError
from llcuda.server.file_store import FileSpace, FileStore, disk_errors
from llcuda.server.leniency import ignore
from llcuda.server.middleware import body_too_large
from llcuda.server.protocol import Body, Hint, Metadata
from llcuda.server.service import ERRORS, Service

FORM_BYTES = 2**16  # of an upload, besides its file
MAX_FIELDS = 10
MAX_NAME = 512  # characters
MAX_LISTED = 10_000
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


class BatchBody(Body):
    """POST /v1/batches: answer the requests of a file."""

    input_file_id: str
    endpoint: Literal[ENDPOINTS]  # type: ignore[valid-type]
    completion_window: Annotated[str, Field(max_length=64)] = "24h"
    metadata: Metadata | None = None
    output_expires_after: Annotated[Any, Hint()] = None


def file_routes(service: Service) -> APIRouter:
    """Return the routes of OpenAI's files and batches, with and without /v1.

    Args:
        service: The state of the server.
    """
    router = APIRouter(responses=ERRORS, route_class=BodyRoute)
    files, batches = service.files, service.batches

    @router.post("/files", openapi_extra=UPLOAD)
    async def upload(request: Request) -> dict[str, Any]:
        """Keep a file of requests."""
        with files.space() as space:
            return await _upload(request, service, space)

    @router.get("/files")
    async def list_files(request: Request) -> dict[str, Any]:
        """List the files, the latest first."""
        purpose = request.query_params.get("purpose")
        documents = files.documents.values()
        wanted = [file for file in documents if purpose in (None, "", file["purpose"])]
        return _page(wanted, request.query_params, MAX_LISTED)

    @router.get("/files/{file_id}")
    async def file(file_id: str) -> dict[str, Any]:
        """Describe a file."""
        return files.get(file_id)

    @router.get("/files/{file_id}/content", response_class=FileResponse)
    async def content(file_id: str) -> Response:
        """Return the bytes of a file."""
        name = files.get(file_id)["filename"]
        kind = "application/octet-stream"
        return FileResponse(files.path(file_id), media_type=kind, filename=name)

    @router.delete("/files/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        """Delete a file that no batch reads."""
        files.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/batches")
    async def create(body: BatchBody, request: Request) -> Response:
        """Answer the requests of a file."""
        window, data = body.completion_window, body.metadata
        batch = batches.create(request.app, body.input_file_id, body.endpoint, window, data)
        return JSONResponse(batch)

    @router.get("/batches")
    async def list_batches(request: Request) -> dict[str, Any]:
        """List the batches, the latest first."""
        return _page([*batches.documents.values()], request.query_params, 20)

    @router.get("/batches/{batch_id}")
    async def batch(batch_id: str) -> dict[str, Any]:
        """Return the state of a batch."""
        return batches.get(batch_id)

    @router.post("/batches/{batch_id}/cancel")
    async def cancel(batch_id: str) -> dict[str, Any]:
        """End a batch, which keeps the answers that it has."""
        return batches.cancel(batch_id)

    routes = APIRouter()
    routes.include_router(router, prefix="/v1")
    routes.include_router(router, include_in_schema=False)
    return routes


async def _upload(request: Request, service: Service, space: FileSpace) -> dict[str, Any]:
    """Keep the file of a form, which is written to the disk as it comes."""
    if find_spec("python_multipart") is None:  # Starlette would raise AssertionError
        message = (
            "this server lacks python-multipart; install it there: pip install 'llcuda[server]'"
        )
        raise ApiError(501, message, code="unsupported", closes=True)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = "the file is not sent as a form: set Content-Type: multipart/form-data"
        raise ApiError(400, message, closes=True)
    reader = _UploadReader(request, service, space)
    limits = {"max_files": 1, "max_fields": MAX_FIELDS, "max_part_size": FORM_BYTES}
    with disk_errors():
        async with Request(request.scope, reader.receive).form(**limits) as form:
            file = _file_of(form)
            return await asyncio.to_thread(_keep, service.files, file, space)


class _UploadReader:
    """Receives the body of an upload within the limits of its size, its time and all files."""

    def __init__(self, request: Request, service: Service, space: FileSpace) -> None:
        self._request = request
        self._limits = service.limits
        self._space = space
        self._size = 0
        self._max_bytes = service.limits.file_bytes + FORM_BYTES
        self._started = asyncio.get_running_loop().time()
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > self._max_bytes:
            raise body_too_large(self._limits.file_bytes)

    async def receive(self) -> Message:
        """Return the next part of the body. Raises ApiError."""
        # Each `body_bytes` may take `body_seconds`, as they may in a body of another request.
        periods = 1 + self._size // self._limits.body_bytes
        end = self._started + periods * self._limits.body_seconds
        try:
            async with asyncio.timeout_at(end):
                message = await self._request.receive()
        except TimeoutError:
            problem = f"{self._size} bytes of the file arrived in {end - self._started:g} s"
            raise ApiError(408, problem, closes=True) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = len(message.get("body", b""))
        self._size += part
        if self._size > self._max_bytes:
            raise body_too_large(self._limits.file_bytes)
        try:
            self._space.grow(part)
        except ApiError as error:
            error.closes = True
            raise
        return message


def _file_of(form: FormData) -> UploadFile:
    """Return the file of a form. Raises ArgumentError for a wrong form."""
    purpose, file = form.get("purpose"), form.get("file")
    if purpose is None:
        raise wrong_argument("purpose", 'missing; give "batch"')
    if purpose != "batch":
        rule = 'expected "batch"; nothing else reads files here'
        raise wrong_value("purpose", purpose if isinstance(purpose, str) else "a file", rule)
    if not isinstance(file, UploadFile):
        raise wrong_argument("file", "missing; send it as a part with a filename")
    if not file.size:
        raise wrong_argument("file", "is empty; a line of it is a JSON object")
    for name in sorted(set(form) - {"purpose", "file"}):
        ignore(name[:100], code="unknown_parameter")
    return file


def _keep(files: FileStore, file: UploadFile, space: FileSpace) -> dict[str, Any]:
    with files.writer(space) as writer:
        shutil.copyfileobj(file.file, writer)
        return writer.keep((file.filename or "file")[:MAX_NAME], "batch")


def _page(
    documents: Sequence[dict[str, Any]], query: Mapping[str, str], default: int
) -> dict[str, Any]:
    """Return a page of a list whose oldest element is the first."""
    limit, order, after = query.get("limit"), query.get("order", "desc"), query.get("after")
    count = default if limit is None else _count(limit)
    if order not in ("asc", "desc"):
        raise wrong_value("order", order[:100], 'expected "asc" or "desc"')
    ordered = [*documents] if order == "asc" else [*reversed(documents)]
    if after:
        names = [document["id"] for document in ordered]
        if after not in names:
            raise wrong_value("after", after[:100], "no such element")
        ordered = ordered[names.index(after) + 1 :]
    shown = ordered[:count]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(ordered) > count,
    }


def _count(limit: str) -> int:
    number = int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 9 else math.nan
    if not 1 <= number <= MAX_LISTED:
        raise wrong_value("limit", limit[:100], f"expected 1 to {MAX_LISTED}")
    return int(number)
