"""The log of the server: a line for each request, errors with their trace, as text or as JSON.

Texts of prompts and answers are never logged. Nothing here touches a logger until the command line
calls `configure_logging`: a program that embeds the server configures its own.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from llcuda.params import wrong_value
from llcuda.server.chunks import new_id

logger = logging.getLogger("llcuda.server")
access_logger = logging.getLogger("llcuda.server.access")

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
FIELDS = "fields"  # the attribute of a log record with the fields of a JSON line
CLIENT_LEFT = 499  # nginx's status for a client that disconnects before its answer is complete
SHOWN_PATH = 200  # characters
REQUEST_ID = b"x-request-id"  # the header, in a request and in its answer
SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")


@dataclass
class RequestRecord:
    """The counted and logged facts of one request.

    Attributes:
        method: Method of the request.
        path: Its path, percent-encoded, without the query.
        client: Address of the client.
        request_id: The client's X-Request-ID, or an id of the server's.
        status: Status of the answer; None = no answer has begun.
        complete: Whether the whole answer was written.
        failed: Whether the server failed within an answer that had begun.
        usage: Tokens of the prompt and of the answer, in OpenAI's form.
        ignored: What the request asked for and did not get.
        is_anthropic: Whether a client of Anthropic's API asks.
        started: Time of the start, by `time.perf_counter`.
    """

    method: str
    path: str
    client: str
    request_id: str
    status: int | None = None
    complete: bool = False
    failed: bool = False
    usage: Mapping[str, Any] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    is_anthropic: bool = False
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> RequestRecord:
        """Return the record of an ASGI request."""
        headers = dict(scope["headers"])
        sent_id = headers.get(REQUEST_ID, b"").decode("latin-1")
        return cls(
            method=scope["method"],
            path=quote(scope["path"])[:SHOWN_PATH],  # which has no line ends
            client=(scope.get("client") or ("",))[0],
            request_id=sent_id if SANE_ID.fullmatch(sent_id) else new_id("req_"),
            is_anthropic=b"anthropic-version" in headers,
        )

    @property
    def final_status(self) -> int:
        """The status that is counted: 499 for a client that left before the end of its answer."""
        if self.failed:
            return 500
        return self.status if self.complete and self.status else CLIENT_LEFT

    def log(self) -> None:
        """Write the line of the request."""
        if not access_logger.isEnabledFor(logging.INFO):
            return
        seconds = time.perf_counter() - self.started
        fields = {
            "method": self.method,
            "path": self.path,
            "status": self.final_status,
            "seconds": round(seconds, 6),
            "prompt_tokens": self.usage.get("prompt_tokens"),
            "completion_tokens": self.usage.get("completion_tokens"),
            "request_id": self.request_id,
            "client": self.client,
            **({"ignored": [*self.ignored]} if self.ignored else {}),
        }
        tokens = "".join(
            f", {count} {kind} tokens"
            for kind in ("prompt", "completion")
            if (count := self.usage.get(f"{kind}_tokens")) is not None
        )
        ignored = f", ignored: {'; '.join(self.ignored)}" if self.ignored else ""
        access_logger.info(
            "%s %s %d in %.3f s%s, %s%s",
            self.method, self.path, self.final_status, seconds, tokens, self.request_id, ignored,
            extra={FIELDS: fields},
        )  # fmt: skip


def log_failure(error: BaseException, request_id: str) -> None:
    """Write an error that the client did not cause, with its trace."""
    fields = {"request_id": request_id}
    logger.error("request %s failed", request_id, exc_info=error, extra={FIELDS: fields})


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{when}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


def configure_logging(level: str, log_format: str) -> None:
    """Send the log of this process to stderr; for programs that are nothing but the server.

    Args:
        level: Least level of llcuda's records: "debug" (with llama.cpp's), "info" (with a line for
            each request), "warning" or "error". Other libraries log from "warning" on.
        log_format: "text" or "json".

    Raises:
        ArgumentError: There is no such level or format.
    """
    for parameter, value, choices in (
        ("log_level", level, LEVELS), ("log_format", log_format, FORMATS)
    ):  # fmt: skip
        if value not in choices:
            raise wrong_value(parameter, value, f"expected one of {', '.join(choices)}")
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
    logging.getLogger("llcuda").setLevel(number)
