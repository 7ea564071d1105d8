"""The OpenAI-compatible server over the in-process engine; needs the extra `server`.

    app = create_app([ModelSpec("demo", "demo")])    # an ASGI application
    serve(app, port=8080)                            # until SIGTERM or Ctrl-C

Started on purpose only. One event loop answers; each loaded model's engine has its own thread.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

import llcuda
from llcuda.errors import ArgumentError
from llcuda.server import chat as server_chat
from llcuda.server import completions as server_text
from llcuda.server import embeddings as server_vectors
from llcuda.server import page as server_page
from llcuda.server.chunks import now
from llcuda.server.errors import ApiError, of_validation
from llcuda.server.metrics import metrics_text
from llcuda.server.middleware import LOOPBACK, Door, Limits, Traffic
from llcuda.server.models import Loaded, Models, ModelSpec
from llcuda.server.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    ErrorAnswer,
    ModelBody,
    RerankBody,
    TokenizeBody,
)
from llcuda.server.responses import ResponsesBody
from llcuda.server.sse import Exchange, Output, translated

logger = logging.getLogger("llcuda.server")

STUCK_MS = 60_000  # a client that takes nothing for so long is cut off
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "What was asked cannot be done.",
        401: "No key, or a wrong one.",
        403: "A foreign host.",
        404: "No such model.",
        408: "The body did not come.",
        413: "The body is too large.",
        429: "The queue is full.",
        500: "The server failed.",
        503: "The server is busy.",
    }.items()
}
NAMES = {"template_variables": "chat_template_kwargs"}  # the engine's names, and the API's
Work = Callable[[Any, Loaded, Output], Awaitable[None]]


class Service:
    """What the routes share."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models = models
        self.limits = limits
        self.traffic = Traffic()
        self.started = now()

    def answer(self, body: ModelBody, work: Work, prompt: str = "prompt") -> Exchange:
        """Return the answer that `work` gives with the model of `body`, loaded for that long.

        prompt: what the API calls the engine's prompt.
        """

        async def run(output: Output) -> None:
            async with self.models.use(body.model) as loaded:
                await work(body, loaded, output)

        return Exchange(run, self.traffic.left, {"prompt": prompt, **NAMES})


def create_app(
    models: Sequence[ModelSpec],
    *,
    memory_budget: int | None = None,
    keys: Iterable[str] = (),
    cors_origins: Sequence[str] = (),
    hosts: Iterable[str] = LOOPBACK,
    limits: Limits | None = None,
    preload: bool = True,
) -> FastAPI:
    """Return the application.

    models: those that are served; memory_budget: bytes that they may take together, see `Models`.
    keys: API keys, any of which opens; none = open to all. cors_origins: pages of other hosts
    that may ask. hosts: names that clients may call the server by, none = any.
    preload: load the first model now; the others wait for their first request.
    Raises ArgumentError, ModelNotFoundError, ModelError.
    """
    service = Service(Models(models, memory_budget), limits or Limits())
    service.models.open(preload)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.models.close()

    app = FastAPI(
        title="llcuda",
        version=llcuda.__version__,
        description="OpenAI's API over llama.cpp in this process.",
        lifespan=life,
        docs_url=None,  # it would load scripts of a foreign host
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(_text_routes(service))
    app.include_router(_model_routes(service))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(
        Door, limits=service.limits, traffic=service.traffic, keys=tuple(keys), hosts=tuple(hosts)
    )
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


def _text_routes(service: Service) -> APIRouter:
    router, deadline = APIRouter(responses=ERRORS), service.limits.deadline

    @router.post("/v1/completions")
    async def completions(body: CompletionBody) -> Response:
        """Continue texts."""
        return service.answer(body, partial(server_text.complete, deadline=deadline))

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> Response:
        """Answer a conversation."""
        return service.answer(body, partial(server_chat.chat, deadline=deadline), "messages")

    @router.post("/v1/responses")
    async def responses(body: ResponsesBody) -> Response:
        """Answer a conversation, in items; nothing is stored."""
        return service.answer(body, partial(server_chat.respond, deadline=deadline), "input")

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody) -> Response:
        """Turn texts into vectors."""
        return service.answer(body, server_vectors.embed, "input")

    @router.post("/v1/rerank")
    async def rerank(body: RerankBody) -> Response:
        """Order documents by how well they answer a query."""
        return service.answer(body, server_vectors.rerank, "query")

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """Turn a text into tokens."""
        return service.answer(body, _tokenize, "content")

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        """Turn tokens into a text."""
        return service.answer(body, _detokenize, "tokens")

    return router


async def _tokenize(body: TokenizeBody, loaded: Loaded, output: Output) -> None:
    model = loaded.model
    tokens = model.tokenize(body.content, body.add_special, body.parse_special)
    answer: dict[str, Any] = {"tokens": tokens}
    if body.with_pieces:
        answer["pieces"] = [list(model.piece_bytes(token, special=True)) for token in tokens]
    await output.json(answer)


async def _detokenize(body: DetokenizeBody, loaded: Loaded, output: Output) -> None:
    await output.json({"content": loaded.model.detokenize(body.tokens)})


def _model_routes(service: Service) -> APIRouter:
    router = APIRouter(responses=ERRORS)

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "llcuda",
            "loaded": name in service.models.loaded,
        }

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [described(name) for name in service.models.specs]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe one model."""
        return described(service.models.find(name))

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the counters in Prometheus' text format."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(metrics_text(service.models, service.traffic), media_type=kind)

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return server_page.page()

    return router


def _refused(refusal: ApiError) -> Response:
    return Response(
        refusal.as_json(), refusal.status, refusal.headers, media_type="application/json"
    )


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _refused(of_validation(error.errors(), error.body))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: f"no such path: {request.url.path[:200]}", 405: "this path has other methods"}
    said[400] = "the body is no JSON document in UTF-8, of a sensible size and depth"
    refusal = ApiError(error.status_code, said.get(error.status_code, str(error.detail)))
    answer = _refused(refusal)
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    return _refused(translated(error))


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    drain_seconds: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then no new connection, and what runs is finished.

    drain_seconds: how long that may take. on_ready: gets the address when connections are taken.
    Raises ArgumentError for an address that cannot be had, KeyboardInterrupt after Ctrl-C.
    """
    _allow_files()
    with _listen(host, port) as listener:
        config = uvicorn.Config(
            app,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            timeout_keep_alive=30,
            access_log=False,
            log_level="warning",
            server_header=False,
        )
        at = listener.getsockname()
        name = f"[{at[0]}]" if ":" in at[0] else at[0]
        server = _Server(config, lambda: on_ready and on_ready(f"http://{name}:{at[1]}"))
        before = signal.signal(signal.SIGTERM, _leave)  # uvicorn raises it again when it is done
        try:
            with suppress(_LeaveError):
                server.run([listener])
        finally:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """Says when it takes connections; told a second time to end, it ends what runs."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], Any]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(sig, frame)
        if again:
            self.force_exit = False  # or the models would not be closed
            self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()


class _LeaveError(BaseException):
    """SIGTERM, after all is done."""


def _leave(number: int, frame: Any) -> None:
    raise _LeaveError


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, whose connections end when a client takes nothing any more."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_MS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ArgumentError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _allow_files() -> None:
    """Let the process open as many files, and so connections, as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
