"""Traces: a span of each request below the client's, and spans of its phases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llcuda.errors import ArgumentError, LibraryError
from llcuda.server import create_app
from llcuda.server.tracing import otlp_provider
from tests.support.collector import collecting
from tests.support.server import Served, demo, served
from tests.support.waiting import eventually

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
HEADER = {"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01"}
SPANS = InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced() -> Iterator[Served]:
    """A server whose spans are kept."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SPANS))
    with served(demo(), tracer_provider=provider) as running:
        yield running


def ask(server: Served, count: int, method: str, path: str, **body: Any) -> list[ReadableSpan]:
    """Return the spans of a request, in the order of their ends."""
    SPANS.clear()
    server.client.request(method, path, json=body or None, headers=HEADER)
    assert eventually(lambda: len(SPANS.get_finished_spans()) == count)
    return list(SPANS.get_finished_spans())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_request_and_its_phases(traced: Served, path: str, stream: bool) -> None:
    """The phases follow one another below the request, which is below the client's span."""
    prompt: dict[str, Any] = {"prompt": "Once"}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "SECRET"}]}
    body = {**prompt, "max_tokens": 3, "ignore_eos": True, "stream": stream, "zzz": 1}
    *phases, request = ask(traced, 4, "POST", path, **body)
    assert (f"POST {path}", SpanKind.SERVER) == (request.name, request.kind)
    assert request.context is not None and request.parent is not None
    assert (TRACE, PARENT) == (request.context.trace_id, request.parent.span_id)
    facts = dict(request.attributes or {})
    assert (200, 3, ("zzz",)) == (
        facts["http.response.status_code"], facts["gen_ai.usage.output_tokens"],
        facts["llcuda.ignored"],
    )  # fmt: skip
    assert ["queue", "prefill", "decode"] == [span.name for span in phases]
    for before, after in pairwise(phases):
        assert before.end_time == after.start_time
    for span in phases:
        assert span.parent is not None
        assert request.context.span_id == span.parent.span_id
    assert {"llcuda.tokens": 3, "llcuda.finish_reason": "length"} == dict(
        phases[2].attributes or {}
    )
    assert "SECRET" not in "".join(span.to_json() for span in [*phases, request])


def test_requests_without_texts(traced: Served) -> None:
    """Refused ones have their status; only a failure of the server is an error of the span."""
    [request] = ask(traced, 1, "POST", "/v1/completions", prompt=5)
    assert 400 == (request.attributes or {})["http.response.status_code"]
    assert StatusCode.UNSET == request.status.status_code
    [request] = ask(traced, 1, "GET", "/no/such/path")
    assert "GET" == request.name


def test_a_broken_traceparent(traced: Served) -> None:
    """It begins a trace of its own."""
    SPANS.clear()
    headers = {"traceparent": "00-zz-\xff".encode("latin-1")}
    assert 200 == traced.client.get("/health", headers=headers).status_code
    assert eventually(lambda: len(SPANS.get_finished_spans()) == 1)
    [request] = SPANS.get_finished_spans()
    assert request.parent is None


def test_a_collector_gets_the_spans() -> None:
    """By OTLP over HTTP, at the path that the protocol names."""
    with collecting() as collector:
        provider = otlp_provider(f"{collector.url}/")
        provider.get_tracer("test").start_span("a").end()
        provider.shutdown()
    assert ["/v1/traces"] == collector.paths


def test_wrong_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is an error before a model is loaded."""
    with pytest.raises(ArgumentError, match="tracer_provider=5: expected a TracerProvider"):
        create_app([demo()], tracer_provider=5)
    with pytest.raises(ArgumentError, match="expected a URL such as"):
        otlp_provider("localhost:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(LibraryError, match=r"pip install 'llcuda\[otel\]'"):
        otlp_provider("http://localhost:4318")
