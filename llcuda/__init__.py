"""llcuda: GGUF language models inside a Python process.

Importing this module loads nothing: no library, no numpy, no file. The names below are
imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llcuda import steps as steps
    from llcuda.demo import demo_model as demo_model
    from llcuda.errors import LlcudaError as LlcudaError
    from llcuda.native.adapter import Adapter as Adapter
    from llcuda.native.context import Context as Context
    from llcuda.native.model import Model as Model
    from llcuda.native.sampler import Sampler as Sampler
    from llcuda.params import ContextParams as ContextParams
    from llcuda.params import ModelParams as ModelParams
    from llcuda.params import SamplingParams as SamplingParams
    from llcuda.text import Utf8Decoder as Utf8Decoder
    from llcuda.timings import DecodeEvent as DecodeEvent
    from llcuda.timings import Timings as Timings

    __version__: str

_HOMES = {
    "Adapter": "llcuda.native.adapter",
    "Context": "llcuda.native.context",
    "ContextParams": "llcuda.params",
    "DecodeEvent": "llcuda.timings",
    "LlcudaError": "llcuda.errors",
    "Model": "llcuda.native.model",
    "ModelParams": "llcuda.params",
    "Sampler": "llcuda.native.sampler",
    "SamplingParams": "llcuda.params",
    "Timings": "llcuda.timings",
    "Utf8Decoder": "llcuda.text",
    "demo_model": "llcuda.demo",
}

__all__ = [*_HOMES, "errors", "steps"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("llcuda")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in ("errors", "steps"):
        value = importlib.import_module(f"llcuda.{name}")
    else:
        raise AttributeError(f"module 'llcuda' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
