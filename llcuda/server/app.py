"""The OpenAI-compatible server over the in-process engine; needs the extra `server`.

    app = create_app([ModelSpec("demo", "demo")])    # an ASGI application
    serve(app, port=8080)                            # until SIGTERM or Ctrl-C

One event loop answers; the engine of each loaded model has its own thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

import llcuda
from llcuda.files import local_path
from llcuda.params import check_flag, check_number, wrong_argument, wrong_value
from llcuda.running import announce
from llcuda.server.answer import RECORD
from llcuda.server.anthropic import anthropic_routes
from llcuda.server.api_page import api_page
from llcuda.server.bodies import BodyReader, BodyRoute
from llcuda.server.connections import (
    GuardedProtocol,
    check_certificate,
    listen,
    listen_unix,
)
from llcuda.server.errors import ApiError, ErrorShape
from llcuda.server.files import file_routes
from llcuda.server.leniency import HEADER
from llcuda.server.llama_server.routes import llama_server_routes
from llcuda.server.log import RequestRecord
from llcuda.server.metrics import metrics_text
from llcuda.server.middleware import LOOPBACK, MIN_SECONDS, Limits, RequestGuardMiddleware
from llcuda.server.models import ModelPool, ModelSpec
from llcuda.server.ollama import ollama_routes
from llcuda.server.openai_api import cohere_routes, openai_routes
from llcuda.server.page import HEADERS, page_routes
from llcuda.server.protocol import DetokenizeBody, TokenizeBody
from llcuda.server.service import ERRORS, Service
from llcuda.server.tokens import answer_detokenize, answer_tokenize
from llcuda.server.tracing import tracer_of

logger = logging.getLogger("llcuda.server")

LOCAL_ORIGIN = "localhost"  # as an origin: the pages of this machine
LOCAL_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
# The APIs, each a function that returns its routes. Of two routes with one path the first answers.
APIS: tuple[Callable[[Service], APIRouter], ...] = (
    anthropic_routes,
    cohere_routes,
    file_routes,
    llama_server_routes,
    ollama_routes,
)


def create_app(
    models: Sequence[ModelSpec],
    *,
    memory_budget: int | None = None,
    keys: Iterable[str] = (),
    cors_origins: Sequence[str] = (),
    hosts: Iterable[str] = LOOPBACK,
    limits: Limits | None = None,
    preload: bool = True,
    strict: bool = False,
    slot_folder: str | os.PathLike[str] | None = None,
    file_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    tracer_provider: Any = None,
) -> FastAPI:
    """Return the server as an ASGI application.

    Args:
        models: The models to serve.
        memory_budget: Bytes that the loaded models may take together, on all devices; None = what
            each device has free when a further model is loaded.
        keys: API keys, any of which is right; none = no key is needed.
        cors_origins: Origins of other web pages that may read answers; "localhost" = every page
            that this machine serves, at any port.
        hosts: Names that clients may call the server by; none = any.
        limits: Limits of the server; None = the defaults of `Limits`.
        preload: Whether to load the first model now; the others wait for their first request.
        strict: Whether to refuse a request of which something would be ignored or relaxed. By
            default it is answered, and the header `x-llcuda-ignored` and the log name that part.
        slot_folder: The folder where clients save slots of the KV cache; None = they cannot.
        file_folder: The folder of uploaded files and of the results of batches, which a later
            server finds there; None = a temporary folder.
        progress: Whether to draw a bar on stderr while the first model is loaded.
        tracer_provider: OpenTelemetry's TracerProvider, which gets a span of each request below the
            client's `traceparent`, and spans of its phases; None = no traces.

    Raises:
        ArgumentError: A value is outside what is allowed, a model is larger than the budget, or
            there is no such folder.
        ModelNotFoundError: There is no such file.
        ModelError: The first model cannot be loaded.
    """
    keys = checked_texts("keys", keys)
    hosts = checked_texts("hosts", hosts)
    cors_origins = checked_texts("cors_origins", cors_origins)
    if limits is not None and not isinstance(limits, Limits):
        raise wrong_value("limits", limits, "expected Limits")
    check_flag("preload", preload)
    check_flag("strict", strict)
    check_flag("progress", progress)
    tracer = tracer_of(tracer_provider)
    folders = _folder("slot_folder", slot_folder), _folder("file_folder", file_folder)
    service = Service(ModelPool(models, memory_budget), limits or Limits(), *folders)
    service.models.open(preload, progress)
    bodies = BodyReader()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _build_routes(app)
        service.batches.resume(app)
        yield
        bodies.close()
        await service.batches.close()
        service.files.close()
        await service.models.close()

    app = FastAPI(
        title="llcuda",
        version=llcuda.__version__,
        description="The APIs of OpenAI, Anthropic, ollama and llama-server over llama.cpp.",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's would make the document on the event loop; ours is below
        docs_url=None,  # FastAPI's page would load scripts of another host; /docs is ours
        redoc_url=None,
    )
    app.state.service = service
    app.state.bodies = bodies
    app.include_router(openai_routes(service, "/v1"))
    for api in APIS:
        app.include_router(api(service))
    app.include_router(_own_routes(service))
    app.include_router(page_routes())
    app.include_router(openai_routes(service), include_in_schema=False)  # for clients without /v1
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(
        RequestGuardMiddleware,
        limits=service.limits,
        traffic=service.traffic,
        keys=keys,
        hosts=hosts,
        strict=strict,
        tracer=tracer,
    )
    if cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(cors_origins))
    return app


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """Return the keywords of Starlette's CORSMiddleware; see `create_app`."""
    return {
        "allow_origins": [origin for origin in origins if origin != LOCAL_ORIGIN],
        "allow_origin_regex": LOCAL_PAGES if LOCAL_ORIGIN in origins else None,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": ["x-request-id", HEADER],
    }


