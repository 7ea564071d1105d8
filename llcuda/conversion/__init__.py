"""Conversion of Hugging Face checkpoints and LoRA adapters to GGUF files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.conversion.convert import convert as convert

__getattr__, __dir__ = lazy(
    __name__,
    {
        "convert": "llcuda.conversion.convert",
    },
)
