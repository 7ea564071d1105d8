"""The settings of a model, a context and a sampler, as frozen dataclasses.

Checked when they are made: a wrong value is an ArgumentError that names it, an unknown
keyword a TypeError. Nothing here loads the library. The defaults' names are llama.cpp's where it
has them; where the meaning differs, the docstring says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from llcuda.errors import ArgumentError

SPLIT_MODES = ("none", "layer", "row", "tensor")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLINGS = ("none", "mean", "cls", "last", "rank")
ATTENTIONS = ("causal", "non_causal")
INT32_MAX = 2**31 - 1
MAX_SEED = 2**32 - 2  # the next one is llama.cpp's word for "at random"


def default_threads() -> int:
    """Return how many processors this process may use (at least 1)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wrong_value(parameter: str, value: Any, rule: str, remedy: str | None = None) -> ArgumentError:
    """Return the error `parameter=value: rule; remedy`."""
    return ArgumentError(f"{parameter}={value!r}: {rule}", parameter=parameter, remedy=remedy)


def check_number(parameter: str, value: Any, kind: str, low: float, high: float = math.inf) -> None:
    """Raise ArgumentError unless `value` is an "int" or "number" with low <= value <= high.

    numpy's numbers are numbers; True and False are not.
    """
    number = isinstance(value, Integral) or (kind == "number" and isinstance(value, Real))
    if isinstance(value, bool) or not number or not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        what = "a whole number" if kind == "int" else "a number"
        raise wrong_value(parameter, value, f"expected {what} {bounds}")


