"""The settings of a model, a context and a sampler, as frozen dataclasses.

Values are checked when an object is made: a wrong value is an ArgumentError that names the
parameter, an unknown keyword a TypeError. Nothing here loads the library. Names and defaults are
llama.cpp's unless a docstring says otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from llcuda.errors import ArgumentError, shown
from llcuda.keywords import explain_keywords

SPLIT_MODES = ("none", "layer", "row", "tensor")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLINGS = ("none", "mean", "cls", "last", "rank")
ATTENTIONS = ("causal", "non_causal")
CUDA_GRAPHS = ("auto", "on", "off", "checked")
ON_ERROR = ("raise", "return")  # what a call with many texts does with the error of one
INT32_MAX = 2**31 - 1
MAX_SEQUENCES = 256  # of a context
BATCH_SIZE = UBATCH_SIZE = 512  # of a context and of an engine; the second is llama.cpp's own
MAX_BIAS = 1e30  # added to a logit, which is a float of 32 bits
MAX_SEED = 2**32 - 2  # the next one is llama.cpp's word for "at random"


# What stands for a wish that other libraries write as -1 or None, or that no number says.
_OFF_AT_0, _OFF_AT_1 = "0 turns it off", "1 turns it off"
_REMEDIES = {
    "gpu_layers": "99 = all layers, 0 = the CPU",
    "ctx_size": "leave it out for the default",
    "cache_size": "None = n_parallel x ctx_size",
    "threads": "leave it out for the default",
    "threads_batch": "leave it out for the default",
    "max_tokens": "for no limit leave it out of a chat, give ctx_size's number elsewhere",
    "logprobs": "None = no log-probabilities, 0 = those of the chosen tokens",
    "timeout": "None = no limit",
    "speculation": _OFF_AT_0,
    "seed": "None = at random",
    "temperature": "0 = always the most probable token",
    "top_k": _OFF_AT_0,
    "top_p": _OFF_AT_1,
    "typical_p": _OFF_AT_1,
    "min_p": _OFF_AT_0,
    "top_n_sigma": "-1 turns it off",
    "repeat_penalty": _OFF_AT_1,
    "frequency_penalty": _OFF_AT_0,
    "presence_penalty": _OFF_AT_0,
    "penalty_last_n": "give ctx_size to count the whole text",
    "dry_multiplier": _OFF_AT_0,
    "dry_base": "dry_multiplier=0 turns DRY off",
    "dry_last_n": "give ctx_size to count the whole text",
    "xtc_probability": _OFF_AT_0,
    "dynatemp_range": _OFF_AT_0,
    "mirostat": _OFF_AT_0,
    "adaptive_target": "-1 turns it off",
}


def default_threads() -> int:
    """Return how many processors this process may use (at least 1)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wrong_argument(parameter: str, rule: str, remedy: str | None = None) -> ArgumentError:
    """Return the error `parameter: rule; remedy`, for a value that the message does not show."""
    return ArgumentError(f"{parameter}: {rule}", parameter=parameter, remedy=remedy)


def wrong_value(parameter: str, value: Any, rule: str, remedy: str | None = None) -> ArgumentError:
    """Return the error `parameter=value: rule; remedy`; a long value is cut."""
    text = shown(value)
    error = ArgumentError(f"{parameter}={text}: {rule}", parameter=parameter, remedy=remedy)
    error.shown = text
    return error


def check_number(parameter: str, value: Any, kind: str, low: float, high: float = math.inf) -> None:
    """Raise ArgumentError unless `value` is an "int" or "number" with low <= value <= high.

    numpy's numbers are numbers; True and False are not. The error has the remedy of the field that
    `parameter` names, if there is one.
    """
    number = type(value) is int or isinstance(value, Integral)
    if not number and kind == "number":
        number = type(value) is float or isinstance(value, Real)
    if not number or isinstance(value, bool) or not low <= value <= high:
        rule = "expected a whole number" if kind == "int" else "expected a number"
        if high != math.inf:
            rule = f"{rule} from {_plain(low)} to {_plain(high)}"
        elif low != -math.inf:
            rule = f"{rule} at least {_plain(low)}"
        raise wrong_value(parameter, value, rule, _REMEDIES.get(parameter))


