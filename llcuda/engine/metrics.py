"""Metrics: counters, histograms and percentiles of an engine, in bounded memory.

The engine records plain data; `snapshot()` and `prometheus_text()` show the same numbers. This
module knows neither models nor the library.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llcuda._lazy import warn_deprecated
from llcuda._pickling import stays_in_process

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

logger = logging.getLogger("llcuda.engine")
PHASES = ("queue", "prefill", "decode", "sample", "detokenize")
WINDOW = 4096
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The cost of one request. Times are wall time as the request saw it, in seconds.

    Attributes:
        prompt_tokens: Tokens of the whole prompt.
        cached_tokens: Tokens of the prompt that a cached prefix has spared.
        generated_tokens: Tokens of the answer, without the end token.
        forced_tokens: Generated tokens that were not sampled.
        queue_seconds: From submission until a slot was free.
        prefill_seconds: From then until the first token.
        decode_seconds: From then until the end.
        sample_seconds: The row's share of the time that the decode steps spent on sampling.
        detokenize_seconds: The row's share of the time that they spent on delivering text.
        time_to_first_token_seconds: From submission; None if there was no token.
        latency_seconds: From submission until the end.
        mean_rows: Rows in the decode steps that it took part in, 0 without any.
        finish_reason: That of the completion, "error" for a request that failed.
        error: Type and text of the exception of a request that failed.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    forced_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    sample_seconds: float
    detokenize_seconds: float
    time_to_first_token_seconds: float | None
    latency_seconds: float
    mean_rows: float
    finish_reason: str
    error: str | None = None

    @property
    def reused_tokens(self) -> int:
        """The old name of `cached_tokens`; deprecated."""
        warn_deprecated("RequestRecord.reused_tokens", "RequestRecord.cached_tokens")
        return self.cached_tokens


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The cost of one step of the engine. Times are in seconds.

    Attributes:
        phase: "prefill" or "decode".
        rows: Sequences in the batch.
        tokens: Tokens of all of them.
        decode_seconds: Time in llama.cpp's decode.
        sample_seconds: Time in the samplers.
        deliver_seconds: Time until the text of each token was with its reader.
        seconds: The whole step, with scheduling and bookkeeping.
    """

    phase: str
    rows: int
    tokens: int
    decode_seconds: float
    sample_seconds: float
    deliver_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The requests and the KV cache of an engine at one moment.

    Attributes:
        running: Requests that have a slot.
        waiting: Requests that have none yet.
        cells_used: Tokens in the KV cache, those of cached prefixes included.
        cells: Tokens that the KV cache has room for.
    """

    running: int
    waiting: int
    cells_used: int
    cells: int


@dataclass(slots=True)
class StepSums:
    """Running sums over the engine's decode steps, with the time of one row of each step.

    The part of a request is the difference between its last and its first step, so that nothing is
    added up for each row.
    """

    steps: int = 0
    rows: int = 0
    sample_seconds: float = 0.0
    deliver_seconds: float = 0.0

    def mark(self) -> StepSums:
        """Return a copy."""
        return StepSums(self.steps, self.rows, self.sample_seconds, self.deliver_seconds)


class Histogram:
    """The number of values up to each bound, their sum and extremes; exact, of fixed size.

    Args:
        bounds: The upper bounds of the buckets, ascending.
    """

    __slots__ = ("bounds", "count", "counts", "maximum", "minimum", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = self.minimum = self.maximum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.minimum = min(self.minimum, value) if self.count else value
        self.maximum = max(self.maximum, value) if self.count else value
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float:
        """The mean; 0 before any value."""
        return self.total / self.count if self.count else 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (bound, values up to it) pairs, as Prometheus wants them."""
        pairs = []
        seen = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            pairs.append((bound, float(seen)))
        return pairs


def percentile(ordered: Sequence[float], q: float) -> float:
    """Return the q-th percentile (0 to 100) of sorted values, linear between two; 0 of none."""
    if not ordered:
        return 0.0
    place = (len(ordered) - 1) * q / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class _State:
    """The numbers since the last reset."""

    def __init__(self, window: int) -> None:
        self.latencies: deque[float] = deque(maxlen=window)
        self.latency = Histogram(SECONDS)
        self.first_token = Histogram(SECONDS)
        self.token = Histogram(TOKEN_SECONDS)
        self.queue = Histogram(SECONDS)
        self.rows = Histogram(ROWS)
        self.prompt_tokens = self.cached_tokens = 0
        self.generated_tokens = self.forced_tokens = 0
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.steps: Counter[str] = Counter()
        self.step_tokens = 0
        self.busy_seconds = 0.0
        self.step_decode_seconds = self.step_sample_seconds = self.step_deliver_seconds = 0.0
        self.recoveries = 0
        self.finish_reasons: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()