def checked_texts(parameter: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return texts, none of them empty. A message does not show them, because keys are secret."""
    texts = None if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if texts is None or not all(isinstance(text, str) and text for text in texts):
        raise wrong_argument(parameter, "expected a list of texts, none of them empty")
    return texts


def _folder(parameter: str, given: str | os.PathLike[str] | None) -> Path | None:
    """Return a folder that is there."""
    folder = None if given is None else Path(local_path(given, parameter))
    if folder is not None and not folder.is_dir():
        raise wrong_value(parameter, str(folder), "there is no such folder")
    return folder


def _own_routes(service: Service) -> APIRouter:
    """Return the routes that belong to no other API."""
    router = APIRouter(responses=ERRORS, route_class=BodyRoute)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """Turn a text into tokens."""
        return service.answer(body, answer_tokenize)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        """Turn tokens into a text."""
        return service.answer(body, answer_detokenize)

    pages: list[str] = []

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """Show the API as a page."""
        if not pages:  # it takes no key, so that it must cost nothing
            document = await asyncio.to_thread(request.app.openapi)  # half a second at first
            pages.append(api_page(document))
        return HTMLResponse(pages[0], headers=HEADERS)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        """Describe the API as an OpenAPI document."""
        return JSONResponse(await asyncio.to_thread(request.app.openapi))

    @router.get("/health", response_model=dict[str, str])
    async def health(request: Request) -> Any:
        """Say that the server answers; 503 after a model or a GPU has failed for good."""
        if (failure := service.models.failure()) is not None:
            return _refusal(request, failure)
        loaded = service.models.loaded.values()
        recovers = any(model.state == "recovering" for model in loaded)
        return {"status": "recovering" if recovers else "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the counters in Prometheus' text format."""
        media_type = "text/plain; version=0.0.4; charset=utf-8"
        text = metrics_text(service.models, service.traffic)
        return PlainTextResponse(text, media_type=media_type)

    return router


def _build_routes(app: FastAPI) -> None:
    """Let FastAPI build the routes, which otherwise the first request waits for."""
    nowhere = {"type": "http", "method": "GET", "path": "/none", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(dict(nowhere))


def _refusal(request: Request, refusal: ApiError) -> Response:
    record: RequestRecord = request.scope[RECORD]
    body = ErrorShape.of(record).body(refusal, record.request_id)
    return Response(body, refusal.status, refusal.headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(request, error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"no such path: {request.url.path[:200]}",
        405: "this path has other methods",
    }
    message = messages.get(error.status_code, str(error.detail))
    answer = _refusal(request, ApiError(error.status_code, message))
    answer.headers.update(error.headers or {})
    return answer


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    uds: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    drain_seconds: float = 30.0,
    idle_seconds: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run then are finished first.

    Args:
        app: What `create_app` returned.
        host: Address to listen on; "0.0.0.0" = every IPv4 address of the machine.
        port: Port to listen on; 0 = a free one.
        uds: Path of a Unix socket to listen on in place of an address; a socket that no process
            listens on is replaced.
        tls_cert: File of a certificate chain, in PEM: HTTPS. None = HTTP.
        tls_key: File of its key; None = in the file of the certificate.
        drain_seconds: Longest time that running requests may take to finish.
        idle_seconds: Longest time until the whole head of a request has come over a connection,
            counted from its beginning or from the answer before.
        on_ready: Called with the server's URL when it takes connections.

    Raises:
        ArgumentError: The address cannot be used, or the certificate or its key.
        KeyboardInterrupt: Ctrl-C, after the server has stopped.
    """
    check_serving(
        host=host,
        port=port,
        uds=uds,
        tls_cert=tls_cert,
        tls_key=tls_key,
        drain_seconds=drain_seconds,
        idle_seconds=idle_seconds,
    )
    _raise_file_limit()
    config = uvicorn_config(app, drain_seconds, idle_seconds)
    config.ssl_certfile, config.ssl_keyfile = tls_cert, tls_key
    scheme = "http" if tls_cert is None else "https"
    with _listener(host, port, uds) as listener:
        if uds is None:
            address, port = listener.getsockname()[:2]
            name = f"[{address}]" if ":" in address else address
            url = f"{scheme}://{name}:{port}"
        else:
            url = f"{scheme}+unix://{quote(os.fspath(uds), safe='')}"
        server = _Server(config, lambda: on_ready and on_ready(url))
        previous = signal.signal(signal.SIGTERM, _on_sigterm)  # uvicorn raises it again at its end
        try:
            with suppress(_SigtermError), announce(url, _served_names(app)):
                server.run([listener])
        finally:
            signal.signal(signal.SIGTERM, previous)


def check_serving(
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    uds: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    drain_seconds: float = 30.0,
    idle_seconds: float = 30.0,
) -> None:
    """Raise ArgumentError for what `serve` refuses, before models are loaded for an application.

    Args:
        host: As for `serve`, like the others.
        port: The port, which must be free.
        uds: The Unix socket.
        tls_cert: The certificate.
        tls_key: Its key.
        drain_seconds: Seconds to finish.
        idle_seconds: Seconds of a head.
    """
    check_number("port", port, "int", 0, 65535)
    check_number("drain_seconds", drain_seconds, "number", 0)
    check_number("idle_seconds", idle_seconds, "number", MIN_SECONDS)
    if tls_cert is not None or tls_key is not None:
        check_certificate(tls_cert, tls_key)
    with _listener(host, port, uds):
        pass


def _listener(
    host: str, port: int, uds: str | os.PathLike[str] | None
) -> AbstractContextManager[socket.socket]:
    return listen(host, port) if uds is None else listen_unix(Path(uds))


def _served_names(app: FastAPI) -> list[str]:
    service = getattr(app.state, "service", None)  # None where the caller mounts it in an app
    return [*service.models.specs] if isinstance(service, Service) else []


def uvicorn_config(app: FastAPI, drain_seconds: float, idle_seconds: float) -> uvicorn.Config:
    """Return the configuration of uvicorn's server; the parameters are those of `serve`."""
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        timeout_keep_alive=idle_seconds,  # type: ignore[arg-type]  # a float is a time too
        access_log=False,
        log_config=None,  # the program configures logging
        log_level="warning",
        server_header=False,
    )


class _Server(uvicorn.Server):
    """Tells when it takes connections; a second signal cancels the requests that run."""

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
            self._loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()


class _SigtermError(BaseException):
    """SIGTERM, raised after the server has stopped."""


def _on_sigterm(number: int, frame: Any) -> None:
    raise _SigtermError


def _raise_file_limit() -> None:
    """Let the process open as many files, and so connections, as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
