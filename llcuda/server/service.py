"""The state that the routes of all APIs share, and the way of a request to its model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from llcuda.server.answer import Answer, ResponseWriter
from llcuda.server.batch_store import BatchStore
from llcuda.server.chunks import unix_time
from llcuda.server.file_store import FileStore
from llcuda.server.middleware import Limits, Traffic
from llcuda.server.models import LoadedModel, ModelPool
from llcuda.server.protocol import ErrorAnswer, ModelBody
from llcuda.server.response_store import ResponseStore

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request cannot be answered.",
        401: "The API key is missing or wrong.",
        403: "The host is unknown.",
        404: "No such model, file or batch.",
        408: "The body did not arrive in time.",
        409: "The file or the batch is in use, or has ended.",
        413: "The body is too large.",
        429: "The queue is full.",
        500: "The server failed.",
        501: "The server or the model lacks what this needs.",
        503: "The server is busy.",
        507: "The server has no room for the file.",
    }.items()
}
Work = Callable[[Any, LoadedModel, ResponseWriter], Awaitable[None]]


class Service:
    """The state that the routes share.

    Attributes:
        models: The models.
        limits: Limits of the server.
        traffic: Counters.
        responses: The responses that later requests may continue.
        files: The files that clients upload.
        batches: The batches of requests in these files.
        started: Time of the start, in seconds since 1970.
        slot_folder: The folder for states of slots; None = there is none.
    """

    def __init__(
        self,
        models: ModelPool,
        limits: Limits,
        slot_folder: Path | None = None,
        file_folder: Path | None = None,
    ) -> None:
        self.models = models
        self.slot_folder = slot_folder
        self.limits = limits
        self.traffic = Traffic()
        self.responses = ResponseStore()
        self.files = FileStore(file_folder, limits.total_file_bytes)
        self.batches = BatchStore(self.files, limits.body_bytes)
        self.started = unix_time()

    def answer(self, body: ModelBody, work: Work) -> Answer:
        """Return an answer of the model that the body names, which stays loaded meanwhile.

        Args:
            body: The body of the request.
            work: Writes the answer.
        """

        async def run(writer: ResponseWriter) -> None:
            async with self.models.use(body.model) as loaded:
                await work(body, loaded, writer)

        return Answer(run, body.places)
