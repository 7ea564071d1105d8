"""llama-cpp-python's parameters in llcuda's words: names, numbers of enums, what has no effect."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

from llcuda.engine.config import EngineConfig, EngineParams
from llcuda.errors import ArgumentError, ContextLengthError, shown
from llcuda.keywords import Dialect, meaning
from llcuda.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from llcuda.native.gguf.types import GGMLType
from llcuda.params import (
    ATTENTIONS,
    KV_TYPES,
    MAX_SEED,
    POOLINGS,
    ROPE_SCALINGS,
    SPLIT_MODES,
    ModelParams,
    SamplingParams,
    check_choice,
    check_number,
    wrong_value,
)

LLAMA_DEFAULT_SEED = 0xFFFFFFFF
UNSPECIFIED = -1
LARGER = "give Llama a larger n_ctx"
# The constants of llama.cpp that begin with a text, in the order of their numbers.
ENUMS: Mapping[str, Sequence[str]] = {
    "LLAMA_SPLIT_MODE_": SPLIT_MODES,
    "LLAMA_ROPE_SCALING_TYPE_": ROPE_SCALINGS,
    "LLAMA_POOLING_TYPE_": POOLINGS,
    "LLAMA_ATTENTION_TYPE_": ATTENTIONS,
}
# llcuda's names of parameters -> those of this class.
NAMES = {
    "attention": "attention_type",
    "batch_size": "n_batch",
    "ctx_size": "n_ctx",
    "flash_attention": "flash_attn",
    "gpu_layers": "n_gpu_layers",
    "mirostat": "mirostat_mode",
    "mlock": "use_mlock",
    "mmap": "use_mmap",
    "overrides": "kv_overrides",
    "path": "model_path",
    "penalty_last_n": "last_n_tokens_size",
    "pooling": "pooling_type",
    "rope_scaling": "rope_scaling_type",
    "threads": "n_threads",
    "threads_batch": "n_threads_batch",
    "ubatch_size": "n_ubatch",
}

# How unknown keywords are explained; llama.py fills in the calls and their keywords.
CALLS: dict[str, Collection[str]] = {}
DIALECT = Dialect(
    says="this class calls it",
    names={**NAMES, "embeddings": "embedding", "template": "chat_format"},
    hints={"n": "call the method once for each answer"},
    calls=CALLS,
)


class LlamaKeywords(TypedDict, total=False):
    """Keywords of `Llama` beyond llama-cpp-python's: fields of llcuda's settings."""

    batch_invariant: bool
    bf16_copies: bool
    bf16_to_f16: bool | None
    cache_size: int | None
    check_tensors: bool
    cuda_graphs: str
    device: str | None
    device_logits: bool
    devices: Sequence[str] | None
    f16_kv: bool
    n_parallel: int
    n_parts: int
    queue_size: int


_ENGINE_FIELDS = ("n_parallel", "cache_size", "queue_size")
_MODEL_FIELDS = ("devices", "check_tensors", "bf16_copies", "bf16_to_f16")
_CONTEXT_FIELDS = ("batch_invariant", "cuda_graphs", "device_logits")


@contextlib.contextmanager
def in_own_names(**others: str) -> Iterator[None]:
    """Let errors of the block name parameters as this class has them.

    Args:
        **others: Further names; llcuda's -> those of the call.
    """
    try:
        yield
    except ArgumentError as error:
        name = error.parameter or ""
        own = {**NAMES, **others}.get(name, name)
        if own != name and error.problem.startswith(name):
            error.args = (own + error.problem[len(name) :], *error.args[1:])
            error.parameter = own
        if isinstance(error, ContextLengthError):
            error.remedy = LARGER
        elif error.remedy is not None:
            error.remedy = error.remedy.replace("template=", "chat_format=")
        raise


def warn_ineffective(parameter: str, value: Any, rule: str) -> None:
    """Warn of a parameter that changes nothing here."""
    warnings.warn(f"{parameter}={shown(value)}: it has no effect; {rule}", stacklevel=4)


def _name_of(parameter: str, value: Any, names: Sequence[str]) -> str | None:
    """Return the name of a number of an enum, None for UNSPECIFIED; a name stays as it is."""
    if value is None or value == UNSPECIFIED:
        return None
    if isinstance(value, str):
        check_choice(parameter, value, names)
        return value
    check_number(parameter, value, "int", 0, len(names) - 1)
    return str(names[value])


def _kv_type(parameter: str, value: Any) -> str:
    """Return the name of a type of the KV cache, which may be given as ggml's number."""
    if value is None:
        return "f16"
    if isinstance(value, str):
        check_choice(parameter, value, KV_TYPES)
        return value
    numbers = {int(GGMLType[name.upper()]): name for name in KV_TYPES}
    if isinstance(value, bool) or value not in numbers:
        known = ", ".join(f"{number} ({name})" for number, name in numbers.items())
        raise wrong_value(parameter, value, f"expected one of {known}")
    return numbers[value]


