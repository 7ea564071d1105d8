"""What the last decode computed: views of logits and embeddings, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError
from llcuda.native import library
from llcuda.native.model import Model
from llcuda.params import check_number

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
    pooling: str
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
        rank = self.pooling == "rank"
        size = self._lib.llama_model_n_cls_out(pointer) if rank else self.model.embedding_size
        return self._output("embeddings_seq", seq, size)

    def _output(self, name: str, i: int, size: int) -> Float32:
        owner = self._handle.owner
        try:
            status = getattr(self._lib, f"llcuda_{name}")(owner.pointer, i, self._row)
        except (TypeError, OverflowError):
            raise ArgumentError(
                f"{name}: index {i!r}, expected a whole number", parameter=name
            ) from None
        if status:
            library.check(status, lambda: f"{name} at {i}; {self._outputs_text()}")
        return np.asarray(_Row(int(self._ffi.cast("uintptr_t", self._row[0])), size, owner))

    def _outputs_text(self) -> str:
        return f"the last decode has outputs for tokens {_shown(self.output_indices())}"

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

    def logprobs(
        self, tokens: Sequence[int], indices: Sequence[int], n: int = 0
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """Return for each token its log p at its index, and the n most probable (token, log p).

        indices: as `i` elsewhere, one a token. Best first, of equals the lower token; fewer than
        n when the vocabulary is smaller. NaN where the logits are no numbers.
        """
        owner = self._handle.owner
        check_number("n", n, "int", 0)
        n = min(int(n), self.model.vocab_size)
        ffi = self._ffi
        try:
            tokens, indices = list(tokens), list(indices)
            for token in tokens:
                self.model.check_token(token)
            if (rows := len(tokens)) != len(indices):
                raise ArgumentError(f"{rows} tokens, {len(indices)} indices: expected as many")
            values, top_values = ffi.new("double[]", rows), ffi.new("double[]", rows * n)
            top_tokens = ffi.new("int32_t[]", rows * n)
            status = self._lib.llcuda_logprobs(
                owner.pointer, rows, indices, tokens, n, values, top_tokens, top_values
            )
        except (TypeError, OverflowError) as error:
            raise ArgumentError(f"tokens and indices must be whole numbers: {error}") from None
        if status:
            library.check(status, lambda: f"logits at {_shown(indices)}; {self._outputs_text()}")
        pairs = zip(ffi.unpack(top_tokens, rows * n), ffi.unpack(top_values, rows * n), strict=True)
        top = list(pairs)
        return [(value, top[i * n : i * n + n]) for i, value in enumerate(ffi.unpack(values, rows))]

    def top_logprobs(self, n: int, i: int = -1) -> list[tuple[int, float]]:
        """Return the n most probable tokens at `i` with their log-probabilities, best first."""
        return self.logprobs([0], [i], n)[0][1]

    def logprob(self, token: int, i: int = -1) -> float:
        """Return the log-probability of `token` at `i`."""
        return self.logprobs([token], [i])[0][0]


def _shown(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''}]"
