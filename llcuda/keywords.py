"""The keywords of public calls: their types for editors, and what an unknown one stands for.

Each `...Keywords` class has the fields of a dataclass of settings, or of several; a test keeps them
equal. Calls take them as `**keywords: Unpack[...Keywords]`, and sort them with `split_keywords`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypedDict, TypeVar

from llcuda.errors import ArgumentError, shown
from llcuda.guide import Guide

# --- settings of a model, a context, an engine ---


class _FurtherModel(TypedDict, total=False):
    split_mode: str
    main_gpu: int
    tensor_split: Sequence[float] | None
    devices: Sequence[str] | None
    mmap: bool
    mlock: bool
    check_tensors: bool
    vocab_only: bool
    overrides: Mapping[str, int | float | bool | str]
    bf16_copies: bool
    bf16_to_f16: bool | None


class ModelKeywords(_FurtherModel, total=False):
    """The fields of ModelParams."""

    gpu_layers: int | None


class _BatchSizes(TypedDict, total=False):
    batch_size: int
    ubatch_size: int


class _FurtherContext(TypedDict, total=False):
    outputs_max: int
    unified_kv: bool
    threads: int | None
    threads_batch: int | None
    flash_attention: bool | None
    type_k: str
    type_v: str
    rope_scaling: str | None
    rope_freq_base: float | None
    rope_freq_scale: float | None
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None
    yarn_orig_ctx: int | None
    swa_full: bool
    device_logits: bool
    offload_kqv: bool
    op_offload: bool
    batch_invariant: bool
    cuda_graphs: str


class ContextKeywords(_BatchSizes, _FurtherContext, total=False):
    """The fields of ContextParams."""

    ctx_size: int | None
    sequences: int
    embeddings: bool
    pooling: str | None
    attention: str | None


class _FurtherEngine(TypedDict, total=False):
    queue_size: int
    speculation: int


class EngineKeywords(_FurtherEngine, _BatchSizes, _FurtherContext, total=False):
    """The fields of EngineParams, and those of ContextParams that an engine leaves open."""

    n_parallel: int
    ctx_size: int | None
    cache_size: int | None


class ConfigKeywords(ModelKeywords, EngineKeywords, total=False):
    """The keywords of `EngineConfig.from_kwargs`."""


class LoadKeywords(_FurtherModel, _FurtherEngine, _FurtherContext, total=False):
    """The keywords of `InferenceEngine.load_model` beyond those in its signature."""


class OpenKeywords(ConfigKeywords, total=False):
    """The keywords of `InferenceEngine`: those of `load_model`."""

    context_size: int | None
    auto_start: bool
    verbose: bool
    silent: bool
    progress: bool | None
    on_step: Callable[[Any], None] | None
    on_request: Callable[[Any], None] | None


class EmbedderKeywords(_FurtherContext, total=False):
    """The keywords of `Embedder` beyond those in its signature."""

    attention: str | None


class EvaluationKeywords(_FurtherContext, total=False):
    """The keywords of `perplexity`, `divergence` and `importance_matrix` for their contexts."""


class PlanKeywords(ModelKeywords, ContextKeywords, total=False):
    """The keywords of `memory_needed`."""


class EmbedKeywords(TypedDict, total=False):
    """The keywords of `Embedder.embed`."""

    normalize: bool
    truncate: bool
    dimensions: int | None
    parse_special: bool


# --- settings of a request ---


class _FurtherSampling(TypedDict, total=False):
    logit_bias: Mapping[int, float]
    grammar: str | None
    grammar_root: str
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_last_n: int
    dry_breakers: Sequence[str]
    top_n_sigma: float
    typical_p: float
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    adaptive_target: float
    adaptive_decay: float
    min_keep: int


class SamplingKeywords(_FurtherSampling, total=False):
    """The fields of SamplingParams."""

    temperature: float
    top_k: int
    top_p: float
    seed: int | None


class _FurtherRequest(TypedDict, total=False):
    stop_tokens: Collection[int]
    shown_tokens: Collection[int]
    ignore_eos: bool
    logprobs: int | None
    echo: bool
    timeout: float | None
    overflow: str
    keep: int
    guide: Guide | None
    penalize_prompt: bool
    min_tokens: int
    logits_processor: Callable[..., Any] | Collection[Callable[..., Any]] | None
    stopping_criteria: Callable[..., Any] | Collection[Callable[..., Any]] | None
    priority: int
    cache_prompt: bool
    slot: int | None


class RequestKeywords(_FurtherRequest, total=False):
    """The fields of RequestParams."""

    max_tokens: int
    stop: Iterable[str] | None


class TextKeywords(RequestKeywords, SamplingKeywords, total=False):
    """The fields of RequestParams and SamplingParams."""


class SubmitKeywords(TextKeywords, total=False):
    """The keywords of `Engine.submit` and `Engine.submit_n`."""

    response_format: Any
    parse_special: bool


class _Prompt(TypedDict, total=False):
    system: str | None
    template: str | None
    template_variables: Mapping[str, Any] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None


class PromptKeywords(_Prompt, total=False):
    """The keywords of `chat` that its prompt is made of."""

    tools: Sequence[Any] | None


class _FurtherChat(_Prompt, TextKeywords, total=False):
    response_format: Any
    tool_choice: str | Mapping[str, Any]
    bare_tool_calls: bool
    max_reasoning_tokens: int | None


class ChatKeywords(_FurtherChat, total=False):
    """The keywords of `chat`."""

    tools: Sequence[Any] | None


class RunKeywords(_FurtherChat, total=False):
    """The keywords of `run`: the fields of RunParams, and the keywords of `chat` beside tools."""

    max_turns: int
    approve: Callable[[Any], Any] | None
    on_error: str
    on_message: Callable[[dict[str, Any]], Any] | None
    on_delta: Callable[[Any], Any] | None


class GenerateKeywords(SubmitKeywords, total=False):
    """The keywords of `InferenceEngine.submit`, `infer_n` and `quick_infer`."""

    stop_sequences: Iterable[str] | None


class InferKeywords(_FurtherRequest, _FurtherSampling, total=False):
    """The keywords of `InferenceEngine.infer` beyond those in its signature."""

    response_format: Any
    parse_special: bool


class StreamKeywords(_FurtherRequest, SamplingKeywords, total=False):
    """The keywords of `InferenceEngine.stream`, `batch_infer` and `ainfer` beside max_tokens."""

    stop: Iterable[str] | None
    stop_sequences: Iterable[str] | None
    response_format: Any
    parse_special: bool


class BatchKeywords(ConfigKeywords, _FurtherChat, total=False):
    """The keywords of `BatchProcessor`: those of loading, and of all its tasks."""

    tools: Sequence[Any] | None
    stop_sequences: Iterable[str] | None
    pooling: str | None
    normalize: bool
    truncate: bool
    dimensions: int | None
    parse_special: bool


# --- sorting ---

NEAR = 0.8  # of difflib: "temprature" is near "temperature", "dtype" is not near "type_v"

Params = TypeVar("Params")
Call = TypeVar("Call", bound=Callable[..., Any])


def given_params(
    kind: type[Params],
    params: Params | None,
    keywords: Mapping[str, Any],
    call: Callable[..., Any] | None = None,
) -> Params:
    """Return the settings that a call was given, as an object or as keywords.

    Args:
        kind: The dataclass of the settings.
        params: An object of it, or None.
        keywords: Its fields.
        call: As for `check_keywords`.

    Raises:
        ArgumentError: Both are given, or `params` is of another type.
        TypeError: A keyword is unknown.
    """
    if params is None:
        check_keywords(keywords, call, kind)
        return kind(**split_keywords(keywords, kind)[0])
    if keywords:
        raise ArgumentError(
            f"params= and {', '.join(keywords)}=: cannot be given together",
            parameter="params",
            remedy="give one or the other",
        )
    if not isinstance(params, kind):
        problem = f"params={shown(params)}: expected {kind.__name__}"
        raise ArgumentError(problem, parameter="params")
    return params


def split_keywords(keywords: Mapping[str, Any], *kinds: type) -> list[dict[str, Any]]:
    """Return a dict of keywords for each dataclass: a keyword goes to the first that has the field.

    Raises:
        TypeError: A keyword is a field of none of them; the message says what was meant.
    """
    names = [_field_names(kind) for kind in kinds]
    parts: list[dict[str, Any]] = [{} for _ in kinds]
    for name, value in keywords.items():
        for part, known in zip(parts, names, strict=True):
            if name in known:
                part[name] = value
                break
        else:
            raise unknown_keyword(name, frozenset().union(*names))
    return parts


def check_keywords(keywords: Iterable[str], call: Callable[..., Any] | None, *kinds: type) -> None:
    """Refuse the keywords that a call does not know.

    Args:
        keywords: The names that the call was given beyond those in its signature.
        call: The function or class, whose own parameters may be meant; None = none.
        kinds: Dataclasses of settings and `...Keywords` classes, whose fields it takes.

    Raises:
        TypeError: A keyword is unknown; the message says what was meant.
    """
    names = [_field_names(kind) for kind in kinds]
    for name in keywords:
        if not any(name in known for known in names):
            raise unknown_keyword(name, frozenset().union(own_names(call), *names))


class Dialect(NamedTuple):
    """Words in which an unknown keyword is explained.

    Attributes:
        says: What stands before the right name.
        names: llcuda's names -> those of the calls.
        hints: Sentences for names that stand for no keyword.
        calls: A call -> its keywords.
    """

    says: str
    names: Mapping[str, str]
    hints: Mapping[str, str]
    calls: Mapping[str, Collection[str]]


def explain_keywords(
    call: Call, *, kinds: Iterable[type] = (), dialect: Dialect | None = None
) -> Call:
    """Decorate a dataclass, or a function, to say what an unknown keyword stands for.

    Args:
        call: The dataclass or function.
        kinds: As for `check_keywords`.
        dialect: As for `unknown_keyword`.
    """
    function: Any = call.__init__ if isinstance(call, type) else call  # type: ignore[misc]
    known = own_names(function).union(*map(_field_names, kinds))

    @wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        if not known.issuperset(keywords):
            unknown = next(name for name in keywords if name not in known)
            raise unknown_keyword(unknown, known, dialect)
        return function(*args, **keywords)

    if not isinstance(call, type):
        return checked  # type: ignore[return-value]
    call.__init__ = checked  # type: ignore[misc]
    return call


def show_keywords(kind: type) -> Callable[[Call], Call]:
    """Return a decorator that lists the fields of `kind` in a call's signature, for completion."""

    def decorate(call: Call) -> Call:
        shown = signature(call)
        own = [p for p in shown.parameters.values() if p.kind != Parameter.VAR_KEYWORD]
        names = sorted(_field_names(kind))
        further = [Parameter(name, Parameter.KEYWORD_ONLY, default=...) for name in names]
        call.__signature__ = shown.replace(parameters=[*own, *further])  # type: ignore[attr-defined]
        return call

    return decorate