def model_params(given: Mapping[str, Any]) -> ModelParams:
    """Return how a `Llama` with these arguments loads its model."""
    layers = given["n_gpu_layers"]
    return ModelParams(
        gpu_layers=None if layers == -1 else layers,
        split_mode=_name_of("split_mode", given["split_mode"], SPLIT_MODES) or "layer",
        main_gpu=given["main_gpu"],
        tensor_split=given["tensor_split"],
        vocab_only=given["vocab_only"],
        mmap=given["use_mmap"],
        mlock=given["use_mlock"],
        overrides={} if given["kv_overrides"] is None else given["kv_overrides"],
        **{name: given[name] for name in _MODEL_FIELDS if name in given},
    )


def engine_config(given: Mapping[str, Any], train_ctx_size: int) -> EngineConfig:
    """Return the settings of the engine of a `Llama` with these arguments.

    Args:
        given: The arguments.
        train_ctx_size: Tokens of the texts that the model was trained on.
    """
    check_number("n_ctx", given["n_ctx"], "int", 0)
    n_ctx = given["n_ctx"] or train_ctx_size
    check_number("n_batch", given["n_batch"], "int", 1)
    check_number("n_ubatch", given["n_ubatch"], "int", 1)
    n_batch = min(n_ctx, given["n_batch"])
    context: dict[str, Any] = {
        "threads": given["n_threads"],
        "threads_batch": given["n_threads_batch"],
        "flash_attention": given["flash_attn"],
        "rope_scaling": _name_of("rope_scaling_type", given["rope_scaling_type"], ROPE_SCALINGS),
        "offload_kqv": given["offload_kqv"],
        "type_k": "f16" if given.get("f16_kv", True) else "f32",
        "type_v": "f16" if given.get("f16_kv", True) else "f32",
    }
    for name, default in _UNSET.items():
        if given[name] != default:
            context[name] = given[name]
    for name in ("type_k", "type_v"):
        if given[name] is not None:
            context[name] = _kv_type(name, given[name])
    context |= {name: given[name] for name in _CONTEXT_FIELDS if name in given}
    lookup = given["draft_model"]
    speculation = lookup.num_pred_tokens if isinstance(lookup, LlamaPromptLookupDecoding) else 0
    return EngineConfig(
        model=model_params(given),
        context=context,
        engine=EngineParams(
            ctx_size=n_ctx,
            batch_size=n_batch,
            ubatch_size=min(n_batch, given["n_ubatch"]),
            speculation=speculation,
            **{name: given[name] for name in _ENGINE_FIELDS if name in given},
        ),
    )


# Arguments with the value that stands for the model's own, or for llcuda's default.
_UNSET: Mapping[str, Any] = {
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_orig_ctx": 0,
    "op_offload": None,
    "swa_full": None,
}


def pooling_name(given: Mapping[str, Any]) -> str | None:
    """Return the pooling that a `Llama` was asked for, None for that of the model's file."""
    return _name_of("pooling_type", given["pooling_type"], POOLINGS)


def attention_name(given: Mapping[str, Any]) -> str | None:
    """Return the attention that a `Llama` was asked for, None for that of the model's file."""
    return _name_of("attention_type", given["attention_type"], ATTENTIONS)


def check_ineffective(given: Mapping[str, Any]) -> None:
    """Warn of arguments that have no effect here."""
    if given["numa"]:
        warn_ineffective("numa", given["numa"], "start the process with numactl")
    if given["lora_base"] is not None:
        rule = "lora_path is applied to the model itself"
        warn_ineffective("lora_base", given["lora_base"], rule)
    if given["no_perf"]:
        warn_ineffective("no_perf", given["no_perf"], "llcuda's own counts cost nothing")
    if given.get("device") is not None:
        rule = "n_gpu_layers says how many layers are on GPUs, devices on which"
        warn_ineffective("device", given["device"], rule)
    if given.get("n_parts", -1) != -1:
        warn_ineffective("n_parts", given["n_parts"], "the model's file says how many it has")


