"""A server on a Ray cluster of this machine, and what goes on in its processes."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from llcuda.server import ModelSpec
from tests.support.server import demo
from tests.support.waiting import PATIENCE

NAME = "llcuda"
SMALL: dict[str, Any] = {"num_cpus": 0.1, "ingress_replicas": 1}


class Clustered:
    """A running server. url: its root; client: asks it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Ask."""
        return self.client.post(path, json=body)

    def actors(self, deployment: str = "Replica") -> dict[str, Any]:
        """Return the actors of a deployment by their names."""
        import ray
        from ray.util import list_named_actors

        beginning = f"SERVE_REPLICA::{NAME}#{deployment}#"
        listed = list_named_actors(all_namespaces=True)
        names = [item["name"] for item in listed if item["name"].startswith(beginning)]
        return {name: ray.get_actor(name, namespace="serve") for name in names}

    def in_replicas(self, function: Callable[[Any], Any]) -> list[Any]:
        """Call a function in the process of each replica."""
        import ray

        calls = [actor.__ray_call__.remote(function) for actor in self.actors().values()]
        return ray.get(calls, timeout=PATIENCE)

    def pids(self) -> list[int]:
        """Return the processes of the replicas."""
        return self.in_replicas(lambda _: os.getpid())

    def kill_one(self) -> None:
        """End the process of a replica as the kernel does when memory is short."""
        os.kill(self.pids()[0], signal.SIGKILL)

    def unfinished(self) -> int:
        """Return how many requests of all engines run or wait."""
        return sum(self.in_replicas(count_unfinished))

    def healthy_replicas(self) -> int:
        """Return how many replicas Ray sends requests to."""
        from ray import serve

        deployments = serve.status().applications[NAME].deployments
        return int(deployments["Replica"].replica_states.get("RUNNING", 0))


def engines() -> list[Any]:
    """Return the engines of this process."""
    gc.unfreeze()  # or what was there before is not listed
    return [item for item in gc.get_objects() if type(item).__qualname__ == "Engine"]


def count_unfinished(_: Any) -> int:
    """Return the unfinished requests of this process."""
    loads = [engine.load() for engine in engines()]
    return sum(load.running + load.waiting for load in loads)


def visible_gpus(_: Any) -> str | None:
    """Return the GPUs that Ray shows to this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@contextmanager
def on_cluster(port: int, *models: ModelSpec, **options: Any) -> Iterator[Clustered]:
    """Run a server on the session's cluster for as long as the block runs."""
    from ray import serve

    from llcuda.ray import build_app

    app = build_app(models or [demo()], **{**SMALL, **options})
    serve.run(app, name=NAME, route_prefix="/")
    running = Clustered(f"http://127.0.0.1:{port}")
    try:
        yield running
    finally:
        running.client.close()
        serve.delete(NAME)


VARYING = (
    *("created", "created_at", "completed_at", "cached_tokens", "tokens_cached"),
    *("tokens_evaluated", "id_slot", "input_tokens"),
)


def comparable(response: httpx.Response) -> tuple[int, str]:
    """Return the status and the text of an answer without ids, times and cached tokens."""
    text = response.text
    for pattern in (
        r'"(?:id|item_id|response_id|request_id)": ?"[^"]*"',
        rf'"(?:{"|".join(VARYING)}|cache_\w*|\w*_ms|\w*_duration)": ?[^,}}]*',
        r'"timings": ?\{[^}]*\}',
    ):
        text = re.sub(pattern, '""', text)
    return response.status_code, text
