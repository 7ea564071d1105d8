"""An engine's embedders: one for each pooling, made when it is first asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from llcuda.embeddings.embedder import Embedder, Float32, Text
from llcuda.errors import ArgumentError, ClosedError, ForkError
from llcuda.native.model import Model

# What an embedder's context has in common with that of an engine on the same model.
SHARED = (
    "threads", "threads_batch", "flash_attention", "offload_kqv", "op_offload", "rope_scaling",
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
    "yarn_beta_slow", "yarn_orig_ctx",
)  # fmt: skip


class Embedders:
    """The embedders on `model`.

    ctx_size: most tokens of a text, where the model has positions for them. batch_size: see
    Embedder. generates: whether the model generates text. Its "mean" and "cls" take a row of logits
    for each token of a text, so texts have at most batch_size tokens then.
    parameters: fields of ContextParams, of which those of SHARED count.
    """

    def __init__(
        self,
        model: Model,
        ctx_size: int,
        batch_size: int,
        generates: bool,
        parameters: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._ctx_size = min(ctx_size, model.max_positions)
        self._generates = generates
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            **{k: v for k, v in parameters.items() if k in SHARED and v is not None},
        }
        self._made: dict[str | None, Embedder] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._process = os.getpid()

    def embedder(self, pooling: str | None = None) -> Embedder:
        """Return the embedder with this pooling. Raises what Embedder raises, and ClosedError."""
        if not (pooling is None or isinstance(pooling, str)):
            raise ArgumentError(f"pooling={pooling!r}: expected a name", parameter="pooling")
        if os.getpid() != self._process:
            raise ForkError("this engine was made before the fork of this process")
        ctx_size = self._ctx_size
        if self._generates and pooling in ("mean", "cls"):
            ctx_size = min(ctx_size, self._settings["batch_size"])
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is closed")
            if pooling not in self._made:
                self._made[pooling] = Embedder(
                    self._model, pooling=pooling, ctx_size=ctx_size, **self._settings
                )
            return self._made[pooling]

    def close(self) -> None:
        """Close them, each when the batch that runs is done."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            made, self._made = self._made, {}
        for embedder in made.values():
            embedder.close()


class EmbedsTexts:
    """The part of an engine that computes embeddings and scores, beside the text that it generates.

    Not in the engine's batches: in contexts of their own, on the caller's thread.
    """

    def embedder(self, pooling: str | None = None) -> Embedder:
        """Return the Embedder on the engine's model, with the engine's settings; it stays open."""
        raise NotImplementedError

    def embed(
        self, texts: Sequence[Text], *, pooling: str | None = None, **options: Any
    ) -> Float32:
        """Return the vectors of `texts`: float32, shape (len(texts), size).

        pooling: None = as the model's file says. options: normalize, truncate, dimensions; see
        `Embedder.embed`.
        """
        return self.embedder(pooling).embed(texts, **options)

    def rerank(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> Float32:
        """Return a rerank model's scores of the documents; see `Embedder.rerank`."""
        return self.embedder().rerank(query, documents, truncate=truncate)
