"""Continuous batching: one loop schedules, runs and processes the requests of all callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.engine.config import EngineConfig as EngineConfig
    from llcuda.engine.config import EngineParams as EngineParams
    from llcuda.engine.detokenizer import Utf8Decoder as Utf8Decoder
    from llcuda.engine.engine import Engine as Engine
    from llcuda.engine.metrics import EngineLoad as EngineLoad
    from llcuda.engine.metrics import Metrics as Metrics
    from llcuda.engine.metrics import RequestRecord as RequestRecord
    from llcuda.engine.metrics import StepRecord as StepRecord
    from llcuda.engine.outputs import Completion as Completion
    from llcuda.engine.outputs import InferResult as InferResult
    from llcuda.engine.outputs import TokenLogprob as TokenLogprob
    from llcuda.engine.request import Request as Request
    from llcuda.engine.request import RequestParams as RequestParams

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Completion": "llcuda.engine.outputs",
        "Engine": "llcuda.engine.engine",
        "EngineConfig": "llcuda.engine.config",
        "EngineLoad": "llcuda.engine.metrics",
        "EngineParams": "llcuda.engine.config",
        "InferResult": "llcuda.engine.outputs",
        "Metrics": "llcuda.engine.metrics",
        "Request": "llcuda.engine.request",
        "RequestParams": "llcuda.engine.request",
        "RequestRecord": "llcuda.engine.metrics",
        "StepRecord": "llcuda.engine.metrics",
        "TokenLogprob": "llcuda.engine.outputs",
        "Utf8Decoder": "llcuda.engine.detokenizer",
    },
)
