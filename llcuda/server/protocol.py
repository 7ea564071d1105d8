"""The bodies of requests to OpenAI's API, and their meaning for the engine.

Pydantic models. Unknown fields and hints are ignored and noted, or refused by a strict server; see
`leniency`. A field that cannot be honoured is refused if an answer without it would be wrong. Pure
data; knows nothing of HTTP and holds no model. `chunks` and `responses` have the answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llcuda.keywords import NEAR, PEERS, ConfigKeywords, TextKeywords
from llcuda.params import seed_after, wrong_argument, wrong_value
from llcuda.server.deadline import seconds_left
from llcuda.server.leniency import ignore, is_strict

MAX_STOPS = 256
MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_MESSAGES = 10_000
MAX_TOKENIZED = 2**20  # characters of /tokenize, tokens of /detokenize
DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as OpenAI documents it


# Names that other servers have for the same fields. A strict server refuses them.
ALIASES: dict[str, tuple[str, ...]] = {
    "frequency_penalty": ("penalty_freq",),
    "keep": ("n_keep", "num_keep"),
    "dry_last_n": ("dry_penalty_last_n",),
    "dry_breakers": ("dry_sequence_breakers",),
    "min_tokens": ("min_new_tokens",),
    "mirostat": ("mirostat_mode",),
    "penalty_last_n": ("repeat_last_n",),
    "presence_penalty": ("penalty_present",),
    "repeat_penalty": ("repetition_penalty", "penalty_repeat"),
    "seed": ("random_seed",),
    "stop": ("stop_sequences", "stop_strings", "stop_words"),
    "temperature": ("temp",),
    "typical_p": ("typ_p", "typical"),
}
_MAX_TOKENS = ("n_predict", "num_predict", "max_new_tokens", "max_length")


def _names(field: str) -> AliasChoices:
    return AliasChoices(field, *ALIASES.get(field, ()))


def _refuse(value: Any) -> None:
    if value:
        raise PydanticCustomError("unsupported", "this server does not support it")


def _without_empty_stops(stop: Any) -> Any:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or "" not in texts:
        return stop
    ignore("stop", "an empty text ends no answer")
    return [text for text in texts if text != ""]


def _without_limit(limit: Any) -> Any:
    return None if limit == -1 and not isinstance(limit, bool) else limit


class Hint:
    """Marks a field that has no effect.

    Args:
        true_here: Values that ask for nothing else than what the server does.
    """

    def __init__(self, *true_here: Any) -> None:
        self.true_here = true_here


def _at_most(count: int) -> BeforeValidator:
    """Refuse a larger object before each of its values is checked."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            context = {"max_length": count, "actual_length": len(value)}
            raise PydanticCustomError("too_long", "too many elements", context)
        return value

    return BeforeValidator(check)


