"""Tells metrics and hooks what the engine's worker does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llcuda.engine.metrics import Metrics, RequestRecord, StepRecord
from llcuda.engine.scheduler import Plan

logger = logging.getLogger("llcuda.engine")
Spent = tuple[float, float, float]  # seconds of a step: decode, sample, deliver


class Reporter:
    """Records in `metrics`, and calls the hooks; what a hook raises is logged."""

    def __init__(
        self,
        metrics: Metrics,
        on_step: Callable[[StepRecord], None] | None = None,
        on_request: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self._metrics, self._on_step, self._on_request = metrics, on_step, on_request

    def step(self, plan: Plan, seconds: float, spent: Spent) -> None:
        """Report a step that took `seconds`."""
        decoding, sampling, delivering = spent
        record = StepRecord(
            phase="decode" if plan.decode else "prefill",
            rows=len(plan.rows),
            tokens=len(plan.rows) if plan.decode else sum(end - at for _, at, end in plan.rows),
            decode_seconds=decoding,
            sample_seconds=sampling,
            deliver_seconds=delivering,
            seconds=seconds,
        )
        self._metrics.record_step(record)
        if self._on_step is not None:
            _call(self._on_step, record)

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
    except BaseException:  # sys.exit() in a hook is no reason to stop either
        logger.exception("a hook of the engine raised")