def _plain(number: float) -> str:
    """Return a number as prose has it, such as 1,000,000 or 0.000001."""
    if 1e-6 <= abs(number) < 1e15 and number != int(number):
        return f"{number:,.6f}".rstrip("0")
    return f"{int(number):,}" if abs(number) < 1e15 and number == int(number) else f"{number:g}"


def check_choice(parameter: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ArgumentError unless `value` is one of these texts."""
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


def check_flag(parameter: str, value: Any) -> None:
    """Raise ArgumentError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise wrong_value(parameter, value, "expected True or False")


def check_flags(params: Any, names: str) -> None:
    """Raise ArgumentError unless these fields, named in one text, are True or False."""
    for name in names.split():
        check_flag(name, getattr(params, name))


@explain_keywords
@dataclass(frozen=True, slots=True)
class ModelParams:
    """How a model file is loaded.

    Attributes:
        gpu_layers: Layers on the GPU; a number beyond the model's layers, such as 99, = all,
            0 = none. None = all; for `InferenceEngine.load_model` and the command line as many as
            fit.
        split_mode: How several GPUs share the model: "none", "layer" (layers and their KV cells),
            "row" or "tensor".
        main_gpu: Index of the GPU that is used with split_mode="none".
        tensor_split: Share of each GPU, in any unit; None = by free memory.
        devices: Names of the devices to use, as `llcuda doctor` lists them; None = all GPUs.
        mmap: Map the file into memory instead of reading it. The file must not be written to then:
            that is a ModelChangedError at the next decode.
        mlock: Keep the file in RAM.
        check_tensors: Look for NaN and other invalid values in the weights.
        vocab_only: Load the tokenizer only; such a model has no context.
        overrides: Metadata keys to replace, each with an int, float, bool or str.
        bf16_copies: Keep the quantized matrices on a Hopper GPU as BF16 too, which takes 2 bytes
            more for each weight there, and compute with these where a step has more than 8 rows.
            Other devices have no copies.
        bf16_to_f16: Whether BF16 weights on NVIDIA GPUs, also those of adapters, become F16 when
            they are loaded; None = on GPUs whose Tensor Cores have no BF16 (compute capability
            7.5), where llama.cpp makes an F32 copy of a matrix in each step of more than 8 rows.
            F16 takes as many bytes, is exact from 2^-14 to 65,504 and within 2^-25 below. A tensor
            with a number beyond 65,504 stays BF16, and the log says so.

    Raises:
        ArgumentError: A value is outside what is allowed.
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
    bf16_copies: bool = False
    bf16_to_f16: bool | None = None

    def __post_init__(self) -> None:
        if self.gpu_layers is not None:
            check_number("gpu_layers", self.gpu_layers, "int", 0, INT32_MAX)
        check_number("main_gpu", self.main_gpu, "int", 0, INT32_MAX)
        check_choice("split_mode", self.split_mode, SPLIT_MODES)
        check_flags(self, "mmap mlock check_tensors vocab_only bf16_copies")
        if self.bf16_to_f16 is not None and not isinstance(self.bf16_to_f16, bool):
            rule, remedy = "expected None, True or False", "None = on GPUs that need it"
            raise wrong_value("bf16_to_f16", self.bf16_to_f16, rule, remedy)
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
                raise wrong_argument("overrides", "a key must not be empty")
            if isinstance(value, str):
                _check_text(parameter, value, 127)
            elif not isinstance(value, int | float):
                raise wrong_value(parameter, value, "expected int, float, bool, str")
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise wrong_value(parameter, value, "beyond 64 bits")


@explain_keywords
@dataclass(frozen=True, slots=True)
class ContextParams:
    """The size and the arithmetic of a context.

    Attributes:
        ctx_size: Tokens of each sequence; None = the model's training context, at most 4,096. The
            KV cache has ctx_size x sequences cells, which llama.cpp rounds up to a multiple of
            256.
        sequences: Independent sequences in one context, 1 to 256.
        batch_size: Largest number of tokens of one `llama_decode` call; `Context.decode` splits
            longer prompts.
        ubatch_size: Largest number of tokens computed at once.
        outputs_max: Largest number of rows of logits of one call; 0 = batch_size. A row has
            4 bytes for each vocabulary entry, so a small number saves memory of the GPU.
        unified_kv: Whether all sequences share one KV buffer. Then any sequence may use free cells,
            and a part of a sequence can be copied. A buffer for each sequence is faster for
            unrelated sequences.
        threads: Processors that compute one token of each sequence; None = all that the process
            may use, but one for models below 32 MiB. Give fewer on a busy machine: a thread that
            waits for its processor stops all others.
        threads_batch: Processors that compute prompts; None = `threads`.
        flash_attention: Whether attention is computed by flash attention; None = where the device
            has it.
        type_k: Type of the keys in the KV cache, e.g. "f16" or "q8_0".
        type_v: Type of the values; a quantized type needs flash attention.
        rope_scaling: "none", "linear", "yarn" or "longrope"; None = as the model's file says.
        rope_freq_base: Base frequency of RoPE; None = the model's.
        rope_freq_scale: Scale of RoPE's frequency; None = the model's.
        yarn_ext_factor: Mix of extrapolation in YaRN (Peng et al., arXiv:2309.00071); None = the
            model's. The other `yarn_` fields are YaRN's as well.
        yarn_attn_factor: Scale of the attention's magnitude; llama.cpp reads it only with
            yarn_ext_factor=0, and computes it otherwise.
        yarn_beta_fast: Rotations over the original context above which a dimension is kept.
        yarn_beta_slow: Rotations over the original context below which a dimension is interpolated.
        yarn_orig_ctx: Tokens of the original context.
        embeddings: Whether embeddings are computed.
        pooling: How a sequence's embedding is made of its tokens': "none", "mean", "cls", "last" or
            "rank"; None = as the model's file says.
        attention: "causal" or "non_causal"; None = as the model's file says.
        swa_full: Whether layers with sliding-window attention keep the whole sequence, so that it
            can be rolled back.
        device_logits: Whether logits stay on the device that computed them. Sampling begins there,
            and a row is copied when it is asked for. Only rows of a decode's last micro-batch can
            be read.
        offload_kqv: Whether the KV cache and attention are on the GPU.
        op_offload: Whether the GPU computes large prompts of layers on the CPU.
        batch_invariant: Whether the results for a token depend, bit for bit, on the tokens before
            it alone: not on how many of them were cached, nor on the sequences beside it. On the
            CPU only. Prompts and batches are slower, single sequences are not.
        cuda_graphs: Whether the kernels of a step are launched as one CUDA graph from its second
            repetition on: "on", "off", "checked" (the results of the first replay of each shape
            are compared with those of the same kernels launched one by one; a difference turns
            CUDA graphs off and is logged as a warning) or "auto" ("checked" on compute capability
            7.5, "on" elsewhere). Without effect on the CPU, and where the environment variable
            GGML_CUDA_DISABLE_GRAPHS is set, which turns them off for all contexts.

    Raises:
        ArgumentError: A value is outside what is allowed, or two contradict each other.
    """

    ctx_size: int | None = None
    sequences: int = 1
    batch_size: int = BATCH_SIZE
    ubatch_size: int = UBATCH_SIZE
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
    batch_invariant: bool = False
    cuda_graphs: str = "auto"

    def __post_init__(self) -> None:
        if self.ctx_size is not None:
            check_number("ctx_size", self.ctx_size, "int", 1, INT32_MAX)
        check_number("sequences", self.sequences, "int", 1, MAX_SEQUENCES)
        if (self.ctx_size or 0) * self.sequences > INT32_MAX:
            most = INT32_MAX // self.sequences
            rule = f"expected at most {most:,} for each of {self.sequences} sequences"
            raise wrong_value("ctx_size", self.ctx_size, rule, "lower one of them")
        check_number("batch_size", self.batch_size, "int", 1, 2**20)
        check_number("ubatch_size", self.ubatch_size, "int", 1, 2**20)
        if self.batch_size < self.sequences:
            rule = f"expected at least sequences={self.sequences}"
            raise wrong_value("batch_size", self.batch_size, rule, "raise it, or lower sequences")
        check_number("outputs_max", self.outputs_max, "int", 0, 2**20)
        if 0 < self.outputs_max < self.sequences:
            rule = f"expected 0 or at least sequences={self.sequences}"
            raise wrong_value("outputs_max", self.outputs_max, rule)
        for name in ("threads", "threads_batch"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), "int", 1, 512)
        if self.flash_attention is not None and not isinstance(self.flash_attention, bool):
            rule, remedy = "expected None, True or False", "None = where the device has it"
            raise wrong_value("flash_attention", self.flash_attention, rule, remedy)
        check_choice("cuda_graphs", self.cuda_graphs, CUDA_GRAPHS)
        check_choice("type_k", self.type_k, KV_TYPES)
        check_choice("type_v", self.type_v, KV_TYPES)
        if self.flash_attention is False and self.type_v not in ("f32", "f16", "bf16"):
            rule, remedy = "needs flash attention, which is off", "leave flash_attention out"
            raise wrong_value("type_v", self.type_v, rule, remedy)
        for name, choices in (
            ("rope_scaling", ROPE_SCALINGS),
            ("pooling", POOLINGS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        for item in fields(self):
            if (
                item.name.startswith(("rope_freq", "yarn_"))
                and getattr(self, item.name) is not None
            ):
                kind = "int" if item.name == "yarn_orig_ctx" else "number"
                check_number(item.name, getattr(self, item.name), kind, 0, INT32_MAX)
        check_flags(
            self,
            "unified_kv embeddings swa_full device_logits offload_kqv op_offload batch_invariant",
        )
        if self.batch_invariant and self.unified_kv and self.sequences > 1:
            rule = "sequences that share one KV buffer are not computed alike"
            raise wrong_value("batch_invariant", True, rule, "give unified_kv=False")


@explain_keywords
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the steps run in the order of the attributes.

    Attributes:
        logit_bias: Token -> number added to its logit; -inf forbids the token.
        grammar: GBNF grammar that the text follows (llama.cpp, grammars/README.md).
        grammar_root: Start rule of the grammar.
        repeat_penalty: Divides the logits of tokens that came in the prompt or in the text; 1 =
            off. Keskar et al., arXiv:1909.05858.
        frequency_penalty: Subtracted for each time that a token came in the text; 0 = off. OpenAI's
            formula.
        presence_penalty: Subtracted once if a token came in the text; 0 = off. OpenAI's formula.
        penalty_last_n: Tokens that the three penalties look back on: repeat_penalty on those of
            prompt and text, the others on those of the text.
        dry_multiplier: Strength of DRY, which makes the continuation of a repetition in prompt and
            text less likely; 0 = off. A continuation of a repetition of n tokens loses
            dry_multiplier x dry_base^(n - dry_allowed_length).
        dry_base: See dry_multiplier; at least 1.
        dry_allowed_length: Longest repetition without a penalty.
        dry_last_n: Tokens of prompt and text that DRY looks back on.
        dry_breakers: Texts that no repetition goes beyond.
        top_n_sigma: Keep logits within so many standard deviations of the best; 0 or less = off.
            Tang et al., arXiv:2411.07641.
        top_k: Keep so many of the highest logits; 0 = off. Fan et al., arXiv:1805.04833.
        typical_p: Keep the locally typical tokens with this probability; 1 = off. Meister et al.,
            arXiv:2202.00666.
        top_p: Keep the smallest set of tokens with this probability; 1 = off. Holtzman et al.,
            arXiv:1904.09751.
        min_p: Keep tokens with at least min_p times the best probability; 0 = off. Nguyen et al.,
            arXiv:2407.01082.
        xtc_probability: Chance that XTC excludes the top choices; 0 = off.
        xtc_threshold: Probability from which a token is a top choice; the least of them stays.
        temperature: Divides the logits; 0 = always the most probable token.
        dynatemp_range: Temperature +- this by the entropy of the distribution; 0 = off.
        dynatemp_exponent: Exponent of the entropy.
        mirostat: 0 = off, 1 or 2 = Mirostat in place of the filters. Basu et al.,
            arXiv:2007.14966.
        mirostat_tau: Mirostat's target of surprise, in bits.
        mirostat_eta: Mirostat's learning rate.
        adaptive_target: Probability near which adaptive-p chooses; below 0 = off.
        adaptive_decay: Decay of adaptive-p's mean, 0 to 0.99.
        seed: Seed of the random numbers; None = at random, readable as `Sampler.seed`.
        min_keep: Tokens that typical_p, top_p, min_p and XTC leave at least.

    Raises:
        ArgumentError: A value is outside what is allowed.
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
        for name, bounds in _SAMPLING_BOUNDS.items():
            check_number(name, getattr(self, name), *bounds)
        for name in ("seed", "logit_bias", "dry_breakers", "grammar", "grammar_root"):
            check_sampling(name, getattr(self, name))


_SAMPLING_BOUNDS: dict[str, tuple[str, float, float]] = {
    "repeat_penalty": ("number", 1e-6, 1e6),
    "frequency_penalty": ("number", -1e6, 1e6),
    "presence_penalty": ("number", -1e6, 1e6),
    "penalty_last_n": ("int", 0, 2**20),
    "dry_multiplier": ("number", 0, 1e6),
    "dry_base": ("number", 1, 1e6),  # llama.cpp ignores DRY with a smaller one
    "dry_allowed_length": ("int", 0, INT32_MAX),
    "dry_last_n": ("int", 0, 2**20),
    "top_n_sigma": ("number", -1e6, 1e6),
    "top_k": ("int", 0, INT32_MAX),
    "typical_p": ("number", 0, 1),
    "top_p": ("number", 0, 1),
    "min_p": ("number", 0, 1),
    "xtc_probability": ("number", 0, 1),
    "xtc_threshold": ("number", 0, 1),
    "temperature": ("number", 0, 1e6),
    "dynatemp_range": ("number", 0, 1e6),
    "dynatemp_exponent": ("number", 0, 1e6),
    "mirostat": ("int", 0, 2),
    "mirostat_tau": ("number", 0, 1e6),
    "mirostat_eta": ("number", 0, 1e6),
    "adaptive_target": ("number", -1, 1),
    "adaptive_decay": ("number", 0, 0.99),
    "min_keep": ("int", 0, INT32_MAX),
}


def seed_after(seed: int, count: int) -> int:
    """Return the seed that comes `count` after another; after the largest one comes 0."""
    return (seed + count) % (MAX_SEED + 1)


def check_sampling(name: str, value: Any, parameter: str | None = None) -> None:
    """Raise ArgumentError unless a field of SamplingParams may have this value.

    Args:
        name: The field.
        value: Its value.
        parameter: What the caller calls it; None = as the field.
    """
    parameter = parameter or name
    if name in _SAMPLING_BOUNDS:
        check_number(parameter, value, *_SAMPLING_BOUNDS[name])
    elif name == "seed":
        if value is not None:
            check_number(parameter, value, "int", 0, MAX_SEED)
    elif name == "logit_bias":
        if not isinstance(value, Mapping):
            raise wrong_value(parameter, value, "expected token -> number")
        for token, bias in value.items():
            check_number(parameter, token, "int", 0, INT32_MAX)
            check_number(f"{parameter}[{token}]", bias, "number", -math.inf)
            if bias > MAX_BIAS:
                rule = f"expected at most {_plain(MAX_BIAS)}"
                raise wrong_value(f"{parameter}[{token}]", bias, rule)
    elif name == "dry_breakers":
        check_texts(parameter, value)
    elif name == "grammar":
        if not isinstance(value, str | None):
            raise wrong_value(parameter, value, "expected a text")
    else:
        _check_text(parameter, value)
