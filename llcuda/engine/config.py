"""The settings of a model and its engine, sorted and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, Unpack

from llcuda.keywords import ConfigKeywords, explain_keywords, split_keywords
from llcuda.params import (
    BATCH_SIZE,
    INT32_MAX,
    MAX_SEQUENCES,
    UBATCH_SIZE,
    ContextParams,
    ModelParams,
    check_flag,
    check_number,
    wrong_argument,
    wrong_value,
)

CTX_SIZE = 2048  # the least that is chosen, where the model was trained on as much
LOAD_UBATCH_SIZE = 128  # of `InferenceEngine.load_model` and of the server
ECHO_ROWS = 16  # rows of logits that an engine on a GPU has room for at least

# What an engine needs of its context, and the values that mean the same.
_FOR_TEXT: dict[str, tuple[Any, ...]] = {
    "embeddings": (False,),
    "attention": (None, "causal"),
    "pooling": (None,),
}


@explain_keywords
@dataclass(frozen=True, slots=True)
class EngineParams:
    """The size of an engine.

    Attributes:
        n_parallel: Sequences that decode in one batch.
        ctx_size: Tokens of each sequence, prompt and answer together; None = as many as the model
            was trained on, or as many as keep the KV cells of all sequences within half of the
            memory that is free beside the weights, but not fewer than 2,048.
        cache_size: KV cells of all sequences together; None = n_parallel x ctx_size. More room
            keeps more cached prefixes, which later prompts need not compute again.
        batch_size: Largest number of prompt tokens of one step, which bounds how long a prompt
            delays running sequences.
        ubatch_size: Largest number of tokens computed at once.
        queue_size: Largest number of requests that wait, beside n_parallel that run; one more
            unfinished request is a QueueFullError.
        speculation: Largest number of tokens guessed from the sequence itself for each step,
            0 = off.
    """

    n_parallel: int = 1
    ctx_size: int | None = None
    cache_size: int | None = None
    batch_size: int = BATCH_SIZE
    ubatch_size: int = UBATCH_SIZE
    queue_size: int = 1024
    speculation: int = 0

    def __post_init__(self) -> None:
        check_number("n_parallel", self.n_parallel, "int", 1, MAX_SEQUENCES)
        if self.ctx_size is not None:
            check_number("ctx_size", self.ctx_size, "int", 1, INT32_MAX)
        check_number("batch_size", self.batch_size, "int", 1, 2**20)
        check_number("ubatch_size", self.ubatch_size, "int", 1, 2**20)
        check_number("queue_size", self.queue_size, "int", 1)
        check_number("speculation", self.speculation, "int", 0, 32)
        if self.cache_size is not None:
            check_number("cache_size", self.cache_size, "int", self.ctx_size or 1)

    def check_cache_size(self) -> None:
        """Raise ArgumentError for more KV cells than all sequences have, where ctx_size is set."""
        if self.ctx_size is None or self.cache_size is None:
            return
        most = MAX_SEQUENCES * self.ctx_size
        if self.cache_size > most:
            rule = f"expected at most {most:,}, {MAX_SEQUENCES} sequences of {self.ctx_size:,}"
            raise wrong_value("cache_size", self.cache_size, rule, "give a larger ctx_size")

    @property
    def slots(self) -> int:
        """Sequences of the KV cache: n_parallel, and as many cached ones as there is room for."""
        extra = -(-(self.cache_size or 0) // (self.ctx_size or CTX_SIZE)) - self.n_parallel
        return min(MAX_SEQUENCES, self.n_parallel + max(0, extra))


_ENGINE_FIELDS = frozenset(item.name for item in fields(EngineParams))


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The settings of a model and of an engine on it.

    Attributes:
        model: How the model is loaded.
        context: The fields of ContextParams that were given; the engine chooses the others.
        engine: The size of the engine.

    Raises:
        ArgumentError: The settings contradict one another, or ask of the context what an engine
            does otherwise.
    """

    model: ModelParams = field(default_factory=ModelParams)
    context: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineParams = field(default_factory=EngineParams)

    def __post_init__(self) -> None:
        for part, kind in (("model", ModelParams), ("engine", EngineParams)):
            if not isinstance(getattr(self, part), kind):
                raise wrong_value(part, getattr(self, part), f"expected {kind.__name__}")
        if not isinstance(self.context, Mapping):
            rule = "expected a mapping of fields of ContextParams"
            raise wrong_value("context", self.context, rule, 'give a dict, e.g. {"threads": 1}')
        for name in self.context:
            if name in _ENGINE_FIELDS:
                rule = f"{name!r} is a field of EngineParams"
                raise wrong_argument("context", rule, f"give engine=EngineParams({name}=...)")
        split_keywords(self.context, ContextParams)
        if "sequences" in self.context:
            raise wrong_value(
                "sequences",
                self.context["sequences"],
                "an engine has them by n_parallel and cache_size",
                "give n_parallel=",
            )
        for name, allowed in _FOR_TEXT.items():
            if name in self.context and self.context[name] not in allowed:
                raise wrong_value(
                    name,
                    self.context[name],
                    "an engine generates text",
                    "use an Embedder or a Context for embeddings",
                )
        self.context_params()

    @classmethod
    def from_kwargs(cls, **keywords: Unpack[ConfigKeywords]) -> Self:
        """Sort keywords into settings.

        Args:
            keywords: The fields of EngineParams, ModelParams and ContextParams.

        Raises:
            TypeError: A keyword is unknown.
            ArgumentError: A value is outside what is allowed.
        """
        engine, model, context = split_keywords(keywords, EngineParams, ModelParams, ContextParams)
        config = cls(ModelParams(**model), context, EngineParams(**engine))
        config.engine.check_cache_size()
        return config

    def with_ctx_size(self, ctx_size: int) -> Self:
        """Return the settings with another size of each sequence."""
        return replace(self, engine=replace(self.engine, ctx_size=ctx_size))

    def context_params(self, gpu: bool = False) -> ContextParams:
        """Return the settings of the engine's context; ctx_size=None counts as 2,048.

        Args:
            gpu: Whether CUDA computes. Then the logits stay there, but for speculation, which
                looks at several rows of a sequence; and there is room for as many rows as a step
                has.

        Raises:
            ArgumentError: The settings contradict one another.
        """
        engine = self.engine
        rows = 1 + engine.speculation  # of one sequence in a step
        chosen: dict[str, Any] = {
            "unified_kv": False,
            "device_logits": gpu and not engine.speculation,
            **self.context,
        }
        check_flag("device_logits", chosen["device_logits"])
        if chosen["device_logits"]:
            chosen.setdefault("outputs_max", max(engine.slots, ECHO_ROWS))
        params = ContextParams(
            ctx_size=engine.ctx_size or CTX_SIZE,
            sequences=engine.slots,
            batch_size=max(engine.batch_size, engine.slots * rows),
            ubatch_size=max(
                engine.ubatch_size, engine.n_parallel if chosen["device_logits"] else 1
            ),
            **chosen,
        )
        if params.device_logits and engine.speculation:
            rule = f"has no rows for speculation={engine.speculation}"
            raise wrong_value("device_logits", True, rule, "give one of them")
        if not params.swa_full and rows > engine.ubatch_size:
            raise wrong_value(
                "speculation",
                engine.speculation,
                f"with swa_full=False expected less than ubatch_size={engine.ubatch_size}, or a "
                "wrong guess could not be forgotten",
                "give a larger ubatch_size, or swa_full=True",
            )
        if 0 < params.outputs_max < engine.n_parallel * rows:
            least = engine.n_parallel * rows
            rule = f"expected 0, or at least n_parallel x (1 + speculation) = {least}"
            raise wrong_value("outputs_max", params.outputs_max, rule, "give 0 for batch_size")
        return params
