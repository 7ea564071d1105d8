"""LoRA adapters: a GGUF file applied to a model's weights while a context computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from llcuda.errors import ArgumentError, ModelError
from llcuda.native import library
from llcuda.native.gguf.check import check_file, check_tensors
from llcuda.native.model import Model, _metadata


class Adapter:
    """A LoRA adapter of `model`, in memory as long as the model.

    `Context.set_adapters` applies and scales it. Raises ModelError when it does not fit the model.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        if not isinstance(model, Model):
            raise ArgumentError(f"model={model!r}: expected a Model", parameter="model")
        self.path = Path(os.fspath(path))
        check_file(self.path)
        self._ffi, self._lib = library.load()
        check_tensors(self.path)
        self._owner = model._handle.owner  # llama.cpp frees an adapter with its model
        self._pointer = self._lib.llcuda_adapter_load(self._owner.pointer, os.fsencode(self.path))
        if self._pointer == self._ffi.NULL:
            library.fail(ModelError, f"cannot load the adapter {self.path}")

    @property
    def metadata(self) -> Mapping[str, str]:
        """The adapter file's metadata, as text."""
        values = _metadata(self._ffi, self._lib, "llama_adapter", self._pointer)
        return MappingProxyType(values)