def own_names(call: Callable[..., Any] | None) -> frozenset[str]:
    """Return the keywords in the signature of a call, without those of `show_keywords`."""
    kinds = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
    parameters = signature(call).parameters.values() if call else ()
    return frozenset(p.name for p in parameters if p.kind in kinds and p.default is not ...) - {
        "self"
    }


@cache
def _field_names(kind: type) -> frozenset[str]:
    names = (item.name for item in fields(kind)) if is_dataclass(kind) else kind.__annotations__
    return frozenset(names)


def unknown_keyword(name: str, known: Collection[str], dialect: Dialect | None = None) -> TypeError:
    """Return the error for a keyword that a call does not know.

    Args:
        name: The keyword.
        known: The keywords of the call.
        dialect: The words of the message; None = llcuda's.
    """
    hint = meaning(name, known, dialect)
    return TypeError(f"unknown keyword {name}{hint and f': {hint}'}")


def meaning(name: str, known: Collection[str], dialect: Dialect | None = None) -> str:
    """Return what an unknown keyword stands for; nothing if it cannot be told.

    Args:
        name: The keyword.
        known: The keywords of the call.
        dialect: The words; None = llcuda's.
    """
    says, names, hints, calls = dialect or _LLCUDA
    if name in hints:
        return hints[name]
    meant = [own for own, peers in PEERS.items() if name in peers.split()] or [name]
    meant = [names.get(own, own) for own in meant]
    if own_name := next((own for own in meant if own in known), None):
        return f"{says} {own_name}"
    for own_name in meant:
        for call, keywords in calls.items():
            if own_name in keywords:
                also = "" if own_name == name else f"{says} {own_name}, "
                return f"{also}a keyword of {call}"
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known), 1, NEAR)
    return f"did you mean {near[0]}?" if near else ""


