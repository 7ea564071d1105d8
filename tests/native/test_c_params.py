"""The way of each parameter of a model and a context: from its keyword to llama.cpp's struct."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Model
from llcuda.errors import ModelError, NoOutputError
from llcuda.native import library
from llcuda.native.c_params import context_params, model_params
from llcuda.params import ContextParams, ModelParams, default_threads
from tests.support import models

# Field -> a value that is not its default, the keywords it needs beside it, and the members of
# llama_context_params that differ then, by value or by the name of llama.cpp's constant.
CONTEXT: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ctx_size": (1024, {}, {"n_ctx": 1024}),
    "sequences": (3, {"ctx_size": 512}, {"n_seq_max": 3, "n_ctx": 1536}),
    "batch_size": (640, {}, {"n_batch": 640}),
    "ubatch_size": (96, {}, {"n_ubatch": 96}),
    "outputs_max": (7, {}, {"n_outputs_max": 7}),
    "unified_kv": (False, {}, {"kv_unified": False}),
    "threads": (3, {"threads_batch": 5}, {"n_threads": 3}),
    "threads_batch": (2, {"threads": 3}, {"n_threads_batch": 2}),
    "flash_attention": (True, {}, {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED"}),
    "type_k": ("q8_0", {}, {"type_k": "GGML_TYPE_Q8_0"}),
    "type_v": ("q4_0", {}, {"type_v": "GGML_TYPE_Q4_0"}),
    "rope_scaling": ("yarn", {}, {"rope_scaling_type": "LLAMA_ROPE_SCALING_TYPE_YARN"}),
    "rope_freq_base": (5000.0, {}, {"rope_freq_base": 5000.0}),
    "rope_freq_scale": (0.5, {}, {"rope_freq_scale": 0.5}),
    "yarn_ext_factor": (0.25, {}, {"yarn_ext_factor": 0.25}),
    "yarn_attn_factor": (0.75, {}, {"yarn_attn_factor": 0.75}),
    "yarn_beta_fast": (24.0, {}, {"yarn_beta_fast": 24.0}),
    "yarn_beta_slow": (2.0, {}, {"yarn_beta_slow": 2.0}),
    "yarn_orig_ctx": (256, {}, {"yarn_orig_ctx": 256}),
    "embeddings": (True, {}, {"embeddings": True}),
    "pooling": ("mean", {}, {"pooling_type": "LLAMA_POOLING_TYPE_MEAN"}),
    "attention": ("non_causal", {}, {"attention_type": "LLAMA_ATTENTION_TYPE_NON_CAUSAL"}),
    "swa_full": (False, {}, {"swa_full": False}),
    "device_logits": (True, {}, {}),  # beside the struct; see the test of it
    "offload_kqv": (False, {}, {"offload_kqv": False}),
    "op_offload": (False, {}, {"op_offload": False}),
    "batch_invariant": (True, {}, {}),  # set on the context; see tests/native/test_exactness.py
    "cuda_graphs": ("off", {}, {}),  # set on the GPUs; see tests/gpu/test_cuda_graphs.py
}

# The same of llama_model_params, whose arrays are read by `content`.
MODEL: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpu_layers": (7, {"n_gpu_layers": 7}),
    "split_mode": ("row", {"split_mode": "LLAMA_SPLIT_MODE_ROW"}),
    "main_gpu": (1, {"main_gpu": 1}),
    "tensor_split": ([3, 1], {"tensor_split": [3.0, 1.0]}),
    "devices": (["CPU"], {"devices": ["CPU"]}),
    "mmap": (False, {"load_mode": "LLAMA_LOAD_MODE_NONE"}),
    "mlock": (True, {"load_mode": "LLAMA_LOAD_MODE_MMAP_MLOCK"}),
    "check_tensors": (True, {"check_tensors": True}),
    "vocab_only": (True, {"vocab_only": True}),
    "overrides": (
        {"a": True, "b": -5, "c": 0.5, "d": "text"},
        {"kv_overrides": {"a": True, "b": -5, "c": 0.5, "d": "text"}},
    ),
    "bf16_copies": (True, {}),
    "bf16_to_f16": (True, {}),  # after the load; see tests/gpu/test_turing.py
}

# Further values: the keywords, and the member and constant that they become.
CONTEXT_CHOICES: list[tuple[dict[str, Any], str, str]] = [
    ({"flash_attention": None}, "flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_AUTO"),
    ({"flash_attention": False}, "flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_DISABLED"),
    ({"attention": "causal"}, "attention_type", "LLAMA_ATTENTION_TYPE_CAUSAL"),
    *(
        ({"rope_scaling": name}, "rope_scaling_type", f"LLAMA_ROPE_SCALING_TYPE_{name.upper()}")
        for name in ("none", "linear", "longrope")
    ),
    *(
        ({"pooling": name}, "pooling_type", f"LLAMA_POOLING_TYPE_{name.upper()}")
        for name in ("none", "cls", "last", "rank")
    ),
    *(
        ({"type_k": name}, "type_k", f"GGML_TYPE_{name.upper()}")
        for name in ("f32", "f16", "bf16", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    ),
]
MODEL_CHOICES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "load_mode", "LLAMA_LOAD_MODE_MMAP"),
    ({"mmap": False, "mlock": True}, "load_mode", "LLAMA_LOAD_MODE_MLOCK"),
    *(
        ({"split_mode": name}, "split_mode", f"LLAMA_SPLIT_MODE_{name.upper()}")
        for name in ("none", "layer")  # "tensor" needs a GPU
    ),
]
YARN: dict[str, Any] = {"rope_scaling": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 128}


def constants(members: dict[str, Any]) -> dict[str, Any]:
    """Return members with the numbers of llama.cpp's constants in place of their names."""
    _, lib = library.load()
    return {
        member: getattr(lib, value) if str(value).startswith(("LLAMA_", "GGML_")) else value
        for member, value in members.items()
    }


