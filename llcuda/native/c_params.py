"""ModelParams and ContextParams as llama.cpp's structs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llcuda.native import library
from llcuda.params import ContextParams, ModelParams, default_threads, wrong_argument, wrong_value

SMALL_MODEL = 32 * 2**20  # bytes; below, threads wait for each other longer than they compute
MIN_CELLS = 256  # llama.cpp rounds the cells of a sequence up to this
MAX_CELLS = 2**31 - 1
DEFAULT_CTX_SIZE = 4096  # at most, where ctx_size is not given


def model_params(params: ModelParams, kept: list[Any]) -> Any:
    """Return llama_model_params.

    Args:
        params: The parameters to translate.
        kept: Gets the C memory that the result points to; it must live as long as the result.

    Raises:
        ArgumentError: An unknown device, more shares than llama.cpp has devices, or a split over
            GPUs where there are none.
    """
    ffi, lib = library.load()
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
        shares, limit = list(params.tensor_split), lib.llama_max_devices()
        if len(shares) > limit:
            rule = f"{len(shares)} shares, at most {limit} are allowed"
            raise wrong_argument("tensor_split", rule, "give one for each GPU")
        c.tensor_split = split = ffi.new("float[]", shares + [0.0] * (limit - len(shares)))
        kept.append(split)
    names = params.devices
    if names is None and library.refused_gpus():
        names = [device.name for device in library.devices() if device.kind in ("gpu", "igpu")]
    if names is not None:
        c.devices = devices = ffi.new("ggml_backend_dev_t[]", _devices(names))
        kept.append(devices)
    if params.split_mode == "tensor" and not _gpu_count(params):
        raise wrong_value("split_mode", "tensor", "there is no GPU to split over", 'use "layer"')
    if params.split_mode == "none" and params.main_gpu >= (count := _gpu_count(params)) > 0:
        raise wrong_value("main_gpu", params.main_gpu, f"expected an index from 0 to {count - 1}")
    if params.overrides:
        c.kv_overrides = overrides = _overrides(params.overrides)
        kept.append(overrides)
    return c


def context_params(params: ContextParams, train_ctx_size: int, model_size: int) -> Any:
    """Return llama_context_params.

    Args:
        params: The parameters to translate.
        train_ctx_size: Tokens that the model was trained on, 0 if unknown; the default of ctx_size.
        model_size: Bytes of the model's weights, which decide the default of threads.
    """
    _, lib = library.load()
    c = lib.llama_context_default_params()
    per_sequence = params.ctx_size or min(train_ctx_size or DEFAULT_CTX_SIZE, DEFAULT_CTX_SIZE)
    if not params.unified_kv:  # llama.cpp would round up each sequence, and warn
        per_sequence = -(-per_sequence // MIN_CELLS) * MIN_CELLS
    c.n_ctx = min(max(per_sequence * params.sequences, MIN_CELLS), MAX_CELLS)
    c.n_seq_max = params.sequences
    c.n_batch = params.batch_size
    c.n_ubatch = min(params.ubatch_size, params.batch_size)
    c.n_outputs_max = min(params.outputs_max, params.batch_size)
    c.kv_unified = params.unified_kv
    c.n_threads = params.threads or threads_for(model_size)
    c.n_threads_batch = params.threads_batch or c.n_threads
    flash = {None: "AUTO", True: "ENABLED", False: "DISABLED"}[params.flash_attention]
    c.flash_attn_type = getattr(lib, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    c.type_k = getattr(lib, f"GGML_TYPE_{params.type_k.upper()}")
    c.type_v = getattr(lib, f"GGML_TYPE_{params.type_v.upper()}")
    for field, prefix in (
        ("rope_scaling", "LLAMA_ROPE_SCALING_TYPE_"),
        ("pooling", "LLAMA_POOLING_TYPE_"),
        ("attention", "LLAMA_ATTENTION_TYPE_"),
    ):
        if (choice := getattr(params, field)) is not None:
            setattr(c, f"{field}_type", getattr(lib, prefix + choice.upper()))
    for field in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
                  "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"):  # fmt: skip
        if (value := getattr(params, field)) is not None:
            setattr(c, field, value)
    c.embeddings = params.embeddings
    c.swa_full = params.swa_full
    c.offload_kqv = params.offload_kqv
    c.op_offload = params.op_offload
    c.no_perf = False
    return c


def threads_for(model_size: int) -> int:
    """Return how many threads decode a model of this many bytes, where none are given."""
    return 1 if model_size < SMALL_MODEL else default_threads()


def _devices(names: Sequence[str]) -> list[Any]:
    ffi, lib = library.load()
    known = {}
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        known[ffi.string(lib.ggml_backend_dev_name(device)).decode()] = device
    refused = library.refused_gpus()
    for name in names:
        if name in refused:
            rule, remedy = f"{name!r} cannot be used: {refused[name].what}", refused[name].mend
            raise wrong_value("devices", list(names), rule, remedy)
        if name not in known:
            raise wrong_value(
                "devices", list(names), f"{name!r} is not one of {', '.join(known)}",
                "`llcuda doctor` lists the devices; leave it out for all GPUs",
            )  # fmt: skip
    return [*(known[name] for name in names), ffi.NULL]


def _gpu_count(params: ModelParams) -> int:
    """Return how many devices were named, or how many GPUs there are."""
    if params.devices is not None:
        return len(params.devices)
    return sum(device.kind in ("gpu", "igpu") for device in library.devices())


def _overrides(overrides: Mapping[str, int | float | bool | str]) -> Any:
    """Return llama.cpp's array of overrides, ended by an empty key."""
    ffi, lib = library.load()
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
