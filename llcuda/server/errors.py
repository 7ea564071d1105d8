"""Errors in OpenAI's shape: which status, which type, which parameter.

Plain data; knows nothing of HTTP frameworks. A message never shows a trace, a path, nor what the
server holds: what is not the client's fault goes to the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ContextLengthError,
    ModelError,
    OutOfMemoryError,
    QueueFullError,
    UnsupportedError,
)

RETRY_SECONDS = 1
_OF_KEYS = ("missing", "union_tag_not_found")


class ApiError(Exception):
    """What a request is refused with.

    param: the parameter at fault, e.g. "messages[0].role"; code: OpenAI's word for the case;
    retry: seconds after which the client may ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry = retry

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else INVALID)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        found = {} if self.retry is None else {"retry-after": str(self.retry)}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def as_dict(self) -> dict[str, Any]:
        """Return the body: {"error": {...}}."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def as_json(self) -> str:
        """Return the body as text."""
        return json.dumps(self.as_dict(), ensure_ascii=False)


INVALID = "invalid_request_error"
INTERNAL = "internal error; the server's log says more"
SHORT = "too little memory for it just now; the server's log says more"
UNLOADED = "the model cannot be loaded; the server's log says more"
LOGGED = frozenset({INTERNAL, SHORT, UNLOADED})


def translate(error: BaseException, names: Mapping[str, str] | None = None) -> ApiError:
    """Return what a client is told of an exception.

    names: what the API calls a parameter of the engine, where it differs.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        busy = "the server's queue is full; try again later"
        return ApiError(429, busy, code="rate_limit_exceeded", retry=RETRY_SECONDS)
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, SHORT, code="out_of_memory", retry=RETRY_SECONDS)
    if isinstance(error, ArgumentError | UnsupportedError):
        code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
        message, param = error.problem, error.parameter  # the remedy is a Python caller's
        for own, public in (names or {}).items():
            if param is not None and (param == own or param.startswith((f"{own}.", f"{own}["))):
                if message.startswith(param):
                    message = public + message[len(own) :]
                param = public + param[len(own) :]
                break
        return ApiError(400, message, param=param, code=code)
    if isinstance(error, ClosedError):
        return ApiError(503, "the model is being unloaded", code="unavailable", retry=RETRY_SECONDS)
    if isinstance(error, ModelError):
        return ApiError(503, UNLOADED, code="model_unavailable")
    return ApiError(500, INTERNAL)


def of_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """Return the error for what pydantic found wrong with a body.

    The parameter is the first one at fault; of a value that may have several types, all are named.
    """
    if isinstance(body, bytes):  # so FastAPI leaves what is not sent as JSON
        return ApiError(400, "the body is not sent as JSON: set Content-Type: application/json")
    first = _path(errors[0], body)
    said: list[str] = []
    for error in errors:
        if _path(error, body) == first and error["msg"] not in said:
            said.append(error["msg"])
    if errors[0]["type"] == "json_invalid":
        reason = str(errors[0].get("ctx", {}).get("error", "")) or said[0]
        return ApiError(400, f"the body is no JSON document: {reason}", code="invalid_json")
    if errors[0]["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter: {first}", param=first, code="unknown_parameter")
    reason = " or ".join(said[:4])
    if errors[0]["type"] == "unsupported":
        return ApiError(400, f"{first}: {reason}", param=first, code="unsupported_parameter")
    where = first or "the body"
    return ApiError(400, f"{where}: {reason}", param=first or None)


def _path(error: Mapping[str, Any], body: Any) -> str:
    """Return where in the body an error lies, as "messages[0].role", without a union's branches."""
    path, here = "", body
    places = [place for place in error["loc"] if place not in ("body", "query", "path", "header")]
    if error["type"] == "json_invalid":
        return ""
    if error["type"].startswith("union_tag") and "discriminator" in error.get("ctx", {}):
        places.append(str(error["ctx"]["discriminator"]).strip("'"))
    for place in places:
        if isinstance(place, int):
            if not isinstance(here, list) or place >= len(here):
                continue
            path, here = f"{path}[{place}]", here[place]
        elif isinstance(here, dict) and (place in here or error["type"] in _OF_KEYS):
            path, here = f"{path}.{place}" if path else str(place), here.get(place)
    return path
