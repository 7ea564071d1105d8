"""Engine: continuous batching for any number of threads and coroutines.

`submit` returns a Request at once. `EngineLoop.step` schedules, runs and processes all requests in
one batch; they join and leave at any step, each with its own sampling parameters.
"""

from __future__ import annotations

import logging
import weakref
from collections import abc
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from llcuda._lazy import explain_names
from llcuda._pickling import RECIPE, stays_in_process
from llcuda.chat.session import Chat, chat_prompt
from llcuda.chat.session import start as start_chat
from llcuda.chat.tool_loop import Tool, ToolRun
from llcuda.chat.tool_loop import arun as arun_tools
from llcuda.chat.tool_loop import run as run_tools
from llcuda.embeddings.cache import Embedders
from llcuda.embeddings.embedder import Embedder, Float32, Text
from llcuda.engine.autofit import ctx_size_for, fit
from llcuda.engine.config import EngineConfig, EngineParams
from llcuda.engine.loop import EngineLoop
from llcuda.engine.metrics import EngineLoad, Metrics, Reporter, RequestRecord, StepRecord
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request, RequestParams, kept_tokens, request_params
from llcuda.engine.sequence import Sequence
from llcuda.engine.slots import SavedSlot, SlotState, erase_slot, restore_slot, save_slot
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    LlcudaError,
    NoTextError,
)
from llcuda.hub.resolver import resolve
from llcuda.keywords import (
    ChatKeywords,
    ConfigKeywords,
    EmbedKeywords,
    EngineKeywords,
    PromptKeywords,
    RunKeywords,
    SubmitKeywords,
    check_keywords,
    given_params,
    show_keywords,
)
from llcuda.native import library
from llcuda.native.context import Context
from llcuda.native.model import Model, check_model
from llcuda.native.prompt_length import check_length, too_long
from llcuda.native.sampler import Sampler
from llcuda.params import (
    ContextParams,
    ModelParams,
    SamplingParams,
    check_flag,
    check_number,
    seed_after,
    wrong_argument,
    wrong_value,
)
from llcuda.structured import compile_response_format

logger = logging.getLogger("llcuda.engine")


def check_hooks(**hooks: Any) -> None:
    """Raise ArgumentError for a hook that cannot be called."""
    for name, hook in hooks.items():
        if hook is not None and not callable(hook):
            raise wrong_value(name, hook, "expected a function")


