"""The log of a replica: llcuda's records go where Ray Serve writes its own."""

from __future__ import annotations

import logging


def log_into_serve() -> None:
    """Let llcuda's records of this process, from level info on, go to Ray Serve's logger."""
    own = logging.getLogger("llcuda")
    own.parent = logging.getLogger("ray.serve")
    own.setLevel(logging.INFO)
