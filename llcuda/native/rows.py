"""Sampling many rows at once: what the engine calls once per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llcuda import steps
from llcuda.errors import NoOutputError, SamplingError
from llcuda.native import callbacks, library
from llcuda.native.context import Context
from llcuda.native.sampler import Sampler


class Rows:
    """A fixed set of samplers, one a row; built again only when the members change."""

    def __init__(self, context: Context, samplers: Sequence[Sampler]) -> None:
        self._ffi, self._lib = library.load()
        self._context = context
        self.samplers = list(samplers)
        for sampler in self.samplers:
            if sampler._bound is None:
                sampler._bind(context.model)
        self._owners = [s._handle.owner for s in self.samplers]  # type: ignore[union-attr]
        ffi, n = self._ffi, len(self.samplers)
        self._chains = ffi.new("struct llama_sampler *[]", [o.pointer for o in self._owners])
        self._supersets = ffi.new("int32_t[]", [s._superset for s in self.samplers])
        self._local = ffi.new("int8_t[]", [_calls_python(s) for s in self.samplers])
        self._first = ffi.new("int32_t[]", list(range(n)))
        self._tokens = ffi.new("int32_t[]", n)
        self._statuses = ffi.new("int32_t[]", n)

    def sample(self, indices: Sequence[int] | None = None) -> list[int | Exception]:
        """Return each row's token, or the exception that its chain raised.

        indices: of the tokens in the last decode call, one for each sampler; None = 0, 1, 2, ...
        """
        n = len(self.samplers)
        owner = self._context._handle.owner
        failed = self._lib.llcuda_sample_rows(
            owner.pointer, n, indices or self._first, self._chains, self._supersets, self._local,
            self._tokens, self._statuses,
        )  # fmt: skip
        tokens: list[Any] = self._ffi.unpack(self._tokens, n)
        if failed < 0:
            library.check(failed, lambda: f"sampling {n} rows")
        if failed:
            self._put_errors(tokens)
        return tokens

    def _put_errors(self, tokens: list[Any]) -> None:
        text = library.errors(self._ffi, self._lib)
        for i, status in enumerate(self._ffi.unpack(self._statuses, len(tokens))):
            if status == self._lib.LLCUDA_OK:
                continue
            try:
                callbacks.reraise()
                if status == self._lib.LLCUDA_NO_OUTPUT:
                    raise NoOutputError("no logits were computed for this row")
                raise SamplingError(text or "no candidate is left")
            except Exception as error:
                tokens[i] = error


def _calls_python(sampler: Sampler) -> bool:
    return any(isinstance(step, steps.Python) for step in sampler.chain)
