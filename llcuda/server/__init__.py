"""The OpenAI-compatible HTTP server over the in-process engine (extra `server`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.server.app import create_app as create_app
    from llcuda.server.app import serve as serve
    from llcuda.server.middleware import Limits as Limits
    from llcuda.server.models import ModelSpec as ModelSpec

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Limits": "llcuda.server.middleware",
        "ModelSpec": "llcuda.server.models",
        "create_app": "llcuda.server.app",
        "serve": "llcuda.server.app",
    },
)