# A list is checked up to its first wrong element (fail_fast): an error for each would cost seconds.
Unsupported = Annotated[Any, AfterValidator(_refuse)]
Label = Annotated[Any, Field(description="Has no effect.")]
Texts = Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)]
Stop = Annotated[str | Texts | None, BeforeValidator(_without_empty_stops)]
# -1 is no limit, as in llama-server.
Limit = Annotated[Annotated[int, Field(ge=1, le=2**31 - 1)] | None, BeforeValidator(_without_limit)]
Tokens = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Tools = Annotated[Objects, Field(max_length=512)]
# OpenAI's ranges
Temperature = Annotated[float, Field(ge=0, le=2)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Priority = Annotated[
    int | None, Field(ge=-(2**31), le=2**31 - 1, description="A lower number goes first.")
]


class Body(BaseModel):
    """A body of strict types, without NaN.

    Attributes:
        engine_names: The API's names of the engine's parameters, where they differ.
        size: Bytes that it was sent as.
        places: The client's names of the engine's parameters and of places in them, such as
            "messages[1].content[0]"; the longest beginning of a place counts.
    """

    model_config = ConfigDict(
        extra="allow",  # `note_ignored` finds them
        strict=True,
        allow_inf_nan=False,
        alias_generator=AliasGenerator(validation_alias=_names),
    )
    engine_names: ClassVar[Mapping[str, str]] = {}
    _size: int = PrivateAttr(0)
    _places: dict[str, str] | None = PrivateAttr(None)

    @property
    def size(self) -> int:
        """Bytes that it was sent as."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size

    @property
    def places(self) -> dict[str, str]:
        """The client's names of places, which what reads the body may add to."""
        if self._places is None:
            self._places = dict(self.engine_names)
        return self._places

    @places.setter
    def places(self, places: dict[str, str]) -> None:
        self._places = places

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, values: Any) -> Any:
        """Let a strict server refuse an unknown field, before a missing one."""
        for name in values if is_strict() and isinstance(values, dict) else ():
            if name not in cls.model_fields:
                context = {"name": name[:100], "hint": cls.meant(name[:100])}
                raise PydanticCustomError("unknown_field", "unknown parameter", context)
        return values

    def note_ignored(self, prefix: str = "") -> None:
        """Note the unknown fields and the hints, those of inner objects included.

        Args:
            prefix: The place of this object, such as "text.".

        Raises:
            ApiError: The server is strict.
        """
        for name in self.model_extra or ():
            ignore(prefix + name[:100], self.meant(name[:100]), code="unknown_parameter")
        fields = type(self).model_fields
        for name in fields:
            if name not in self.model_fields_set:
                continue
            value = getattr(self, name)
            hint = next((mark for mark in fields[name].metadata if isinstance(mark, Hint)), None)
            if hint is not None and value is not None and value not in hint.true_here:
                ignore(prefix + name)
            elif isinstance(value, Body):
                value.note_ignored(f"{prefix}{name}.")
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Body):
                        item.note_ignored(f"{prefix}{name}[{i}].")

    @classmethod
    def meant(cls, name: str) -> str:
        """Return which field an unknown one stands for; nothing where it cannot be told."""
        own_names = [own for own, peers in PEERS.items() if name in peers.split()] or [name]
        for own in own_names:
            field = cls.engine_names.get(own, own)
            if field in cls.model_fields:
                return f"this API calls it {field}"
        if any(own in ConfigKeywords.__annotations__ for own in own_names):
            return "it is set when the server starts"
        if name == "options":
            return "give each option as a field of the request"
        near = get_close_matches(name, cls.model_fields, 1, NEAR)
        return f"did you mean {near[0]}?" if near else ""


class ModelBody(Body):
    """A request to a model; without `model`, to the only one that is served."""

    model: str | None = None
    user: Label = None


