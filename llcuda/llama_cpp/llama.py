"""Llama: llama-cpp-python's class over llcuda's engine.

Completions and chats are requests of an engine, so that any number of threads may ask for them.
What evaluates token by token (`eval`, `sample`, `generate`, `load_state`), keeps states or all
logits, or calls a function for each token runs on one context in the caller's thread.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from llcuda import samplers as steps
from llcuda.chat.session import start as start_chat
from llcuda.chat.template import template_names
from llcuda.embeddings.embedder import Embedder
from llcuda.engine.engine import Engine, tokenize_prompt
from llcuda.engine.functions import SequenceFunctions
from llcuda.engine.infill import InfillTokens, infill_prompt
from llcuda.engine.outputs import Completion
from llcuda.engine.request import Request, RequestParams, request_params
from llcuda.engine.token_masks import TokenMaskState, token_masks
from llcuda.errors import (
    ContextLengthError,
    ModelNotFoundError,
    StateError,
    UnsupportedError,
    shown,
)
from llcuda.files import path_text
from llcuda.hub.repository import Repository
from llcuda.hub.resolver import resolve
from llcuda.keywords import explain_keywords, own_names
from llcuda.llama_cpp.context_request import ContextRequest
from llcuda.llama_cpp.evaluation import Evaluation, logits_to_logprobs
from llcuda.llama_cpp.llama_cache import BaseLlamaCache, LlamaState, longest_token_prefix
from llcuda.llama_cpp.llama_chat_format import ChatFormat, get_chat_completion_handler
from llcuda.llama_cpp.llama_grammar import LlamaGrammar
from llcuda.llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from llcuda.llama_cpp.llama_tokenizer import LlamaTokenizer
from llcuda.llama_cpp.responses import ChatAnswer, CompletionAnswer
from llcuda.llama_cpp.settings import (
    CALLS,
    DIALECT,
    LARGER,
    LLAMA_DEFAULT_SEED,
    UNSPECIFIED,
    LlamaKeywords,
    Sampling,
    attention_name,
    check_ineffective,
    check_seed,
    engine_config,
    in_own_names,
    known_keywords,
    model_params,
    next_seed,
    pooling_name,
    warn_ineffective,
)
from llcuda.native.adapter import Adapter
from llcuda.native.chain import steps_of
from llcuda.native.context import Context
from llcuda.native.model import Model
from llcuda.native.sampler import Sampler
from llcuda.params import (
    POOLINGS,
    ContextParams,
    SamplingParams,
    check_flag,
    check_number,
    default_threads,
    wrong_argument,
    wrong_value,
)
from llcuda.structured import compile as compile_format

logger = logging.getLogger("llcuda.llama_cpp")

Tokens = npt.NDArray[np.intc]
Scores = npt.NDArray[np.single]
LogitsProcessor = Callable[[Tokens, Scores], Scores]
StoppingCriteria = Callable[[Tokens, Scores], bool]
Stream = Iterator[dict[str, Any]]
_TEMPLATE = "chat_template."  # before the name of one of the model's own templates
_SAMPLING_FIELDS = tuple(item.name for item in fields(SamplingParams))
_OWN_TEMPLATE = f"{_TEMPLATE}default"
_FALLBACK_FORMAT = "llama-2"


class LogitsProcessorList(list[LogitsProcessor]):
    """Functions over logits, called one after another before a token is sampled.

    Each gets the tokens so far and the logits, shape (vocab_size,), and returns the logits to use;
    it may write into those that it gets.
    """

    def __call__(self, input_ids: Tokens, scores: Scores) -> Scores:
        """Return the logits that the last function returns."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Functions that end a text: each gets the tokens so far and the logits of the last one.

    They are called when the next token is sampled; a text that they end does not have it.
    """

    def __call__(self, input_ids: Tokens, logits: Scores) -> bool:
        """Return whether any function ends the text."""
        return any(stops(input_ids, logits) for stops in self)


class ModelPathError(ModelNotFoundError, ValueError):
    """The file of a `Llama` does not exist."""


class Llama:
    """A model with llama-cpp-python's methods.

    Completions and chats may come from any number of threads; `n_parallel` of them decode in one
    batch. The parameters of llama-cpp-python have its names, meanings and defaults, except that
    flash attention is on where the device has it, and that a value that can have no effect is
    warned of.

    A call runs on the caller's own context, one text at a time, with logits_all=True, after
    `set_cache`, with `stopping_criteria`, with a draft model of the caller's, and once `eval`,
    `generate` or `load_state` was called. There a later call takes over the text: a generator of an
    earlier one then raises ConcurrencyError.

    Args:
        model_path: A GGUF file, or a name of a model as `llcuda.hub.resolve` takes it, such as
            "org/repo:Q4_K_M"; "demo" is the model in the package.
        n_gpu_layers: Layers on the GPU; -1 = all, 0 = none.
        split_mode: How several GPUs share the model, as LLAMA_SPLIT_MODE_ or as llcuda names it.
        main_gpu: Index of the GPU that is used with LLAMA_SPLIT_MODE_NONE.
        tensor_split: Share of each GPU; None = by free memory.
        vocab_only: Load the tokenizer only.
        use_mmap: Map the file into memory.
        use_mlock: Keep the file in RAM.
        kv_overrides: Metadata keys to replace.
        seed: The seed from which those of calls without one follow; -1 = at random.
        n_ctx: Tokens of a text, prompt and answer together; 0 = what the model was trained on.
        n_batch: Tokens of one decode at most.
        n_ubatch: Tokens that are computed at once at most.
        n_threads: Processors that compute; None = all that the process may use.
        n_threads_batch: Processors that compute prompts; None = n_threads.
        rope_scaling_type: LLAMA_ROPE_SCALING_TYPE_; -1 = as the model's file says.
        pooling_type: LLAMA_POOLING_TYPE_ of embeddings; -1 = as the model's file says.
        attention_type: LLAMA_ATTENTION_TYPE_ of embeddings; -1 = as the model's file says.
        rope_freq_base: Base frequency of RoPE; 0 = the model's.
        rope_freq_scale: Scale of RoPE's frequency; 0 = the model's.
        yarn_ext_factor: As `ContextParams.yarn_ext_factor`; -1 = the model's.
        yarn_attn_factor: As `ContextParams.yarn_attn_factor`; 1 = the model's.
        yarn_beta_fast: As `ContextParams.yarn_beta_fast`; 32 = the model's.
        yarn_beta_slow: As `ContextParams.yarn_beta_slow`; 1 = the model's.
        yarn_orig_ctx: As `ContextParams.yarn_orig_ctx`; 0 = the model's.
        logits_all: Keep the logits of every token in `scores`. Log-probabilities do not need it.
        embedding: Whether `embed` is to be used.
        offload_kqv: Whether the KV cache and attention are on the GPU.
        flash_attn: Whether attention is computed by flash attention; None = where the device has
            it.
        op_offload: As `ContextParams.op_offload`; None = True.
        swa_full: As `ContextParams.swa_full`; None = True.
        no_perf: Has no effect.
        last_n_tokens_size: Tokens that the penalties look back on.
        lora_base: Has no effect.
        lora_scale: Scale of the adapter.
        lora_path: A LoRA adapter as GGUF.
        numa: Has no effect.
        chat_format: A name of `llama_chat_format`, "chat_template.NAME" for a template of the
            model, or the text of a Jinja template. None = the model's template, or "llama-2" for a
            model without one.
        chat_handler: A function that answers `create_chat_completion` instead, or what
            `Jinja2ChatFormatter.to_chat_handler` returns.
        draft_model: Proposes tokens that are verified in one step.
        tokenizer: Must be None: the tokenizer is that of the model's file.
        type_k: Type of the keys in the KV cache, as ggml's number or as llcuda names it.
        type_v: Type of the values.
        spm_infill: Whether the suffix stands before the prefix in a prompt with a gap.
        verbose: Whether notes go to the log "llcuda.llama_cpp" with level INFO.
        **keywords: Further settings of llcuda: n_parallel (texts that decode in one batch),
            cache_size, queue_size, devices, cuda_graphs, device_logits, batch_invariant,
            check_tensors, bf16_copies and bf16_to_f16; also f16_kv, n_parts and device, which older
            versions and LangChain give. Any other keyword is warned of and has no effect, as in
            llama-cpp-python.

    Attributes:
        model_path: The path as it was given.
        verbose: Whether notes go to the log.
        cache: The cache of states, or None.
        chat_format: The chat format in use.
        chat_handler: The function that answers chats, or None.
        metadata: The metadata of the model's file as text.

    Raises:
        ModelNotFoundError: There is no such file; a ValueError, too.
        ModelError: The file cannot be loaded.
        ArgumentError: A value is outside what is allowed.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        split_mode: int | str = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int = LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | str | None = UNSPECIFIED,
        pooling_type: int | str = UNSPECIFIED,
        attention_type: int | str = UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | os.PathLike[str] | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Callable[..., Any] | ChatFormat | None = None,
        draft_model: LlamaDraftModel | None = None,
        tokenizer: None = None,
        type_k: int | str | None = None,
        type_v: int | str | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **keywords: Unpack[LlamaKeywords],
    ) -> None:
        given = dict(locals())
        del given["self"], given["keywords"]
        known = {*given, *LlamaKeywords.__annotations__}
        self._given: dict[str, Any] = {**given, **known_keywords(keywords, known)}
        given = self._given
        for name in ("logits_all", "embedding", "spm_infill", "verbose"):
            check_flag(name, given[name])
        if tokenizer is not None:
            rule = "the tokens are those of the model's file"
            remedy = "convert the checkpoint with its tokenizer: llcuda.convert()"
            raise wrong_value("tokenizer", tokenizer, rule, remedy)
        if draft_model is not None and not callable(draft_model):
            raise wrong_value("draft_model", draft_model, "expected a LlamaDraftModel")
        check_number("last_n_tokens_size", last_n_tokens_size, "int", -1, 2**20)
        check_ineffective(given)
        self.model_path = str(model_path)
        self.verbose = verbose
        self.cache: BaseLlamaCache | None = None
        self.last_n_tokens_size = last_n_tokens_size
        self.lora_base, self.lora_scale, self.lora_path = lora_base, lora_scale, lora_path
        self.draft_model = draft_model
        self.spm_infill = spm_infill
        self._seed = check_seed(seed or LLAMA_DEFAULT_SEED)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._embedder: Embedder | None = None
        self._token_context: Context | None = None
        with in_own_names():
            self._model = self._load(model_params(given))
            self._open(given)
        self.metadata: dict[str, str] = dict(self._model.metadata)
        self.chat_handler = chat_handler
        self.chat_format = chat_format
        if chat_format is None and chat_handler is None:
            own = template_names(self._model)
            self.chat_format = _OWN_TEMPLATE if own else _FALLBACK_FORMAT
        elif chat_format is not None and not self._is_own_template(chat_format):
            get_chat_completion_handler(chat_format)
        self._note("%s: chat format %s", self._model.path.name, self.chat_format)

    def _load(self, params: Any) -> Model:
        try:
            path = resolve(self._given["model_path"], parameter="model_path")
            return Model(path, params=params)
        except ModelNotFoundError as error:
            raise ModelPathError(f"model_path={shown(self.model_path)}: {error}") from None

    def _open(self, given: Mapping[str, Any]) -> None:
        """Make what computes; contexts but the first one are made when they are needed."""
        model = self._model
        self._config = engine_config(given, model.train_ctx_size)
        self._n_ctx = size = int(self._config.engine.ctx_size or 0)
        self.n_batch = batch = self._config.engine.batch_size
        check_number("lora_scale", self.lora_scale, "number", -1e6, 1e6)
        self._adapters: dict[Adapter, float] = {}
        if self.lora_path is not None:
            self._adapters = {Adapter(model, self.lora_path): float(self.lora_scale)}
        logits_all = given["logits_all"]
        self._evaluation = Evaluation(
            self._open_context, size, batch, model.vocab_size, logits_all=logits_all
        )
        if given["vocab_only"]:
            return
        if given["embedding"]:
            self._open_embedder(given)
        elif logits_all:
            _ = self._evaluation.context
        else:
            self._open_engine()

    def _open_context(self) -> Context:
        engine = self._config.engine
        shared = {k: v for k, v in self._config.context.items() if k != "device_logits"}
        params = ContextParams(
            ctx_size=engine.ctx_size,
            batch_size=engine.batch_size,
            ubatch_size=engine.ubatch_size,
            **shared,
        )
        context = Context(self._model, params=params)
        context.set_adapters(self._adapters)
        return context

    def _open_engine(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self._model, config=self._config)
                self._engine.context.set_adapters(self._adapters)
            return self._engine

    def _open_embedder(self, given: Mapping[str, Any]) -> None:
        if self._adapters:
            rule = "embeddings are computed without adapters"
            raise wrong_value("lora_path", self.lora_path, rule, "merge it: llcuda.convert(base=)")
        engine = self._config.engine
        shared = {k: v for k, v in self._config.context.items() if k != "device_logits"}
        pooling, attention = pooling_name(given), attention_name(given)
        if pooling is None and not any(k.endswith(".pooling_type") for k in self._model.metadata):
            pooling = "none"
        if pooling == "none":
            params = ContextParams(
                ctx_size=engine.ctx_size,
                batch_size=engine.batch_size,
                ubatch_size=engine.batch_size,
                embeddings=True,
                pooling="none",
                attention=attention,
                **shared,
            )
            self._token_context = Context(self._model, params=params)
            return
        self._embedder = Embedder(
            self._model,
            pooling=pooling,
            attention=attention,
            ctx_size=engine.ctx_size,
            batch_size=engine.batch_size,
            **shared,
        )

    def _note(self, message: str, *values: Any) -> None:
        if self.verbose:
            logger.info(message, *values)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model of a repository on the Hugging Face Hub.

        All parts of a split model are downloaded.

        Args:
            repo_id: The repository, `owner/name`; never a folder on this machine.
            filename: The file, a pattern such as "*Q4_K_M.gguf" that one file matches, or a
                quantization; None for a repository with one model.
            additional_files: Further files, or patterns, to download beside it.
            local_dir: Must be None: files go to the Hugging Face cache.
            local_dir_use_symlinks: Has no effect.
            cache_dir: Must be None: HF_HOME says where the cache is.
            **kwargs: Further arguments of `Llama`.

        Raises:
            ModelNotFoundError: There is no such repository or file.
            ModelError: A download fails.
            ArgumentError: A pattern matches several files.
        """
        if local_dir_use_symlinks != "auto":
            rule = "huggingface_hub decides on links in its cache"
            warn_ineffective("local_dir_use_symlinks", local_dir_use_symlinks, rule)
        for name, value in (("local_dir", local_dir), ("cache_dir", cache_dir)):
            if value is not None:
                rule = "files go to the Hugging Face cache"
                remedy = "set HF_HOME, or download the file yourself and give its path to Llama()"
                raise wrong_value(name, value, rule, remedy)
        # A folder of that name in the working directory is not meant.
        address = f"hf://{path_text(repo_id, 'repo_id')}"
        repository = Repository(repo_id)
        is_pattern = isinstance(filename, str) and bool(set("*?[") & set(filename))
        if not is_pattern and not additional_files:
            return cls(resolve(address, filename, parameter="repo_id"), **kwargs)
        info = repository.ask(filename)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        wanted = filename
        if is_pattern:
            wanted = _match(repo_id, [*siblings], str(filename), "filename")
        others = [
            _match(repo_id, [*siblings], f, "additional_files") for f in additional_files or ()
        ]
        path = resolve(address, wanted, parameter="repo_id")
        repository.download([siblings[name] for name in others], info.sha, progress=True)
        return cls(path, **kwargs)

    # --- tokens ---

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: The text in UTF-8.
            add_bos: Add the tokens that the model wants around a text, such as BOS.
            special: Read control tokens that are written in the text as such.
        """
        return self.tokenizer().tokenize(text, add_bos, special)

    def detokenize(
        self,
        tokens: Sequence[int],
        prev_tokens: Sequence[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """Return the text of tokens in UTF-8; see `LlamaTokenizer.detokenize`.

        Args:
            tokens: The tokens.
            prev_tokens: The tokens before them.
            special: Write control tokens as text.
        """
        return self.tokenizer().detokenize(tokens, prev_tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """Return the tokenizer of the model's file."""
        return LlamaTokenizer(self._model)

    # --- completions ---

    @partial(explain_keywords, dialect=DIALECT)
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteria | None = None,
        logits_processor: LogitsProcessor | None = None,
        grammar: LlamaGrammar | str | None = None,
        logit_bias: Mapping[Any, float] | None = None,
    ) -> Any:
        """Return the continuation of a prompt, whole or chunk by chunk; `llm(prompt)` is the same.

        Args:
            prompt: A text, whose control tokens are read as such, or tokens.
            suffix: The text behind the gap to fill, for models with tokens for that. Other models
                do not see it: it is appended to the text.
            max_tokens: Tokens to generate at most; None, or 0 or less = what the context has room
                for.
            temperature: As `Sampling.temp`.
            top_p: As `SamplingParams.top_p`.
            min_p: As `SamplingParams.min_p`.
            typical_p: As `SamplingParams.typical_p`.
            logprobs: Alternatives to report for each token; None = no log-probabilities.
            echo: Whether the prompt is part of the text.
            stop: Text, or texts, that end the continuation.
            frequency_penalty: As `SamplingParams.frequency_penalty`.
            presence_penalty: As `SamplingParams.presence_penalty`.
            repeat_penalty: As `Sampling.repeat_penalty`.
            top_k: As `Sampling.top_k`.
            stream: Whether to return an iterator of chunks.
            seed: Seed of the random numbers; None = the one that follows the call before.
            tfs_z: As `Sampling.tfs_z`.
            mirostat_mode: As `Sampling.mirostat_mode`.
            mirostat_tau: As `SamplingParams.mirostat_tau`.
            mirostat_eta: As `SamplingParams.mirostat_eta`.
            model: The name of the model in the answer; None = its path.
            stopping_criteria: A `StoppingCriteriaList`, or a function like one.
            logits_processor: A `LogitsProcessorList`, or a function like one.
            grammar: Restricts the text.
            logit_bias: Token -> number added to its logit.

        Returns:
            OpenAI's completion as a dict, or an iterator of its chunks.

        Raises:
            ContextLengthError: The prompt is longer than the context; a ValueError, too.
            ArgumentError: A value is outside what is allowed.
            LlcudaError: As `Engine.submit` and `Request.result`.
        """
        check_flag("echo", echo)
        check_flag("stream", stream)
        sampling = Sampling(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temperature,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
        )
        keywords = self._sampling_keywords(sampling, seed, grammar, logit_bias)
        with in_own_names():
            tokens, appended = self._prompt_tokens(prompt, suffix)
            limit = _token_limit(max_tokens) or max(1, self.n_ctx() - len(tokens))
            request = self._submit(
                tokens,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                max_tokens=limit,
                stop=stop,
                logprobs=logprobs,
                echo=echo and logprobs is not None,
                **keywords,
            )
        shown_prompt = ""
        if echo:
            shown_prompt = prompt if isinstance(prompt, str) else self._model.detokenize(tokens)
        answer = CompletionAnswer(
            model=self._model,
            name=self.model_path if model is None else model,
            request=request,
            prompt=tokens,
            echo=shown_prompt,
            suffix=appended,
            echoes_scores=echo and logprobs is not None,
            on_end=partial(self._ended, tokens),
        )
        return answer.chunks() if stream else answer.whole()

    __call__ = create_completion

    def _sampling_keywords(
        self,
        sampling: Sampling,
        seed: int | None,
        grammar: LlamaGrammar | str | None,
        logit_bias: Mapping[Any, float] | None,
    ) -> dict[str, Any]:
        """Return how the tokens of a completion are chosen, as keywords of `Engine.submit`."""
        with self._lock:
            self._seed = next_seed(self._seed) if seed is None else check_seed(seed)
            seed = self._seed
        return self._chosen(sampling, seed, grammar, logit_bias, temperature="temperature")

    def _chosen(
        self,
        sampling: Sampling,
        seed: int,
        grammar: LlamaGrammar | str | None,
        logit_bias: Mapping[Any, float] | None = None,
        temperature: str = "temp",
    ) -> dict[str, Any]:
        """Return fields of SamplingParams, and the guide of a grammar that is a schema.

        Args:
            sampling: How tokens are chosen.
            seed: The seed.
            grammar: Restricts the text.
            logit_bias: Token -> number added to its logit.
            temperature: The caller's name of the temperature.
        """
        if isinstance(grammar, str):
            grammar = LlamaGrammar.from_string(grammar)
        if not isinstance(grammar, LlamaGrammar | None):
            raise wrong_value("grammar", grammar, "expected a LlamaGrammar or GBNF")
        text = None if grammar is None else grammar.grammar
        last_n = self.n_ctx() if self.last_n_tokens_size == -1 else self.last_n_tokens_size
        with in_own_names(temp=temperature, temperature=temperature):
            params = sampling.params(seed, last_n, text, logit_bias)
        chosen: dict[str, Any] = {name: getattr(params, name) for name in _SAMPLING_FIELDS}
        if grammar is not None and grammar.schema is not None:
            with in_own_names(response_format="grammar"):
                chosen["guide"] = compile_format(self._model, schema=grammar.schema).guide()
        return chosen

    def _prompt_tokens(
        self, prompt: str | Sequence[int], suffix: str | None
    ) -> tuple[list[int], str]:
        """Return the tokens of a prompt, and the text to append to the answer."""
        model = self._model
        if not isinstance(suffix, str | None):
            raise wrong_value("suffix", suffix, "expected a text")
        is_text = isinstance(prompt, str)
        marks = InfillTokens.of(model) if suffix is not None else None
        if marks is None:
            if is_text:
                tokens = tokenize_prompt(model, prompt, limit=self.n_ctx())  # type: ignore[arg-type]
            else:
                tokens = model.token_list(prompt)
            if not tokens and model.bos is not None:
                tokens = [model.bos]
            return tokens, suffix or ""
        before = prompt if isinstance(prompt, str) else model.token_list(prompt)
        gap = infill_prompt(model, marks, before, suffix or "", suffix_first=self.spm_infill)
        return gap.tokens, ""

    def _submit(
        self,
        tokens: Sequence[int],
        *,
        logits_processor: LogitsProcessor | None = None,
        stopping_criteria: StoppingCriteria | None = None,
        **keywords: Any,
    ) -> Request | ContextRequest:
        """Begin to generate what follows a prompt, by the engine or on the context."""
        process = _joined("logits_processor", logits_processor, LogitsProcessorList)
        stopping = _joined("stopping_criteria", stopping_criteria, StoppingCriteriaList)
        keywords = {"penalize_prompt": False, **keywords}
        if not (stopping or self._uses_context()):
            return self._open_engine().submit(tokens, logits_processor=process, **keywords)
        params, sampling = request_params(keywords)
        if params.echo and not self._given["logits_all"]:
            rule = "log-probabilities of a prompt are not computed here"
            raise wrong_value("echo", True, rule, "give Llama logits_all=True")
        return self._on_context(tokens, params, sampling, process, stopping)

    def _uses_context(self) -> bool:
        drafts = self.draft_model is not None
        drafts = drafts and not isinstance(self.draft_model, LlamaPromptLookupDecoding)
        is_taken = self._evaluation.used or self._given["logits_all"]
        return bool(is_taken or drafts or self.cache is not None)

    def _on_context(
        self,
        tokens: Sequence[int],
        params: RequestParams,
        sampling: SamplingParams,
        logits_processor: LogitsProcessor | None,
        stopping_criteria: StoppingCriteria | None,
    ) -> ContextRequest:
        checked = self._model.token_list(tokens)
        if len(checked) >= self.n_ctx():
            raise _too_long(len(checked), self.n_ctx())
        sampler = self._sampler(sampling, params.guide, logits_processor)

        def generate() -> Generator[int, Any, None]:
            self._restore(checked)
            return self._evaluation.generate(
                checked, sampler, stopping=stopping_criteria, draft=self.draft_model
            )

        return ContextRequest(self._evaluation, checked, params, generate, sampler.seed)

    def _restore(self, tokens: Sequence[int]) -> None:
        """Load the cached state of a beginning of a prompt, if it is longer than what is there."""
        if self.cache is None:
            return
        try:
            state = self.cache[tokens]
            cached = longest_token_prefix(state.input_ids[: state.n_tokens].tolist(), tokens)
            if cached > longest_token_prefix(self._evaluation.text().tolist(), tokens):
                self.load_state(state)
                self._note("the cache has spared %d tokens", cached)
        except KeyError:
            self._note("the cache has no beginning of this prompt")
        except (StateError, OSError) as error:  # of another model, or damaged
            logger.warning("the cache cannot be read: %s", error)

    def _ended(self, prompt: Sequence[int], completion: Completion) -> None:
        """Take note of a text that has ended; it is not lost when the cache cannot keep it."""
        tokens = [*prompt, *completion.tokens]
        if not self._uses_context():
            self._evaluation.note(tokens if completion.finish_reason == "stop" else tokens[:-1])
        elif self.cache is not None:
            try:
                self.cache[tokens] = self.save_state()
            except OSError as error:
                logger.warning("the cache cannot be written: %s", error)
        self._note("%s", completion.figures())

    # --- chats ---

    @partial(explain_keywords, dialect=DIALECT)
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Any] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessor | None = None,
        grammar: LlamaGrammar | str | None = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """Return the answer to messages, whole or chunk by chunk.

        Calls that the model writes in the notation of its template come as "tool_calls", its
        reasoning as "reasoning_content".

        Args:
            messages: Objects with "role" and "content", in OpenAI's shapes.
            functions: OpenAI's older form of `tools`.
            function_call: OpenAI's older form of `tool_choice`.
            tools: OpenAI's definitions of tools, or Python functions with type hints.
            tool_choice: "auto", "none", "required", or the tool that is to be called.
            temperature: As that of `create_completion`.
            top_p: As that of `create_completion`.
            top_k: As that of `create_completion`.
            min_p: As that of `create_completion`.
            typical_p: As that of `create_completion`.
            stream: Whether to return an iterator of chunks.
            stop: As that of `create_completion`.
            seed: As that of `create_completion`.
            response_format: {"type": "json_object"}, with a "schema" of it, or a format of
                `llcuda.structured.compile`.
            max_tokens: As that of `create_completion`.
            presence_penalty: As that of `create_completion`.
            frequency_penalty: As that of `create_completion`.
            repeat_penalty: As that of `create_completion`.
            tfs_z: As that of `create_completion`.
            mirostat_mode: As that of `create_completion`.
            mirostat_tau: As that of `create_completion`.
            mirostat_eta: As that of `create_completion`.
            model: As that of `create_completion`.
            logits_processor: As that of `create_completion`.
            grammar: As that of `create_completion`.
            logit_bias: As that of `create_completion`.
            logprobs: Whether to report log-probabilities.
            top_logprobs: Alternatives to report for each token; None = none.

        Returns:
            OpenAI's chat completion as a dict, or an iterator of its chunks.

        Raises:
            ContextLengthError: The prompt is longer than the context; a ValueError, too.
            ArgumentError: A value, or the shape of a message, is wrong.
            LlcudaError: As `Engine.chat` and `Request.result`.
        """
        given = dict(locals())
        del given["self"]
        check_flag("stream", stream)
        handler = self._handler()
        if not isinstance(handler, ChatFormat | None):
            return handler(llama=self, **given)
        tools, tool_choice = _tools(functions, function_call, tools, tool_choice)
        sampling = Sampling(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temperature,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
        )
        keywords = self._sampling_keywords(sampling, seed, grammar, logit_bias)
        if (limit := _token_limit(max_tokens)) is not None:
            keywords["max_tokens"] = limit
        if logprobs:
            keywords["logprobs"] = top_logprobs or 0
        prompt: list[int] = []

        def submit(tokens: list[int], **parameters: Any) -> Any:
            prompt[:] = tokens
            return self._submit(tokens, logits_processor=logits_processor, **parameters)

        with in_own_names(template="chat_format"):
            chat = start_chat(
                submit,
                self._model,
                self.n_ctx(),
                messages,
                tools=tools,
                tool_choice="auto" if tool_choice is None else tool_choice,
                response_format=response_format,
                template=self._template() if handler is None else handler.template,
                continue_final_message=False,  # llama-cpp-python begins a new answer
                stop=[*_texts(stop), *(() if handler is None else handler.stop)],
                **keywords,
            )
        answer = ChatAnswer(
            model=self._model,
            name=self.model_path if model is None else model,
            chat=chat,
            names_function=functions is not None or isinstance(tool_choice, Mapping),
            on_end=lambda completion: self._ended(prompt, completion),
        )
        return answer.chunks() if stream else answer.whole()

    def _handler(self) -> Callable[..., Any] | ChatFormat | None:
        """Return what answers a chat; None for a template of the model's own."""
        if self.chat_handler is not None:
            if not callable(self.chat_handler) and not isinstance(self.chat_handler, ChatFormat):
                raise wrong_value("chat_handler", self.chat_handler, "expected a function")
            return self.chat_handler
        name = self.chat_format or _OWN_TEMPLATE
        return None if self._is_own_template(name) else get_chat_completion_handler(name)

    def _is_own_template(self, name: Any) -> bool:
        return isinstance(name, str) and name.startswith(_TEMPLATE)

    def _template(self) -> str | None:
        """Return the name of the model's template, None for its main one."""
        name = (self.chat_format or _OWN_TEMPLATE).removeprefix(_TEMPLATE)
        return None if name == "default" else name

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """Return the answer of `create_chat_completion` as an object of the package openai.

        Args:
            *args: The arguments of `create_chat_completion`.
            **kwargs: The same.

        Returns:
            A ChatCompletion, or an iterator of ChatCompletionChunk.

        Raises:
            ImportError: The package openai is missing.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError:
            problem = (
                "create_chat_completion_openai_v1 needs the package openai: pip install openai"
            )
            raise ImportError(problem) from None
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return ChatCompletion(**answer)
        return (ChatCompletionChunk(**chunk) for chunk in answer)

    # --- embeddings ---

    def create_embedding(self, input: Any, model: str | None = None) -> dict[str, Any]:  # noqa: A002
        """Return the vectors of texts as OpenAI's dict.

        Args:
            input: A text, or a list of texts.
            model: The name of the model in the answer; None = its path.
        """
        vectors, count = self.embed(_inputs(input), return_count=True)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": vector, "index": index}
                for index, vector in enumerate(vectors)
            ],
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def embed(
        self,
        input: Any,  # noqa: A002
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Return the vector of a text, or those of a list of texts, as lists of numbers.

        Args:
            input: A text, or a list of texts.
            normalize: Whether to divide each vector by its length.
            truncate: Whether to drop the end of a text with more than n_ctx tokens. Without, such a
                text is an error.
            return_count: Whether to return the number of tokens, too.

        Returns:
            A vector for each text. With LLAMA_POOLING_TYPE_NONE, also for a model whose file names
            no pooling, a vector for each token of each text.

        Raises:
            RuntimeError: The Llama was created without embedding=True.
            ArgumentError: A text is empty or too long.
        """
        if self._embedder is None and self._token_context is None:
            raise UnsupportedError(
                "this Llama computes no embeddings",
                parameter="embedding",
                remedy="create it with embedding=True",
            )
        texts = _inputs(input)
        if self._embedder is not None:
            if self._embedder.pooling == "rank":
                scores = self._embedder.classify(texts, truncate=truncate)
                counts = [len(self._model.tokenize(text)) for text in texts]
                vectors, count = scores.tolist(), sum(counts)
            else:
                result = self._embedder.embed_counted(texts, normalize=normalize, truncate=truncate)
                vectors, count = result.values.tolist(), sum(result.token_counts)
        else:
            vectors, count = self._token_vectors(texts, normalize, truncate)
        answer = vectors[0] if isinstance(input, str) else vectors
        return (answer, count) if return_count else answer

    def _token_vectors(
        self, texts: Sequence[str], normalize: bool, truncate: bool
    ) -> tuple[list[list[list[float]]], int]:
        """Return a vector for each token of each text, and the number of tokens."""
        check_flag("normalize", normalize)
        check_flag("truncate", truncate)
        assert self._token_context is not None
        context, size, vectors, count = self._token_context, self.n_ctx(), [], 0
        with self._evaluation.lock:
            for text in texts:
                tokens = self._model.tokenize(text)
                if len(tokens) > size and not truncate:
                    raise _too_long(len(tokens), size)
                tokens = tokens[:size]
                count += len(tokens)
                context.memory.clear(False)
                rows: list[Any] = []
                for begin in range(0, len(tokens), self.n_batch):
                    part = tokens[begin : begin + self.n_batch]
                    context.decode(part, logits="all")
                    rows += [context.embeddings(i) for i in range(len(part))]
                if normalize:
                    rows = [row / (float(np.linalg.norm(row)) or 1.0) for row in rows]
                vectors.append([row.tolist() for row in rows])
        return vectors, count

    # --- token by token ---

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text and compute them.

        Args:
            tokens: The tokens.
        """
        self._evaluation.used = True
        with in_own_names():
            self._evaluation.evaluate(tokens)

    def reset(self) -> None:
        """Forget the text. What is computed of it stays, for a text that begins alike."""
        self._evaluation.n_tokens = 0

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | None = None,
        grammar: LlamaGrammar | str | None = None,
        idx: int | None = None,
    ) -> int:
        """Choose the token that follows the text, which does not change.

        Args:
            top_k: As `Sampling.top_k`.
            top_p: As `SamplingParams.top_p`.
            min_p: As `SamplingParams.min_p`.
            typical_p: As `SamplingParams.typical_p`.
            temp: As `Sampling.temp`.
            repeat_penalty: As `Sampling.repeat_penalty`; one call has no answer to count.
            frequency_penalty: As `SamplingParams.frequency_penalty`.
            presence_penalty: As `SamplingParams.presence_penalty`.
            tfs_z: As `Sampling.tfs_z`.
            mirostat_mode: As `Sampling.mirostat_mode`.
            mirostat_eta: As `SamplingParams.mirostat_eta`.
            mirostat_tau: As `SamplingParams.mirostat_tau`.
            penalize_nl: As `Sampling.penalize_nl`.
            logits_processor: As that of `create_completion`.
            grammar: As that of `create_completion`; the token begins a text.
            idx: The place of the token that it follows, whose logits were computed last; None = the
                last one.

        Raises:
            ArgumentError: Nothing was evaluated, or a value is outside what is allowed.
        """
        sampling = Sampling(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            penalize_nl=penalize_nl,
        )
        sampler = self._own_sampler(sampling, grammar, logits_processor)
        with in_own_names(temperature="temp"):
            return self._evaluation.sample(sampler, idx)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | None = None,
        stopping_criteria: StoppingCriteria | None = None,
        grammar: LlamaGrammar | str | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield the tokens that follow a prompt, without an end.

        Args:
            tokens: The tokens of the prompt.
            top_k: As `Sampling.top_k`.
            top_p: As `SamplingParams.top_p`.
            min_p: As `SamplingParams.min_p`.
            typical_p: As `SamplingParams.typical_p`.
            temp: As `Sampling.temp`.
            repeat_penalty: As `Sampling.repeat_penalty`.
            reset: Whether the prompt is the whole text, of which what is computed already is kept;
                False appends it to the text.
            frequency_penalty: As `SamplingParams.frequency_penalty`.
            presence_penalty: As `SamplingParams.presence_penalty`.
            tfs_z: As `Sampling.tfs_z`.
            mirostat_mode: As `Sampling.mirostat_mode`.
            mirostat_tau: As `SamplingParams.mirostat_tau`.
            mirostat_eta: As `SamplingParams.mirostat_eta`.
            penalize_nl: As `Sampling.penalize_nl`.
            logits_processor: As that of `create_completion`.
            stopping_criteria: As that of `create_completion`.
            grammar: As that of `create_completion`.

        Yields:
            The tokens; tokens that are sent to the generator follow the one it has yielded.

        Raises:
            ContextLengthError: The text has reached n_ctx tokens.
            ConcurrencyError: A later call has taken over the text.
        """
        sampling = Sampling(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            penalize_nl=penalize_nl,
        )
        sampler = self._own_sampler(sampling, grammar, logits_processor)
        self._evaluation.used = True
        stopping = _joined("stopping_criteria", stopping_criteria, StoppingCriteriaList)
        with in_own_names():
            yield from self._evaluation.generate(
                tokens, sampler, reset=reset, stopping=stopping, draft=self.draft_model
            )

    def _own_sampler(
        self,
        sampling: Sampling,
        grammar: LlamaGrammar | str | None,
        logits_processor: LogitsProcessor | None,
    ) -> Sampler:
        chosen = self._chosen(sampling, self._seed, grammar)
        guide = chosen.pop("guide", None)
        process = _joined("logits_processor", logits_processor, LogitsProcessorList)
        return self._sampler(SamplingParams(**chosen), guide, process)

    def _sampler(
        self, sampling: SamplingParams, guide: Any, logits_processor: LogitsProcessor | None
    ) -> Sampler:
        """Return a sampler whose first steps are the caller's function and a guide's mask."""
        seed = Sampler(params=sampling).seed
        chain: list[steps.Step] = []
        if logits_processor is not None:
            chain.append(_processing(logits_processor, self._evaluation))
        if guide is not None:
            chain.append(_masking(guide, self._model))
        return Sampler(chain=[*chain, *steps_of(sampling, seed)], model=self._model)

    # --- the state ---

    def save_state(self) -> LlamaState:
        """Return the text and the KV cache that holds it; a text of the engine is computed."""
        return self._evaluation.save(self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Take over what `save_state` returned, of a Llama with the same model and settings.

        Args:
            state: The state.

        Raises:
            StateError: The state does not fit.
        """
        self._evaluation.load(state)
        self._evaluation.used = True
        self._seed = state.seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep the state of each text in a cache, and begin texts from it; None ends that.

        The engine keeps prefixes by itself, see cache_size; a cache is for other processes, or for
        several Llama.

        Args:
            cache: A `LlamaRAMCache`, a `LlamaDiskCache`, or a mapping like them.
        """
        if cache is not None and not all(
            hasattr(cache, name) for name in ("__getitem__", "__setitem__")
        ):
            raise wrong_value("cache", cache, "expected a LlamaRAMCache or a LlamaDiskCache")
        self.cache = cache

    def set_seed(self, seed: int) -> None:
        """Set the seed that the next calls draw from.

        Args:
            seed: The seed; -1 = at random.
        """
        self._seed = check_seed(seed)

    @property
    def n_tokens(self) -> int:
        """The number of tokens of the text; a smaller number shortens it."""
        return self._evaluation.n_tokens

    @n_tokens.setter
    def n_tokens(self, count: int) -> None:
        check_number("n_tokens", count, "int", 0, self.n_ctx())
        self._evaluation.n_tokens = int(count)

    @property
    def input_ids(self) -> Tokens:
        """The tokens of the text in an array of n_ctx numbers, of which n_tokens count."""
        return self._evaluation.input_ids

    @property
    def scores(self) -> Scores:
        """The logits by token, shape (n_ctx, vocab_size); needs logits_all=True."""
        if not self._given["logits_all"]:
            raise UnsupportedError(
                "the logits of the tokens are not kept",
                parameter="logits_all",
                remedy="create the Llama with logits_all=True; eval_logits has the last ones",
            )
        return self._evaluation.scores

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens of the text."""
        return deque(self._evaluation.text().tolist(), maxlen=self.n_ctx())

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The logits of each token with logits_all=True, otherwise those of the last one."""
        if self._given["logits_all"]:
            rows = self.scores[: self.n_tokens]
            return deque(rows.tolist(), maxlen=self.n_ctx())
        return deque([self._evaluation.logits().tolist()], maxlen=1)

    # --- facts ---

    @property
    def model(self) -> Model:
        """Llcuda's Model, for `Context`, `Sampler` and whatever else takes one."""
        return self._model

    @property
    def ctx(self) -> Context:
        """The Context of the text that `eval` continues."""
        return self._evaluation.context

    @property
    def n_threads(self) -> int:
        """Processors that compute one token."""
        return int(self._given["n_threads"] or default_threads())

    @property
    def n_threads_batch(self) -> int:
        """Processors that compute prompts."""
        return int(self._given["n_threads_batch"] or self.n_threads)

    def n_ctx(self) -> int:
        """Return the tokens of a text at most."""
        return self._n_ctx

    def n_embd(self) -> int:
        """Return the numbers of an embedding."""
        return self._model.embedding_size

    def n_vocab(self) -> int:
        """Return the number of tokens of the vocabulary."""
        return self._model.vocab_size

    def token_eos(self) -> int:
        """Return the token that ends a text, -1 without one."""
        return -1 if self._model.eos is None else self._model.eos

    def token_bos(self) -> int:
        """Return the token that begins a text, -1 without one."""
        return -1 if self._model.bos is None else self._model.bos

    def token_nl(self) -> int:
        """Return the token of a line break."""
        return self._model.tokenize("\n", add_special=False)[-1]

    def pooling_type(self) -> int:
        """Return the pooling of embeddings, LLAMA_POOLING_TYPE_."""
        if self._embedder is None:
            return POOLINGS.index("none") if self._token_context is not None else UNSPECIFIED
        return POOLINGS.index(self._embedder.pooling)

    @staticmethod
    def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> Scores:
        """Return log-probabilities of logits: float32 of the same shape.

        Args:
            logits: The logits.
            axis: The axis of the vocabulary.
        """
        return logits_to_logprobs(logits, axis)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """Return how many tokens two texts have in common at their beginnings."""
        return longest_token_prefix(a, b)

    # --- life ---

    def close(self) -> None:
        """Stop the engine and free the model; calling it again does nothing."""
        if "_model" not in vars(self):  # the constructor has failed
            return
        if self._engine is not None:
            self._engine.close()
        if self._embedder is not None:
            self._embedder.close()
        if self._token_context is not None:
            self._token_context.close()
        if "_evaluation" in vars(self):
            self._evaluation.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments: another process loads the file again, and begins without text."""
        return {**self._given, "seed": self._seed, "chat_format": self.chat_format}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        state = "closed" if self._model.closed else f"n_ctx={self.n_ctx()}"
        return f"<llcuda.llama_cpp.Llama {self._model.path.name!r}: {state}>"


def _inputs(given: Any) -> list[str]:
    """Return the texts to embed as a list."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise wrong_value("input", given, "expected a text or a list of texts")
    return list(texts)


def _joined(name: str, given: Any, kind: Callable[[list[Any]], Any]) -> Any:
    """Return a caller's function, or a list of them as one; None for none."""
    functions = given if isinstance(given, list) else [] if given is None else [given]
    for function in functions:
        if not callable(function):
            raise wrong_value(name, function, "expected a function or a list of functions")
    return kind(functions) if isinstance(given, list) and given else given or None


def _token_limit(max_tokens: int | None) -> int | None:
    """Return the tokens that a caller asks for at most; None = what the context has room for."""
    if max_tokens is None:
        return None
    check_number("max_tokens", max_tokens, "int", -(2**31), 2**31 - 1)
    return int(max_tokens) if max_tokens > 0 else None


def _too_long(tokens: int, n_ctx: int) -> ContextLengthError:
    return ContextLengthError(
        f"prompt: has {tokens} tokens, prompt and answer may have {n_ctx}",
        parameter="prompt",
        remedy=LARGER,
    )


def _texts(stop: str | Sequence[str] | None) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop or ()


def _tools(
    functions: Sequence[Any] | None,
    function_call: str | Mapping[str, Any] | None,
    tools: Sequence[Any] | None,
    tool_choice: str | Mapping[str, Any] | None,
) -> tuple[Sequence[Any] | None, str | Mapping[str, Any] | None]:
    """Return tools and tool_choice, which may be given in OpenAI's older form."""
    if functions is not None:
        if tools is not None:
            raise wrong_argument("functions", "tools are given as well", "give one of them")
        tools = [{"type": "function", "function": function} for function in functions]
    if function_call is not None:
        if tool_choice is not None:
            raise wrong_argument("function_call", "tool_choice is given as well", "give one")
        named = isinstance(function_call, Mapping)
        tool_choice = {"type": "function", "function": function_call} if named else function_call
    return tools, tool_choice


def _match(repo: str, names: Sequence[str], pattern: str, parameter: str) -> str:
    """Return the one file of a repository that a pattern matches."""
    matches = [name for name in names if fnmatch.fnmatch(name, pattern)]
    first_parts = [name for name in matches if "-of-" not in name or "-00001-of-" in name]
    for candidates in (matches, first_parts):
        if len(candidates) == 1:
            return candidates[0]
    if not matches:
        raise ModelNotFoundError(
            f"{parameter}={pattern!r}: {repo} has no such file; it has {', '.join(names)}"
        )
    rule = f"{repo} has several such files: {', '.join(first_parts or matches)}"
    raise wrong_value(parameter, pattern, rule, "give a pattern that one file matches")


def _processing(process: LogitsProcessor, evaluation: Evaluation) -> steps.Python:
    """Return the step that gives all logits to a caller's function."""
    functions = SequenceFunctions(process, None)

    def apply(candidates: npt.NDArray[np.void]) -> None:
        logits = np.ascontiguousarray(candidates["logit"])
        functions.forget()  # the text may have become another one
        tokens = evaluation.text(evaluation.n_tokens + evaluation.row + 1)
        functions.process(tokens.tolist(), logits)
        candidates["logit"] = logits

    return steps.Python(apply)


def _masking(guide: Any, model: Model) -> steps.Python:
    """Return the step that forbids the tokens that a guide does."""
    state = TokenMaskState(guide, model.vocab_size)

    def apply(candidates: npt.NDArray[np.void]) -> None:
        [mask] = token_masks([state])
        if isinstance(mask, BaseException):
            raise mask
        if mask is not None:
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)
            candidates["logit"][~allowed[candidates["id"]]] = -np.inf

    def accept(token: int) -> None:
        if token not in model.eog_tokens:
            state.accept(token)

    return steps.Python(apply, accept)


CALLS["Llama()"] = own_names(Llama)
CALLS["create_completion()"] = own_names(Llama.create_completion)
CALLS["create_chat_completion()"] = own_names(Llama.create_chat_completion)