@stays_in_process(RECIPE)
@explain_names
class Engine:
    """Runs requests on a model with continuous batching, from any thread or coroutine.

    The prefix cache, speculation and other requests in the batch change results by rounding. On the
    CPU batch_invariant=True makes them equal bit for bit; prompts are slower then.

    The model must stay open: closing it ends every request with ClosedError, and the engine. An
    engine that nobody holds finishes the requests that it has, and is freed.

    Args:
        model: The model, which any number of engines may share; or its name or path, as
            `InferenceEngine.load_model` takes it. The engine frees a model that it has loaded.
        config: The settings as one object; or keywords.
        on_step: Called with a StepRecord after each step, on the engine's thread. An exception of
            a hook is logged and harms no request. A hook may submit, but not wait for a request
            nor close the engine, which is a ConcurrencyError.
        on_request: Called with a RequestRecord for each request that ends, failed ones included,
            before its readers wake; otherwise as on_step.
        metrics: The numbers to count in; None = new ones.
        **keywords: The fields of EngineParams, and of ContextParams for the rest; for a name those
            of ModelParams too.

    Attributes:
        model: The model.
        config: The settings.
        params: The size of the engine; a part of the settings.
        ctx_size: Tokens of each sequence, prompt and answer together.
        context: The context that computes; it belongs to the engine's thread.
        metrics: The numbers of the engine, with `snapshot()` and `prometheus_text()`.
        loop: The engine's thread and its queue.

    Raises:
        ArgumentError: A value is outside what is allowed.
        TypeError: A keyword is unknown.
        NoTextError: The model generates no text.
        ContextError: The context cannot be created.
    """

    @overload
    def __init__(
        self,
        model: Model,
        *,
        config: EngineConfig | None = None,
        on_step: abc.Callable[[StepRecord], None] | None = None,
        on_request: abc.Callable[[RequestRecord], None] | None = None,
        metrics: Metrics | None = None,
        **keywords: Unpack[EngineKeywords],
    ) -> None: ...

    @overload
    def __init__(
        self,
        model: str | Path,
        *,
        config: EngineConfig | None = None,
        on_step: abc.Callable[[StepRecord], None] | None = None,
        on_request: abc.Callable[[RequestRecord], None] | None = None,
        metrics: Metrics | None = None,
        **keywords: Unpack[ConfigKeywords],
    ) -> None: ...

    @show_keywords(ConfigKeywords)
    def __init__(
        self,
        model: Model | str | Path,
        *,
        config: EngineConfig | None = None,
        on_step: abc.Callable[[StepRecord], None] | None = None,
        on_request: abc.Callable[[RequestRecord], None] | None = None,
        metrics: Metrics | None = None,
        **keywords: Any,
    ) -> None:
        check_hooks(on_step=on_step, on_request=on_request)
        if not isinstance(metrics, Metrics | None):
            raise wrong_value("metrics", metrics, "expected a Metrics, or None")
        self.metrics = metrics or Metrics()
        self._owned_model: Model | None = None
        if isinstance(model, str | Path):
            config = _given_config(config, keywords, EngineParams, ModelParams, ContextParams)
            path = resolve(model, progress=True, parameter="model")
            config = fit(config, path).config
            self._owned_model = model = Model(path, progress=True, params=config.model)
        else:
            check_model(model)
            config = _given_config(config, keywords, EngineParams, ContextParams)
            _check_loaded_as(config.model, model)
        try:
            self._start(model, config, Reporter(self.metrics, on_step, on_request))
        except BaseException:
            if self._owned_model is not None:
                self._owned_model.close()
            raise

    def _start(self, model: Model, config: EngineConfig, reporter: Reporter) -> None:
        """Create the context and the thread."""
        given_ctx_size = config.engine.ctx_size
        self.ctx_size = given_ctx_size or ctx_size_for(model, config, _on_gpu(model))
        self.config = config = config.with_ctx_size(self.ctx_size)
        self.params = params = config.engine
        self.model = model
        params.check_cache_size()
        if (
            config.context.get("device_logits")
            and params.n_parallel > 1
            and (model.is_recurrent or model.is_hybrid)
        ):
            raise wrong_value(
                "device_logits",
                True,
                f"the states of {model.path.name} cannot be moved, so that its texts are not "
                "computed in one batch",
                remedy="leave it out, or give n_parallel=1",
            )
        self.context = Context(model, params=config.context_params(_on_gpu(model)))
        if not self.context.remembers:
            self.context.close()
            raise NoTextError(
                f"{model.path.name} ({model.description}) remembers no text and generates none",
                remedy="an Embedder gives its embeddings or scores",
            )
        logger.info("%s; ctx_size (--ctx-size on the command line) changes it", self.size_report())
        if self.ctx_size > model.train_ctx_size > 0 and not _stretched(config.context):
            logger.warning(
                "ctx_size=%s, but %s was trained on texts of %s tokens: longer ones may derail",
                *(self.ctx_size, model.path.name, model.train_ctx_size),
            )
        self._embedders = Embedders(
            model, given_ctx_size, params.batch_size, True, asdict(self.context.params)
        )
        states = model.is_recurrent or model.is_hybrid  # from which nothing can be removed
        unified = self.context.params.unified_kv and self.context.params.sequences > 1
        shared = unified and model.sliding_window  # cells that no text can have alone
        self._can_shift = not states and not shared and self.context.memory.can_shift
        self.loop = EngineLoop(self.context, params, reporter)
        self.loop.start()
        weakref.finalize(self, self.loop.close_when_idle).atexit = False

    # --- for callers ---

    @show_keywords(SubmitKeywords)
    def submit(
        self,
        prompt: str | abc.Sequence[int],
        params: RequestParams | None = None,
        sampling: SamplingParams | None = None,
        **keywords: Unpack[SubmitKeywords],
    ) -> Request:
        """Queue a prompt and return the handle of its continuation.

        Args:
            prompt: A text, a list of tokens, or an array of them in one dimension.
            params: What ends the request and what it reports; or keywords.
            sampling: How tokens are chosen; or keywords.
            **keywords: The fields of RequestParams and SamplingParams; response_format, which
                becomes a guide: see `llcuda.structured.compile`; and parse_special, by default
                True: control tokens that are written in a text prompt are read as such.

        Raises:
            ArgumentError: A value is outside what is allowed, or the prompt is empty.
            ContextLengthError: The prompt is longer than the context.
            QueueFullError: n_parallel + queue_size requests are unfinished.
            ClosedError: The engine or the model is closed.
            TypeError: A keyword is unknown.
        """
        return self._submit(prompt, 1, params, sampling, keywords)[0]

    @show_keywords(SubmitKeywords)
    def submit_n(
        self,
        prompt: str | abc.Sequence[int],
        n: int,
        params: RequestParams | None = None,
        sampling: SamplingParams | None = None,
        **keywords: Unpack[SubmitKeywords],
    ) -> list[Request]:
        """Queue several continuations of one prompt, which is computed once.

        Args:
            prompt: As that of `submit`.
            n: Continuations; with a seed, each has the next one, 0 after the largest.
            params: As that of `submit`.
            sampling: As that of `submit`.
            **keywords: As those of `submit`.

        Raises:
            QueueFullError: n_parallel + queue_size have no room for all of them; none is queued.
            ArgumentError: As `submit`, and for a guide, which belongs to one request.
        """
        check_number("n", n, "int", 1, 10_000)
        return self._submit(prompt, n, params, sampling, keywords)

    def _submit(
        self,
        prompt: str | abc.Sequence[int],
        n: int,
        params: RequestParams | None,
        sampling: SamplingParams | None,
        keywords: SubmitKeywords,
    ) -> list[Request]:
        response_format = keywords.pop("response_format", None)
        parse_special = keywords.pop("parse_special", True)
        if keywords:
            if params is not None or sampling is not None:
                rule = f"{', '.join(keywords)}= cannot be given beside params= and sampling="
                raise wrong_argument("params", rule, "give objects or keywords, not both")
            params, sampling = request_params(keywords)
        params = given_params(RequestParams, params, {})
        sampling = given_params(SamplingParams, sampling, {})
        context = self.context.params
        if params.slot is not None and params.slot >= context.sequences:
            rule = f"expected a slot from 0 to {context.sequences - 1}"
            raise wrong_value("slot", params.slot, rule, "Engine.slots() lists them")
        outputs_max = 0 if context.device_logits else context.outputs_max
        if params.echo and 0 < outputs_max < self.params.batch_size:
            rule = f"outputs_max={outputs_max} has no room for the logits of whole prompts"
            raise wrong_value("echo", True, rule, remedy="give the engine outputs_max=0")
        if params.guide is not None and n > 1:
            raise wrong_argument(
                "guide", "a guide restricts one text", remedy="submit each with a guide of its own"
            )
        if params.overflow == "shift" and not self._can_shift:
            rule = f"the memory of {self.model.path.name} cannot drop the middle of a text"
            raise wrong_value("overflow", "shift", rule, 'give "truncate" or "error"')
        grammar = None
        if response_format is not None:
            if params.guide is not None:
                remedy = "give response_format or guide, not both"
                raise wrong_argument("response_format", "another guide is given", remedy)
            if sampling.grammar is not None:
                remedy = "give response_format or grammar, not both"
                raise wrong_argument("response_format", "a grammar is given as well", remedy)
            grammar = compile_response_format(self.model, response_format)
        if not isinstance(parse_special, bool):
            raise wrong_value("parse_special", parse_special, "expected True or False")
        if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], str):
            remedy = "submit() each text, or give them to InferenceEngine.batch_infer()"
            raise wrong_argument("prompt", "expected one text, or a list of tokens", remedy)
        if isinstance(prompt, str):
            limit = self.ctx_size if params.overflow == "error" else None
            tokens = tokenize_prompt(self.model, prompt, parse_special, limit)
        else:
            tokens = self.model.token_list(prompt)
        tokens, dropped = self._fitting_tokens(tokens, params)
        sequences: list[Sequence] = []
        for i in range(n):
            sampler = self._sampler(sampling, params, i)
            if params.penalize_prompt:
                sampler.accept_prompt(tokens)
            request = Request(
                params if grammar is None else replace(params, guide=grammar.guide()),
                self.loop,
                prompt_tokens=len(tokens),
                dropped_tokens=dropped,
                seed=sampler.seed,
                response_format=response_format,
            )
            sequences.append(
                Sequence(
                    request,
                    tokens,
                    sampler,
                    shares_prompt_with=sequences[0] if sequences else None,
                    # the scores of a prompt need its logits
                    skip_prefix_cache=params.echo or not params.cache_prompt,
                )
            )
        try:
            self.loop.submit(sequences)
        except LlcudaError:
            for sequence in sequences:
                sequence.sampler.close()
            raise
        return [sequence.request for sequence in sequences]

    def _fitting_tokens(self, tokens: list[int], params: RequestParams) -> tuple[list[int], int]:
        """Return the prompt's tokens that fit, and how many others were dropped."""
        if not tokens:
            remedy = "give a text, or at least one token"
            raise wrong_argument("prompt", "the prompt is empty", remedy)
        given, limit = len(tokens), self.ctx_size
        if given > limit - bool(params.max_tokens):
            if params.overflow == "error":
                raise too_long(given, limit)
            keep = kept_tokens(params, self.model.adds_bos, limit)
            tokens = tokens[:keep] + tokens[given - (limit * 3 // 4 - keep) :]
            if not tokens:
                rule = "has no room for a prompt and an answer"
                raise wrong_value("ctx_size", limit, rule, "give a larger one")
        for name in ("stop_tokens", "shown_tokens"):
            if unknown := [t for t in getattr(params, name) if t >= self.model.vocab_size]:
                rule = f"expected tokens from 0 to {self.model.vocab_size - 1}"
                raise wrong_value(name, unknown, rule)
        return tokens, given - len(tokens)

    def _sampler(self, sampling: SamplingParams, params: RequestParams, i: int) -> Sampler:
        """Return the sampler of the i-th continuation."""
        changes: dict[str, Any] = {}
        if sampling.seed is not None and i:
            changes["seed"] = seed_after(sampling.seed, i)
        if params.ignore_eos:
            changes["logit_bias"] = {
                **sampling.logit_bias,
                **dict.fromkeys(self.model.eog_tokens, -1e30),
            }
        if changes:
            sampling = replace(sampling, **changes)
        return Sampler(params=sampling, model=self.model)

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the tokens of a text, as `submit` would compute it.

        Args:
            text: The text.
            parse_special: Read control tokens that are written in the text as those tokens.

        Raises:
            ArgumentError: This is no text.
        """
        check_flag("parse_special", parse_special)
        if not isinstance(text, str):
            raise wrong_value("text", text, "expected a text")
        return tokenize_prompt(self.model, text, parse_special)

    @show_keywords(PromptKeywords)
    def count_tokens(
        self, prompt: str | abc.Sequence[abc.Mapping[str, Any]], **keywords: Unpack[PromptKeywords]
    ) -> int:
        """Return the number of tokens of a prompt.

        Args:
            prompt: A text, counted as `submit` would compute it; or the messages of a chat.
            **keywords: system, tools, template, template_variables of `chat`. A text with any of
                these is the message of a user.

        Raises:
            ArgumentError: Messages, tools or other parameters are wrong.
        """
        check_keywords(keywords, Engine.count_tokens, PromptKeywords)
        if isinstance(prompt, str) and not keywords:
            return len(self.tokenize(prompt))
        return len(chat_prompt(self.model, prompt, **keywords).tokens)

    @show_keywords(ChatKeywords)
    def chat(
        self, messages: str | abc.Sequence[abc.Mapping[str, Any]], **keywords: Unpack[ChatKeywords]
    ) -> Chat[Completion]:
        """Queue an answer to `messages` and return its handle.

        Args:
            messages: Objects with "role" and "content", in OpenAI's shapes; or a user's text.
            **keywords: system, tools, tool_choice, response_format, template, template_variables,
                bare_tool_calls, continue_final_message, add_generation_prompt,
                max_reasoning_tokens, as `llcuda.chat.session.start` describes them, and the
                keywords of `submit`. overflow="drop" drops the oldest turns of a conversation that
                leaves too little room for an answer.

        Raises:
            ArgumentError: Messages, tools or other parameters are wrong; otherwise as `submit`.
        """
        return start_chat(self.submit, self.model, self.ctx_size, messages, **keywords)

    @show_keywords(RunKeywords)
    def run(
        self,
        messages: str | abc.Sequence[abc.Mapping[str, Any]],
        tools: abc.Sequence[Tool],
        **keywords: Unpack[RunKeywords],
    ) -> ToolRun[Completion]:
        """Answer messages, and call the tools that the model asks for until it asks for none.

        Args:
            messages: The messages, or the text of a user.
            tools: Python functions with type hints, whose docstrings describe them; or pairs of a
                function and its definition in OpenAI's shape.
            **keywords: The fields of RunParams, and the keywords of `chat`. A tool_choice that
                demands a call holds for the first answer.

        Raises:
            ArgumentError: A parameter is wrong, or a tool is a coroutine function.
            Exception: With on_error="raise" that of a tool; that of a hook; that of `chat`.
        """
        check_keywords(keywords, Engine.run, RunKeywords)
        return run_tools(
            self.chat,
            messages,
            tools,
            **keywords,
        )

    @show_keywords(RunKeywords)
    async def arun(
        self,
        messages: str | abc.Sequence[abc.Mapping[str, Any]],
        tools: abc.Sequence[Tool],
        **keywords: Unpack[RunKeywords],
    ) -> ToolRun[Completion]:
        """Do what `run` does in a coroutine; cancelling the task cancels the answer.

        Tools and `approve` may be coroutine functions. Others run in another thread, so that the
        event loop goes on; a tool that runs when the task is cancelled runs to its end.

        Args:
            messages: As those of `run`.
            tools: As those of `run`.
            **keywords: As those of `run`.
        """
        check_keywords(keywords, Engine.arun, RunKeywords)
        return await arun_tools(
            self.chat,
            messages,
            tools,
            **keywords,
        )

    def embedder(self, pooling: str | None = None) -> Embedder:
        """Return an Embedder on the model, with the engine's settings.

        It computes in a context of its own, on the caller's thread, and stays open as long as the
        engine.

        Args:
            pooling: As that of `Embedder`; None = as the model's file says.
        """
        return self._embedders.embedder(pooling)

    @overload
    def embed(
        self,
        texts: str | abc.Sequence[Text],
        *,
        pooling: str | None = None,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[EmbedKeywords],
    ) -> Float32: ...

    @overload
    def embed(
        self,
        texts: abc.Sequence[Text],
        *,
        pooling: str | None = None,
        on_error: Literal["return"],
        **keywords: Unpack[EmbedKeywords],
    ) -> list[Float32 | LlcudaError]: ...

    @show_keywords(EmbedKeywords)
    def embed(
        self,
        texts: str | abc.Sequence[Text],
        *,
        pooling: str | None = None,
        on_error: str = "raise",
        **keywords: Unpack[EmbedKeywords],
    ) -> Any:
        """Return the vectors of texts: float32, shape (len(texts), size); of one text, (size,).

        Args:
            texts: As those of `Embedder.embed`.
            pooling: As that of `Embedder`; None = as the model's file says.
            on_error: As that of `Embedder.embed`.
            **keywords: The keywords of `Embedder.embed`.
        """
        check_keywords(keywords, Engine.embed, EmbedKeywords)
        embed: Any = self.embedder(pooling).embed
        return embed(texts, on_error=on_error, **keywords)

    def rerank(
        self, query: str, documents: abc.Sequence[str], *, truncate: bool = False
    ) -> Float32:
        """Return how well documents answer a query, by a rerank model; see `Embedder.rerank`.

        Args:
            query: The query.
            documents: The documents.
            truncate: As that of `Embedder.rerank`.
        """
        return self.embedder().rerank(query, documents, truncate=truncate)

    def size_report(self) -> str:
        """Return the size of the context in one line: of each sequence, and how many there are."""
        count, train = self.params.n_parallel, self.model.train_ctx_size
        sequences = "1 sequence" if count == 1 else f"each of {count} sequences"
        trained = f" (the model was trained on {train:,})" if train else ""
        return f"context: {self.ctx_size:,} tokens for {sequences}{trained}"

    def load(self) -> EngineLoad:
        """Return how many requests run and wait, and how full the KV cache is."""
        return self.loop.load()

    def slots(self) -> list[SlotState]:
        """Return what each slot of the KV cache holds at this moment."""
        return self.loop.slots()

    def save_slot(self, slot: int, path: str | Path) -> int:
        """Write the tokens and the cells of a free slot to a file.

        `restore_slot` brings them back, also in a later process with the same model and settings.

        Args:
            slot: The slot; `Request.slot` of a request that has ended says which it was.
            path: The file; one that exists is replaced.

        Returns:
            The number of tokens.

        Raises:
            ArgumentError: There is no such slot.
            ConcurrencyError: A request uses the slot.
            FileWriteError: The file cannot be written.
        """
        saved = self.loop.call(lambda scheduler, context: save_slot(scheduler, context, slot))
        saved.write(path)
        return len(saved.tokens)

    def restore_slot(self, slot: int, path: str | Path) -> int:
        """Read a file of `save_slot` into a free slot, whose tokens later prompts may reuse.

        Where a model has a sliding window that is shorter than the text, only a prompt that begins
        with all of its tokens can reuse them.

        Args:
            slot: The slot; what it held is lost.
            path: The file.

        Returns:
            The number of tokens.

        Raises:
            ArgumentError: There is no such slot.
            ConcurrencyError: A request uses the slot.
            FileNotFoundError: The file does not exist.
            StateError: The file is damaged, or of another model, a longer context or other
                adapters.
        """
        saved = SavedSlot.read(path)
        self.loop.call(lambda scheduler, context: restore_slot(scheduler, context, slot, saved))
        return len(saved.tokens)

    def erase_slot(self, slot: int) -> int:
        """Empty a free slot, so that no prompt reuses its tokens.

        Args:
            slot: The slot.

        Returns:
            The number of tokens that it had.

        Raises:
            ArgumentError: There is no such slot.
            ConcurrencyError: A request uses the slot.
        """
        return self.loop.call(lambda scheduler, context: erase_slot(scheduler, context, slot))

    @property
    def closed(self) -> bool:
        """Whether nothing more can be submitted: close() was called, or the engine failed."""
        return self.loop.closed is not None

    @property
    def failure(self) -> LlcudaError | None:
        """Why the engine has ended by itself; None if it has not, or was closed."""
        reason = self.loop.closed
        return None if isinstance(reason, ClosedError) else reason

    @property
    def state(self) -> str:
        """The state: "running", "recovering", "failed" or "closed".

        An engine whose context fails makes it anew meanwhile, and takes requests. A "failed" one
        has ended, and `failure` says why.
        """
        if self.loop.closed is not None:
            return "failed" if self.failure is not None else "closed"
        return "recovering" if self.loop.recovering else "running"

    def close(self, drain: bool = False) -> None:
        """Stop the engine's thread and free the context; again does nothing.

        Args:
            drain: Finish the requests first; another close() cuts that short. Otherwise their
                readers get ClosedError.

        Raises:
            ConcurrencyError: This is a hook, which runs on the engine's thread.
        """
        check_flag("drain", drain)
        self.loop.check_closer()
        self._embedders.close()
        self.loop.close(drain)
        if self._owned_model is not None:
            self._owned_model.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        load, params = self.load(), self.params
        state = f"{params.n_parallel} x {self.ctx_size} tokens, {load.running} running"
        state = self.state if self.closed else f"{state}, {load.waiting} waiting"
        return f"<llcuda.Engine on {self.model.path.name!r}: {state}>"


def tokenize_prompt(
    model: Model, prompt: str | bytes, parse_special: bool = True, limit: int | None = None
) -> list[int]:
    """Return the tokens of a raw prompt.

    A model that wants BOS before each text gets one, whether the prompt writes it or not.

    Args:
        model: The model whose vocabulary is used.
        prompt: A text, or its UTF-8 bytes.
        parse_special: Read control tokens that are written in the text, for example <|im_end|>, as
            those tokens.
        limit: Tokens of the context: a text with far more is refused before all of it is
            tokenized. None refuses no text.

    Returns:
        The tokens; none for an empty text.

    Raises:
        ContextLengthError: The text is far too long.
    """
    check_length(model, prompt, limit, parse_special)
    tokens = model.tokenize(prompt, parse_special=parse_special) if prompt else []
    if parse_special and model.adds_bos and tokens[:2] == [model.bos, model.bos]:
        del tokens[0]
    return tokens


def _given_config(
    config: EngineConfig | None, keywords: dict[str, Any], *kinds: type
) -> EngineConfig:
    """Return the settings that an engine was given, as an object or as fields of `kinds`."""
    if config is None:
        check_keywords(keywords, Engine, *kinds)
        return EngineConfig.from_kwargs(**keywords)
    if keywords:
        raise ArgumentError(
            f"config= and {', '.join(keywords)}=: cannot be given together",
            parameter="config",
            remedy="give one or the other",
        )
    if not isinstance(config, EngineConfig):
        remedy = "give EngineConfig.from_kwargs(...), or keywords"
        raise wrong_value("config", config, "expected an EngineConfig", remedy)
    return config


def _check_loaded_as(params: ModelParams, model: Model) -> None:
    """Raise ArgumentError for settings that the model was not loaded with; defaults ask nothing."""
    default = ModelParams()
    for item in fields(params):
        given, actual = getattr(params, item.name), getattr(model.params, item.name)
        if given not in (actual, getattr(default, item.name)):
            rule = f"the model is loaded already, with {item.name}={actual!r}"
            raise wrong_value(item.name, given, rule, "give it to Model()")


def _stretched(given: abc.Mapping[str, Any]) -> bool:
    """Whether positions are scaled on purpose."""
    return any(name.startswith(("rope_", "yarn_")) for name in given)


def _on_gpu(model: Model) -> bool:
    """Whether CUDA computes the model's logits, as far as can be told, in one batch a step.

    States of recurrent models cannot be moved, so their rows have gaps.
    """
    p = model.params
    wanted = p.gpu_layers != 0 and p.devices != () and p.split_mode != "tensor"
    wanted = wanted and not (model.is_recurrent or model.is_hybrid)
    return wanted and any(gpu.backend == library.CUDA for gpu in library.gpus())
