"""The engine's metrics of a replica as Ray's, so that Ray's collector gets those of every replica.

Each sample is a gauge of its own name, counts and histogram buckets included: Ray adds `ray_`
before it and the labels of the replica.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import Metric
from ray.serve.metrics import Gauge

from llcuda.server.metrics import metric_families
from llcuda.server.service import Service

logger = logging.getLogger("llcuda.server")
PERIOD = 5.0  # seconds


class MetricsBridge:
    """Copies the metrics of a server into Ray's."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}

    def update(self, families: Iterable[Metric]) -> None:
        """Copy the values as they are now.

        Args:
            families: The metrics.
        """
        for family in (family for family in families if family.name.startswith("llcuda_")):
            for sample in family.samples:
                gauge = self._gauges.get(sample.name)
                if gauge is None:
                    keys = tuple(sorted(sample.labels))
                    gauge = Gauge(sample.name, family.documentation, keys)
                    self._gauges[sample.name] = gauge
                gauge.set(sample.value, dict(sample.labels))

    async def run(self, service: Service) -> None:
        """Copy the metrics every few seconds, until it is cancelled.

        Args:
            service: The server.
        """
        while True:
            try:
                self.update(metric_families(service.models, service.traffic))
            except Exception:
                logger.exception("the metrics are not copied to Ray")
                return
            await asyncio.sleep(PERIOD)
