"""Embedders: the embedders of an engine, one for each pooling, created at first use."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from llcuda.embeddings.embedder import MAX_AT_ONCE, Embedder, max_tokens
from llcuda.errors import ClosedError, ForkError
from llcuda.native.model import Model
from llcuda.params import wrong_value

# The settings that an embedder's context shares with that of an engine on the same model.
SHARED = (
    "threads", "threads_batch", "flash_attention", "offload_kqv", "op_offload", "rope_scaling",
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
    "yarn_beta_slow", "yarn_orig_ctx", "batch_invariant", "cuda_graphs",
)  # fmt: skip


class Embedders:
    """The embedders on a model.

    Args:
        model: The model.
        ctx_size: The number of tokens that a text may have, as far as the model has positions;
            None = as `Embedder` chooses.
        batch_size: As that of `Embedder`.
        generates: Whether the model generates text. Poolings "mean" and "cls" of such a model take
            a row of logits for each token of a text, which then has at most batch_size tokens.
        settings: Fields of ContextParams, of which the embedders share some.
    """

    def __init__(
        self,
        model: Model,
        ctx_size: int | None,
        batch_size: int,
        generates: bool,
        settings: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._ctx_size = max_tokens(model, ctx_size and min(ctx_size, model.max_positions))
        self._generates = generates
        self._settings: dict[str, Any] = {
            "batch_size": min(batch_size, MAX_AT_ONCE),
            **{k: v for k, v in settings.items() if k in SHARED and v is not None},
        }
        self._embedders: dict[str | None, Embedder] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._process = os.getpid()

    def embedder(self, pooling: str | None = None) -> Embedder:
        """Return the embedder with a pooling; None = as the model's file says.

        Raises:
            ClosedError: The engine is closed.
            ForkError: This is a forked child.
            LlcudaError: As Embedder raises it.
        """
        if not (pooling is None or isinstance(pooling, str)):
            raise wrong_value("pooling", pooling, "expected a name")
        if os.getpid() != self._process:
            raise ForkError("this engine was made before the fork of this process")
        ctx_size = self._ctx_size
        if self._generates and pooling in ("mean", "cls"):
            ctx_size = min(ctx_size, self._settings["batch_size"])
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is closed")
            if pooling not in self._embedders:
                self._embedders[pooling] = Embedder(
                    self._model, pooling=pooling, ctx_size=ctx_size, **self._settings
                )
            return self._embedders[pooling]

    def close(self) -> None:
        """Close the embedders, each when its running batch is done."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            embedders, self._embedders = self._embedders, {}
        for embedder in embedders.values():
            embedder.close()
