"""Metrics and traces of both processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")
import ray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.cluster import Clustered, on_cluster
from tests.support.waiting import eventually


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Take spans; yield the collector's URL and the spans."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_spans_of_both_processes_are_below_the_clients(port: int) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (url, spans), on_cluster(port, otlp_endpoint=url) as server:
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        body = {"prompt": "Once", "max_tokens": 2}
        assert 200 == server.client.post("/v1/completions", json=body, headers=headers).status_code
        assert eventually(lambda: len([s for s in spans if s.name.startswith("POST")]) == 2)
        outer, inner = sorted(
            (span for span in spans if span.name.startswith("POST")),
            key=lambda span: span.start_time_unix_nano,
        )
        assert {bytes.fromhex(trace)} == {span.trace_id for span in spans}
        assert bytes.fromhex(parent) == outer.parent_span_id
        assert outer.span_id == inner.parent_span_id
        assert "POST /v1/completions" == inner.name


def test_ray_exports_the_metrics_of_each_replica(server: Clustered) -> None:
    [node] = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"

    def replicas() -> set[str]:
        server.post("/v1/completions", prompt="Once", max_tokens=2)
        lines = httpx.get(address, trust_env=False).text.splitlines()
        found = [line for line in lines if line.startswith("ray_llcuda_kv_cache_cells{")]
        return {line.partition('replica="')[2].partition('"')[0] for line in found}

    assert eventually(lambda: len(replicas()) == 2)
