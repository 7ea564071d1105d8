"""Metrics and traces of both processes."""

from __future__ import annotations

import httpx
import pytest

pytest.importorskip("ray")
import ray

from tests.support.cluster import Clustered, on_cluster
from tests.support.collector import collecting
from tests.support.waiting import eventually


def test_the_spans_of_both_processes_are_below_the_clients(port: int) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collecting() as collector, on_cluster(port, otlp_endpoint=collector.url) as server:
        spans = collector.spans
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
