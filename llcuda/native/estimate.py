"""How much memory a model and a context would take on each device, without taking it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Unpack

from llcuda.errors import ContextError, UnsupportedError
from llcuda.hub.resolver import resolve
from llcuda.keywords import PlanKeywords, given_params, split_keywords
from llcuda.native import callbacks, library
from llcuda.native.c_params import MIN_CELLS, context_params
from llcuda.native.gguf.check import check_file
from llcuda.native.gguf.mapped import MappedFile
from llcuda.native.gguf.metadata import Metadata
from llcuda.native.gguf.types import GGUFValueType
from llcuda.native.model import load_model
from llcuda.native.oom import available_memory
from llcuda.params import ContextParams, ModelParams

MAX_DEVICES = 64
MAX_CELLS = 2**22  # of a simulation, which takes 52 bytes of each for a moment


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a model and a context take of one device, in bytes.

    Attributes:
        name: The device's name.
        kind: "gpu", "igpu" or "cpu".
        model: Weights.
        kv: KV cells and recurrent states.
        compute: Buffers of a batch.
        free: What is free on the device now.
        total: What the device has.
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
    """What the header of a model file says; 0 for a number that it does not say.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        tokens: Tokens of the vocabulary.
        layers: Layers.
        train_ctx_size: Tokens of the longest text that the model was trained on.
    """

    architecture: str
    tokens: int
    layers: int
    train_ctx_size: int


def read_facts(path: str | os.PathLike[str]) -> FileFacts:
    """Return what the header of a model file says.

    Args:
        path: The model, as `llcuda.hub.resolve` takes it.

    Raises:
        ModelNotFoundError: The file does not exist.
        GGUFError: The file is not a GGUF file, or is damaged.
    """
    file = MappedFile(resolve(path, parameter="path"))
    metadata = Metadata(file)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture.isprintable():
        architecture = ""

    def number(key: str) -> int:
        """Return the value if it has the type that llama.cpp reads it as."""
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
    """Return what a model file and a context on it would take of each device.

    llama.cpp goes through all that it would allocate without doing it, and reads no weight. The
    answer leaves out rows of logits (4 bytes for each token of the vocabulary, on the CPU), kept
    graphs of decode steps (on the CPU too), what CUDA takes for itself, and the tokenizer.

    Args:
        path: The model, as `llcuda.hub.resolve` takes it.
        model: How the model would be loaded.
        context: How the context would be created.
        **keywords: The fields of `ModelParams` and `ContextParams`, in place of these.

    Returns:
        The GPUs in use, then the CPU.

    Raises:
        ModelError: What `Model` raises for the file; not OutOfMemoryError.
        ContextError: What `Context` raises for the parameters; not OutOfMemoryError.
        UnsupportedError: split_mode="tensor".
        ArgumentError: A parameter is not allowed.
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
    """Return what `memory_needed` returns, for a file whose facts are known.

    Args:
        path: The model, as `llcuda.hub.resolve` takes it.
        facts: What `read_facts` returned for it.
        model: How the model would be loaded.
        context: How the context would be created.

    Raises:
        LlcudaError: As `memory_needed`.
    """
    if model.split_mode == "tensor":
        raise UnsupportedError(
            "split_mode='tensor': the memory it takes cannot be estimated",
            parameter="split_mode",
            remedy="use 'layer'",
        )
    with callbacks.without_repeated_warnings(), _outline(path, facts, model) as pointer:
        return _memory_needed(pointer, context, model.bf16_copies)


def check_loads(path: str | os.PathLike[str]) -> None:
    """Check that a model file has the weights that its own numbers tell of.

    Args:
        path: The model, as `llcuda.hub.resolve` takes it.

    Raises:
        ModelError: It has not.
    """
    facts, params = read_facts(path), ModelParams(gpu_layers=0)
    with callbacks.without_repeated_warnings(), _outline(path, facts, params):
        pass


@contextlib.contextmanager
def _outline(path: str | os.PathLike[str], facts: FileFacts, params: ModelParams) -> Iterator[Any]:
    """Yield a llama_model without its weights and its tokenizer.

    llama.cpp needs no token for an estimate, only their count; a large vocabulary takes long to
    load.
    """
    if params.vocab_only:
        raise ContextError(
            "vocab_only=True: without weights there is no context",
            parameter="vocab_only",
            remedy="leave it out",
        )
    overrides = {**params.overrides, "tokenizer.ggml.model": "none"}
    if facts.tokens:
        architecture = overrides.get("general.architecture", facts.architecture)
        overrides[f"{architecture}.vocab_size"] = facts.tokens
    path = resolve(path, parameter="path")
    check_file(path)
    _, lib = library.load()
    pointer, _ = load_model(path, replace(params, overrides=overrides), allocate=False)
    try:
        yield pointer
    finally:
        lib.llcuda_model_free(pointer)


def _memory_needed(pointer: Any, params: ContextParams, copies: bool) -> list[DeviceMemory]:
    """Return the memory of each device; beyond MAX_CELLS by two smaller contexts.

    Cells and buffers grow in proportion to the cells there, as every window is full.
    """
    _, lib = library.load()
    train_ctx_size = lib.llama_model_n_ctx_train(pointer)
    c_params = context_params(params, train_ctx_size, lib.llama_model_size(pointer))

    def simulated(cells: int) -> list[DeviceMemory]:
        c_params.n_ctx = cells
        return _simulated(pointer, c_params, params, copies)

    cells = c_params.n_ctx
    if cells <= MAX_CELLS:
        return simulated(cells)
    step = MIN_CELLS if params.unified_kv else MIN_CELLS * params.sequences
    low, high = MAX_CELLS // 2 // step * step, MAX_CELLS // step * step
    devices = []
    for below, above in zip(simulated(low), simulated(high), strict=True):
        kv, compute = (
            upper + (upper - lower) * (cells - high) // (high - low)
            for lower, upper in ((below.kv, above.kv), (below.compute, above.compute))
        )
        devices.append(replace(above, kv=kv, compute=compute))
    return devices


def _simulated(
    pointer: Any, c_params: Any, params: ContextParams, copies: bool
) -> list[DeviceMemory]:
    ffi, lib = library.load()
    devices = ffi.new("struct llcuda_device_memory[]", MAX_DEVICES)
    count = lib.llcuda_memory_needed(pointer, c_params, devices, MAX_DEVICES)
    if count < 0:
        library.fail(ContextError, f"cannot create a context with {params}")
    kinds = {
        lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
        lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    }
    return [
        DeviceMemory(
            ffi.string(device.name).decode(errors="replace"),
            kinds.get(device.type, "gpu"),
            device.model + (lib.llcuda_copies_needed(pointer, device.name) if copies else 0),
            device.context,
            device.compute,
            device.free if i < count - 1 else available_memory(),
            device.total,
        )
        for i, device in enumerate(devices[0:count])
    ]