@stays_in_process("its snapshot(), or its prometheus_text()")
class Metrics:
    """The numbers of one engine; any thread may record and read.

    Counts, means and extremes are exact.

    Args:
        window: The number of last requests that percentiles are computed from.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._state = _State(window)
        _all.add(self)

    def record_request(self, record: RequestRecord) -> None:
        """Count a request that ended without an error."""
        with self._lock:
            state = self._state
            state.latencies.append(record.latency_seconds)
            state.latency.add(record.latency_seconds)
            state.queue.add(record.queue_seconds)
            if record.time_to_first_token_seconds is not None:
                state.first_token.add(record.time_to_first_token_seconds)
            if record.generated_tokens > 1:
                state.token.add(record.decode_seconds / (record.generated_tokens - 1))
            state.prompt_tokens += record.prompt_tokens
            state.cached_tokens += record.cached_tokens
            state.generated_tokens += record.generated_tokens
            state.forced_tokens += record.forced_tokens
            phases = state.phases
            phases["queue"] += record.queue_seconds
            phases["prefill"] += record.prefill_seconds
            phases["decode"] += record.decode_seconds
            phases["sample"] += record.sample_seconds
            phases["detokenize"] += record.detokenize_seconds
            state.finish_reasons[record.finish_reason] += 1

    def record_step(self, record: StepRecord) -> None:
        """Count a step of the engine."""
        with self._lock:
            state = self._state
            state.steps[record.phase] += 1
            state.rows.add(record.rows)
            state.step_tokens += record.tokens
            state.step_decode_seconds += record.decode_seconds
            state.step_sample_seconds += record.sample_seconds
            state.step_deliver_seconds += record.deliver_seconds
            state.busy_seconds += record.seconds

    def record_error(self, kind: str) -> None:
        """Count a request that failed, and nothing else of it.

        Args:
            kind: The name of the exception's class.
        """
        with self._lock:
            self._state.errors[kind] += 1

    def record_recovery(self) -> None:
        """Count a context that failed and was made anew."""
        with self._lock:
            self._state.recoveries += 1

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._state = _State(self._window)

    def snapshot(self) -> dict[str, Any]:
        """Return all numbers; every key is there from the start, with 0.

        Returns:
            A dict of dicts:

            - throughput: Tokens and requests, and their rates per second of summed latency, which
              is the speed that one request sees.
            - latency: Milliseconds of the requests.
            - aggregate: Rates per second in which the engine computed (busy_seconds), however many
              requests ran at once.
            - phases: Seconds summed over requests, which overlap in a batch.
            - batch: Steps, and seconds in them: in all, and for decoding, sampling and delivery.
            - reuse: Tokens of the prompts, and how many of them a cached prefix has spared.
            - recovery: How often the context failed and was made anew.
            - finish_reasons, errors: The number of each. A request that failed is counted in errors
              and nowhere else.
        """
        with self._lock:
            state = self._state
            ordered = list(state.latencies)
            latency, busy, tokens = state.latency, state.busy_seconds, state.generated_tokens
            result: dict[str, Any] = {
                "throughput": {
                    "total_requests": latency.count,
                    "total_tokens": tokens,
                    "forced_tokens": state.forced_tokens,
                    "tokens_per_sec": _rate(tokens, latency.total),
                    "requests_per_sec": _rate(latency.count, latency.total),
                },
                "latency": {
                    "mean_ms": latency.mean * 1e3,
                    "p50_ms": 0.0,
                    "p95_ms": 0.0,
                    "p99_ms": 0.0,
                    "min_ms": latency.minimum * 1e3,
                    "max_ms": latency.maximum * 1e3,
                    "sample_count": latency.count,
                },
                "aggregate": {
                    "busy_seconds": busy,
                    "tokens_per_sec": _rate(tokens, busy),
                    "requests_per_sec": _rate(latency.count, busy),
                },
                "phases": {f"{name}_seconds": spent for name, spent in state.phases.items()},
                "batch": {
                    "steps": state.rows.count,
                    "prefill_steps": state.steps["prefill"],
                    "decode_steps": state.steps["decode"],
                    "mean_rows": state.rows.mean,
                    "mean_tokens": _rate(state.step_tokens, state.rows.count),
                    "decode_seconds": state.step_decode_seconds,
                    "sample_seconds": state.step_sample_seconds,
                    "deliver_seconds": state.step_deliver_seconds,
                    "seconds": busy,
                },
                "reuse": {
                    "prompt_tokens": state.prompt_tokens,
                    "cached_tokens": state.cached_tokens,
                    "reused_tokens": state.cached_tokens,  # the old name, for one release
                    "ratio": _rate(state.cached_tokens, state.prompt_tokens),
                },
                "recovery": {"recoveries": state.recoveries},
                "finish_reasons": dict(state.finish_reasons),
                "errors": dict(state.errors),
            }
        ordered.sort()  # outside the lock: a reader must not hold up the engine
        for q in (50, 95, 99):
            result["latency"][f"p{q}_ms"] = percentile(ordered, q) * 1e3
        return result

    def prometheus_text(self) -> str:
        """Return the numbers in Prometheus' text format.

        Names are those of vLLM, with the prefix `llcuda_`, where vLLM has the same number.

        Raises:
            ModuleNotFoundError: The extra `server` is not installed.
        """
        return exposition(self.families())

    def families(self, **labels: str) -> list[Metric]:
        """Return the numbers as prometheus_client's families, each sample with these labels."""
        try:
            from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_MISSING) from error
        families: list[Metric] = []
        names, given = [*labels], [*labels.values()]

        def counter(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> None:
            own = [label] if label else []
            family = CounterMetricFamily(f"llcuda_{name}", text, labels=names + own)
            for key, value in values:
                family.add_metric(given + [key] * len(own), value)
            families.append(family)

        def histogram(name: str, text: str, values: Histogram) -> None:
            family = HistogramMetricFamily(f"llcuda_{name}", text, labels=names)
            family.add_metric(given, buckets=values.cumulative(), sum_value=values.total)
            families.append(family)

        with self._lock:
            state = self._state
            reasons, kinds = state.finish_reasons.items(), state.errors.items()
            counter("request_success", "Requests that ended.", "finished_reason", reasons)
            counter("errors", "Requests that failed.", "kind", kinds)
            counter("recoveries", "Contexts made anew.", "", [("", state.recoveries)])
            counter("generation_tokens", "Tokens generated.", "", [("", state.generated_tokens)])
            counter("forced_tokens", "Of these not sampled.", "", [("", state.forced_tokens)])
            counter("prompt_tokens", "Tokens of the prompts.", "", [("", state.prompt_tokens)])
            queries = [("", state.prompt_tokens)]
            counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", "", queries)
            hits = [("", state.cached_tokens)]
            counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", "", hits)
            counter("steps", "Steps of the engine.", "phase", state.steps.items())
            counter("busy_seconds", "Time in steps.", "", [("", state.busy_seconds)])
            parts = {
                "decode": state.step_decode_seconds,
                "sample": state.step_sample_seconds,
                "deliver": state.step_deliver_seconds,
            }
            counter("step_seconds", "Time in parts of the steps.", "part", parts.items())
            counter("phase_seconds", "Time of requests.", "phase", state.phases.items())
            histogram("e2e_request_latency_seconds", "Latency of requests.", state.latency)
            histogram("time_to_first_token_seconds", "From submission.", state.first_token)
            histogram("time_per_output_token_seconds", "After the first token.", state.token)
            histogram("request_queue_time_seconds", "Time before a slot was free.", state.queue)
            histogram("batch_rows", "Sequences in a step.", state.rows)
        return families


_MISSING = "Prometheus text needs prometheus_client: pip install 'llcuda[server]'"


def exposition(families: Iterable[Metric]) -> str:
    """Return families in Prometheus' text format; those of one name become one."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING) from error
    merged: dict[str, Metric] = {}
    for family in families:
        known = merged.setdefault(family.name, family)
        if known is not family:
            known.samples += family.samples
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector([*merged.values()]))
    return generate_latest(registry).decode()


class Reporter:
    """Records the work of one engine in its metrics, and calls the hooks.

    Args:
        metrics: The numbers to count in.
        on_step: Called with the record of each step.
        on_request: Called with the record of each request that ends.
    """

    def __init__(
        self,
        metrics: Metrics,
        on_step: Callable[[StepRecord], None] | None = None,
        on_request: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self._metrics, self._on_step, self._on_request = metrics, on_step, on_request

    def step(self, record: StepRecord) -> None:
        """Report a step."""
        self._metrics.record_step(record)
        if self._on_step is not None:
            _call(self._on_step, record)

    def recovered(self) -> None:
        """Report that the context failed and was made anew."""
        self._metrics.record_recovery()

    def finished(self, record: RequestRecord) -> None:
        """Report a request that has its result."""
        self._metrics.record_request(record)
        if self._on_request is not None:
            _call(self._on_request, record)

    def failed(self, record: RequestRecord, error: BaseException) -> None:
        """Report a request that ends with `error`."""
        self._metrics.record_error(type(error).__name__)
        if self._on_request is not None:
            _call(self._on_request, record)


def _call(hook: Callable[[Any], None], record: Any) -> None:
    try:
        hook(record)
    except BaseException:  # sys.exit() in a hook does not stop the engine either
        logger.exception("a hook of the engine raised")


_all: weakref.WeakSet[Metrics] = weakref.WeakSet()


def _after_fork() -> None:
    """Make locks anew in a forked child, where a thread that holds one does not exist."""
    for metrics in list(_all):
        metrics._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class _Collector:
    """Hands finished families to prometheus_client."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _rate(amount: float, per: float) -> float:
    return amount / per if per > 0 else 0.0
