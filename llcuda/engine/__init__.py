"""Continuous batching: one loop schedules, runs and processes the requests of all callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.engine.config import EngineParams as EngineParams
    from llcuda.engine.engine import Engine as Engine
else:  # a checker would take every name for one of this package
    __getattr__, __dir__ = lazy(
        __name__, {"Engine": "llcuda.engine.engine", "EngineParams": "llcuda.engine.config"}
    )
