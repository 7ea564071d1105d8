"""The OpenAI-compatible HTTP server over the in-process engine (extra `server`)."""

from llcuda.server.app import create_app, serve
from llcuda.server.middleware import Limits
from llcuda.server.models import ModelSpec

__all__ = ["Limits", "ModelSpec", "create_app", "serve"]