def _check_choice(parameter: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise wrong_value(parameter, value, f"expected one of {', '.join(choices)}")


def _check_text(parameter: str, value: Any, max_bytes: int | None = None) -> None:
    """Raise ArgumentError unless `value` is a text for C: no NUL, at most `max_bytes` of UTF-8."""
    if not isinstance(value, str):
        raise wrong_value(parameter, value, "expected a text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise wrong_value(parameter, value, str(error)) from None
    if "\0" in value:
        raise wrong_value(parameter, value, "contains a NUL character")
    if max_bytes is not None and size > max_bytes:
        raise wrong_value(parameter, value, f"has {size} bytes, at most {max_bytes} are allowed")


def check_texts(parameter: str, values: Any, max_bytes: int | None = None) -> None:
    """Raise ArgumentError unless `values` is a sequence of texts of at most `max_bytes` bytes."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise wrong_value(parameter, values, "expected a list of texts")
    for value in values:
        _check_text(parameter, value, max_bytes)


def check_flags(params: Any, names: str) -> None:
    """Raise ArgumentError unless these fields, named in one text, are True or False."""
    for name in names.split():
        if not isinstance(getattr(params, name), bool):
            raise wrong_value(name, getattr(params, name), "expected True or False")


@dataclass(frozen=True, slots=True)
class ModelParams:
    """How a model file is loaded.

    gpu_layers: layers on the GPU; None or a number beyond the model's layers = all, 0 = none.
    split_mode: over several GPUs: "none", "layer" (layers and KV), "row" or "tensor".
    main_gpu: the GPU to use with split_mode "none".
    tensor_split: share of each GPU, in any unit; None = by free memory.
    devices: names of the devices to use, as `llcuda doctor` lists them; None = all GPUs.
    mmap: map the file instead of reading it. mlock: keep it in RAM.
    check_tensors: look for NaN and other invalid values in the weights.
    vocab_only: only the tokenizer; such a model has no context.
    overrides: metadata keys to set to another int, float, bool or str.
    """

    gpu_layers: int | None = None
    split_mode: str = "layer"
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    devices: Sequence[str] | None = None
    mmap: bool = True
    mlock: bool = False
    check_tensors: bool = False
    vocab_only: bool = False
    overrides: Mapping[str, int | float | bool | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpu_layers is not None:
            check_number("gpu_layers", self.gpu_layers, "int", 0, INT32_MAX)
        check_number("main_gpu", self.main_gpu, "int", 0, INT32_MAX)
        _check_choice("split_mode", self.split_mode, SPLIT_MODES)
        check_flags(self, "mmap mlock check_tensors vocab_only")
        if self.tensor_split is not None:
            if not isinstance(self.tensor_split, Sequence):
                raise wrong_value("tensor_split", self.tensor_split, "expected a list")
            for share in self.tensor_split:
                check_number("tensor_split", share, "number", 0, 1e9)
        if self.devices is not None:
            check_texts("devices", self.devices)
        if not isinstance(self.overrides, Mapping):
            raise wrong_value("overrides", self.overrides, "expected a mapping")
        for key, value in self.overrides.items():
            _check_text("overrides", key, 127)
            parameter = f"overrides[{key!r}]"
            if not key:
                raise ArgumentError("overrides: a key must not be empty", parameter="overrides")
            if isinstance(value, str):
                _check_text(parameter, value, 127)
            elif not isinstance(value, int | float):
                raise wrong_value(parameter, value, "expected int, float, bool, str")
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise wrong_value(parameter, value, "beyond 64 bits")


@dataclass(frozen=True, slots=True)
class ContextParams:
    """The size and the arithmetic of a context.

    ctx_size: tokens of each sequence; None = the model's training context, at most 4,096. The KV
        cache has ctx_size x sequences cells, rounded up by llama.cpp to 256; with unified_kv any
        sequence may take more than its share.
    sequences: independent texts in one context, 1 to 256.
    batch_size: most tokens of one llama_decode call; `Context.decode` splits longer prompts.
    ubatch_size: most tokens computed at once.
    outputs_max: most rows of logits of one call; 0 = batch_size. A small number saves GPU memory
        (a row has 4 bytes for each vocabulary entry).
    unified_kv: one KV buffer for all sequences: any sequence may use free cells, and parts of a
        sequence can be copied. False: a buffer for each, faster for unrelated texts.
    threads, threads_batch: processors for one token and for prompts; None = all that are allowed,
        but one for models below 32 MiB. On a busy machine give fewer: a thread that has to wait
        for its processor stops all others.
    flash_attention: None = where the device has it.
    type_k, type_v: type of the KV cells, e.g. "f16", "q8_0" (a quantised V needs flash attention).
    rope_scaling ("none", "linear", "yarn", "longrope"), rope_freq_base, rope_freq_scale, yarn_*,
        yarn_orig_ctx: None = from the model.
    embeddings: compute embeddings; pooling: None = from the model, or "none", "mean", "cls",
        "last", "rank"; attention: None = from the model, or "causal", "non_causal".
    swa_full: sliding-window layers keep the whole text, so that it can be rolled back.
    device_logits: logits stay on the device that computed them: sampling begins there, and a row is
        copied when it is asked for. Only those of the last micro-batch of a decode can be had.
    offload_kqv: KV cache and attention on the GPU. op_offload: big prompts of CPU layers on it too.
    """

    ctx_size: int | None = None
    sequences: int = 1
    batch_size: int = 512
    ubatch_size: int = 512
    outputs_max: int = 0
    unified_kv: bool = True
    threads: int | None = None
    threads_batch: int | None = None
    flash_attention: bool | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    rope_scaling: str | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    embeddings: bool = False
    pooling: str | None = None
    attention: str | None = None
    swa_full: bool = True
    device_logits: bool = False
    offload_kqv: bool = True
    op_offload: bool = True

    def __post_init__(self) -> None:
        if self.ctx_size is not None:
            check_number("ctx_size", self.ctx_size, "int", 1, INT32_MAX)
        check_number("sequences", self.sequences, "int", 1, 256)
        if (self.ctx_size or 0) * self.sequences > INT32_MAX:
            raise ArgumentError(
                f"ctx_size={self.ctx_size} x sequences={self.sequences}: at most {INT32_MAX} cells",
                parameter="ctx_size",
            )
        check_number("batch_size", self.batch_size, "int", 1, 2**20)
        check_number("ubatch_size", self.ubatch_size, "int", 1, 2**20)
        if self.batch_size < self.sequences:
            rule = f"expected at least sequences={self.sequences}"
            raise wrong_value("batch_size", self.batch_size, rule)
        check_number("outputs_max", self.outputs_max, "int", 0, 2**20)
        if 0 < self.outputs_max < self.sequences:
            rule = f"expected 0 or at least sequences={self.sequences}"
            raise wrong_value("outputs_max", self.outputs_max, rule)
        for name in ("threads", "threads_batch"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), "int", 1, 512)
        if self.flash_attention is not None and not isinstance(self.flash_attention, bool):
            raise wrong_value(
                "flash_attention", self.flash_attention, "expected None, True or False"
            )
        _check_choice("type_k", self.type_k, KV_TYPES)
        _check_choice("type_v", self.type_v, KV_TYPES)
        if self.flash_attention is False and self.type_v not in ("f32", "f16", "bf16"):
            raise wrong_value("type_v", self.type_v, "needs flash attention, which is off")
        for name, choices in (
            ("rope_scaling", ROPE_SCALINGS),
            ("pooling", POOLINGS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) is not None:
                _check_choice(name, getattr(self, name), choices)
        for item in fields(self):
            if (
                item.name.startswith(("rope_freq", "yarn_"))
                and getattr(self, item.name) is not None
            ):
                kind = "int" if item.name == "yarn_orig_ctx" else "number"
                check_number(item.name, getattr(self, item.name), kind, 0, INT32_MAX)
        check_flags(self, "unified_kv embeddings swa_full device_logits offload_kqv op_offload")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the steps run in the order of this list.

    logit_bias: token -> number added to its logit; -inf forbids the token.
    grammar, grammar_root: GBNF text and its start rule (grammars/README.md of llama.cpp).
    repeat_penalty, frequency_penalty, presence_penalty over the last penalty_last_n tokens.
    dry_multiplier (0 = off), dry_base, dry_allowed_length, dry_last_n, dry_breakers: DRY.
    top_n_sigma (<= 0 off); top_k (0 = off); typical_p (1 = off); top_p (1 = off); min_p (0 = off);
    xtc_probability (0 = off), xtc_threshold.
    temperature: 0 = greedy, always the most probable token. dynatemp_range, dynatemp_exponent:
        temperature by entropy, temperature +- range.
    mirostat: 0 off, 1 or 2; mirostat_tau, mirostat_eta. It takes the place of the filters.
    adaptive_target (< 0 off), adaptive_decay: adaptive-p.
    seed: None = drawn at random, readable as `Sampler.seed`. min_keep: what typical_p, top_p, min_p
        and XTC leave at least.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | None = None
    grammar_root: str = "root"
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = 1024
    dry_breakers: Sequence[str] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    top_k: int = 40
    typical_p: float = 1.0
    top_p: float = 0.9
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    temperature: float = 0.7
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    seed: int | None = None
    min_keep: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("repeat_penalty", 1e-6, 1e6),
            ("frequency_penalty", -1e6, 1e6),
            ("presence_penalty", -1e6, 1e6),
            ("dry_multiplier", 0, 1e6),
            ("dry_base", 0, 1e6),
            ("top_n_sigma", -1e6, 1e6),
            ("typical_p", 0, 1),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("xtc_probability", 0, 1),
            ("xtc_threshold", 0, 1),
            ("temperature", 0, 1e6),
            ("dynatemp_range", 0, 1e6),
            ("dynatemp_exponent", 0, 1e6),
            ("mirostat_tau", 0, 1e6),
            ("mirostat_eta", 0, 1e6),
            ("adaptive_target", -1, 1),
            ("adaptive_decay", 0, 0.99),
        ):
            check_number(name, getattr(self, name), "number", low, high)
        for name, low, high in (
            ("penalty_last_n", 0, 2**20),
            ("dry_allowed_length", 0, INT32_MAX),
            ("dry_last_n", 0, 2**20),
            ("top_k", 0, INT32_MAX),
            ("mirostat", 0, 2),
            ("min_keep", 0, INT32_MAX),
        ):
            check_number(name, getattr(self, name), "int", low, high)
        if self.seed is not None:
            check_number("seed", self.seed, "int", 0, MAX_SEED)
        if not isinstance(self.logit_bias, Mapping):
            raise wrong_value("logit_bias", self.logit_bias, "expected token -> number")
        for token, bias in self.logit_bias.items():
            check_number("logit_bias", token, "int", 0, INT32_MAX)
            check_number(f"logit_bias[{token}]", bias, "number", -math.inf)
        check_texts("dry_breakers", self.dry_breakers)
        if self.grammar is not None and not isinstance(self.grammar, str):
            raise wrong_value("grammar", self.grammar, "expected a text")
        _check_text("grammar_root", self.grammar_root)