class StreamOptions(Body):
    """Options of a stream: whether a last chunk has the usage."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Hint(False)] = None


class AdapterScale(Body):
    """The scale of one adapter."""

    id: int = Field(ge=0)
    scale: float


class SamplingBody(ModelBody):
    """How tokens are chosen: OpenAI's parameters, then llcuda's own; see SamplingParams.

    Defaults are llcuda's: temperature 0.7, top_p 0.9, top_k 40.
    """

    engine_names: ClassVar[Mapping[str, str]] = {"slot": "id_slot"}

    temperature: Temperature | None = None
    top_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], _at_most(4096)] | None = Field(
        None, description="Token -> -100 (never) to 100."
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: Stop = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = Field(
        None, description="json_schema, json_object, text; also regex, choice, lark, gbnf."
    )
    # what vLLM and llama-server call response_format
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    json_schema: Any = None
    grammar: str | None = None
    # without them an answer would be wrong
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    chat_template: Unsupported = None
    use_beam_search: Unsupported = None
    lora: list[AdapterScale] | None = Field(
        None, max_length=256, description="The scales that /lora-adapters has."
    )
    # what an answer may be without
    keep_alive: Annotated[Any, Hint()] = None
    # llcuda's own parameters
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repeat_penalty: float | None = None
    penalty_last_n: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_last_n: int | None = None
    dry_breakers: Texts | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None
    min_keep: int | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    priority: Priority = None
    overflow: Literal["error", "truncate", "shift"] | None = None
    keep: int | None = None
    cache_prompt: bool | None = Field(None, description="false: compute the whole prompt.")
    id_slot: int | None = Field(
        None, ge=-1, le=255, description="The slot of the KV cache; -1 = any."
    )
    timeout: float | None = Field(None, gt=0, description="Seconds; the server may have less.")

    def time_limit(self, deadline: float | None) -> float | None:
        """Return the seconds of the request: its own, or the server's where those are fewer."""
        limits = (self.timeout, deadline, seconds_left())
        return min((seconds for seconds in limits if seconds is not None), default=None)

    def submit_keywords(
        self, deadline: float | None, ctx_size: int, vocab_size: int
    ) -> dict[str, Any]:
        """Return the keywords of `Engine.submit`.

        Args:
            deadline: Deadline of the server in seconds, or None.
            ctx_size: Tokens of the context.
            vocab_size: Tokens of the vocabulary.

        Raises:
            ArgumentError: A token of logit_bias is unknown, or its bias is outside -100 to 100.
        """
        others = {"logit_bias", "seed", "logprobs", "echo", "grammar"}
        known = TextKeywords.__annotations__.keys() - others
        keywords = self.model_dump(include=set(known), exclude_none=True)
        if self.seed is not None:
            keywords["seed"] = seed_after(self.seed, 0)
        if self.id_slot is not None and self.id_slot >= 0:
            keywords["slot"] = self.id_slot
        if self.logit_bias:
            keywords["logit_bias"] = _logit_bias(self.logit_bias, vocab_size)
        if (self.frequency_penalty or self.presence_penalty) and self.penalty_last_n is None:
            keywords["penalty_last_n"] = ctx_size  # OpenAI's penalties see the whole text
        if (limit := self.time_limit(deadline)) is not None:
            keywords["timeout"] = limit
        if self.stop_token_ids:
            keywords["stop_tokens"] = _tokens("stop_token_ids", self.stop_token_ids, vocab_size)
        if self.response_format is not None and self.response_format.get("type") != "text":
            keywords["response_format"] = self.response_format
        return keywords

    @model_validator(mode="after")
    def _choose_format(self) -> Self:
        """Let another server's name of a format be response_format."""
        names = {"json_schema": "json", "grammar": "grammar"} | {
            f"guided_{kind}": kind for kind in _FORMATS
        }
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        outputs = self.structured_outputs or {}
        for kind, value in outputs.items():
            if kind in _FORMATS and value is not None:
                given[f"structured_outputs.{kind}"] = value
                names[f"structured_outputs.{kind}"] = kind
            elif value not in (None, False):
                ignore(f"structured_outputs.{kind[:100]}")
        if not given:
            return self
        if self.response_format is not None:
            given["response_format"] = self.response_format
        if len(given) > 1:
            context = {"name": next(iter(given))}
            message = f"cannot be given together: {', '.join(given)}; give one of them"
            raise PydanticCustomError("conflict", message, context)
        [(name, value)] = given.items()
        self.response_format = _FORMATS[names[name]](value)
        self.places["response_format"] = name  # in errors
        return self

    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage. ArgumentError for options without a stream."""
        if self.stream_options is not None and not self.stream:
            raise wrong_argument("stream_options", "allowed only with stream: true")
        return bool(self.stream_options and self.stream_options.include_usage)


T = TypeVar("T")


def _agreed(values: Mapping[str, T]) -> T | None:
    """Return the one value that several names have, None without any."""
    first = next(iter(values), None)
    for name, value in values.items():
        if first is not None and value != values[first]:
            raise wrong_value(name, value, f"{first}={values[first]!r} differs")
    return None if first is None else values[first]


# Kinds of structured output -> the response_format.
_FORMATS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "json": lambda schema: {"type": "json_schema", "json_schema": {"schema": _loaded(schema)}},
    "regex": lambda regex: {"type": "regex", "regex": regex},
    "choice": lambda choices: {"type": "choice", "choices": choices},
    "grammar": lambda grammar: {"type": "gbnf", "grammar": grammar},
}


def _loaded(schema: Any) -> Any:
    """Return a schema, which some clients send as a text."""
    if isinstance(schema, str):
        with suppress(ValueError):
            return json.loads(schema)
    return schema


def _tokens(parameter: str, tokens: list[int], vocab_size: int) -> list[int]:
    for i, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            rule = f"expected a token from 0 to {vocab_size - 1}"
            raise wrong_value(f"{parameter}[{i}]", token, rule)
    return tokens


def _logit_bias(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    """Return token -> number added to its logit; -100 forbids the token, as in OpenAI's API."""
    checked: dict[int, float] = {}
    for token, bias in biases.items():
        number = int(token) if token.isascii() and token.isdigit() and len(token) < 10 else -1
        if not 0 <= number < vocab_size:
            rule = f"expected a token from 0 to {vocab_size - 1}"
            raise wrong_argument(f"logit_bias.{token[:20]}", rule)
        if not -100 <= bias <= 100:
            rule = "expected a number from -100 to 100"
            raise wrong_value(f"logit_bias.{token}", bias, rule)
        checked[number] = -math.inf if bias == -100 else bias
    return checked


