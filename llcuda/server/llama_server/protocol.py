"""The bodies of llama-server's own API, and their meaning for the engine.

Pure data, like `llcuda.server.protocol`. The shapes are those of tools/server/README.md of
llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field, model_validator

from llcuda.native.model import Model
from llcuda.params import wrong_argument, wrong_value
from llcuda.server.leniency import ignore
from llcuda.server.protocol import (
    MAX_CHOICES,
    MAX_PROMPTS,
    AdapterScale,
    Body,
    ChatBody,
    ModelBody,
    SamplingBody,
)

MAX_BIASES = 4096
MAX_FIELDS = 256
PROBED = 100  # the most probable tokens, of which the steps of sampling keep some
FOREVER = 2**31 - 1  # tokens: as many as the context has room for
# llama-server's names of steps in their order, the parameter of each, and what turns it off.
STEPS: dict[str, tuple[str, float]] = {
    "penalties": ("repeat_penalty", 1.0),
    "dry": ("dry_multiplier", 0.0),
    "top_n_sigma": ("top_n_sigma", -1.0),
    "top_k": ("top_k", 0),
    "typical_p": ("typical_p", 1.0),
    "typ_p": ("typical_p", 1.0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "xtc": ("xtc_probability", 0.0),
    "temperature": ("temperature", 1.0),
}
FURTHER_STEPS = ("infill", "adaptive_p")

Prompt = str | list[int]
Names = Annotated[list[str], Field(max_length=MAX_FIELDS, fail_fast=True)]


class GenerationBody(SamplingBody):
    """What llama-server's routes for texts have in common."""

    engine_names: ClassVar[Mapping[str, str]] = {
        "slot": "id_slot",
        "max_tokens": "n_predict",
        "logprobs": "n_probs",
    }

    temperature: float | None = Field(None, ge=0)
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | list[Any] | None = Field(  # type: ignore[assignment]
        None, max_length=MAX_BIASES, description="Token or text -> bias; false = never."
    )
    n_predict: int | None = Field(
        None,
        ge=-1,
        le=FOREVER,
        validation_alias=AliasChoices("n_predict", "max_tokens", "max_completion_tokens"),
        description="Default: -1, what the context has room for.",
    )
    n_cmpl: int | None = Field(None, ge=1, le=MAX_CHOICES)
    samplers: Names | None = None
    n_probs: int | None = Field(None, ge=0, le=100)
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    response_fields: Names | None = None
    t_max_predict_ms: float | None = Field(None, description="Up to the next line, if above 0.")

    def candidates(self) -> int:
        """Return how many texts to generate for each prompt."""
        return self.n_cmpl or self.n or 1

    def token_limit(self) -> int:
        """Return the largest number of tokens; `FOREVER` without a limit."""
        return FOREVER if self.n_predict is None or self.n_predict < 0 else self.n_predict

    def keywords(self, deadline: float | None, ctx_size: int, model: Model) -> dict[str, Any]:
        """Return the keywords of `Engine.submit`.

        Args:
            deadline: Deadline of the server in seconds, or None.
            ctx_size: Tokens of the context.
            model: The model, for tokens and texts of logit_bias.

        Raises:
            ArgumentError: A value cannot be honoured.
        """
        plain = self.model_copy(update={"logit_bias": None})
        keywords = plain.submit_keywords(deadline, ctx_size, model.vocab_size)
        for name in ("penalty_last_n", "dry_last_n", "keep"):
            if keywords.get(name) == -1:  # all that there is
                keywords[name] = ctx_size
        if self.seed == -1:  # at random
            del keywords["seed"]
        if keywords.get("keep") and keywords.get("overflow", "error") == "error":
            ignore("n_keep", 'nothing is dropped without "overflow": "shift"')
            del keywords["keep"]
        if self.logit_bias:
            keywords["logit_bias"] = dict(_biases(self.logit_bias, model))
        if self.samplers is not None:
            keywords |= _without_steps(self.samplers)
        if self.n_probs:
            keywords["logprobs"] = PROBED if self.post_sampling_probs else self.n_probs
        keywords["max_tokens"] = max(1, self.token_limit())  # 0 fills the cache, by one token
        return keywords


