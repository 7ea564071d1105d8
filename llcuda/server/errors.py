"""Errors in the shape of each API; OpenAI's has type, code and parameter.

Knows nothing of HTTP frameworks. A message never shows a trace, a path, nor data of the
server: errors that the client did not cause go to the log.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ContextLengthError,
    FileWriteError,
    ModelChangedError,
    ModelError,
    OutOfMemoryError,
    QueueFullError,
    UnsupportedError,
)
from llcuda.params import SamplingParams
from llcuda.server.log import RequestRecord, log_failure

RETRY_SECONDS = 1


class ApiError(Exception):
    """The error that a request is refused with.

    Args:
        status: The HTTP status.
        message: What is wrong, in the client's terms.
        param: The field at fault, e.g. "messages[0].role".
        code: OpenAI's word for the case.
        retry: Seconds after which the client may ask again.
        closes: Whether the connection is of no more use, because a body is still on its way.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry = retry
        self.closes = closes

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.status), (self.message,), self.__dict__

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        return kinds.get(self.status, other)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        headers |= {"connection": "close"} if self.closes else {}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


@dataclass(frozen=True)
class ErrorShape:
    """The shape of the errors of an API.

    Attributes:
        document: Makes the body of an error and the id of the request.
        event: The last event of a stream, with `{}` in place of the body.
    """

    document: Callable[[ApiError, str], dict[str, Any]]
    event: str = "data: {}\n\n"

    @classmethod
    def of(cls, record: RequestRecord) -> ErrorShape:
        """Return the shape of the API that a request is of, by its path or its client."""
        other = _ANTHROPIC if record.is_anthropic else _OPENAI
        shapes = (shape for prefix, shape in _SHAPES.items() if record.path.startswith(prefix))
        return next(shapes, other)

    def body(self, error: ApiError, request_id: str) -> str:
        """Return the body of an error.

        Args:
            error: The error.
            request_id: The id of the request.
        """
        return json.dumps(self.document(error, request_id))  # also with half of a surrogate pair

    def last_event(self, error: ApiError, request_id: str) -> str:
        """Return the end of a stream that an error ends; see `body`."""
        return self.event.replace("{}", self.body(error, request_id))


def _openai(error: ApiError, request_id: str) -> dict[str, Any]:
    fields = {"message": error.message, "type": error.kind}
    return {"error": {**fields, "param": error.param, "code": error.code}}


def _anthropic(error: ApiError, request_id: str) -> dict[str, Any]:
    kinds = {404: "not_found_error", 408: "timeout_error", 413: "request_too_large"}
    kind = {500: "api_error", 503: "overloaded_error"}.get(error.status, error.kind)
    message = error.message
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # by which clients know it
    fields = {"type": kinds.get(error.status, kind), "message": message}
    return {"type": "error", "error": fields, "request_id": request_id}


def _ollama(error: ApiError, request_id: str) -> dict[str, Any]:
    return {"error": error.message}


_OPENAI = ErrorShape(_openai)
_ANTHROPIC = ErrorShape(_anthropic, "event: error\ndata: {}\n\n")
_SHAPES = {  # by the beginning of a path
    "/v1/messages": _ANTHROPIC,
    "/messages": _ANTHROPIC,
    "/api/": ErrorShape(_ollama, "{}\n"),
}


def deadline_exceeded() -> ApiError:
    """Return the error of a request whose deadline left no text at all."""
    message = "the deadline passed before the first token"
    return ApiError(503, message, code="deadline_exceeded", retry=1)


INTERNAL = "internal error"
OUT_OF_MEMORY = "too little memory for this request at the moment"
NOT_LOADABLE = "the model cannot be loaded"
MODEL_CHANGED = "the model's file was changed while it was in use"
LOGGED = frozenset({INTERNAL, OUT_OF_MEMORY, NOT_LOADABLE, MODEL_CHANGED})


# Parameters that are set when the server starts, and their options: what a client names is a model.
_AT_START = {"ctx_size": "--ctx-size", "pooling": "--pooling", "template": "--chat-template"}
# Parameters whose remedies name data and fields, and so hold for clients as they are.
_REMEDIES_OF_DATA = {field.name for field in fields(SamplingParams)} | {
    *("continue_final_message", "ignore_eos", "min_tokens", "overflow", "prompt"),
    *("response_format", "template_variables", "text"),
}
# What a client can do where the remedy is that of a Python caller.
_REMEDIES = {
    "ctx_size": "start the server with a larger --ctx-size",
    "documents": "shorten it",
    "dry_last_n": "give the tokens of the context to count the whole text",
    "echo": "start the server with --outputs-max 0",
    "keep": 'give "overflow": "truncate" or "shift"',
    "penalty_last_n": "give the tokens of the context to count the whole text",
    "pooling": "start the server with --pooling mean, or with a model for embeddings",
    "slot": "GET /slots lists them",
    "template": "start the server with --chat-template, or use /v1/completions",
    "texts": "shorten it, or start the server with a larger --ctx-size",
    "tool_choice": 'give "tool_choice": "auto"',
    "tools": "describe them in a message, or start the server with --chat-template",
}


