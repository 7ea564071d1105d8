"""InferenceEngine: the short way from a model's name to text.

    engine = llcuda.InferenceEngine()
    engine.load_model("gemma-3-1b-Q4_K_M")
    print(engine.infer("What is AI?", max_tokens=100).text)

Joins the hub, which finds files by name, and the engine. Only loading prints, and only if
`verbose`: in `load_model`, or in the first call that needs the model after `auto_start=False`.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from llcuda._lazy import explain_names
from llcuda._pickling import RECIPE, stays_in_process
from llcuda.chat.session import Chat, ChatCompletion
from llcuda.chat.tool_loop import Tool, ToolRun
from llcuda.embeddings.cache import Embedders
from llcuda.embeddings.embedder import Embedder, Float32, Text
from llcuda.engine.autofit import fit
from llcuda.engine.config import LOAD_UBATCH_SIZE, EngineConfig, EngineParams
from llcuda.engine.engine import Engine, check_hooks
from llcuda.engine.loop import in_hook
from llcuda.engine.metrics import Metrics, RequestRecord, StepRecord
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request, as_completed
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ConcurrencyError,
    LlcudaError,
    NoTextError,
    QueueFullError,
    is_of_one_text,
)
from llcuda.files import path_text
from llcuda.hub.resolver import resolve
from llcuda.keywords import (
    ChatKeywords,
    ConfigKeywords,
    EmbedKeywords,
    GenerateKeywords,
    InferKeywords,
    LoadKeywords,
    OpenKeywords,
    PromptKeywords,
    RunKeywords,
    StreamKeywords,
    SubmitKeywords,
    check_keywords,
    explain_keywords,
    show_keywords,
)
from llcuda.native import library
from llcuda.native.estimate import memory_needed
from llcuda.native.kv_size import check_room
from llcuda.native.model import Model, check_devices
from llcuda.params import (
    BATCH_SIZE,
    ON_ERROR,
    ContextParams,
    ModelParams,
    check_choice,
    check_flag,
    wrong_argument,
    wrong_value,
)
from llcuda.progress import progress_bar
from llcuda.structured import compile_beside

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Outcome = TypeVar("Outcome")
Handle = TypeVar("Handle", bound="_Handle[Any]")


class _Handle(Protocol[Result_co]):
    """A Request or a Chat."""

    @property
    def done(self) -> bool: ...
    def cancel(self) -> None: ...
    def result(self) -> Result_co: ...


_LOAD_SETTINGS = (EngineParams, ModelParams, ContextParams)
_Bar = AbstractContextManager[Callable[[int], None]]
_NO_BAR: _Bar = nullcontext(lambda finished: None)
BIG_MODEL = 2**28  # bytes; below, loading is over before a bar is drawn


@dataclass(frozen=True, slots=True)
class _Load:
    """The arguments of `load_model`, kept until a deferred load."""

    name: str | Path
    filename: str | None
    config: EngineConfig
    on_step: Callable[[StepRecord], None] | None
    on_request: Callable[[RequestRecord], None] | None
    verbose: bool
    progress: bool


@stays_in_process(RECIPE)
@explain_names
class InferenceEngine:
    """Loads a model by name and generates text with it, from any number of threads.

    A context manager that unloads the model at its end. `load_model` may be called again with
    another model. A model that generates no text, such as an encoder, gives embeddings or scores:
    `embed` and `rerank`.

    Args:
        model_name: The model to load, as `load_model` takes it; None = none yet. Nothing is
            printed then, but bars are drawn on stderr, in a terminal or a notebook; silent=True
            draws none.
        filename: As that of `load_model`.
        **keywords: The other parameters of `load_model`.

    Raises:
        ArgumentError: Keywords are given without a model; otherwise as `load_model`.
    """

    @show_keywords(OpenKeywords)
    def __init__(
        self,
        model_name: str | Path | None = None,
        filename: str | None = None,
        **keywords: Unpack[OpenKeywords],
    ) -> None:
        self._metrics = Metrics()
        self._lock = threading.RLock()
        self._pending: _Load | None = None
        self._model: Model | None = None
        self._engine: Engine | None = None  # None too for a model that generates no text
        self._embedders: Embedders | None = None  # of such a model
        _all.add(self)
        if model_name is not None:
            keywords.setdefault("verbose", False)
            keywords.setdefault("progress", keywords.get("silent") is not True)
            self.load_model(model_name, filename, **keywords)
        elif keywords or filename is not None:
            check_keywords(keywords, None, OpenKeywords, *_LOAD_SETTINGS)
            names = ", ".join(f"{name}=" for name in keywords or ("filename",))
            rule = f"{names} has no effect without a model"
            raise wrong_argument("model_name", rule, "give its name, or call load_model()")

    # --- loading ---

    @show_keywords(LoadKeywords)
    @partial(explain_keywords, kinds=_LOAD_SETTINGS)
    def load_model(
        self,
        model_name: str | Path,
        filename: str | None = None,
        *,
        gpu_layers: int | None = None,
        ctx_size: int | None = None,
        context_size: int | None = None,
        batch_size: int = BATCH_SIZE,
        ubatch_size: int = LOAD_UBATCH_SIZE,
        n_parallel: int = 1,
        cache_size: int | None = None,
        auto_start: bool = True,
        verbose: bool = True,
        silent: bool = False,
        progress: bool | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
        on_request: Callable[[RequestRecord], None] | None = None,
        **keywords: Unpack[LoadKeywords],
    ) -> bool:
        """Load a model in place of the one before.

        A loaded model stays when the new file cannot be found or is broken, and when the settings
        do not fit the file or this machine's devices. It is gone when memory is too small for the
        new one, because it is freed first, and with `auto_start=False`.

        Args:
            model_name: A registry name, a path, "repo/id:file.gguf", or "repo/id" with `filename`.
            filename: File of a Hugging Face repository.
            gpu_layers: Layers on the GPU; None = all that fit, 0 = CPU, 99 = all.
            ctx_size: Tokens of each sequence; None = as many as the model was trained on, or as
                many as keep the KV cells of all sequences within half of the memory that is free
                beside the weights, but not fewer than 2,048.
            context_size: Another name of `ctx_size`.
            batch_size: Largest number of prompt tokens of one step.
            ubatch_size: Largest number of tokens computed at once.
            n_parallel: Sequences that decode in one batch.
            cache_size: KV cells of all sequences together; None = ctx_size x n_parallel.
            auto_start: Load now; False = at the first `infer`.
            verbose: Print on stdout what is done.
            silent: True = as `verbose=False`.
            progress: Draw on stderr, in a terminal or a notebook, how far downloads and the loading
                of a big model are; None = as `verbose`.
            on_step: Called with a StepRecord after each step of the engine; see `Engine`.
            on_request: Called with a RequestRecord when a request ends; see `Engine`.
            **keywords: Further fields of EngineParams, ModelParams and ContextParams.

        Returns:
            True.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file cannot be loaded.
            ArgumentError: A value is outside what is allowed.
            TypeError: A keyword is unknown, or `ctx_size` and `context_size` differ.
            ConcurrencyError: The call comes from a hook.
        """
        _refuse_in_hook("load_model")
        if ctx_size is not None and context_size is not None and ctx_size != context_size:
            raise TypeError(
                f"ctx_size={ctx_size} and context_size={context_size}: two names of one setting; "
                "give one of them"
            )
        path_text(model_name, "model_name")
        for name, flag in (("auto_start", auto_start), ("verbose", verbose), ("silent", silent)):
            check_flag(name, flag)
        if progress is not None:
            check_flag("progress", progress)
        check_hooks(on_step=on_step, on_request=on_request)
        size = context_size if ctx_size is None else ctx_size
        settings: ConfigKeywords = {
            "gpu_layers": gpu_layers,
            "ctx_size": size,
            "batch_size": batch_size,
            "ubatch_size": ubatch_size,
            "n_parallel": n_parallel,
            "cache_size": cache_size,
            **keywords,
        }
        config = EngineConfig.from_kwargs(**settings)
        request = _Load(
            model_name,
            filename,
            config,
            on_step=on_step,
            on_request=on_request,
            verbose=verbose and not silent,
            progress=(verbose and not silent) if progress is None else progress,
        )
        with self._lock:
            if auto_start:
                self._load(request)
            else:
                self.unload_model()
                self._pending = request
        return True

    def _load(self, request: _Load) -> None:
        """Load in place of the model before, which stays if the file cannot be loaded."""
        say = _say if request.verbose else _silent
        say(f"Loading model: {request.name}")
        started = time.perf_counter()
        path = resolve(request.name, request.filename, progress=request.progress)
        if self._model is not None:
            _check_file(path, request.config)
        self.unload_model()
        fitted = fit(request.config, path)
        config = fitted.config
        for line in fitted.report:
            say(line)
        bar = request.progress and path.stat().st_size >= BIG_MODEL
        model = Model(path, progress=bar, params=config.model)
        try:
            self._engine = Engine(
                model,
                config=config,
                on_step=request.on_step,
                on_request=request.on_request,
                metrics=self._metrics,
            )
        except NoTextError:
            sizes = request.config.engine.ctx_size, config.engine.batch_size
            self._embedders = Embedders(model, *sizes, generates=False, settings=config.context)
        except BaseException:
            model.close()
            raise
        self._model = model
        say("✓ Model loaded and ready for inference")
        say(f"  GPU Layers: {fitted.gpu_layers}")
        say(f"  Context Size: {config.engine.ctx_size}")
        say(f"  Load Time: {time.perf_counter() - started:.1f} s")

    @property
    def is_loaded(self) -> bool:
        """Whether a model is in memory and can be asked.

        False after its engine has failed for good, or the model was closed; load it again then.
        """
        model, engine = self._model, self._engine
        return model is not None and not model.closed and not (engine is not None and engine.closed)

    @property
    def model(self) -> Model:
        """The loaded model.

        Raises:
            ClosedError: No model is loaded.
        """
        return self._loaded()

    def unload_model(self) -> None:
        """Free the model; unfinished requests end with ClosedError. Does nothing without a model.

        Raises:
            ConcurrencyError: The call comes from a hook.
        """
        _refuse_in_hook("unload_model")
        with self._lock:
            engine, embedders, model = self._engine, self._embedders, self._model
            self._engine = self._embedders = self._model = self._pending = None
            if embedders is not None:
                embedders.close()
            if engine is not None:
                engine.close()
            if model is not None:
                model.close()

    def close(self) -> None:
        """Free the model, as `unload_model` does; the engine can load again."""
        self.unload_model()

    def _loaded(self) -> Model:
        """Return the model, and load it first if that was deferred."""
        model = self._model
        if model is None:
            if in_hook():  # the thread that holds the lock may wait for this one
                raise ClosedError("no model is loaded, and a hook cannot wait for one")
            with self._lock:
                if self._model is None and self._pending is not None:
                    self._load(self._pending)
                model = self._model
            if model is None:
                raise ClosedError("no model is loaded: call load_model() first")
        return model

    @property
    def engine(self) -> Engine:
        """The engine of the loaded model.

        Raises:
            ClosedError: No model is loaded.
            NoTextError: The model generates no text.
        """
        model, engine = self._loaded(), self._engine
        if engine is None:
            if model.closed:
                raise ClosedError("the model was unloaded meanwhile")
            raise NoTextError(
                f"{model.path.name} generates no text", remedy="use embed() or rerank()"
            )
        return engine

    # --- tokens ---

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the tokens of a text, as `infer` would compute it; see `Engine.tokenize`.

        Args:
            text: The text.
            parse_special: Read control tokens that are written in the text as those tokens.
        """
        return self.engine.tokenize(text, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; control tokens have none.

        Args:
            tokens: The tokens.
        """
        return self._loaded().detokenize(tokens)

    @show_keywords(PromptKeywords)
    def count_tokens(
        self, prompt: str | Sequence[Mapping[str, Any]], **keywords: Unpack[PromptKeywords]
    ) -> int:
        """Return the number of tokens of a text or of a conversation; see `Engine.count_tokens`.

        Args:
            prompt: A text, or the messages of a chat.
            **keywords: system, tools, template, template_variables of `chat`.
        """
        return self.engine.count_tokens(prompt, **keywords)

    # --- embeddings and scores ---

    def embedder(self, pooling: str | None = None) -> Embedder:
        """Return an Embedder on the loaded model, with the engine's settings.

        It computes in a context of its own, on the caller's thread, and stays open as long as the
        model is loaded.

        Args:
            pooling: As that of `Embedder`; None = as the model's file says.

        Raises:
            ClosedError: No model is loaded.
        """
        self._loaded()
        embedders = self._engine or self._embedders
        if embedders is None:
            raise ClosedError("the model was unloaded meanwhile")
        return embedders.embedder(pooling)

    @overload
    def embed(
        self,
        texts: str | Sequence[Text],
        *,
        pooling: str | None = None,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[EmbedKeywords],
    ) -> Float32: ...

    @overload
    def embed(
        self,
        texts: Sequence[Text],
        *,
        pooling: str | None = None,
        on_error: Literal["return"],
        **keywords: Unpack[EmbedKeywords],
    ) -> list[Float32 | LlcudaError]: ...

    @show_keywords(EmbedKeywords)
    def embed(
        self,
        texts: str | Sequence[Text],
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
        check_keywords(keywords, InferenceEngine.embed, EmbedKeywords)
        embed: Any = self.embedder(pooling).embed
        return embed(texts, on_error=on_error, **keywords)

    def rerank(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> Float32:
        """Return how well documents answer a query, by a rerank model; see `Embedder.rerank`.

        Args:
            query: The query.
            documents: The documents.
            truncate: As that of `Embedder.rerank`.
        """
        return self.embedder().rerank(query, documents, truncate=truncate)

    # --- generating ---

    @show_keywords(InferKeywords)
    def infer(
        self,
        prompt: str,
        max_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 40,
        seed: int | None = None,
        stop: Iterable[str] | None = None,
        stop_sequences: Iterable[str] | None = None,
        **keywords: Unpack[InferKeywords],
    ) -> Completion:
        """Continue a prompt as it is, without a chat template.

        Args:
            prompt: The text to continue.
            max_tokens: Largest number of tokens to sample.
            temperature: 0 = always the most probable token.
            top_p: Only the smallest set of tokens with this probability; 1 = off.
            top_k: Only so many of the most probable tokens; 0 = off.
            seed: The same seed on the same backend gives the same text; None = at random.
            stop: Text, or texts, that end the continuation and are not part of it.
            stop_sequences: Another name of `stop`.
            **keywords: Further fields of RequestParams and SamplingParams, response_format, and
                parse_special, by default True: control tokens in the prompt are read as such.

        Raises:
            ArgumentError: A value is outside what is allowed; an error is never returned as text.
            TypeError: A keyword is unknown, or `stop` and `stop_sequences` differ.
            ClosedError: No model is loaded.
        """
        check_keywords(keywords, InferenceEngine.infer, InferKeywords)
        request = self.submit(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            stop_sequences=stop_sequences,
            **keywords,
        )
        return _results([request], Request.result)[0]

    @show_keywords(GenerateKeywords)
    def infer_n(
        self, prompt: str, n: int, **keywords: Unpack[GenerateKeywords]
    ) -> list[Completion]:
        """Continue one prompt in several ways at once; it is computed once.

        Args:
            prompt: The text to continue.
            n: Continuations; with a seed, each has the next one, 0 after the largest.
            **keywords: The keywords of `infer`.

        Raises:
            QueueFullError: n_parallel + queue_size have no room for all of them.
        """
        requests = self.engine.submit_n(prompt, n, **_with_stop(keywords))
        return _results(requests, Request.result)

    @overload
    def batch_infer(
        self,
        prompts: Sequence[str],
        max_tokens: int = 128,
        *,
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[StreamKeywords],
    ) -> list[Completion]: ...

    @overload
    def batch_infer(
        self,
        prompts: Sequence[str],
        max_tokens: int = 128,
        *,
        progress: bool = False,
        on_error: Literal["return"],
        **keywords: Unpack[StreamKeywords],
    ) -> list[Completion | LlcudaError]: ...

    @show_keywords(StreamKeywords)
    def batch_infer(
        self,
        prompts: Sequence[str],
        max_tokens: int = 128,
        *,
        progress: bool = False,
        on_error: str = "raise",
        **keywords: Unpack[StreamKeywords],
    ) -> list[Any]:
        """Continue several prompts, up to n_parallel at once, each as a request of its own.

        Args:
            prompts: The texts to continue.
            max_tokens: Largest number of tokens to sample for each.
            progress: Draw a bar on stderr, in a terminal or a notebook.
            on_error: What becomes of the error of one prompt. "raise": it is raised, and the other
                requests are cancelled. "return": it stands in the place of the result, and the
                others go on. An error that concerns every prompt is raised in any case.
            **keywords: The keywords of `infer`.

        Returns:
            The results in the order of the prompts.

        Raises:
            ArgumentError: A prompt is refused; the message has its index. A full queue is waited
                for.
        """
        check_keywords(keywords, InferenceEngine.batch_infer, StreamKeywords)
        submit = self._prompt_submitter(prompts, max_tokens, on_error, keywords)
        return self._batch(prompts, submit, _bar("prompts", prompts, progress), on_error)

    @overload
    def batch_infer_iter(
        self,
        prompts: Iterable[str],
        max_tokens: int = 128,
        *,
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[StreamKeywords],
    ) -> Iterator[tuple[int, Completion]]: ...

    @overload
    def batch_infer_iter(
        self,
        prompts: Iterable[str],
        max_tokens: int = 128,
        *,
        progress: bool = False,
        on_error: Literal["return"],
        **keywords: Unpack[StreamKeywords],
    ) -> Iterator[tuple[int, Completion | LlcudaError]]: ...

    @show_keywords(StreamKeywords)
    def batch_infer_iter(
        self,
        prompts: Iterable[str],
        max_tokens: int = 128,
        *,
        progress: bool = False,
        on_error: str = "raise",
        **keywords: Unpack[StreamKeywords],
    ) -> Iterator[tuple[int, Any]]:
        """Continue prompts, and yield the index and the result of each as soon as it has ended.

        Prompts are read as they are needed, so that a generator may give any number of them.
        Leaving the loop cancels the requests that run.

        Args:
            prompts: The texts to continue.
            max_tokens: Largest number of tokens to sample for each.
            progress: Draw a bar on stderr, in a terminal or a notebook; only for a list.
            on_error: As that of `batch_infer`.
            **keywords: The keywords of `infer`.

        Raises:
            ArgumentError: A prompt is refused; the message has its index.
        """
        check_keywords(keywords, InferenceEngine.batch_infer_iter, StreamKeywords)
        submit = self._prompt_submitter(prompts, max_tokens, on_error, keywords)
        return self._each(prompts, submit, _bar("prompts", prompts, progress), on_error)

    def _prompt_submitter(
        self, prompts: Any, max_tokens: int, on_error: str, keywords: StreamKeywords
    ) -> Callable[[int, str], _Handle[Completion]]:
        if isinstance(prompts, str):
            raise TypeError("prompts: expected a list of texts; infer() takes one text")
        if is_dataclass(max_tokens):
            raise wrong_argument(
                "max_tokens",
                f"expected a whole number, not {type(max_tokens).__name__}",
                "give its fields as keywords",
            )
        check_choice("on_error", on_error, ON_ERROR)
        return lambda index, prompt: _patiently(
            f"prompt {index}",
            lambda: self.submit(prompt, max_tokens=max_tokens, **keywords),
            on_error,
        )

    @overload
    def batch_chat(
        self,
        conversations: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[ChatKeywords],
    ) -> list[ChatCompletion[Completion]]: ...

    @overload
    def batch_chat(
        self,
        conversations: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        progress: bool = False,
        on_error: Literal["return"],
        **keywords: Unpack[ChatKeywords],
    ) -> list[ChatCompletion[Completion] | LlcudaError]: ...

    @show_keywords(ChatKeywords)
    def batch_chat(
        self,
        conversations: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        progress: bool = False,
        on_error: str = "raise",
        **keywords: Unpack[ChatKeywords],
    ) -> list[Any]:
        """Answer several conversations, up to n_parallel at once.

        Args:
            conversations: For each its messages, or the text of a user.
            progress: Draw a bar on stderr, in a terminal or a notebook.
            on_error: What becomes of the error of one conversation; see `batch_infer`.
            **keywords: The keywords of `chat`.

        Returns:
            The answers in the order of the conversations.

        Raises:
            ArgumentError: A conversation is refused; the message has its index. A full queue is
                waited for.
        """
        submit = self._chat_submitter(conversations, on_error, keywords)
        bar = _bar("conversations", conversations, progress)
        return self._batch(conversations, submit, bar, on_error)

    @overload
    def batch_chat_iter(
        self,
        conversations: Iterable[str | Sequence[Mapping[str, Any]]],
        *,
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[ChatKeywords],
    ) -> Iterator[tuple[int, ChatCompletion[Completion]]]: ...

    @overload
    def batch_chat_iter(
        self,
        conversations: Iterable[str | Sequence[Mapping[str, Any]]],
        *,
        progress: bool = False,
        on_error: Literal["return"],
        **keywords: Unpack[ChatKeywords],
    ) -> Iterator[tuple[int, ChatCompletion[Completion] | LlcudaError]]: ...

    @show_keywords(ChatKeywords)
    def batch_chat_iter(
        self,
        conversations: Iterable[str | Sequence[Mapping[str, Any]]],
        *,
        progress: bool = False,
        on_error: str = "raise",
        **keywords: Unpack[ChatKeywords],
    ) -> Iterator[tuple[int, Any]]:
        """Answer conversations, and yield the index and the answer of each as soon as it has ended.

        Conversations are read as they are needed. Leaving the loop cancels the requests that run.

        Args:
            conversations: For each its messages, or the text of a user.
            progress: Draw a bar on stderr, in a terminal or a notebook; only for a list.
            on_error: What becomes of the error of one conversation; see `batch_infer`.
            **keywords: The keywords of `chat`.

        Raises:
            ArgumentError: A conversation is refused; the message has its index.
        """
        submit = self._chat_submitter(conversations, on_error, keywords)
        bar = _bar("conversations", conversations, progress)
        return self._each(conversations, submit, bar, on_error)

    def _chat_submitter(
        self, conversations: Any, on_error: str, keywords: ChatKeywords
    ) -> Callable[[int, str | Sequence[Mapping[str, Any]]], _Handle[ChatCompletion[Completion]]]:
        one = isinstance(conversations, Sequence) and any(
            isinstance(message, Mapping) for message in conversations
        )
        if isinstance(conversations, str) or one:
            rule = "conversations: expected a list of conversations; chat() answers one"
            raise TypeError(rule)
        check_choice("on_error", on_error, ON_ERROR)
        return lambda index, messages: _patiently(
            f"conversation {index}", lambda: self.chat(messages, **keywords), on_error
        )

    def _batch(
        self,
        items: Sequence[Item],
        submit: Callable[[int, Item], _Handle[Result]],
        bar: _Bar,
        on_error: str,
    ) -> list[Result | LlcudaError]:
        """Submit all items, and return their results in their order."""
        handles: list[_Handle[Result]] = []
        try:
            for index, item in enumerate(items):
                handles.append(submit(index, item))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return _results(handles, partial(self._result, on_error), bar)

    def _each(
        self,
        items: Iterable[Item],
        submit: Callable[[int, Item], _Handle[Result]],
        bar: _Bar,
        on_error: str,
    ) -> Iterator[tuple[int, Result | LlcudaError]]:
        """Yield the result of each item; twice n_parallel keep the engine busy."""
        width = 2 * self.engine.params.n_parallel
        with bar as draw:
            for finished, (index, handle) in enumerate(as_completed(items, submit, width)):
                draw(finished)
                yield index, self._result(on_error, handle)

    def _result(self, on_error: str, handle: _Handle[Result]) -> Result | LlcudaError:
        """Return a result, or with on_error="return" the error of this text alone."""
        try:
            return handle.result()
        except LlcudaError as error:
            engine = self._engine
            ended = engine is None or engine.closed
            if on_error == "raise" or ended or not is_of_one_text(error):
                raise
            return error.with_traceback(None)  # which would keep what its frames hold

    @show_keywords(StreamKeywords)
    def stream(
        self, prompt: str, max_tokens: int = 128, **keywords: Unpack[StreamKeywords]
    ) -> Iterator[str]:
        """Continue a prompt and return an iterator of its text as it comes.

        Errors come at this call. Leaving the loop, and dropping the iterator, cancels the request.

        Args:
            prompt: The text to continue.
            max_tokens: Largest number of tokens to sample.
            **keywords: The keywords of `infer`.
        """
        check_keywords(keywords, InferenceEngine.stream, StreamKeywords)
        request = self.submit(prompt, max_tokens=max_tokens, **keywords)
        pieces = iter(request)
        weakref.finalize(pieces, request.cancel).atexit = False  # also when no loop ever began
        return pieces

    @show_keywords(StreamKeywords)
    async def ainfer(
        self, prompt: str, max_tokens: int = 128, **keywords: Unpack[StreamKeywords]
    ) -> Completion:
        """Continue a prompt in a coroutine; cancelling the task cancels the request.

        A `response_format` is compiled in another thread, while the event loop goes on.

        Args:
            prompt: The text to continue.
            max_tokens: Largest number of tokens to sample.
            **keywords: The keywords of `infer`.
        """
        check_keywords(keywords, InferenceEngine.ainfer, StreamKeywords)
        response_format = keywords.get("response_format")
        if response_format is not None:
            keywords["response_format"] = await compile_beside(self.model, response_format)
        completion = await self.submit(prompt, max_tokens=max_tokens, **keywords)
        return replace(completion, response_format=response_format)

    @show_keywords(GenerateKeywords)
    def submit(self, prompt: str | Sequence[int], **keywords: Unpack[GenerateKeywords]) -> Request:
        """Queue a request and return its handle; see `Engine.submit`.

        Args:
            prompt: The text to continue, or its tokens.
            **keywords: The keywords of `infer`.
        """
        return self.engine.submit(prompt, **_with_stop(keywords))

    @show_keywords(ChatKeywords)
    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], **keywords: Unpack[ChatKeywords]
    ) -> Chat[Completion]:
        """Queue an answer to `messages` and return its handle; see `Engine.chat`.

        Args:
            messages: Objects with "role" and "content", in OpenAI's shapes; or a user's text.
            **keywords: The keywords of `Engine.chat`.

        Raises:
            ArgumentError: Messages, tools or other parameters are wrong.
            ClosedError: No model is loaded.
        """
        return self.engine.chat(messages, **keywords)

    @show_keywords(RunKeywords)
    def run(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Tool],
        **keywords: Unpack[RunKeywords],
    ) -> ToolRun[Completion]:
        """Answer messages, and call the tools that the model asks for; see `Engine.run`.

        Args:
            messages: As those of `Engine.run`.
            tools: As those of `Engine.run`.
            **keywords: As those of `Engine.run`.
        """
        return self.engine.run(messages, tools, **keywords)

    @show_keywords(RunKeywords)
    async def arun(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Tool],
        **keywords: Unpack[RunKeywords],
    ) -> ToolRun[Completion]:
        """Do what `run` does in a coroutine; see `Engine.arun`.

        Args:
            messages: As those of `Engine.run`.
            tools: As those of `Engine.run`.
            **keywords: As those of `Engine.run`.
        """
        return await self.engine.arun(messages, tools, **keywords)

    # --- metrics ---

    @property
    def metrics(self) -> Metrics:
        """The counters of all requests since the last reset, with `prometheus_text`."""
        return self._metrics

    def get_metrics(self) -> dict[str, Any]:
        """Return throughput, latency and more as dicts of numbers; see `Metrics.snapshot`."""
        return self._metrics.snapshot()

    def reset_metrics(self) -> None:
        """Set all counters to zero."""
        self._metrics.reset()

    def __enter__(self) -> InferenceEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.unload_model()

    def __repr__(self) -> str:
        engine, model, pending = self._engine, self._model, self._pending
        if model is not None:
            return f"<llcuda.InferenceEngine: {engine or model!r}>"
        state = "no model" if pending is None else f"{str(pending.name)!r} is loaded at first use"
        return f"<llcuda.InferenceEngine: {state}>"


@show_keywords(GenerateKeywords)
def quick_infer(
    prompt: str, model: str | Path = "demo", **keywords: Unpack[GenerateKeywords]
) -> str:
    """Load a model, continue a prompt, free the model, and return the text.

    Args:
        prompt: The text to continue.
        model: As the first argument of `InferenceEngine.load_model`.
        **keywords: The keywords of `InferenceEngine.infer`.
    """
    with InferenceEngine() as engine:
        engine.load_model(model, silent=True)
        return engine.infer(prompt, **keywords).text


class _KeptEngine:
    """The engine of `chat` and `embed`, and the model asked last; another waits for its users."""

    def __init__(self) -> None:
        self._engine = InferenceEngine()
        self._name: str | Path | None = None
        self._users = 0
        self._changed = threading.Condition()

    @contextmanager
    def use(self, name: str | Path) -> Iterator[InferenceEngine]:
        """Yield the engine with a model loaded."""
        with self._changed:
            while self._users and name != self._name:
                self._changed.wait()
            if name != self._name or not self._engine.is_loaded:
                self._engine.load_model(name, verbose=False, progress=True)
                self._name = name
            self._users += 1
        try:
            yield self._engine
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()


_kept: _KeptEngine | None = None
_keeping = threading.Lock()


@show_keywords(ChatKeywords)
def chat(
    model: str | Path,
    messages: str | Sequence[Mapping[str, Any]],
    **keywords: Unpack[ChatKeywords],
) -> ChatCompletion[Completion]:
    """Answer a text or a conversation in one call, which is `llcuda.chat`.

    The model stays in memory for the next call, until a call names another model, or the process
    ends. An InferenceEngine says when a model is freed, runs several requests at once, and takes
    settings such as ctx_size.

    Args:
        model: The model, as `InferenceEngine.load_model` takes it.
        messages: The text of a user, or objects with "role" and "content".
        **keywords: The keywords of `InferenceEngine.chat`.

    Raises:
        ModelNotFoundError: There is no such model; the one before stays.
        ArgumentError: A value is outside what is allowed.
    """
    check_keywords(keywords, chat, ChatKeywords)
    path_text(model, "model")
    with _kept_engine().use(model) as engine:
        return engine.chat(messages, **keywords).result()


@show_keywords(EmbedKeywords)
@partial(explain_keywords, kinds=(EmbedKeywords,))
def embed(
    model: str | Path,
    texts: str | Sequence[Text],
    *,
    pooling: str | None = None,
    **keywords: Unpack[EmbedKeywords],
) -> Float32:
    """Return the vectors of texts in one call, which is `llcuda.embed`.

    The model stays in memory for the next call, as that of `chat` does.

    Args:
        model: The model, as `InferenceEngine.load_model` takes it.
        texts: As those of `InferenceEngine.embed`.
        pooling: As that of `Embedder`; None = as the model's file says.
        **keywords: The keywords of `Embedder.embed` but on_error.

    Raises:
        ModelNotFoundError: There is no such model; the one before stays.
        ArgumentError: A value is outside what is allowed.
    """
    path_text(model, "model")
    with _kept_engine().use(model) as engine:
        return engine.embed(texts, pooling=pooling, **keywords)


def _kept_engine() -> _KeptEngine:
    global _kept
    with _keeping:
        _kept = _kept or _KeptEngine()
        return _kept


class _Refused:
    """The handle of one of several that was refused."""

    done = True

    def __init__(self, error: LlcudaError) -> None:
        self._error = error

    def cancel(self) -> None:
        pass

    def result(self) -> Any:
        raise self._error

    def _note_end(self, event: threading.Event) -> None:
        event.set()


# Parameters whose errors are those of one text: its own, and what has to fit its messages.
_OF_ONE = frozenset(("", "prompt", "messages", "system"))


def _patiently(name: str, submit: Callable[[], _Handle[Result]], on_error: str) -> _Handle[Result]:
    """Submit one of several, wait while the queue is full, and name the one that is refused."""
    while True:
        try:
            return submit()
        except QueueFullError:
            time.sleep(0.005)
        except ArgumentError as error:
            named = copy(error)
            named.args = (f"{name}: {error.problem}",)
            parameter = re.split(r"[.\[]", error.parameter or "", maxsplit=1)[0]
            if on_error == "raise" or parameter not in _OF_ONE or not is_of_one_text(error):
                raise named from error
            return _Refused(named)


def _bar(noun: str, items: Any, progress: bool) -> _Bar:
    """Return a bar, whose function draws how many of the items are finished, if `progress`."""
    check_flag("progress", progress)
    if not progress:
        return _NO_BAR
    if not isinstance(items, Sized):
        raise wrong_value("progress", progress, f"a bar needs the number of {noun}", "give a list")
    return _counting_bar(f"{len(items)} {noun}", len(items))


@contextmanager
def _counting_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress_bar(label) as draw:
        yield lambda finished: draw(finished / total)


def _results(
    handles: Sequence[Handle], read: Callable[[Handle], Outcome], bar: _Bar = _NO_BAR
) -> list[Outcome]:
    """Return what `read` gives for each handle; an exception cancels the others."""
    results: list[Outcome] = []
    try:
        with bar as draw:
            for handle in handles:
                draw(len(results))
                results.append(read(handle))
        return results
    finally:
        for handle in handles:
            handle.cancel()  # unfinished only after an exception, such as Ctrl-C


def _with_stop(keywords: GenerateKeywords) -> SubmitKeywords:
    """Return `keywords` with one name for the stop texts."""
    check_keywords(keywords.keys() - {"params", "sampling"}, None, GenerateKeywords)
    given: Any = {k: v for k, v in keywords.items() if k != "stop_sequences"}
    stop, same = keywords.get("stop"), keywords.get("stop_sequences")
    if stop is not None and same is not None and stop != same:
        raise TypeError("stop= and stop_sequences=: two names of one setting; give one of them")
    if same is not None:
        given["stop"] = same
    return given  # type: ignore[no-any-return]


def _refuse_in_hook(method: str) -> None:
    if in_hook():
        raise ConcurrencyError(
            f"{method}() cannot be called from a hook, which runs on the engine's thread"
        )


def _check_file(path: Path, config: EngineConfig) -> None:
    """Raise the errors of loading a file on these devices, without taking the memory."""
    check_devices(config.model)
    on_cpu = replace(config.model, gpu_layers=0, devices=(), split_mode="layer")
    context = config.context_params()
    needed = sum(device.kv for device in memory_needed(path, model=on_cpu, context=context))
    present = sum(device.total_memory for device in library.devices())
    check_room((context.ctx_size or 0) * context.sequences, needed, present, "in this machine")


def _say(line: str) -> None:
    """Print, and replace characters that the terminal cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding))


def _silent(line: str) -> None:
    pass


_all: weakref.WeakSet[InferenceEngine] = weakref.WeakSet()


def _after_fork() -> None:
    """Replace the locks in a forked child: a thread that holds one does not exist there."""
    global _kept, _keeping
    _kept, _keeping = None, threading.Lock()
    for engine in list(_all):
        engine._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
