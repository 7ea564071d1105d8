"""A model file in memory: its tokenizer, its metadata, its adapters."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, Unpack

from llcuda.demo import resolve
from llcuda.errors import (
    ArgumentError,
    LoadCancelledError,
    ModelError,
)
from llcuda.keywords import ModelKeywords, given_params
from llcuda.native import callbacks, library
from llcuda.native.gguf.check import check_file, check_tensors
from llcuda.native.vocabulary import Vocabulary
from llcuda.params import ModelParams
from llcuda.progress import progress_bar

Progress = Callable[[float], bool | None]


class Model(Vocabulary):
    """A GGUF model; shared by any number of threads and contexts.

    path: a GGUF file (of a split model the first), or "demo" for the model in the package.
    progress: called with 0.0 to 1.0 while loading; False cancels (LoadCancelledError), an
        exception cancels and is raised again. True draws a bar on stderr, in a terminal and in a
        notebook.
    parameters: the fields of ModelParams, or `params=` with one.

    Raises ModelNotFoundError, ModelError for what is no loadable model, ArgumentError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Progress | bool | None = None,
        params: ModelParams | None = None,
        **parameters: Unpack[ModelKeywords],
    ) -> None:
        self.params = given_params(ModelParams, params, parameters)
        self.path = resolve(os.fspath(path))
        check_file(self.path)
        self._ffi, self._lib = library.load()
        library.sync_log_level(self._lib)
        started = time.perf_counter()
        self._positions = check_tensors(self.path)
        self._probed = False  # the first context looks at what the model computes
        pointer = self._load(progress)
        self._handle = library.Handle("model", pointer, self._lib.llcuda_model_free)
        self.load_seconds = time.perf_counter() - started
        self._open_vocabulary(self._lib.llama_model_get_vocab(pointer))
        self._read_facts(pointer)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        quantization: str = "Q4_K_M",
        base: str | os.PathLike[str] | None = None,
        progress: Progress | bool | None = None,
        **parameters: Unpack[ModelKeywords],
    ) -> Self:
        """Load a Hugging Face checkpoint, or a LoRA adapter merged into its base model.

        source, base: see `llcuda.convert`, whose result is kept in the cache until a file of the
        checkpoint changes. quantization: see `llcuda.quantize`. progress: of both, each from 0.0 to
        1.0; parameters: as of Model. Raises what they raise.
        """
        from llcuda.conversion.convert import convert_cached

        path = convert_cached(source, quantization, base=base, progress=progress)
        return cls(path, progress=progress, **parameters)

    def _read_facts(self, pointer: Any) -> None:
        lib = self._lib
        self.size: int = lib.llama_model_size(pointer)
        self.parameter_count: int = lib.llama_model_n_params(pointer)
        self.train_ctx_size: int = lib.llama_model_n_ctx_train(pointer)
        self.embedding_size: int = lib.llama_model_n_embd_out(pointer)
        self.layer_count: int = lib.llama_model_n_layer(pointer)
        self.has_encoder: bool = lib.llama_model_has_encoder(pointer)
        self.has_decoder: bool = lib.llama_model_has_decoder(pointer)
        self.is_recurrent: bool = lib.llama_model_is_recurrent(pointer)
        self.is_hybrid: bool = lib.llama_model_is_hybrid(pointer)
        self.sliding_window: int = lib.llama_model_n_swa(pointer)
        self.description: str = _text(
            self._ffi, lambda buffer, n: lib.llama_model_desc(pointer, buffer, n)
        )

    # --- loading ---

    def _load(self, progress: Progress | bool | None) -> Any:
        with contextlib.ExitStack() as stack:
            if not (progress is None or isinstance(progress, bool) or callable(progress)):
                raise ArgumentError(
                    f"progress={progress!r}: expected a function, True or None",
                    parameter="progress",
                )
            if progress is True:
                progress = stack.enter_context(progress_bar(f"Loading {self.path.name}"))
            keep: list[Any] = []
            params = self._c_params(progress if callable(progress) else None, keep)
            pointer = self._lib.llcuda_model_load(os.fsencode(self.path), params)
        wrong = [
            line
            for line in library.errors(self._ffi, self._lib, keep=True).splitlines()
            if "Bad metadata override" in line
        ]
        if pointer == self._ffi.NULL:
            callbacks.reraise()
            if any(getattr(k, "cancelled", False) for k in keep):
                raise LoadCancelledError(f"loading {self.path} was cancelled by progress()")
            library.fail(ModelError, f"cannot load {self.path}")
        if wrong:
            self._lib.llcuda_model_free(pointer)
            raise ArgumentError(
                f"overrides: {wrong[0].partition('Warning: ')[2]}", parameter="overrides"
            )
        return pointer

    def _c_params(self, progress: Progress | None, keep: list[Any]) -> Any:
        """Translate ModelParams; `keep` holds the C memory that the result refers to."""
        ffi, lib, params = self._ffi, self._lib, self.params
        c = lib.llama_model_default_params()
        c.n_gpu_layers = -1 if params.gpu_layers is None else params.gpu_layers
        c.split_mode = getattr(lib, f"LLAMA_SPLIT_MODE_{params.split_mode.upper()}")
        c.main_gpu = params.main_gpu
        modes = {(False, False): "NONE", (True, False): "MMAP", (False, True): "MLOCK"}
        mode = modes.get((params.mmap, params.mlock), "MMAP_MLOCK")
        c.load_mode = getattr(lib, f"LLAMA_LOAD_MODE_{mode}")
        c.check_tensors = params.check_tensors
        c.vocab_only = params.vocab_only
        if params.tensor_split is not None:
            shares, most = list(params.tensor_split), lib.llama_max_devices()
            if len(shares) > most:
                raise ArgumentError(f"tensor_split has {len(shares)} shares, at most {most}")
            c.tensor_split = split = ffi.new("float[]", shares + [0.0] * (most - len(shares)))
            keep.append(split)
        if params.devices is not None:
            c.devices = devices = ffi.new("ggml_backend_dev_t[]", self._devices(params.devices))
            keep.append(devices)
        if params.overrides:
            c.kv_overrides = overrides = _overrides(ffi, lib, params.overrides)
            keep.append(overrides)
        if progress is not None:
            state = _LoadProgress(progress)
            handle = ffi.new_handle(state)
            c.progress_callback = lib.llcuda_on_progress
            c.progress_callback_user_data = handle
            keep += [state, handle]
        return c

    def _devices(self, names: Sequence[str]) -> list[Any]:
        lib, ffi = self._lib, self._ffi
        known = {}
        for i in range(lib.ggml_backend_dev_count()):
            device = lib.ggml_backend_dev_get(i)
            known[ffi.string(lib.ggml_backend_dev_name(device)).decode()] = device
        for name in names:
            if name not in known:
                raise ArgumentError(
                    f"devices: {name!r} is not one of {', '.join(known)}", parameter="devices"
                )
        return [*(known[name] for name in names), ffi.NULL]

    # --- facts ---

    @property
    def most_positions(self) -> int:
        """Most tokens that a text may have, by a table of learned positions; else 2**31 - 1."""
        return self._positions or 2**31 - 1

    @property
    def labels(self) -> list[str]:
        """The names of a classifier's classes, numbers where the file names none."""
        owner, ffi, lib = self._handle.owner, self._ffi, self._lib
        count = lib.llama_model_n_cls_out(owner.pointer)
        names = [lib.llama_model_cls_label(owner.pointer, i) for i in range(count)]
        return [
            str(i) if name == ffi.NULL else ffi.string(name).decode(errors="replace") or str(i)
            for i, name in enumerate(names)
        ]

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata, key -> value as text; arrays are shortened by llama.cpp."""
        owner = self._handle.owner
        return MappingProxyType(_metadata(self._ffi, self._lib, "llama_model", owner.pointer))

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja chat template, None without one."""
        owner = self._handle.owner
        text = self._lib.llama_model_chat_template(owner.pointer, self._ffi.NULL)
        return None if text == self._ffi.NULL else self._ffi.string(text).decode(errors="replace")

    # --- life ---

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._handle.closed

    def close(self) -> None:
        """Let go of the model; its memory is freed when the last context on it is closed."""
        self._handle.close()
        self._forget_pieces()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size / 2**20:.1f} MiB"
        return f"<llcuda.Model {self.path.name!r}: {self.description}, {state}>"


