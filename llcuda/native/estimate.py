"""How much memory a model and a context would take on each device, without taking it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Unpack

from llcuda.demo import resolve
from llcuda.errors import ContextError, UnsupportedError
from llcuda.keywords import PlanKeywords, given_params, split_keywords
from llcuda.native import callbacks, library
from llcuda.native.context import Context
from llcuda.native.gguf.mapped import MappedFile
from llcuda.native.gguf.metadata import Metadata
from llcuda.native.gguf.types import GGUFValueType
from llcuda.native.model import Model
from llcuda.native.oom import available_memory
from llcuda.params import ContextParams, ModelParams

MOST_DEVICES = 64
CELL_RECORD = 64  # bytes that llama.cpp notes for each KV cell, in the simulation too


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a model and a context take of one device, in bytes.

    name, kind: of the device; "gpu", "igpu" or "cpu".
    model: weights. kv: KV cells and recurrent states. compute: the buffers of a batch.
    free, total: what the device has now.
    """

    name: str
    kind: str
    model: int
    kv: int
    compute: int
    free: int
    total: int

    @property
    def needed(self) -> int:
        """The sum of model, kv and compute."""
        return self.model + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a GGUF file says of its model: its architecture's name, and counts, 0 if it does not."""

    architecture: str
    tokens: int
    layers: int
    train_ctx_size: int


def read_facts(path: str | os.PathLike[str]) -> FileFacts:
    """Return what the header of a model file says.

    Raises ModelNotFoundError, GGUFError for what is no GGUF file, or is damaged.
    """
    file = MappedFile(resolve(os.fspath(path)))
    metadata = Metadata(file)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture.isprintable():
        architecture = ""

    def number(key: str) -> int:
        """The value where it has the type that llama.cpp reads it as."""
        known = key in metadata and metadata.type(key) == GGUFValueType.UINT32
        return metadata[key] if known and metadata.count(key) is None else 0

    tokens = "tokenizer.ggml.tokens"
    facts = FileFacts(
        architecture,
        (metadata.count(tokens) or 0) if tokens in metadata else 0,
        number(f"{architecture}.block_count"),
        number(f"{architecture}.context_length"),
    )
    file.close()
    return facts


def memory_needed(
    path: str | os.PathLike[str],
    *,
    model: ModelParams | None = None,
    context: ContextParams | None = None,
    **keywords: Unpack[PlanKeywords],
) -> list[DeviceMemory]:
    """Return what a model file and a context on it would take: the GPUs in use, then the CPU.

    keywords: the fields of ModelParams and ContextParams, or one object of each.
    llama.cpp goes through all it allocates for them without doing it, so the answer is its own;
    no weight is read. Not included: rows of logits (4 bytes for each vocabulary entry, on the CPU),
    what CUDA takes for itself, and the tokenizer, which is not looked at.

    Raises what Model and Context raise for the same file and parameters, UnsupportedError for
    split_mode="tensor"; only that memory is short is no error.
    """
    of_model, of_context = split_keywords(keywords, ModelParams, ContextParams)
    return simulate(
        path,
        read_facts(path),
        given_params(ModelParams, model, of_model),
        given_params(ContextParams, context, of_context),
    )


def simulate(
    path: str | os.PathLike[str], facts: FileFacts, model: ModelParams, context: ContextParams
) -> list[DeviceMemory]:
    """`memory_needed`, with what `read_facts` found."""
    if model.split_mode == "tensor":
        raise UnsupportedError('memory cannot be estimated for split_mode="tensor"')
    with callbacks.repeats_unsaid(), _Outline(path, facts, model) as outline:
        return _Plan(outline, context).memory_needed()


def check_loads(path: str | os.PathLike[str]) -> None:
    """Raise ModelError unless a model file has the weights that its own numbers tell of."""
    with callbacks.repeats_unsaid(), _Outline(path, read_facts(path), ModelParams(gpu_layers=0)):
        pass


class _Outline(Model):
    """A model without its weights and its tokenizer: where they would lie, and how large they are.

    llama.cpp needs no token for that, only their count; a large vocabulary takes 0.7 s to load.
    """

    def __init__(self, path: str | os.PathLike[str], facts: FileFacts, params: ModelParams) -> None:
        if params.vocab_only:
            raise ContextError("vocab_only=True: without weights there is no context")
        overrides = {**params.overrides, "tokenizer.ggml.model": "none"}
        if facts.tokens:
            architecture = overrides.get("general.architecture", facts.architecture)
            overrides[f"{architecture}.vocab_size"] = facts.tokens
        super().__init__(path, params=replace(params, overrides=overrides))

    def _c_params(self, progress: Any, keep: list[Any]) -> Any:
        c = super()._c_params(progress, keep)
        c.no_alloc = True
        c.load_mode = self._lib.LLAMA_LOAD_MODE_NONE
        return c


class _Plan(Context):
    """A context that is never made: its parameters on an outline."""

    def __init__(self, outline: Model, params: ContextParams) -> None:
        self.model, self.params = outline, params
        self._ffi, self._lib = library.load()

    def memory_needed(self) -> list[DeviceMemory]:
        """Return what the context and its model would take on each device, the CPU last."""
        ffi, lib = self._ffi, self._lib
        owner, params = self.model._handle.owner, self._c_params()
        if params.n_ctx * CELL_RECORD > available_memory():
            raise ContextError(f"{params.n_ctx} KV cells: too many to count; choose fewer")
        found = ffi.new("struct llcuda_device_memory[]", MOST_DEVICES)
        count = lib.llcuda_memory_needed(owner.pointer, params, found, MOST_DEVICES)
        if count < 0:
            library.fail(ContextError, f"cannot create a context with {self.params}")
        kinds = {
            lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
            lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
        }
        return [
            DeviceMemory(
                ffi.string(device.name).decode(errors="replace"),
                kinds.get(device.type, "gpu"),
                device.model,
                device.context,
                device.compute,
                device.free if i < count - 1 else available_memory(),
                device.total,
            )
            for i, device in enumerate(found[0:count])
        ]
