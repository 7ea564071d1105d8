from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda.engine.metrics import PHASES, SECONDS, Histogram, Metrics, RequestRecord, StepRecord

REQUEST = RequestRecord(
    prompt_tokens=10,
    cached_tokens=4,
    generated_tokens=20,
    forced_tokens=5,
    queue_seconds=0.1,
    prefill_seconds=0.2,
    decode_seconds=0.5,
    sample_seconds=0.05,
    detokenize_seconds=0.01,
    time_to_first_token_seconds=0.3,
    latency_seconds=1.0,
    mean_rows=4.0,
    finish_reason="stop",
)
STEP = StepRecord(
    phase="decode",
    rows=4,
    tokens=4,
    decode_seconds=0.2,
    sample_seconds=0.05,
    deliver_seconds=0.02,
    seconds=0.3,
)
KEYS = {
    "throughput": {"total_requests", "total_tokens", "forced_tokens"}
    | {"tokens_per_sec", "requests_per_sec"},
    "latency": {"mean_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "sample_count"},
    "aggregate": {"busy_seconds", "tokens_per_sec", "requests_per_sec"},
    "phases": {f"{phase}_seconds" for phase in PHASES},
    "batch": {
        *{"steps", "prefill_steps", "decode_steps", "mean_rows", "mean_tokens"},
        *{"decode_seconds", "sample_seconds", "deliver_seconds", "seconds"},
    },
    "reuse": {"prompt_tokens", "cached_tokens", "reused_tokens", "ratio"},
    "recovery": {"recoveries"},
    "finish_reasons": set(),
    "errors": set(),
}
latencies = st.lists(st.floats(0, 1e4), min_size=1, max_size=200)


def metrics_of(values: list[float], window: int = 100) -> Metrics:
    metrics = Metrics(window)
    for value in values:
        metrics.record_request(replace(REQUEST, latency_seconds=value))
    return metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Return the lines of the Prometheus text as name{labels} -> value."""
    lines = metrics.prometheus_text().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_every_number_is_there_before_the_first_request() -> None:
    """All keys exist, all are 0, and all can be formatted as `:.1f`."""
    snapshot = Metrics().snapshot()
    assert {name: set(group) for name, group in snapshot.items()} == KEYS
    for group in snapshot.values():
        for value in group.values():
            assert f"{value:.1f}" == "0.0"


def test_throughput_counts_over_summed_latency_and_aggregate_over_busy_time() -> None:
    """Two overlapping requests of 1 s and 20 tokens in 0.5 s of steps: 20 tok/s each, 80 in all.

    A step's whole time is busy time, not the library's part of it alone.
    """
    metrics = metrics_of([1.0, 1.0])
    metrics.record_step(STEP)
    metrics.record_step(replace(STEP, phase="prefill", rows=2, tokens=8, seconds=0.2))
    snapshot = metrics.snapshot()
    assert snapshot["throughput"] == {
        "total_requests": 2,
        "total_tokens": 40,
        "forced_tokens": 10,
        "tokens_per_sec": 20.0,
        "requests_per_sec": 1.0,
    }
    assert snapshot["aggregate"] == {
        "busy_seconds": 0.5,
        "tokens_per_sec": 80.0,
        "requests_per_sec": 4.0,
    }
    assert snapshot["batch"] == {
        "steps": 2,
        "prefill_steps": 1,
        "decode_steps": 1,
        "mean_rows": 3.0,
        "mean_tokens": 6.0,
        "decode_seconds": 0.4,
        "sample_seconds": 0.1,
        "deliver_seconds": 0.04,
        "seconds": 0.5,
    }
    assert snapshot["phases"]["queue_seconds"] == 0.2
    assert snapshot["reuse"] == {
        "prompt_tokens": 20,
        "cached_tokens": 8,
        "reused_tokens": 8,
        "ratio": 0.4,
    }


@given(latencies)
def test_latency_equals_numpy(values: list[float]) -> None:
    """Mean, extremes and count are of all requests, percentiles of the last 100, as numpy's."""
    latency = metrics_of(values).snapshot()["latency"]
    recent = values[-100:]
    for q in (50, 95, 99):
        assert latency[f"p{q}_ms"] == pytest.approx(float(np.percentile(recent, q)) * 1e3)
    assert latency["mean_ms"] == pytest.approx(float(np.mean(values)) * 1e3)
    assert (latency["min_ms"], latency["max_ms"]) == (min(values) * 1e3, max(values) * 1e3)
    assert latency["sample_count"] == len(values)


@given(latencies)
def test_histogram_equals_counting(values: list[float]) -> None:
    """Each bound's count is how many values are at or below it; the last one is all."""
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(value)
    expected = [sum(value <= bound for value in values) for bound in (*SECONDS, np.inf)]
    assert expected == [count for _, count in histogram.cumulative()]


def test_memory_is_bounded() -> None:
    """Ten thousand requests keep the latencies of the window, and nothing else."""
    tracemalloc.start()
    try:
        metrics = metrics_of([float(i) for i in range(10_000)], window=50)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 16_384  # 50 latencies are 1,200 bytes, all of them 240,000
    assert metrics.snapshot()["latency"]["sample_count"] == 10_000


def test_reasons_and_errors_are_counted_by_kind() -> None:
    """A failed request is an error and no request."""
    metrics = metrics_of([1.0, 1.0])
    metrics.record_request(replace(REQUEST, finish_reason="length"))
    metrics.record_error("DecodeError")
    snapshot = metrics.snapshot()
    assert snapshot["finish_reasons"] == {"stop": 2, "length": 1}
    assert snapshot["errors"] == {"DecodeError": 1}
    assert snapshot["throughput"]["total_requests"] == 3


def test_reset_returns_to_zero() -> None:
    """After reset() nothing differs from new metrics; a snapshot taken before stays."""
    metrics = metrics_of([1.0])
    metrics.record_step(STEP)
    metrics.record_error("DecodeError")
    before = metrics.snapshot()
    metrics.reset()
    assert metrics.snapshot() == Metrics().snapshot()
    assert before["throughput"]["total_requests"] == 1


def test_threads_lose_nothing() -> None:
    """Eight threads record while another one reads; every record is counted once."""
    metrics = Metrics()
    stop = threading.Event()
    seen: list[dict[str, Any]] = []

    def record() -> None:
        for _ in range(500):
            metrics.record_request(REQUEST)
            metrics.record_step(STEP)

    def read() -> None:
        while not stop.is_set():
            seen.append(metrics.snapshot())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        reader = threading.Thread(target=read)
        writers = [threading.Thread(target=record) for _ in range(8)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        reader.join()
    finally:
        sys.setswitchinterval(interval)
    snapshot = metrics.snapshot()
    assert snapshot["throughput"]["total_requests"] == snapshot["batch"]["steps"] == 4000
    for snapshot in seen:  # within a snapshot the numbers belong together
        throughput = snapshot["throughput"]
        assert throughput["total_tokens"] == 20 * throughput["total_requests"]
        assert snapshot["latency"]["sample_count"] == throughput["total_requests"]


def test_prometheus_text_has_the_snapshots_numbers() -> None:
    """Counters, labels and histograms under their names, with the values of the snapshot."""
    metrics = metrics_of([0.2, 7.0])
    metrics.record_request(replace(REQUEST, time_to_first_token_seconds=None, generated_tokens=0))
    metrics.record_step(STEP)
    metrics.record_error("DecodeError")
    metrics.record_recovery()
    values = samples(metrics)
    expected = {
        'llcuda_request_success_total{finished_reason="stop"}': 3.0,
        'llcuda_errors_total{kind="DecodeError"}': 1.0,
        "llcuda_recoveries_total": 1.0,
        "llcuda_generation_tokens_total": 40.0,
        "llcuda_prompt_tokens_total": 30.0,
        "llcuda_prefix_cache_queries_total": 30.0,
        "llcuda_prefix_cache_hits_total": 12.0,
        'llcuda_steps_total{phase="decode"}': 1.0,
        "llcuda_busy_seconds_total": 0.3,
        'llcuda_step_seconds_total{part="decode"}': 0.2,
        'llcuda_step_seconds_total{part="sample"}': 0.05,
        'llcuda_step_seconds_total{part="deliver"}': 0.02,
        'llcuda_e2e_request_latency_seconds_bucket{le="0.25"}': 1.0,
        'llcuda_e2e_request_latency_seconds_bucket{le="+Inf"}': 3.0,
        "llcuda_e2e_request_latency_seconds_sum": 8.2,
        "llcuda_e2e_request_latency_seconds_count": 3.0,
        "llcuda_time_to_first_token_seconds_count": 2.0,
        'llcuda_request_queue_time_seconds_bucket{le="0.1"}': 3.0,
        'llcuda_batch_rows_bucket{le="2.0"}': 0.0,
        'llcuda_batch_rows_bucket{le="4.0"}': 1.0,
    }
    assert expected == {name: values[name] for name in expected}
    assert values['llcuda_phase_seconds_total{phase="decode"}'] == 1.5


def test_prometheus_text_of_two_engines_and_of_none() -> None:
    """Engines share no registry; before any request the text has zeros."""
    used, unused = metrics_of([1.0]), Metrics()
    assert samples(used)["llcuda_generation_tokens_total"] == 20.0
    assert samples(unused)["llcuda_generation_tokens_total"] == 0.0
    assert samples(unused)["llcuda_e2e_request_latency_seconds_count"] == 0.0


def test_prometheus_text_without_the_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What to install is in the message."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match=r"llcuda\[server\]"):
        Metrics().prometheus_text()