def differences(struct: Any, other: Any) -> dict[str, Any]:
    """Return the members of a struct that differ from another one's."""
    ffi, _ = library.load()
    names = [name for name, _ in ffi.typeof(struct).fields]
    return {n: getattr(struct, n) for n in names if getattr(struct, n) != getattr(other, n)}


def content(member: str, value: Any) -> Any:
    """Return what an array of llama_model_params has; other values as they are."""
    ffi, lib = library.load()
    if member == "tensor_split":
        return [share for share in value[0 : lib.llama_max_devices()] if share]
    if member == "devices":
        assert value[1] == ffi.NULL
        return [ffi.string(lib.ggml_backend_dev_name(value[0])).decode()]
    if member == "kv_overrides":
        kinds = {
            lib.LLAMA_KV_OVERRIDE_TYPE_BOOL: lambda item: item.val_bool,
            lib.LLAMA_KV_OVERRIDE_TYPE_INT: lambda item: item.val_i64,
            lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT: lambda item: item.val_f64,
            lib.LLAMA_KV_OVERRIDE_TYPE_STR: lambda item: ffi.string(item.val_str).decode(),
        }
        items: dict[str, Any] = {}
        while key := ffi.string(value[len(items)].key).decode():
            items[key] = kinds[value[len(items)].tag](value[len(items)])
        return items
    return value


def test_every_field_has_a_row() -> None:
    """A new field fails here until a table above moves it."""
    assert {field.name for field in dataclasses.fields(ContextParams)} == CONTEXT.keys()
    assert {field.name for field in dataclasses.fields(ModelParams)} == MODEL.keys()


@pytest.mark.parametrize("field", CONTEXT)
def test_a_keyword_reaches_the_context_s_struct(field: str) -> None:
    """Its member has the value, and no other member changes."""
    value, beside, members = CONTEXT[field]
    given = ContextParams(**{**beside, field: value})
    default = ContextParams(**beside)
    structs = [context_params(params, 4096, 2**30) for params in (given, default)]
    assert differences(*structs) == constants(members)


@pytest.mark.parametrize("field", MODEL)
def test_a_keyword_reaches_the_model_s_struct(field: str) -> None:
    """Its member has the value, and no other member changes."""
    value, members = MODEL[field]
    kept: list[Any] = []  # the arrays
    given = model_params(ModelParams(**{field: value}), kept)
    changed = differences(given, model_params(ModelParams(), kept))
    assert {name: content(name, item) for name, item in changed.items()} == constants(members)


@pytest.mark.parametrize(("given", "member", "constant"), CONTEXT_CHOICES, ids=str)
def test_choices_of_a_context(given: dict[str, Any], member: str, constant: str) -> None:
    """Each word becomes its constant of llama.cpp."""
    struct = context_params(ContextParams(**given), 4096, 2**30)
    assert {member: getattr(struct, member)} == constants({member: constant})