class NativeCompletionBody(GenerationBody):
    """POST /completion: continue texts without a chat template."""

    prompt: Any = None

    def prompts(self) -> list[list[Prompt]]:
        """Return each prompt as its parts.

        Raises:
            ArgumentError: This is no prompt.
        """
        given = self.prompt
        many = isinstance(given, list) and any(not isinstance(part, int) for part in given)
        if many and any(isinstance(part, int) and not isinstance(part, bool) for part in given):
            many = False  # one prompt of texts and tokens
        if not many:
            return [_parts(given, "prompt")]
        if len(given) > MAX_PROMPTS:
            raise wrong_argument("prompt", f"expected at most {MAX_PROMPTS} prompts")
        return [_parts(prompt, f"prompt[{i}]") for i, prompt in enumerate(given)]


class ExtraFile(Body):
    """A file beside the one with the gap."""

    text: str
    filename: str = "tmp"


class InfillBody(GenerationBody):
    """POST /infill: fill the gap between two texts."""

    engine_names: ClassVar[Mapping[str, str]] = {
        **GenerationBody.engine_names,
        "prompt": "input_prefix",
    }

    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] | None = Field(None, max_length=MAX_FIELDS)
    prompt: str | None = None
    spm_infill: bool | None = None


class ApplyTemplateBody(ChatBody):
    """POST /apply-template and /chat/completions/input_tokens: the prompt of a conversation."""


class AdaptersBody(ModelBody):
    """POST /lora-adapters: the scale of each adapter; those left out get 0."""

    adapters: list[AdapterScale] = Field(max_length=MAX_FIELDS)

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, given: Any) -> Any:
        """Take the list that llama-server's clients send."""
        return {"adapters": given} if isinstance(given, list) else given


class SlotBody(ModelBody):
    """POST /slots/ID?action=save and restore."""

    filename: str


def _parts(given: Any, name: str) -> list[Prompt]:
    """Return the texts and the tokens that a prompt consists of."""
    if isinstance(given, dict):
        if given.get("multimodal_data"):
            raise wrong_argument(f"{name}.multimodal_data", "this model takes no images or sounds")
        given = given.get("prompt_string")
        name = f"{name}.prompt_string"
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        rule = "expected a text, a list of tokens, or a list of texts and tokens"
        raise wrong_argument(name, rule)
    parts: list[Prompt] = []
    for part in given:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, int) and not isinstance(part, bool):
            if not parts or isinstance(parts[-1], str):
                parts.append([])
            parts[-1].append(part)  # type: ignore[union-attr]
        else:
            raise wrong_argument(name, "expected texts and tokens only")
    return parts


def _biases(given: Mapping[str, Any] | Sequence[Any], model: Model) -> Iterator[tuple[int, float]]:
    """Yield the tokens of logit_bias with their biases; a text stands for each of its tokens."""
    if isinstance(given, Mapping):
        pairs: list[Any] = [[key, bias] for key, bias in given.items()]
    else:
        pairs = [
            [pair.get("id"), pair.get("bias")] if isinstance(pair, dict) else pair for pair in given
        ]
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong_argument(f"logit_bias[{i}]", "expected [token or text, bias]")
        key, bias = pair
        if bias is False or bias is None:
            bias = -math.inf
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            rule = "expected a number, or false for never"
            raise wrong_value(f"logit_bias[{i}]", bias, rule)
        is_number = isinstance(key, str) and isinstance(given, Mapping) and key.isdecimal()
        if is_number or (isinstance(key, int) and not isinstance(key, bool)):
            if not 0 <= int(key) < model.vocab_size:
                rule = f"expected a token from 0 to {model.vocab_size - 1}"
                raise wrong_value(f"logit_bias[{i}]", key, rule)
            yield int(key), bias
        elif isinstance(key, str):
            for token in model.tokenize(key, add_special=False):
                yield token, bias
        else:
            raise wrong_argument(f"logit_bias[{i}]", "expected a token or a text first")


def _without_steps(names: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that turn off the steps that are not among `names`."""
    for name in names:
        if name not in STEPS and name not in FURTHER_STEPS:
            raise wrong_value("samplers", name, f"expected some of {', '.join(STEPS)}")
        if name in FURTHER_STEPS:
            ignore("samplers", f"there is no step {name}")
    order = [[*STEPS].index(name) for name in names if name in STEPS]
    if order != sorted(order):
        ignore("samplers", "the steps have another order here")
    given = {STEPS[name][0] for name in names if name in STEPS}
    off = dict(STEPS.values())
    keywords: dict[str, Any] = {own: value for own, value in off.items() if own not in given}
    if "repeat_penalty" in keywords:
        keywords |= {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    return keywords