class _LoadProgress:
    """What the C callback finds behind its user_data."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.cancelled = False

    def __call__(self, fraction: float) -> bool:
        self.cancelled = self.report(fraction) is False
        return not self.cancelled


def _text(ffi: Any, write: Callable[[Any, int], int]) -> str:
    """Return the text that a C function writes into (buffer, size), of any length."""
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        length = write(buffer, size)
        if length < size:
            return bytes(ffi.buffer(buffer, max(length, 0))).decode(errors="replace")
        size = length + 1


def _metadata(ffi: Any, lib: Any, prefix: str, pointer: Any) -> dict[str, str]:
    """Return the metadata of a model ("llama_model") or adapter ("llama_adapter")."""
    count = getattr(lib, f"{prefix}_meta_count")(pointer)
    key_of = getattr(lib, f"{prefix}_meta_key_by_index")
    value_of = getattr(lib, f"{prefix}_meta_val_str_by_index")
    return {
        _text(ffi, lambda buffer, n, i=i: key_of(pointer, i, buffer, n)): _text(  # type: ignore[misc]
            ffi,
            lambda buffer, n, i=i: value_of(pointer, i, buffer, n),  # type: ignore[misc]
        )
        for i in range(count)
    }


def _overrides(ffi: Any, lib: Any, overrides: Mapping[str, int | float | bool | str]) -> Any:
    """Return llama.cpp's array of overrides, ended by an empty key."""
    array = ffi.new("struct llama_model_kv_override[]", len(overrides) + 1)
    for item, (key, value) in zip(array, overrides.items(), strict=False):
        item.key = key.encode()
        if isinstance(value, bool):
            item.tag, item.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            item.tag, item.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            item.tag, item.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            item.tag, item.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return array
