"""A pytest plugin: `import llama_cpp` gives llcuda's classes, and the hub gives local models."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub

import llcuda.llama_cpp

TINY = {"bge": "bert", "mamba": "mamba", "Falcon-H1": "lfm2"}


def local_model(repo_id: str, filename: str, **options: Any) -> str:
    """Return the path of the model that stands for one of the hub."""
    for beginning, name in TINY.items():
        if filename.startswith(beginning):
            return str(Path(os.environ["LLCUDA_TINY_MODELS"]) / f"{name}.gguf")
    return os.environ["LLCUDA_CHAT_MODEL"]


llcuda.llama_cpp.install()
huggingface_hub.hf_hub_download = local_model
# Imported by the tests: the C interface, which one of them calls; scipy, which none does.
internals = ModuleType("llama_cpp._internals")
sys.modules[internals.__name__] = llcuda.llama_cpp._internals = internals  # type: ignore[attr-defined]
if importlib.util.find_spec("scipy") is None:
    special = ModuleType("scipy.special")
    special.log_softmax = None  # type: ignore[attr-defined]
    sys.modules |= {"scipy": ModuleType("scipy"), "scipy.special": special}
