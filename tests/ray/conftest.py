"""One Ray cluster for all tests, and one server with two replicas for those that leave it alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import cluster
from tests.support.cluster import Clustered, on_cluster

HERE = Path(__file__).parent

with warnings.catch_warnings(), contextlib.suppress(ImportError):  # Ray's own modules warn
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Ray warn: its own code does, in threads and destructors too."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """The port of a session's cluster."""
    ray = pytest.importorskip("ray")
    from ray import cloudpickle, serve

    cloudpickle.register_pickle_by_value(cluster)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    given = {
        "CUDA_VISIBLE_DEVICES": "0,1",  # Ray refuses to count more than there are
        "RAY_AUTH_TOKEN": secrets.token_hex(16),  # or Ray writes one into the home folder
    }
    os.environ.update(given)
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,  # which nothing computes on
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    yield free
    serve.shutdown()
    ray.shutdown()
    del os.environ["RAY_AUTH_TOKEN"]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[Clustered]:
    """A server of two replicas and one ingress."""
    with on_cluster(port, replicas=2) as running:
        yield running
