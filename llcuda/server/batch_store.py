"""The batches of /v1/batches: each answers the requests of a file, one batch after the other.

Each answer is written to the file of the results when it comes. A batch that the end of the server
interrupts, also a sudden one, goes on in the next server that has the folder: it answers the lines
that these files do not have.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from llcuda.errors import ArgumentError
from llcuda.server.batches import (
    Answered,
    BatchAnswer,
    BatchLine,
    answer_lines,
    read_answers,
    read_line,
)
from llcuda.server.chunks import new_id, unix_time
from llcuda.server.errors import ApiError, translate_and_log
from llcuda.server.file_store import (
    FileStore,
    FileWriter,
    claimed,
    disk_errors,
    load_documents,
    no_such,
    save_document,
)
from llcuda.server.log import log_failure

logger = logging.getLogger("llcuda.server")

PARALLEL = 16  # requests of a batch at once
MAX_BATCHES = 1000
MAX_UNFINISHED = 100
MAX_REQUESTS = 50_000  # of a file, as OpenAI has it
MAX_ERRORS = 100  # of a file without a request
WINDOW_SECONDS = 24 * 3600  # OpenAI's; a batch here has no end
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
BATCH_KEYS = {"id", "object", "status", "created_at", "request_counts", "input_file_id"}
RESULTS = "result_file_ids"  # the key of a document on the disk: of the answers, of the errors
_FILE_ID = re.compile("file-[0-9a-f]+")


class BatchStore:
    """Runs batches, and keeps them by their ids.

    Args:
        files: The files that they read and write; their folder has the batches too, unless it is
            temporary.
        max_line: Most bytes of a request.

    Attributes:
        documents: OpenAI's documents of the batches, the oldest first.
    """

    def __init__(self, files: FileStore, max_line: int) -> None:
        self._files = files
        self._folder = None if files.is_temporary else files.folder
        self._max_line = max_line
        self._turn = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        found = load_documents(self._folder, "batch_", BATCH_KEYS) if self._folder else []
        self._results = {
            document["id"]: _result_ids(document.pop(RESULTS, None)) for document in found
        }
        self.documents = {document["id"]: document for document in found}

    def resume(self, app: ASGIApp) -> None:
        """Go on with the batches that an earlier server did not finish.

        Args:
            app: The application that answers.
        """
        for document in self.documents.values():
            if document["status"] in UNFINISHED:
                self._save_quietly(document)  # the ids of its results may be new
                self._start(app, document)

    def get(self, name: str) -> dict[str, Any]:
        """Return a batch. Raises ApiError if there is none."""
        if name not in self.documents:
            raise no_such("batch", name, None, "GET /v1/batches lists them")
        return self.documents[name]

    def create(
        self, app: ASGIApp, file: str, endpoint: str, window: str, metadata: dict[str, str] | None
    ) -> dict[str, Any]:
        """Begin a batch, and return its document.

        Args:
            app: The application that answers.
            file: The id of the file of its requests.
            endpoint: The path of all requests.
            window: OpenAI's time within which it is answered; kept, and without effect.
            metadata: The client's own data.

        Raises:
            ApiError: There is no such file, or too many batches wait.
        """
        self._files.get(file, "input_file_id")
        if len(self._tasks) >= MAX_UNFINISHED:
            message = f"{MAX_UNFINISHED} batches are unfinished; wait for one, or cancel one"
            raise ApiError(429, message, code="rate_limit_exceeded")
        now = unix_time()
        document: dict[str, Any] = {
            "id": new_id("batch_"),
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": file,
            "completion_window": window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": None,
            "expires_at": now + WINDOW_SECONDS,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
        }
        name = document["id"]
        self._results[name] = _result_ids(None)
        self._save(document)
        self.documents[name] = document
        for old in [key for key in self.documents if key not in self._tasks and key != name]:
            if len(self.documents) <= MAX_BATCHES:
                break
            self._forget(old)
        self._start(app, document)
        return document

    def _start(self, app: ASGIApp, document: dict[str, Any]) -> None:
        name = document["id"]
        # Without the context of the request, whose trace and notes are not those of the batch.
        task = asyncio.get_running_loop().create_task(
            self._run(app, document), context=contextvars.Context()
        )
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name))

    def cancel(self, name: str) -> dict[str, Any]:
        """End a batch, which keeps the answers that it has. Raises ApiError if it has ended."""
        document = self.get(name)
        if document["status"] not in ("validating", "in_progress"):
            error = f"{name} is {document['status']} and cannot be cancelled"
            raise ApiError(409, error, code="batch_finished")
        if name not in self._tasks:
            error = f"{name} is answered by another server, which has the same folder"
            raise ApiError(409, error, code="batch_elsewhere")
        document["status"], document["cancelling_at"] = "cancelling", unix_time()
        self._save_quietly(document)  # or the next server would go on with it
        self._tasks[name].cancel()
        return document

    async def close(self) -> None:
        """Stop all batches, with which the next server goes on."""
        self._stopping = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _save(self, document: dict[str, Any]) -> None:
        if self._folder is not None:
            with disk_errors():
                save_document(self._folder, {**document, RESULTS: self._results[document["id"]]})

    def _save_quietly(self, document: dict[str, Any]) -> None:
        try:
            self._save(document)
        except Exception as error:  # it is in memory all the same
            log_failure(error, document["id"])

    def _forget(self, name: str) -> None:
        del self.documents[name], self._results[name]
        if self._folder is not None:
            (self._folder / f"{name}.json").unlink(missing_ok=True)

    async def _run(self, app: ASGIApp, document: dict[str, Any]) -> None:
        file, name = document["input_file_id"], document["id"]
        status = "completed"
        problem: dict[str, Any] | None = None
        with ExitStack() as stack:
            if self._folder is not None:
                try:
                    stack.enter_context(claimed(self._folder / f"{name}.lock"))
                except BlockingIOError:
                    logger.warning("%s is answered by another server on this folder", name)
                    return
            stack.enter_context(self._files.reading(file, name))
            outputs = [_Results(self._files, stack, result) for result in self._results[name]]
            try:
                async with self._turn:
                    await self._answer(app, document, *outputs)
            except asyncio.CancelledError:
                if self._stopping and document["status"] != "cancelling":
                    return  # the next server goes on
                status = "cancelled"
            except _NoRequestsError as error:
                status, document["errors"] = "failed", {"object": "list", "data": error.errors}
            except Exception as error:
                status, problem = "failed", _problem(error, name)
            document["finalizing_at"] = unix_time()
            for key, results in zip(("output_file_id", "error_file_id"), outputs, strict=True):
                try:
                    document[key] = await asyncio.to_thread(results.keep, f"{name}_{key[:6]}.jsonl")
                except Exception as error:
                    status, problem = "failed", _problem(error, name)
        _end(document, status, problem)
        self._save_quietly(document)

    async def _answer(
        self, app: ASGIApp, document: dict[str, Any], output: _Results, refused: _Results
    ) -> None:
        if document["status"] == "cancelling":  # when an earlier server ended
            raise asyncio.CancelledError
        self._files.get(document["input_file_id"], "input_file_id")
        path, counts = self._files.path(document["input_file_id"]), document["request_counts"]
        check = _LineCheck(document["endpoint"], self._max_line)
        await asyncio.to_thread(check.read_all, path)
        if check.total == len(check.wrong):
            counts["total"] = check.total
            raise _NoRequestsError(check)
        answered, told = [await asyncio.to_thread(results.resume) for results in (output, refused)]
        done = answered.refused.keys() | told.refused.keys()
        counts |= {
            "total": check.total,
            "completed": len(answered.refused),
            "failed": len(told.refused) + len(told.wrong),
        }
        for number, (custom_id, message) in check.wrong.items():
            if number not in told.wrong:
                refused.write(_error_line(number, custom_id, message))
                counts["failed"] += 1
        document["status"] = "in_progress"
        document["in_progress_at"] = document["in_progress_at"] or unix_time()
        lines = (
            line
            for number, data in _lines(path, self._max_line)
            if number not in check.wrong and (line := read_line(number, data)).custom_id not in done
        )
        async with aclosing(answer_lines(app, lines, PARALLEL)) as answers:
            async for answer in answers:
                self._write(answer, counts, output, refused)
        document["status"] = "finalizing"

    def _write(
        self, answer: BatchAnswer, counts: dict[str, int], output: _Results, refused: _Results
    ) -> None:
        is_answered = answer.status == 200
        (output if is_answered else refused).write(answer.as_json())
        counts["completed" if is_answered else "failed"] += 1


class _Results:
    """A file of results, which is there from its first line on."""

    def __init__(self, files: FileStore, stack: ExitStack, name: str) -> None:
        self._files = files
        self._stack = stack
        self._name = name
        self._writer: FileWriter | None = None

    def resume(self) -> Answered:
        """Return the lines that an earlier server wrote, without half a line at the end."""
        path = self._files.path(self._name)
        try:
            answered = read_answers(path)
        except ArgumentError as error:
            raise error.within(self._name) from None
        if path.exists() and answered.size < path.stat().st_size:
            os.truncate(path, answered.size)
        return answered

    def write(self, line: str) -> None:
        """Append a line, which a sudden end of the process does not lose."""
        writer = self._opened()
        writer.write(line.encode("utf-8", "backslashreplace") + b"\n")
        writer.flush()

    def keep(self, filename: str) -> str | None:
        """Return the id of the file, None if it has no line."""
        if self._name in self._files.documents:  # an earlier server ended right behind this
            return self._name
        if self._writer is None and not self._files.path(self._name).exists():
            return None
        return str(self._opened().keep(filename, "batch_output", self._name)["id"])

    def _opened(self) -> FileWriter:
        if self._writer is None:
            self._writer = self._stack.enter_context(self._files.appender(self._name))
        return self._writer


class _LineCheck:
    """Finds the wrong lines of a file. total: its requests; wrong: number -> custom_id, message."""

    def __init__(self, endpoint: str, max_line: int) -> None:
        self._endpoint = endpoint
        self._max_line = max_line
        self.total = 0
        self.wrong: dict[int, tuple[str | None, str]] = {}

    def read_all(self, path: Path) -> None:
        seen: set[str] = set()
        for number, data in _lines(path, self._max_line):
            self.total += 1
            if self.total > MAX_REQUESTS:
                message = f"more than {MAX_REQUESTS:,} requests; split the file"
                raise ApiError(400, message, code="invalid_request")
            if len(data) > self._max_line:
                message = f"line {number}: too large: at most {self._max_line} bytes"
                self.wrong[number] = (None, message)
                continue
            line: BatchLine | None = None
            try:
                line = read_line(number, data)
                self._check(number, line, seen)
            except ArgumentError as error:
                self.wrong[number] = (line.custom_id if line else None, str(error))

    def _check(self, number: int, line: BatchLine, seen: set[str]) -> None:
        if line.url != self._endpoint:
            rule = f"the endpoint of the batch is {self._endpoint}"
            raise ArgumentError(f"line {number}: url={line.url!r}: {rule}")
        if line.custom_id in seen:
            rule = "an earlier line has it; give each its own"
            raise ArgumentError(f"line {number}: custom_id={line.custom_id!r}: {rule}")
        seen.add(line.custom_id)


class _NoRequestsError(Exception):
    """A file has no line that is a request."""

    def __init__(self, check: _LineCheck) -> None:
        super().__init__()
        problems: list[tuple[int | None, str]] = [
            (number, message) for number, (_, message) in check.wrong.items()
        ]
        self.errors = [
            {"code": "invalid_request", "line": number, "message": message, "param": None}
            for number, message in problems[:MAX_ERRORS] or [(None, "the file has no line")]
        ]


def _lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, empty ones left out, too long ones cut."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(max_bytes + 1):
            number += 1
            rest = data
            while not rest.endswith(b"\n") and (rest := file.readline(max_bytes)):
                pass
            if data.strip():
                yield number, data


def _error_line(number: int, custom_id: str | None, message: str) -> str:
    error = {"code": "invalid_request", "message": message, "line": number}
    line = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": None, "error": error}
    return json.dumps(line, ensure_ascii=False)


def _problem(error: Exception, name: str) -> dict[str, Any]:
    """Return what a batch says of an error."""
    refusal = translate_and_log(error, name)
    return {"code": refusal.code or refusal.kind, "message": refusal.message}


def _result_ids(saved: Any) -> list[str]:
    """Return the ids of a batch's results, new ones where none were saved."""
    names = saved if isinstance(saved, list) else []
    ids = [name for name in names if isinstance(name, str) and _FILE_ID.fullmatch(name)]
    return ids if len(ids) == 2 else [new_id("file-"), new_id("file-")]


def _end(document: dict[str, Any], status: str, problem: dict[str, Any] | None) -> None:
    document["status"], document[f"{status}_at"] = status, unix_time()
    if problem is not None:
        error = {**problem, "line": None, "param": None}
        document["errors"] = {"object": "list", "data": [error]}
