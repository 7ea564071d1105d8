"""The server on a Ray cluster: replicas of the engine behind a stateless ingress (extra `ray`).

    from ray import serve
    serve.run(build_app([ModelSpec("demo", "demo")], replicas=2))

Nothing else in llcuda imports Ray.
"""

from __future__ import annotations

from llcuda.errors import LibraryError

try:
    import ray.serve  # noqa: F401
except ModuleNotFoundError as error:
    missing = f"the cluster needs {error.name}: pip install 'llcuda[ray]'"
    raise LibraryError(missing) from error

from llcuda.ray.config import ClusterConfig
from llcuda.ray.deployment import app_from_config, build_app, deployment

__all__ = ["ClusterConfig", "app_from_config", "build_app", "deployment"]