_CALLS: dict[str, Collection[str]] = {
    "Model() and load_model()": ModelKeywords.__annotations__,
    "Engine() and load_model()": EngineKeywords.__annotations__,
    "Context()": ContextKeywords.__annotations__,
    "submit(), infer() and chat()": SubmitKeywords.__annotations__,
    "chat()": ("messages", *ChatKeywords.__annotations__),
}

_ITERATE = (
    "a request or a chat streams when it is iterated over; InferenceEngine has stream() as well"
)
_FIELDS_AS_KEYWORDS = "give its fields as keywords"
_TYPES = "the weights have the types of their file; type_k and type_v are those of the KV cache"
_SEVERAL = (
    "submit_n() and infer_n() generate several continuations; batch_chat([messages] * n) answers"
    " a conversation n times"
)
_MODEL = "InferenceEngine() and load_model() take the model as their first argument, model_name"
_LOGGING = 'llcuda logs to logging.getLogger("llcuda")'

_SCHEMA = 'response_format={"type": "json_schema", "json_schema": {"schema": ...}} is that'

# What other libraries' keywords stand for, where a name alone does not say it.
HINTS = {
    "format": 'response_format={"type": "json_object"} is any JSON object',
    "enable_prefix_caching": "prompts that begin alike share their prefix by themselves",
    "include_stop_str_in_output": "llcuda has no equivalent: a stop text ends the text before it",
    "input": "embed() takes texts, chat() messages, infer() and submit() a prompt",
    "keep_alive": "a model stays loaded until close() or unload_model()",
    "load_in_4bit": "the weights have the types of their file: choose a Q4_K_M file",
    "metadata": "llcuda has no equivalent: keep it beside the request",
    "no_repeat_ngram_size": "dry_multiplier and dry_allowed_length penalize repeated sequences",
    "quantization": "the weights have the types of their file; choose another file",
    "raw": "infer() and submit() take a raw prompt, chat() applies the template",
    "response_model": "response_format takes the class",
    "return_full_text": "llcuda has no equivalent: prompt + result.text is the full text",
    "samplers": "Sampler(chain=[...]) takes steps of llcuda.steps in any order",
    "sampling_params": _FIELDS_AS_KEYWORDS,
    "skip_special_tokens": "control tokens are left out; shown_tokens names those to show",
    "suffix": "llcuda.llama_cpp.Llama takes it in create_completion()",
    "tfs_z": "llama.cpp has no tail-free sampling any more; min_p or typical_p",
    "think": 'chat() takes template_variables={"enable_thinking": ...}',
    "truncate": 'overflow="truncate" shortens a prompt that is too long',
    "trust_remote_code": "llcuda runs no code of a model",
    "user": "llcuda has no equivalent: keep it beside the request",
    "warmup": "llcuda has no equivalent: send a short request first",
    "guided_choice": 'response_format={"type": "choice", "choices": ["...", "..."]} is that',
    "guided_json": _SCHEMA,
    "guided_regex": 'response_format={"type": "regex", "regex": "..."} is that',
    "json_schema": _SCHEMA,
    "schema": _SCHEMA,
    "dtype": _TYPES,
    "ftype": "quantize() and convert() take file_type",
    "options": "give each option as a keyword",
    "pad_token_id": "llcuda pads nothing",
    "params": _FIELDS_AS_KEYWORDS,
    "prompt": "submit() and infer() take a prompt, chat() takes messages",
    "sampling": _FIELDS_AS_KEYWORDS,
    "torch_dtype": _TYPES,
    "best_of": _SEVERAL,
    "device_map": "gpu_layers says how many layers are on GPUs, devices on which",
    "do_sample": "temperature=0 always takes the most probable token",
    "enable_thinking": 'chat() takes template_variables={"enable_thinking": ...}',
    "gpu_memory_utilization": "load_model(gpu_layers=None) takes as many layers as fit",
    "model": _MODEL,
    "model_id": _MODEL,
    "model_path": _MODEL,
    "logits_all": 'Context.decode(tokens, logits="all") computes them; echo=True scores a prompt',
    "lora_path": "Adapter(model, path) loads it, Context.set_adapters applies it",
    "n": _SEVERAL,
    "num_beams": "llcuda has no beam search",
    "num_return_sequences": _SEVERAL,
    "parallel_tool_calls": "the model may call several; take the first of tool_calls for one",
    "parse_special": "infer() and submit() read control tokens in raw prompts, chat() never does",
    "reasoning_effort": 'chat() takes template_variables={"reasoning_effort": ...}',
    "stream": _ITERATE,
    "stream_options": _ITERATE,
    "streamer": _ITERATE,
    "tensor_parallel_size": 'split_mode="row" or "tensor" splits the layers over GPUs',
    "verbose": _LOGGING,
}

