"""Traces of requests by OpenTelemetry; needs the extra `otel`.

A request is a span of the server, below the client's `traceparent`. The queue, the prefill and the
decode steps of each of its texts are spans below it. Texts are never part of a span.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from llcuda.engine.outputs import Completion
from llcuda.errors import LibraryError
from llcuda.params import wrong_value

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

MISSING = "traces need OpenTelemetry: pip install 'llcuda[otel]'"
_tracer: ContextVar[Tracer | None] = ContextVar("llcuda_tracer", default=None)


class Facts(Protocol):
    """What a span has of a request: the attributes of a RequestRecord."""

    method: str
    path: str
    client: str
    request_id: str
    usage: Mapping[str, Any]
    ignored: Sequence[str]

    @property
    def final_status(self) -> int:
        """The status of the answer."""


def tracer_of(provider: Any) -> Tracer | None:
    """Return the tracer of an OpenTelemetry TracerProvider; None for None."""
    if provider is None:
        return None
    if not callable(getattr(provider, "get_tracer", None)):
        rule = "expected a TracerProvider of OpenTelemetry"
        raise wrong_value("tracer_provider", provider, rule)
    from llcuda import __version__

    tracer: Tracer = provider.get_tracer("llcuda", __version__)
    return tracer


def check_endpoint(endpoint: str) -> None:
    """Raise ArgumentError for an `otlp_endpoint` that is not the URL of an HTTP server."""
    if not isinstance(endpoint, str) or not endpoint.startswith(("http://", "https://")):
        rule = "expected a URL such as http://localhost:4318"
        raise wrong_value("otlp_endpoint", endpoint, rule)


def otlp_provider(endpoint: str) -> Any:
    """Return a TracerProvider that sends spans to a collector, by OTLP over HTTP.

    Args:
        endpoint: The collector's URL, to which /v1/traces is added.

    Raises:
        ArgumentError: It is not the URL of an HTTP server.
        LibraryError: The extra `otel` is not installed.
    """
    check_endpoint(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise LibraryError(MISSING) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "llcuda"}))
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


@contextmanager
def trace_request(tracer: Tracer | None, scope: Mapping[str, Any], record: Facts) -> Iterator[None]:
    """Make a span of the request that the block answers.

    Args:
        tracer: The tracer; None makes no span.
        scope: The ASGI scope of the request.
        record: The facts of the request, which the answer completes.
    """
    if tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    names = (b"traceparent", b"tracestate")
    headers = {k.decode(): v.decode("latin-1") for k, v in scope["headers"] if k in names}
    attributes = {
        "http.request.method": record.method,
        "url.path": record.path,
        "client.address": record.client,
        "llcuda.request_id": record.request_id,
    }
    context = TraceContextTextMapPropagator().extract(headers)
    token = _tracer.set(tracer)
    try:
        with tracer.start_as_current_span(
            record.method, context, SpanKind.SERVER, attributes
        ) as span:
            yield
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{record.method} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", record.final_status)
            for kind, field in (("input", "prompt_tokens"), ("output", "completion_tokens")):
                if (count := record.usage.get(field)) is not None:
                    span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
            if record.ignored:
                span.set_attribute("llcuda.ignored", list(record.ignored))
            if record.final_status >= 500:
                span.set_status(StatusCode.ERROR)
    finally:
        _tracer.reset(token)


def trace_headers() -> dict[bytes, bytes]:
    """Return the headers with which another process continues the span of this request."""
    if _tracer.get() is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {name.encode(): value.encode("latin-1") for name, value in carrier.items()}


def trace_phases(completions: Sequence[Completion]) -> None:
    """Add the phases of texts that have just ended to the span of their request.

    Args:
        completions: The texts.
    """
    tracer = _tracer.get()
    if tracer is None:
        return
    now = time.time_ns()
    for completion in completions:
        start = now - int(completion.latency_seconds * 1e9)
        phases: dict[str, tuple[float, dict[str, Any]]] = {
            "queue": (completion.queue_seconds, {}),
            "prefill": (
                completion.prefill_seconds,
                {
                    "llcuda.prompt_tokens": completion.prompt_tokens,
                    "llcuda.cached_tokens": completion.cached_tokens,
                },
            ),
            "decode": (
                completion.decode_seconds,
                {
                    "llcuda.tokens": len(completion.tokens),
                    "llcuda.finish_reason": completion.finish_reason,
                },
            ),
        }
        for name, (seconds, attributes) in phases.items():
            span = tracer.start_span(name, attributes=attributes, start_time=start)
            start += int(seconds * 1e9)
            span.end(start)
