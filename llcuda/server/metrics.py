"""/metrics: the metrics of each loaded model's engine, and those of the server.

What vLLM has too is there a second time under vLLM's name and with its labels, so that its
dashboards and alerts work.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from llcuda.engine.metrics import exposition
from llcuda.server.middleware import Traffic
from llcuda.server.models import ModelPool

# llcuda's names -> vLLM's, each without its prefix.
VLLM = {
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "kv_cache_usage": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "request_success": "request_success",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "time_per_output_token_seconds": "time_per_output_token_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "request_queue_time_seconds": "request_queue_time_seconds",
}


def metrics_text(models: ModelPool, traffic: Traffic) -> str:
    """Return all metrics in Prometheus' text format."""
    return exposition(metric_families(models, traffic))


def metric_families(models: ModelPool, traffic: Traffic) -> list[Metric]:
    """Return all metrics.

    Args:
        models: The models.
        traffic: The counters of the server.
    """
    own = [*_model_metrics(models)]
    for_vllm = [_for_vllm(family) for family in own if _short_name(family) in VLLM]
    return [*own, *for_vllm, *_server_metrics(models, traffic)]


def _short_name(family: Metric) -> str:
    return family.name.removeprefix("llcuda_")


def _for_vllm(family: Metric) -> Metric:
    """Return a family with vLLM's name and labels."""
    name = f"vllm:{VLLM[_short_name(family)]}"
    copy = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        labels = {**sample.labels, "model_name": sample.labels["model"], "engine": "0"}
        del labels["model"]
        copy.add_sample(name + sample.name.removeprefix(family.name), labels, sample.value)
    return copy


def _model_metrics(models: ModelPool) -> Iterator[Metric]:
    gauges = {
        "num_requests_running": "Requests in the batch.",
        "num_requests_waiting": "Requests in the queue.",
        "kv_cache_usage": "Part of the KV cache that is in use, cached prefixes included.",
        "kv_cache_cells": "Tokens that the KV cache has room for.",
        "engine_up": "1 while the engine computes, 0 while it recovers or after it has failed.",
    }
    families = {
        name: GaugeMetricFamily(f"llcuda_{name}", text, labels=["model"])
        for name, text in gauges.items()
    }
    for name, loaded in models.loaded.items():
        if loaded.engine is not None:
            yield from loaded.engine.metrics.families(model=name)
            load = loaded.engine.load()
            usage = load.cells_used / load.cells
            is_up = loaded.engine.state == "running"
            values = (load.running, load.waiting, usage, load.cells, is_up)
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([name], value)
    yield from families.values()


def _server_metrics(models: ModelPool, traffic: Traffic) -> Iterator[Metric]:
    answers = CounterMetricFamily(
        "llcuda_http_requests", "Answers by path and status.", labels=["path", "status"]
    )
    for (path, status), count in sorted(traffic.answers.items()):
        answers.add_metric([path, str(status)], count)
    yield answers
    yield GaugeMetricFamily("llcuda_http_active", "Requests being answered.", traffic.active)
    yield GaugeMetricFamily(
        "llcuda_http_body_bytes",
        "Bytes of the bodies of these requests, beyond the first 64 KiB of each.",
        traffic.body_bytes,
    )
    yield CounterMetricFamily(
        "llcuda_http_client_disconnects",
        "Clients that disconnected before their answer was complete.",
        traffic.client_disconnects,
    )
    yield CounterMetricFamily("llcuda_model_loads", "Models loaded.", models.loads)
    yield CounterMetricFamily("llcuda_model_unloads", "Models unloaded.", models.unloads)
