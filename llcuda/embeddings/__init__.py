"""Embedding vectors and rerank scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.embeddings.embedder import Embedder as Embedder

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Embedder": "llcuda.embeddings.embedder",
    },
)
