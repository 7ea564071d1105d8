"""The deployments of a server on a Ray cluster: an ingress without state before replicas."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from llcuda.ray.config import ClusterConfig
from llcuda.ray.ingress import Ingress
from llcuda.ray.replica import Replica
from llcuda.server import ModelSpec

logger = logging.getLogger("llcuda.server")
HEALTH_PERIOD = 2.0  # seconds between two checks; Ray replaces a replica after three that fail
STATS_PERIOD = 1.0  # seconds after which an ingress knows what another one has sent
BUSY = 0.8  # part of n_parallel that autoscaling aims at


def deployment(models: Sequence[ModelSpec], **options: Any) -> serve.Application:
    """Return the replicas alone, bound, for an application with another ingress.

    Their method `answer` takes a `ForwardedRequest`. The methods `chat`, `completions` and
    `embeddings` take a body of these paths as a dict. None of them checks keys, hosts and limits.

    Args:
        models: The models.
        **options: The fields of `ClusterConfig`.

    Raises:
        ArgumentError: A value is outside what is allowed.
        TypeError: A keyword is unknown.
    """
    return _replicas(ClusterConfig(models, **options))


def build_app(models: Sequence[ModelSpec], **options: Any) -> serve.Application:
    """Return the server as an application for `serve.run`.

    Args:
        models: The models.
        **options: The fields of `ClusterConfig`.

    Raises:
        ArgumentError: A value is outside what is allowed.
        TypeError: A keyword is unknown.
    """
    return application(ClusterConfig(models, **options))


def app_from_config(args: Mapping[str, Any]) -> serve.Application:
    """Return the server as an application, for `import_path` in a Serve file.

    Args:
        args: The `args` of the file: see `ClusterConfig.from_arguments`.

    Raises:
        ArgumentError: A value is outside what is allowed.
        TypeError: A keyword is unknown.
    """
    return application(ClusterConfig.from_arguments(args))


def application(config: ClusterConfig) -> serve.Application:
    """Return the server as an application.

    Args:
        config: The settings.
    """
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=config.ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        # The middleware refuses first, in the shape of the APIs.
        max_ongoing_requests=2 * config.limits.requests,
        graceful_shutdown_timeout_s=config.drain_seconds,
        graceful_shutdown_wait_loop_s=1.0,
    )
    return ingress.bind(_replicas(config), config)


def _replicas(config: ClusterConfig) -> serve.Application:
    options: dict[str, Any] = {
        "name": "Replica",
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        "max_ongoing_requests": config.max_ongoing,
        "max_queued_requests": config.max_waiting,
        "graceful_shutdown_timeout_s": config.drain_seconds,
        "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_period_s": HEALTH_PERIOD,
    }
    if config.max_replicas is None:
        options["num_replicas"] = config.replicas or 1
    else:
        options["autoscaling_config"] = {
            "min_replicas": config.min_replicas or 1,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": max(1.0, BUSY * config.n_parallel),
        }
    if config.prefix_routing and (router := _router(config)) is not None:
        options["request_router_config"] = router
    # A replica gets no keys, and the same settings whatever their number: Ray replaces replicas
    # whose arguments change, and only adds and removes some when their number does.
    own = replace(config, replicas=None, min_replicas=None, max_replicas=None, keys=())
    return serve.deployment(Replica).options(**options).bind(own)


def _router(config: ClusterConfig) -> RequestRouterConfig | None:
    """Return the router by prefixes; None where this Ray has another API of routers."""
    try:
        from llcuda.ray.router import PrefixRouter
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("llcuda routes by load only: this Ray has another router API: %s", error)
        return None
    keywords = {"max_imbalance": config.max_imbalance}
    return RequestRouterConfig(
        request_router_class=PrefixRouter,
        request_router_kwargs=keywords,
        request_routing_stats_period_s=STATS_PERIOD,
    )