@pytest.mark.parametrize(("given", "member", "constant"), MODEL_CHOICES, ids=str)
def test_choices_of_a_model(given: dict[str, Any], member: str, constant: str) -> None:
    """Each word, and each pair of mmap and mlock, becomes its constant of llama.cpp."""
    struct = model_params(ModelParams(**given), [])
    assert {member: getattr(struct, member)} == constants({member: constant})


def test_what_is_not_given() -> None:
    """All layers; the training context up to 4,096 tokens; threads by the model's size."""
    assert model_params(ModelParams(), []).n_gpu_layers == -1
    for train_ctx_size, n_ctx in ((0, 4096), (512, 512), (2**17, 4096)):
        assert context_params(ContextParams(), train_ctx_size, 0).n_ctx == n_ctx
    for size, threads in ((2**20, 1), (2**30, default_threads())):
        struct = context_params(ContextParams(), 512, size)
        assert (struct.n_threads, struct.n_threads_batch) == (threads, threads)
    struct = context_params(ContextParams(threads=3), 512, 2**30)
    assert (struct.n_threads, struct.n_threads_batch) == (3, 3)


def test_keywords_are_the_fields(model_files: dict[str, Path]) -> None:
    """Model and Context take each field by its name."""
    for_model: dict[str, Any] = {"gpu_layers": 0, "mmap": False, "check_tensors": True}
    for_context: dict[str, Any] = {
        "ctx_size": 64,
        "sequences": 2,
        "threads": 1,
        "offload_kqv": False,
        **YARN,
    }
    with (
        Model(model_files["llama"], **for_model) as model,
        Context(model, **for_context) as context,
    ):
        assert model.params == ModelParams(**for_model)
        assert context.params == ContextParams(**for_context)
        expected = context_params(context.params, model.train_ctx_size, model.size)
        assert differences(context.c_params(), expected) == {}


@pytest.mark.parametrize(
    ("field", "value", "beside"),
    [
        ("rope_freq_base", 500.0, {}),
        ("rope_freq_scale", 0.5, {}),
        ("rope_scaling", "yarn", {"rope_freq_scale": 0.25}),
        ("yarn_ext_factor", 0.0, YARN),
        ("yarn_attn_factor", 3.0, {**YARN, "yarn_ext_factor": 0.0}),
        ("yarn_beta_fast", 2.0, YARN),
        ("yarn_beta_slow", 0.01, YARN),
        ("yarn_orig_ctx", 16, YARN),
        ("attention", "non_causal", {}),
        ("type_k", "bf16", {}),
    ],
)
def test_a_keyword_changes_the_logits(
    field: str,
    value: Any,
    beside: dict[str, Any],
    model: Model,
    make_context: Callable[..., Context],
) -> None:
    """What changes positions, attention or the KV cache changes the logits of a text."""
    outputs = []
    for given in ({**beside, field: value}, beside):
        context = make_context(model, **given)
        context.decode(range(60))
        outputs.append(np.array(context.logits()))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_check_tensors_looks_at_the_weights(tmp_path: Path) -> None:
    """A weight that is NaN loads without it, and is an error with it."""
    metadata, tensors = models.BUILDERS["llama"]()
    tensors["output_norm.weight"] = np.full_like(tensors["output_norm.weight"], np.nan)
    path = models.write(tmp_path / "nan.gguf", metadata, tensors)
    Model(path, check_tensors=False).close()
    with pytest.raises(ModelError):
        Model(path, check_tensors=True)


def test_device_logits_reaches_the_context(
    model: Model, make_context: Callable[..., Context]
) -> None:
    """Only rows of the last micro-batch can be read."""
    given: dict[str, Any] = {"batch_size": 8, "ubatch_size": 4}
    for device_logits in (False, True):
        context = make_context(model, device_logits=device_logits, **given)
        context.decode(range(8), logits="all")
        if device_logits:
            with pytest.raises(NoOutputError):
                context.logits(0)
        else:
            context.logits(0)


def test_cells_of_sequences_that_have_their_own() -> None:
    """They are rounded up for each sequence before llama.cpp would do it with a warning."""
    for ctx_size, n_ctx in ((64, 1024), (256, 1024), (257, 2048)):
        params = ContextParams(ctx_size=ctx_size, sequences=4, unified_kv=False)
        assert context_params(params, 0, 0).n_ctx == n_ctx
