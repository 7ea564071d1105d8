"""What the last decode computed: logits and embeddings, as views on C's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError
from llcuda.logprobs import log_softmax, top_logprobs
from llcuda.native import library
from llcuda.native.model import Model

Float32 = npt.NDArray[np.float32]


class _Row:
    """C's memory as numpy takes it; the array that refers to it keeps the context's memory."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, address: int, size: int, owner: library.Owner) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "<f4",
            "version": 3,
        }


class Outputs:
    """The part of `Context` that reads results. i = -1 everywhere is the last computed row."""

    model: Model
    pooling: int
    _ffi: Any
    _lib: Any
    _handle: library.Handle
    _row: Any

    def logits(self, i: int = -1) -> Float32:
        """Return the logits at `i` of the last decode: float32, shape (vocab_size,), no copy.

        i: index of the token in that call; negative counts the computed rows from the last.
        Valid until the next decode or state load: copy what is to stay. Writable: what
        is changed here is what a sampler sees. Raises NoOutputError for a token without logits.
        """
        return self._output("logits", i, self.model.vocab_size)

    def embeddings(self, i: int = -1) -> Float32:
        """Return the embedding of token `i`: float32, shape (embedding_size,), as `logits`."""
        return self._output("embeddings", i, self.model.embedding_size)

    def sequence_embedding(self, seq: int = 0) -> Float32:
        """Return the pooled embedding of `seq`, or the scores of a rerank model.

        float32, shape (embedding_size,) or (classes,); needs embeddings=True and a pooling.
        """
        pointer = self.model._handle.owner.pointer
        rank = self.pooling == self._lib.LLAMA_POOLING_TYPE_RANK
        size = self._lib.llama_model_n_cls_out(pointer) if rank else self.model.embedding_size
        return self._output("embeddings_seq", seq, size)

    def _output(self, name: str, i: int, size: int) -> Float32:
        owner = self._handle.owner
        try:
            status = getattr(self._lib, f"llcuda_{name}")(owner.pointer, i, self._row)
        except (TypeError, OverflowError):
            raise ArgumentError(f"{name}: index {i!r}, expected a whole number") from None
        if status:
            library.check(status, lambda: f"{name} at {i}; {self._outputs_text()}")
        return np.asarray(_Row(int(self._ffi.cast("uintptr_t", self._row[0])), size, owner))

    def _outputs_text(self) -> str:
        indices = self.output_indices()
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        return f"the last decode has outputs for tokens [{shown}]"

    def output_indices(self) -> list[int]:
        """Return the indices, in the last decode call, of the tokens that have logits."""
        owner = self._handle.owner
        capacity = 8
        while True:
            indices = self._ffi.new("int32_t[]", capacity)
            count = self._lib.llcuda_output_indices(owner.pointer, indices, capacity)
            library.check(min(count, 0), lambda: "output_indices()")
            if count <= capacity:
                return list(self._ffi.unpack(indices, count)) if count else []
            capacity = count

    def top_logprobs(self, n: int, i: int = -1) -> list[tuple[int, float]]:
        """Return the n most probable tokens at `i` with their log-probabilities, best first."""
        return top_logprobs(self.logits(i), n)

    def logprob(self, token: int, i: int = -1) -> float:
        """Return the log-probability of `token` at `i`."""
        self.model._check_token(token)
        return float(log_softmax(self.logits(i))[token])
