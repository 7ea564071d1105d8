"""LoRA adapters: a GGUF file that a context applies to a model's weights while it computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llcuda._pickling import stays_in_process
from llcuda.errors import ModelError
from llcuda.files import local_path
from llcuda.native import library
from llcuda.native.gguf.check import check_file, check_tensors
from llcuda.native.model import Model, check_model, convert_bf16, read_metadata
from llcuda.params import wrong_argument


@stays_in_process("its path, and load it there")
class Adapter:
    """A LoRA adapter of a model, in memory as long as the model.

    `Context.set_adapters` applies and scales it.

    Args:
        model: The model that the adapter was trained on.
        path: The adapter's GGUF file.

    Attributes:
        path (Path): The file.

    Raises:
        ModelNotFoundError: The file does not exist.
        ModelError: The file is not an adapter, or does not fit the model.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        check_model(model)
        self.path = Path(local_path(path))
        check_file(self.path)
        ffi, lib = library.load()
        check_tensors(self.path)
        self._owner = model.handle.owner  # llama.cpp frees an adapter with its model
        self._pointer = lib.llcuda_adapter_load(self._owner.pointer, os.fsencode(self.path))
        if self._pointer == ffi.NULL:
            try:
                library.fail(ModelError, f"cannot load the adapter {self.path}")
            except ModelError as error:
                if "expect general.type to be 'adapter'" not in error.problem:
                    raise
                rule = "is not an adapter; give the GGUF file of a LoRA adapter"
                raise ModelError(f"{self.path} {rule}") from None
        wanted = model.params.bf16_to_f16
        if not convert_bf16("adapter", self._pointer, self.path, wanted):
            library.fail(ModelError, f"bf16_to_f16: cannot convert the weights of {self.path}")

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the adapter file as text."""
        return read_metadata("llama_adapter", self._pointer)

    def pointer_for(self, model: Model) -> Any:
        """Return the llama_adapter_lora, for a context on a model.

        For the rest of llcuda.native.

        Args:
            model: The model of the context.

        Raises:
            ArgumentError: The adapter was loaded for another model.
        """
        if self._owner is not model.handle.owner:
            raise wrong_argument("adapters", f"{self.path} was loaded for another model")
        return self._pointer
