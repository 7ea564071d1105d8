"""Sampling many rows at once, as the engine does once a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.errors import NoOutputError, SamplingError
from llcuda.native import callbacks, library
from llcuda.native.context import Context
from llcuda.native.sampler import Sampler
from llcuda.params import wrong_argument


class BatchSampler:
    """A fixed set of samplers, one for each row of a decode batch.

    Args:
        context: The context whose logits are sampled.
        samplers: The sampler of each row.
        on_host: The rows that are sampled on the host in any case, because something is written
            into `Context.logits` before.

    Attributes:
        samplers (list[Sampler]): The samplers.
        failed (int): How many rows of the last `sample` are exceptions.

    Raises:
        ArgumentError: A sampler belongs to another model, or its chain does not fit this one.
    """

    def __init__(
        self, context: Context, samplers: Sequence[Sampler], on_host: Iterable[int] = ()
    ) -> None:
        self._ffi, self._lib = library.load()
        self._context = context
        self.samplers = list(samplers)
        for sampler in self.samplers:
            sampler.bind(context.model)
        self._owners = [s.handle.owner for s in self.samplers]  # type: ignore[union-attr]
        ffi, n = self._ffi, len(self.samplers)
        self._samplings = ffi.new("struct llcuda_sampling[]", [s.sampling[0] for s in samplers])
        for i in on_host:  # no device can take more candidates than it has places for
            sampling = self._samplings[i]
            sampling.draw = ffi.NULL
            if sampling.superset:
                sampling.superset = max(sampling.superset, self._lib.LLCUDA_MOST_CANDIDATES + 1)
        self._first_rows = ffi.new("int32_t[]", list(range(n)))
        self._tokens = ffi.new("int32_t[]", n)
        self._statuses = ffi.new("int32_t[]", n)
        self._ns = ffi.new("int64_t *")
        self._has_masks = self._has_forced = False
        self.failed = 0

    def close(self) -> None:
        """Let go of the samplers, which hold the model: there are no rows to sample any more."""
        self.samplers, self._owners = [], []

    @property
    def seconds(self) -> float:
        """Wall clock of the last `sample`, without the wait for the decode before it."""
        return self._ns[0] * 1e-9  # type: ignore[no-any-return]

    def sample(
        self,
        indices: Sequence[int] | None = None,
        masks: Sequence[npt.NDArray[np.uint32] | None] | None = None,
        forced: Sequence[int | None] | None = None,
    ) -> list[int | Exception]:
        """Choose a token for each row, and accept it.

        Args:
            indices: The index of each row's token in the last decode call; None is 0, 1, 2, ...
            masks: For each row None, or (vocab_size + 31) // 32 words: bit i % 32 of word i // 32
                says whether token i is allowed.
            forced: For each row None, or the token that it gets. Its chain accepts the token, and
                draws no random number.

        Returns:
            For each row its token, or the exception that its chain raised.

        Raises:
            ArgumentError: A mask has another shape.
            DecodeError: The decode failed on the device.
        """
        n = len(self.samplers)
        owner = self._context.handle.owner
        if masks is not None or self._has_masks:
            kept = self._set_masks(masks)  # noqa: F841 - alive during the call
        if forced is not None or self._has_forced:
            for i, token in enumerate(forced or [None] * n):
                self._samplings[i].forced = -1 if token is None else token
            self._has_forced = forced is not None
        failed = self.failed = self._lib.llcuda_sample_rows(
            owner.pointer, n, indices or self._first_rows, self._samplings, self._tokens,
            self._statuses, self._ns,
        )  # fmt: skip
        tokens: list[Any] = self._ffi.unpack(self._tokens, n)
        if failed < 0:
            library.check(failed, lambda: f"sampling {n} rows")
        if failed:
            self._put_errors(tokens)
        return tokens

    def _set_masks(self, masks: Sequence[npt.NDArray[np.uint32] | None] | None) -> list[Any]:
        """Point each row to its mask; return what must live as long as it is pointed to."""
        words = (self._context.model.vocab_size + 31) // 32
        kept = []
        for i in range(len(self.samplers)):
            mask = masks[i] if masks is not None else None
            if mask is None:
                self._samplings[i].mask = self._ffi.NULL
                continue
            row = np.ascontiguousarray(mask, dtype=np.uint32)
            if row.shape != (words,):
                raise wrong_argument("masks", f"an array of shape {row.shape}, expected ({words},)")
            kept.append(self._ffi.from_buffer("uint32_t[]", row))
            self._samplings[i].mask = kept[-1]
        self._has_masks = bool(kept)
        return kept

    def _put_errors(self, tokens: list[Any]) -> None:
        text = library.errors(self._ffi, self._lib)
        for i, status in enumerate(self._ffi.unpack(self._statuses, len(tokens))):
            if status != self._lib.LLCUDA_OK:
                tokens[i] = self._error(status, text)

    def _error(self, status: int, text: str) -> Exception:
        """Return the error of a row, without a traceback, whose frames would keep the weights."""
        raised = callbacks.take_error()
        if isinstance(raised, Exception):
            return raised
        if raised is not None:
            raise raised
        if status == self._lib.LLCUDA_NO_OUTPUT:
            return NoOutputError("no logits were computed for this row")
        if status == self._lib.LLCUDA_NOT_A_NUMBER:
            return SamplingError(library.NOT_NUMBERS)
        return SamplingError(text or "no candidate is left")