def translate_and_log(
    error: Exception, request_id: str, names: Mapping[str, str] | None = None
) -> ApiError:
    """Return the error that the client gets; the server's own are logged with their trace.

    Args:
        error: The exception.
        request_id: The id of the request, by which the client's message and the log's name it.
        names: The API's names of the engine's parameters, where they differ.
    """
    refusal = translate(error, names)
    if refusal.message in LOGGED:
        log_failure(error, request_id)
        refusal.message += f"; the server's log says more about {request_id}"
    return refusal


def translate(error: BaseException, names: Mapping[str, str] | None = None) -> ApiError:
    """Return the error that a client gets for an exception.

    Args:
        error: The exception.
        names: The API's names of the engine's parameters, where they differ.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        busy = "the server's queue is full; try again later"
        return ApiError(429, busy, code="rate_limit_exceeded", retry=RETRY_SECONDS)
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, OUT_OF_MEMORY, code="out_of_memory", retry=RETRY_SECONDS)
    if isinstance(error, ArgumentError | UnsupportedError):
        return _refused(error, names or {})
    if isinstance(error, ClosedError):
        return ApiError(503, "the model is being unloaded", code="unavailable", retry=RETRY_SECONDS)
    if isinstance(error, ModelChangedError):
        return ApiError(503, MODEL_CHANGED, code="model_failed")
    if isinstance(error, ModelError) and not isinstance(error, FileWriteError):
        return ApiError(503, NOT_LOADABLE, code="model_unavailable")
    return ApiError(500, INTERNAL)


# Python's words -> JSON's; not within quotes, where data stand.
_PYTHON = re.compile(
    r"""(?<!['"\w.])(?:an? )?(dict|list|str|int|float|bool|NoneType|None|True|False|mapping"""
    r"""|string)\b(?!['"\w(=]|\.\w)"""
)
_CALL = re.compile(r"\b([a-z_]+)\(\)")
_WORDS = {
    "NoneType": "null", "None": "null", "True": "true", "False": "false", "dict": "an object",
    "mapping": "an object", "list": "a list", "str": "a text", "string": "a text",
    "int": "a number", "float": "a number", "bool": "true or false",
}  # fmt: skip


def _refused(error: ArgumentError | UnsupportedError, names: Mapping[str, str]) -> ApiError:
    """Return the error of a value, in the client's words and with the client's name of it."""
    name = error.parameter
    param = name and _public_name(name, {**dict.fromkeys(_AT_START, "model"), **names})
    rule, begin = error.problem, ""
    if name and rule.startswith(name):
        rule = rule[len(name) :]
        begin = _AT_START.get(name, str(param)) if rule.startswith("=") else str(param)
    if error.shown is not None and rule.startswith(f"={error.shown}"):
        begin, rule = f"{begin}={_as_json(error.shown)}", rule[len(error.shown) + 1 :]
    rule = _CALL.sub(r"\1", _PYTHON.sub(lambda match: _WORDS[match[1]], rule))
    if isinstance(error, ContextLengthError):
        drop = ' give "overflow": "drop",' if (param or "").startswith("messages") else ""
        remedy = f"shorten it,{drop} or start the server with a larger --ctx-size"
        if error.limit is not None:  # the sentence by which clients know the case
            rule = f": has {error.tokens} tokens"
            remedy = f"this model's maximum context length is {error.limit} tokens; {remedy}"
        message = f"{begin}{rule}; {remedy}"
        return ApiError(400, message, param=param, code="context_length_exceeded")
    remedy = _client_remedy(error.remedy, name, names) if error.remedy and name else ""
    return ApiError(400, f"{begin}{rule}{remedy and '; '}{remedy}", param=param)


_PYTHON_CODE = re.compile(r"\w\(|\b[a-z_]+=")  # a call or a keyword


def _client_remedy(remedy: str, parameter: str, names: Mapping[str, str]) -> str:
    """Return a remedy in a client's words; "" for one that only a Python caller has."""
    whole = _whole(parameter)
    if whole in _REMEDIES:
        return _REMEDIES[whole]
    if whole == "response_format" and names.get(whole) == "text.format":  # it has flat schemas
        remedy = remedy.replace('"json_schema": {"schema": ...}', '"name": ..., "schema": ...')
    is_data = whole in _REMEDIES_OF_DATA and not _PYTHON_CODE.search(remedy)
    return remedy if is_data else ""


# A text of Python, whole or cut, or a constant beside texts.
_TEXT_OR_CONSTANT = re.compile(r"""'(?:\\.|[^'\\])*'?|"(?:\\.|[^"\\])*"?|\b(None|True|False)\b""")


def _as_json(shown: str) -> str:
    """Return a shown value as JSON has it; a text as it is."""
    try:
        value = ast.literal_eval(shown)
    except (ValueError, SyntaxError):  # cut, or of another type
        return _TEXT_OR_CONSTANT.sub(lambda part: _WORDS.get(part[1], part[0]), shown)
    return shown if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_PLACE_END = re.compile(r"(?<!^)(?=[.\[])|$")


def _public_name(parameter: str, names: Mapping[str, str]) -> str:
    """Return the API's name of a parameter, which may be an element of it."""
    ends = [match.start() for match in _PLACE_END.finditer(parameter)]
    for end in reversed(ends):  # the longest place that has a name
        if (name := names.get(parameter[:end])) is not None:
            return name + parameter[end:]
    return parameter


def _whole(parameter: str) -> str:
    """Return the parameter that an element belongs to, such as "messages" of "messages[0].role"."""
    return re.split(r"[.\[]", parameter, maxsplit=1)[0]
