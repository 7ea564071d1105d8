"""/metrics: the engines' numbers, one set for each loaded model, and the server's own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from llcuda.engine.engine import Engine
from llcuda.engine.metrics import exposition
from llcuda.server.middleware import Traffic
from llcuda.server.models import Models


def metrics_text(models: Models, traffic: Traffic) -> str:
    """Return everything in Prometheus' text format."""
    return exposition([*_of_models(models), *_of_server(models, traffic)])


def _of_models(models: Models) -> Iterator[Metric]:
    gauges = {
        "requests_running": "Texts in the batch.",
        "requests_waiting": "Requests in the queue.",
        "kv_tokens": "Tokens in the KV cache, those of kept texts too.",
        "kv_cells": "Tokens that the KV cache has room for.",
    }
    families = {
        name: GaugeMetricFamily(f"llcuda_{name}", text, labels=["model"])
        for name, text in gauges.items()
    }
    for name, loaded in models.loaded.items():
        if loaded.engine is not None:
            yield from loaded.engine.metrics.families(model=name)
            for gauge, value in _occupancy(loaded.engine).items():
                families[gauge].add_metric([name], value)
    yield from families.values()


def _occupancy(engine: Engine) -> dict[str, int]:
    """Return what an engine is busy with, as its worker's lists have it just now."""
    worker = engine._worker
    slots = worker._scheduler.slots
    running = sum(slot.job is not None for slot in slots)
    return {
        "requests_running": running,
        "requests_waiting": max(0, len(worker.requests) - running),
        "kv_tokens": sum(len(slot.tokens) for slot in slots),
        "kv_cells": len(slots) * engine.params.ctx_size,
    }


def _of_server(models: Models, traffic: Traffic) -> Iterator[Metric]:
    answers = CounterMetricFamily(
        "llcuda_http_requests", "Answers by path and status.", labels=["path", "status"]
    )
    for (path, status), count in sorted(traffic.answers.items()):
        answers.add_metric([path, str(status)], count)
    yield answers
    yield GaugeMetricFamily("llcuda_http_active", "Requests being answered.", traffic.active)
    yield CounterMetricFamily("llcuda_http_gone", "Clients that left early.", traffic.gone)
    yield CounterMetricFamily("llcuda_model_loads", "Models loaded.", models.loads)
    yield CounterMetricFamily("llcuda_model_unloads", "Models unloaded.", models.unloads)