# One text or several, each as a string or as tokens.
Inputs: TypeAlias = (
    str
    | Tokens
    | Annotated[list[str | Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
)


def _as_list(inputs: Any) -> list[str | list[int]]:
    return [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else list(inputs)


class CompletionBody(SamplingBody):
    """POST /v1/completions: continue texts without a chat template."""

    prompt: Inputs
    max_tokens: int | None = Field(
        None,
        ge=-1,
        le=2**31 - 1,
        validation_alias=AliasChoices("max_tokens", "max_completion_tokens", *_MAX_TOKENS),
        description="Default: 16. -1: what the context has room for.",
    )
    echo: bool | None = None
    parse_special: bool | None = Field(
        None, description="false: control tokens written in the prompt are text."
    )
    logprobs: int | None = Field(None, ge=0, le=100)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    suffix: str | None = Field(None, description="The text behind the gap to fill.")

    def prompts(self) -> list[str | list[int]]:
        """Return each prompt, a text or tokens."""
        return _as_list(self.prompt)

    def candidates(self) -> int:
        """Return how many texts to generate for each prompt, of which `n` are returned."""
        n = self.n or 1
        if self.best_of is None or self.best_of == n:
            return n
        if self.best_of < n or self.stream:
            expected = "no other than n in a stream" if self.stream else f"at least n={n}"
            raise wrong_value("best_of", self.best_of, f"expected {expected}")
        return self.best_of


Overflow: TypeAlias = Literal["error", "truncate", "shift", "drop"] | None  # of a conversation
ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]
Metadata = Annotated[dict[str, str], _at_most(MAX_STOPS)]
TopLogprobs = Annotated[int, Field(ge=0, le=20)]


# -1 is no limit, as in llama-server.
LimitFromZero = Annotated[
    Annotated[int, Field(ge=0, le=2**31 - 1)] | None, BeforeValidator(_without_limit)
]


class ThinkingBody(Body):
    """Reasoning as Anthropic's API asks for it."""

    type: Literal["enabled", "adaptive", "disabled"] | None = None
    budget_tokens: LimitFromZero = None


class ReasoningBody(Body):
    """The effort of reasoning, and the most tokens of it."""

    effort: str | None = None
    max_tokens: LimitFromZero = None
    enabled: bool | None = None
    exclude: Annotated[Any, Hint(False)] = None
    summary: Annotated[Any, Hint("auto")] = None
    generate_summary: Annotated[Any, Hint("auto")] = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions. `engine.chat` checks messages and tools."""

    engine_names = {
        "prompt": "messages",
        "slot": "id_slot",
        "template_variables": "chat_template_kwargs",
    }

    messages: Objects = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Limit = Field(
        None, validation_alias=AliasChoices("max_tokens", "max_output_tokens", *_MAX_TOKENS)
    )
    max_completion_tokens: Limit = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    continue_final_message: bool | None = Field(
        None, description="Default: true for an assistant's message at the end."
    )
    add_generation_prompt: bool | None = None
    max_reasoning_tokens: LimitFromZero = Field(
        None,
        validation_alias=AliasChoices(
            "max_reasoning_tokens", "thinking_budget_tokens", "reasoning_budget", "thinking_budget"
        ),
        description="The reasoning ends behind so many tokens. -1: no limit.",
    )
    thinking: ThinkingBody | None = None
    reasoning: ReasoningBody | None = None
    reasoning_effort: str | None = Field(None, description="For templates that know it.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="For the template.")
    bare_tool_calls: bool | None = Field(
        None, description="false: JSON without the template's delimiters is no call."
    )
    overflow: Overflow = None  # type: ignore[assignment]
    metadata: Label = None
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    function_call: Unsupported = None
    functions: Unsupported = None
    store: Annotated[Any, Hint(False)] = None
    service_tier: Annotated[Any, Hint("auto", "default")] = None
    audio: Annotated[Any, Hint()] = None
    prediction: Annotated[Any, Hint()] = None
    verbosity: Annotated[Any, Hint("medium")] = None
    web_search_options: Annotated[Any, Hint()] = None

    def token_limit(self) -> int | None:
        """Return the largest number of tokens of the answer; None = what the context has room for.

        Raises:
            ArgumentError: Both names of the limit are given, with different values.
        """
        limit, older = self.max_completion_tokens, self.max_tokens
        if limit is not None and older is not None and limit != older:
            raise wrong_value("max_tokens", older, f"max_completion_tokens={limit} differs")
        return older if limit is None else limit

    def effort(self) -> str | None:
        """Return the effort of reasoning, by whichever name it was given; "none" for no reasoning.

        Raises:
            ArgumentError: Two names have different values.
        """
        efforts: dict[str, str] = {}
        if self.reasoning_effort is not None:
            efforts["reasoning_effort"] = self.reasoning_effort
        if self.reasoning is not None and self.reasoning.effort is not None:
            efforts["reasoning.effort"] = self.reasoning.effort
        if self.reasoning is not None and self.reasoning.enabled is False:
            efforts["reasoning.enabled"] = "none"
        if self.thinking is not None and self.thinking.type == "disabled":
            efforts["thinking.type"] = "none"
        return _agreed(efforts)

    def reasoning_limit(self) -> int | None:
        """Return the most tokens of the reasoning; None = no limit.

        Raises:
            ArgumentError: Two names have different values.
        """
        limits = {
            "max_reasoning_tokens": self.max_reasoning_tokens,
            "thinking.budget_tokens": self.thinking.budget_tokens if self.thinking else None,
            "reasoning.max_tokens": self.reasoning.max_tokens if self.reasoning else None,
        }
        return _agreed({name: limit for name, limit in limits.items() if limit is not None})

    def logprob_alternatives(self) -> int | None:
        """Return how many alternatives to report for each token; None = no log-probabilities.

        Raises:
            ArgumentError: Alternatives are asked for without log-probabilities.
        """
        if self.top_logprobs and not self.logprobs:
            raise wrong_value("top_logprobs", self.top_logprobs, "allowed only with logprobs: true")
        return (self.top_logprobs or 0) if self.logprobs else None


LOGPROBS = "message.output_text.logprobs"  # the one value of `include` that has an effect


class TextBody(Body):
    """The format of the answer."""

    format: dict[str, Any] | None = None
    verbosity: Annotated[Any, Hint("medium")] = None


class ResponsesStreamOptions(Body):
    """Options of a stream; none can be chosen."""

    include_obfuscation: Annotated[Any, Hint(False)] = None


class ResponsesBody(ModelBody):
    """POST /v1/responses."""

    engine_names = {
        "prompt": "input",
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
    }

    input: str | Objects
    instructions: str | None = None
    max_output_tokens: Limit = Field(
        None,
        validation_alias=AliasChoices(
            "max_output_tokens", "max_tokens", "max_completion_tokens", *_MAX_TOKENS
        ),
    )
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    include: Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    background: Unsupported = None
    truncation: Literal["auto", "disabled"] | None = None
    priority: Priority = None
    metadata: Metadata | None = Field(None, description="Returned with the answer.")
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    conversation: Unsupported = None
    previous_response_id: str | None = None
    prompt: Unsupported = None
    store: bool | None = Field(None, description="false: no later request can continue it.")
    service_tier: Annotated[Any, Hint("auto", "default")] = None
    max_tool_calls: Annotated[Any, Hint()] = None

    def note_ignored(self, prefix: str = "") -> None:
        """Note also what `include` asks for in vain."""
        super().note_ignored(prefix)
        for i, wish in enumerate(self.include or ()):
            if wish != LOGPROBS:
                ignore(f"include[{i}]", f"{wish[:100]} is not included")

    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities are included."""
        return LOGPROBS in (self.include or ())


class EmbeddingBody(ModelBody):
    """POST /v1/embeddings."""

    engine_names = {"texts": "input"}

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    parse_special: bool | None = Field(
        None, description="false: control tokens written in a text are text."
    )

    def texts(self) -> list[str | list[int]]:
        """Return each text, or its tokens."""
        return _as_list(self.input)


class Document(Body):
    """A text to rank."""

    text: str


Documents = Annotated[
    list[str | Document], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
]


class RerankBody(ModelBody):
    """POST /v1/rerank, /v2/rerank: order documents by how well they answer a query.

    `documents` is the field of Cohere, Jina and llama-server, `texts` that of Hugging Face's
    text-embeddings-inference (TEI), whose answer is a list.
    """

    query: str
    documents: Documents | None = None
    texts: Documents | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None
    return_text: bool | None = Field(None, description="With texts.")
    raw_scores: bool | None = Field(
        None, description="Scores as the model gives them; with texts false, otherwise true."
    )
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    max_tokens_per_doc: Annotated[Any, Hint()] = None
    max_chunks_per_doc: Annotated[Any, Hint()] = None
    rank_fields: Annotated[Any, Hint(["text"])] = None

    def candidates(self) -> list[str]:
        """Return the texts to rank. ArgumentError for none, and for both names of them."""
        if (self.documents is None) == (self.texts is None):
            both = "" if self.documents is None else "; texts has them too"
            raise wrong_argument("documents", f"expected a list of texts{both}")
        given = self.texts if self.documents is None else self.documents
        return [item if isinstance(item, str) else item.text for item in given or ()]


class ClassifyBody(ModelBody):
    """POST /v1/classify: the probabilities of a classifier's classes."""

    engine_names = {"texts": "input"}

    input: Inputs
    truncate: bool | None = None

    def texts(self) -> list[str | list[int]]:
        """Return each text, or its tokens."""
        return _as_list(self.input)


Pairs = str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]


class ScoreBody(ModelBody):
    """POST /v1/score: how well pairs of texts fit.

    A rerank model gives the probability that the second answers the first, another one the cosine
    of their vectors.
    """

    engine_names = {"query": "text_1", "documents": "text_2", "texts": "text_1"}

    text_1: Pairs = Field(validation_alias=AliasChoices("text_1", "queries"))
    text_2: Pairs = Field(validation_alias=AliasChoices("text_2", "documents"))
    truncate: bool | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs: one text with each other one, or two lists of one length."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            rule = f"expected 1 text or as many as text_2 has, {len(second)}, not {len(first)}"
            raise wrong_argument("text_1", rule)
        return list(zip(first, second, strict=True))


# Texts and tokens that belong together.
MixedText: TypeAlias = Annotated[list[str | int], Field(max_length=MAX_PROMPTS, fail_fast=True)]


class TokenizeBody(ModelBody):
    """POST /tokenize: turn a text into tokens."""

    engine_names = {"text": "content"}

    content: Annotated[str, Field(max_length=MAX_TOKENIZED)] | MixedText
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(ModelBody):
    """POST /detokenize: turn tokens into a text."""

    engine_names = {"token": "tokens"}

    tokens: list[int] = Field(max_length=MAX_TOKENIZED, fail_fast=True)


class ErrorFields(BaseModel):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of an answer with an error."""

    error: ErrorFields