def known_keywords(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the keywords that a `Llama` knows, and warn of the others, which have no effect.

    llama-cpp-python ignores them, and LangChain gives it some of its own.

    Raises:
        ArgumentError: The file of a model of images is given.
    """
    if given.get("clip_model_path") is not None:
        rule = "images and audio cannot be read yet"
        path = given["clip_model_path"]
        raise wrong_value("clip_model_path", path, rule, "leave it out, and give messages as text")
    for name in given.keys() - known:
        rule = meaning(name, known, DIALECT) or "Llama() does not know it"
        warn_ineffective(name, given[name], rule)
    return {name: value for name, value in given.items() if name in known}


def sampler_seed(seed: int) -> int | None:
    """Return a seed as llcuda has it; None, at random, for -1 and LLAMA_DEFAULT_SEED."""
    unsigned = seed & 0xFFFFFFFF
    return None if unsigned > MAX_SEED else unsigned


def check_seed(seed: Any) -> int:
    """Return a caller's seed, -1 for one at random."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise wrong_value("seed", seed, "expected a whole number", "-1 = at random")
    return int(seed)


def next_seed(seed: int) -> int:
    """Return the seed of the next completion, which follows from the one before, but for -1."""
    return -1 if seed == -1 else random.Random(seed).randint(0, 2**32)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, by the names of `Llama.generate`.

    Attributes:
        top_k: As `SamplingParams.top_k`; 0 or less = off.
        top_p: As `SamplingParams.top_p`.
        min_p: As `SamplingParams.min_p`.
        typical_p: As `SamplingParams.typical_p`.
        temp: The temperature; 0 = always the most probable token, below 0 = by the model's
            probabilities, without filters.
        repeat_penalty: As `SamplingParams.repeat_penalty`, of the answer's tokens alone.
        frequency_penalty: As `SamplingParams.frequency_penalty`.
        presence_penalty: As `SamplingParams.presence_penalty`.
        tfs_z: Tail-free sampling, which llcuda does not have: a value below 1 is warned of.
        mirostat_mode: As `SamplingParams.mirostat`; the temperature and the filters have no effect
            with it.
        mirostat_tau: As `SamplingParams.mirostat_tau`.
        mirostat_eta: As `SamplingParams.mirostat_eta`.
        penalize_nl: False would spare line breaks from the penalties, which llama.cpp no longer
            does: it is warned of.
    """

    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    temp: float = 0.8
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    tfs_z: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    penalize_nl: bool = True

    def params(
        self,
        seed: int,
        last_n: int,
        grammar: str | None = None,
        logit_bias: Mapping[Any, Any] | None = None,
    ) -> SamplingParams:
        """Return them as llcuda has them.

        Args:
            seed: The seed, as `Llama.set_seed` takes it.
            last_n: Tokens that the penalties look back on.
            grammar: GBNF that the text follows.
            logit_bias: Token, also as a text, -> number added to its logit.

        Raises:
            ArgumentError: A value is outside what is allowed.
        """
        if self.tfs_z != 1:
            rule = "llama.cpp has no tail-free sampling any more: give min_p or typical_p"
            warn_ineffective("tfs_z", self.tfs_z, rule)
        if self.penalize_nl is not True:
            rule = "the penalties count line breaks, too"
            warn_ineffective("penalize_nl", self.penalize_nl, rule)
        check_number("temp", self.temp, "number", -1e6, 1e6)
        check_number("top_k", self.top_k, "int", -(2**31))
        check_number("mirostat_mode", self.mirostat_mode, "int", 0, 2)
        filters: dict[str, Any] = {
            "temperature": self.temp,
            "top_k": max(0, self.top_k),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
        }
        if self.temp < 0:
            filters = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        elif self.temp and self.mirostat_mode:
            filters = {
                "temperature": 1.0,
                "mirostat": self.mirostat_mode,
                "mirostat_tau": self.mirostat_tau,
                "mirostat_eta": self.mirostat_eta,
            }
        return SamplingParams(
            repeat_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            penalty_last_n=last_n,
            grammar=grammar,
            logit_bias=_biases(logit_bias),
            seed=sampler_seed(seed),
            **filters,
        )


def _biases(given: Mapping[Any, Any] | None) -> dict[int, float]:
    """Return logit_bias with its tokens as numbers."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise wrong_value("logit_bias", given, "expected token -> number")
    try:
        return {int(token): bias for token, bias in given.items()}
    except (TypeError, ValueError):
        raise wrong_value("logit_bias", given, "expected token -> number") from None