_LLCUDA = Dialect("llcuda calls it", {}, HINTS, _CALLS)

# Other libraries' names of llcuda's keywords; of two keywords the first that a call has is meant.
PEERS = {
    "batch_size": "n_batch num_batch max_num_batched_tokens",
    "ctx_size": (
        "n_ctx num_ctx max_model_len context_length context_size max_seq_len max_seq_length "
        "n_ctx_per_seq"
    ),
    "echo": "prompt_logprobs",
    "embeddings": "embedding",
    "flash_attention": "flash_attn flash_attn_type attn_implementation",
    "frequency_penalty": "penalty_freq",
    "gpu_layers": "n_gpu_layers ngl num_gpu",
    "grammar": "guided_grammar",
    "keep": "n_keep num_keep",
    "logit_bias": "bad_words",
    "logits_processor": "logits_processors",
    "logprobs": "n_probs top_logprobs",
    "max_tokens": (
        "n_predict num_predict max_length max_new_tokens max_completion_tokens max_output_tokens"
    ),
    "min_tokens": "min_length min_new_tokens",
    "mirostat": "mirostat_mode",
    "mlock": "use_mlock",
    "mmap": "use_mmap",
    "normalize": "normalize_embeddings",
    "n_parallel": "n_seq_max n_slots np parallel num_parallel max_num_seqs max_batch_size",
    "overrides": "kv_overrides",
    "penalty_last_n": "repeat_last_n",
    "pooling": "pooling_type",
    "presence_penalty": "penalty_present",
    "repeat_penalty": "penalty_repeat repetition_penalty",
    "response_format": (
        "format guided_choice guided_decoding guided_grammar guided_json guided_regex "
        "structured_outputs json_schema schema"
    ),
    "rope_scaling": "rope_scaling_type",
    "seed": "random_seed",
    "sequences": "n_seq_max n_slots np parallel num_parallel max_num_seqs max_batch_size",
    "slot": "id_slot",
    "speculation": "prompt_lookup_num_tokens num_speculative_tokens",
    "stop": "stop_strings stop_sequence stop_sequences stop_words",
    "stop_tokens": "eos_token_id stop_token_ids",
    "system": "instructions system_message system_prompt",
    "temperature": "temp",
    "template": "chat_format chat_template",
    "template_variables": "chat_template_kwargs",
    "threads": "n_threads num_thread num_threads",
    "threads_batch": "n_threads_batch",
    "tool_choice": "function_call",
    "tools": "functions",
    "type_k": "cache_type_k",
    "type_v": "cache_type_v",
    "typical_p": "typ_p typical",
    "ubatch_size": "n_ubatch",
    "unified_kv": "kv_unified",
}
