"""`llcuda serve --ray`: the application on a cluster, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import serve

from llcuda.errors import LibraryError
from llcuda.params import wrong_value
from llcuda.ray.config import ClusterConfig
from llcuda.ray.deployment import application
from llcuda.server.connections import listen

NAME = "llcuda"  # of the application


def serve_on_ray(
    config: ClusterConfig,
    *,
    address: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run then are finished first.

    Args:
        config: The settings.
        address: Address of a cluster; None = RAY_ADDRESS, the cluster that was started on this
            machine, or a new one of this machine.
        host: Address that the proxies listen on.
        port: Port that they listen on.
        on_ready: Called with the server's URL when it takes connections.

    Raises:
        ArgumentError: The address cannot be used, or there is no such cluster.
        LibraryError: The application does not start.
        KeyboardInterrupt: Ctrl-C, after the server has stopped.
    """
    if port == 0:
        raise wrong_value("port", port, "Ray's proxies need a port", "give one, such as 8080")
    listen(host, port).close()  # Ray's error would come after a minute
    ended = threading.Event()
    previous = signal.getsignal(signal.SIGTERM)
    try:
        _connect(address)
        signal.signal(signal.SIGTERM, lambda number, frame: ended.set())  # in place of Ray's
        try:
            _start(config, host, port)
            if on_ready is not None:
                on_ready(f"http://{host}:{port}")
            ended.wait()
        finally:
            _stop()
    finally:
        ray.shutdown()  # which ends a cluster that it has started
        signal.signal(signal.SIGTERM, previous)


def _stop() -> None:
    """End the application, and Serve where nothing else runs on it."""
    serve.delete(NAME)
    if not serve.status().applications:
        serve.shutdown()


def _connect(address: str | None) -> None:
    given: dict[str, Any] = {} if address is None else {"address": address}
    try:
        ray.init(**given, log_to_driver=False, include_dashboard=False, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        rule = f"no cluster with this token answers: {reason}"
        raise wrong_value("ray_address", address, rule) from error


def _start(config: ClusterConfig, host: str, port: int) -> None:
    """Run the application, and wait until its replicas have their models."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process
    serve.start(http_options={"host": host, "port": port}, proxy_location="EveryNode")
    try:
        serve.run(application(config), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise LibraryError(f"the application does not start on the cluster: {error}") from error
