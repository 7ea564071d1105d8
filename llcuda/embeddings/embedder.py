"""Embedding vectors of texts and scores of documents, many texts in one batch.

    with Model("bge-small-en-v1.5-q8_0.gguf") as model, Embedder(model) as embedder:
        vectors = embedder.embed(["a text", "another"])

A batch takes the longest texts first and fills its gaps with the shortest.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt

from llcuda._pickling import stays_in_process
from llcuda.embeddings.rerank import RerankPrompt
from llcuda.errors import (
    ArgumentError,
    ContextLengthError,
    DecodeError,
    ForkError,
    LlcudaError,
    UnsupportedError,
    is_of_one_text,
)
from llcuda.gguf_parser import GGUFReader
from llcuda.keywords import EmbedderKeywords, EmbedKeywords, check_keywords
from llcuda.native.callbacks import without_repeated_warnings
from llcuda.native.context import Context
from llcuda.native.library import close_at_exit
from llcuda.native.model import Model, check_model
from llcuda.native.prompt_length import is_far_too_long
from llcuda.params import (
    BATCH_SIZE,
    INT32_MAX,
    MAX_SEQUENCES,
    ON_ERROR,
    ContextParams,
    check_choice,
    check_flag,
    check_number,
    default_threads,
    wrong_value,
)

Float32 = npt.NDArray[np.float32]
Text = str | Sequence[int]

DEFAULT_CTX_SIZE = 2048
MAX_AT_ONCE = 2**16  # tokens of one step; their mask has the square of it, 8 GiB in F16
RESERVED = ("sequences", "ubatch_size", "outputs_max", "unified_kv", "embeddings", "device_logits")

_COMPUTE_SOFTMAX = ("qwen3", "qwen3vl")  # architectures whose graph ends with it


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors or scores, and the numbers of tokens they were computed from.

    Attributes:
        values: float32, a row for each text.
        token_counts: The number of tokens of each text.
    """

    values: Float32
    token_counts: tuple[int, ...]


@stays_in_process('llcuda.BatchProcessor(..., task="embed"), or the path of its model')
class Embedder:
    """Computes embeddings with a model, or the scores of a classifier.

    An Embedder has a context of its own, so its model may generate text at the same time. Several
    threads may call it; their calls alternate batch by batch.

    Args:
        model: The model.
        pooling: How the vector of a text comes from those of its tokens: "mean", "cls" (the
            first), "last", or "rank" for the scores of a classifier. None is the pooling that the
            model's file names.
        ctx_size: Tokens of a text at most. None is what the model was trained with, at most
            2,048.
        batch_size: Tokens of several texts that are computed at once at most. A longer text is
            computed alone.
        **parameters: Further fields of ContextParams, e.g. `threads` or `flash_attention`.

    Attributes:
        model: The model.
        ctx_size: Tokens of a text at most.
        batch_size: Tokens of several texts in one batch at most.
        pooling: The pooling in use.
        size: The numbers in a vector, or the classes of a classifier.
        labels: The names of a classifier's classes; empty for embeddings.

    Raises:
        ArgumentError: The model's file names no pooling and none is given, or pooling="rank" is
            given for a model without a classifier, or a parameter is out of range.
        UnsupportedError: The model is an encoder-decoder model.
    """

    def __init__(
        self,
        model: Model,
        *,
        pooling: str | None = None,
        ctx_size: int | None = None,
        batch_size: int = BATCH_SIZE,
        **parameters: Unpack[EmbedderKeywords],
    ) -> None:
        context_params: dict[str, Any] = {**parameters}
        for name in RESERVED:
            if name in context_params:
                raise wrong_value(name, context_params[name], "an Embedder chooses that itself")
        check_keywords(context_params, Embedder, ContextParams)
        check_model(model)
        if model.has_encoder:
            raise UnsupportedError(f"{model.path.name}: encoder-decoder models are not supported")
        check_number("batch_size", batch_size, "int", 1, 2**20)
        self.model = model
        self.ctx_size = max_tokens(model, ctx_size)
        self.batch_size = batch_size
        if context_params.get("threads") is None:
            context_params.setdefault("threads_batch", default_threads())
        context_params |= {"pooling": pooling, "embeddings": True}
        self.pooling, self._needs_last_token_only = _pooling(model, context_params)
        self.labels = model.labels if self.pooling == "rank" else []
        self.size = len(self.labels) or model.embedding_size
        if not self._needs_last_token_only:
            for name, size in (("ctx_size", self.ctx_size), ("batch_size", batch_size)):
                check_number(name, size, "int", 1, MAX_AT_ONCE)
        # Every sequence of a recurrent model has a state, and takes part in each micro-batch.
        one_by_one = model.is_recurrent or model.is_hybrid
        one_by_one |= bool(context_params.get("batch_invariant"))
        self._max_sequences = 1 if one_by_one else min(MAX_SEQUENCES, batch_size)
        longest = max(batch_size, self.ctx_size)
        width = batch_size if self._needs_last_token_only else longest
        self._context = Context(
            model,
            ctx_size=-(-longest // self._max_sequences),
            sequences=self._max_sequences,
            batch_size=width,
            ubatch_size=width,
            outputs_max=self._max_sequences if self._needs_last_token_only else 0,
            **context_params,
        )
        self._rerank_prompt = RerankPrompt(model, self.ctx_size)
        self._lock = threading.Lock()
        self._process = os.getpid()
        close_at_exit(self)

    # --- embeddings ---

    @overload
    def embed(
        self,
        texts: str | Sequence[Text],
        *,
        on_error: Literal["raise"] = "raise",
        **keywords: Unpack[EmbedKeywords],
    ) -> Float32: ...

    @overload
    def embed(
        self,
        texts: Sequence[Text],
        *,
        on_error: Literal["return"],
        **keywords: Unpack[EmbedKeywords],
    ) -> list[Float32 | LlcudaError]: ...

    def embed(
        self,
        texts: str | Sequence[Text],
        *,
        normalize: bool = True,
        truncate: bool = False,
        dimensions: int | None = None,
        parse_special: bool = True,
        on_error: str = "raise",
    ) -> Any:
        """Return the vectors of texts.

        Args:
            texts: Texts, or lists of tokens, which are used unchanged; or one text.
            normalize: Whether to divide each vector by its length.
            truncate: Whether to drop the end of a text with more than `ctx_size` tokens. Without,
                such a text is an error.
            dimensions: How many of the first numbers of each vector to return, for a model that
                was trained for that. None is all.
            parse_special: Whether a control token written in a text, for example [SEP], is read
                as that token, as transformers does. False reads it as text.
            on_error: What becomes of the error of one text. "raise": it is raised. "return": the
                result is a list, in which the error stands in the place of the vector. An error
                that concerns every text is raised in any case.

        Returns:
            float32, shape (len(texts), dimensions or size), in the order of the texts; of one
            text, shape (dimensions or size,).

        Raises:
            ArgumentError: A text is empty or too long, found before anything is computed, or the
                model gives scores.
            DecodeError: The computation fails or gives values that are not numbers.
        """
        check_choice("on_error", on_error, ON_ERROR)
        alone = isinstance(texts, str)
        if on_error == "return":
            self._check_embeds(normalize, dimensions)
            if alone:
                rule = "has one result, which is raised"
                raise wrong_value("on_error", on_error, rule, "give a list of texts")
            rows, errors = self._compute_each(texts, truncate, parse_special)
            vectors: list[Any] = list(self._vectors(rows, normalize, dimensions))
            for i, error in errors.items():
                vectors[i] = error
            return vectors
        values = self.embed_counted(
            [texts] if isinstance(texts, str) else texts,
            normalize=normalize,
            truncate=truncate,
            dimensions=dimensions,
            parse_special=parse_special,
        ).values
        return values[0] if alone else values

    def embed_counted(
        self,
        texts: Sequence[Text],
        *,
        normalize: bool = True,
        truncate: bool = False,
        dimensions: int | None = None,
        parse_special: bool = True,
    ) -> EmbeddingResult:
        """Return the vectors of texts and the numbers of their tokens; see `embed`."""
        self._check_embeds(normalize, dimensions)
        result = self._compute(self._tokenize(texts, truncate, parse_special))
        vectors = self._vectors(result.values, normalize, dimensions)
        return EmbeddingResult(vectors, result.token_counts)

    def _check_embeds(self, normalize: bool, dimensions: int | None) -> None:
        if self.pooling == "rank":
            raise ArgumentError(
                f"{self.model.path.name} gives scores, not embeddings",
                remedy="use rerank() or classify()",
            )
        check_flag("normalize", normalize)
        if dimensions is not None:
            check_number("dimensions", dimensions, "int", 1, self.size)

    def _vectors(self, values: Float32, normalize: bool, dimensions: int | None) -> Float32:
        vectors = values[:, :dimensions]
        return _unit(vectors) if normalize else vectors

    # --- scores ---

    def rerank(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> Float32:
        """Return how well each document answers a query.

        Higher is better; the range of the scores depends on the model. Of several classes the
        first, "yes", counts. Control tokens written in the texts are read as text.

        Args:
            query: The query.
            documents: The documents.
            truncate: Whether to drop the end of a document that does not fit into `ctx_size`
                tokens with the query. Without, such a document is an error.

        Returns:
            float32, shape (len(documents),), in the order of the documents.

        Raises:
            ArgumentError: The model is not a reranker, or a document is too long.
            DecodeError: The computation fails or gives values that are not numbers.
        """
        return self.rerank_counted(query, documents, truncate=truncate).values

    def rerank_counted(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> EmbeddingResult:
        """Return the scores of documents and the tokens of each with the query; see `rerank`."""
        self._check_classifier("rerank")
        check_flag("truncate", truncate)
        result = self._compute(self._rerank_prompt.tokenize(query, documents, truncate))
        return EmbeddingResult(result.values[:, 0].copy(), result.token_counts)

    def classify(
        self, texts: Sequence[Text], *, truncate: bool = False, parse_special: bool = True
    ) -> Float32:
        """Return a classifier's scores of texts.

        Args:
            texts: Texts, or lists of tokens, which are used unchanged.
            truncate: Whether to drop the end of a text with more than `ctx_size` tokens.
            parse_special: As `embed` takes it.

        Returns:
            float32, shape (len(texts), len(labels)).

        Raises:
            ArgumentError: The model is not a classifier, or a text is empty or too long.
            DecodeError: The computation fails or gives values that are not numbers.
        """
        return self.classify_counted(texts, truncate=truncate, parse_special=parse_special).values

    def classify_counted(
        self, texts: Sequence[Text], *, truncate: bool = False, parse_special: bool = True
    ) -> EmbeddingResult:
        """Return a classifier's scores of texts and the numbers of their tokens; see `classify`."""
        self._check_classifier("classify")
        return self._compute(self._tokenize(texts, truncate, parse_special))

    def probabilities(self, scores: Float32) -> Float32:
        """Return the probabilities that the scores of `classify` or `rerank` stand for.

        A single class has the logistic function of its score, several have the softmax. The graph
        of Qwen3's rerankers has computed it already.

        Args:
            scores: A row of classes for each text, or the first class of each.

        Returns:
            float32 from 0 to 1, of the shape of `scores`.
        """
        classes = len(self.model.labels)
        if classes > 1 and self.model.metadata.get("general.architecture") in _COMPUTE_SOFTMAX:
            return scores
        if classes < 2 or scores.ndim == 1:
            return np.asarray((1 + np.tanh(scores / 2)) / 2, dtype=np.float32)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def _check_classifier(self, method: str) -> None:
        if self.pooling != "rank":
            raise ArgumentError(
                f"{method}: needs a rerank model or another classifier; {self.model.path.name} "
                f"gives embeddings (pooling {self.pooling!r})"
            )

    # --- from tokens to rows ---

    def _tokenize(
        self, texts: Sequence[Text], truncate: bool, parse_special: bool
    ) -> list[list[int]]:
        """Return the tokens of each text; raise ArgumentError for one with none or too many."""
        sequences = []
        for tokens in self._tokenize_each(texts, truncate, parse_special):
            if isinstance(tokens, ArgumentError):
                raise tokens
            sequences.append(tokens)
        return sequences

    def _tokenize_each(
        self, texts: Sequence[Text], truncate: bool, parse_special: bool
    ) -> Iterator[list[int] | ArgumentError]:
        """Yield the tokens of each text, or why it has none."""
        check_flag("truncate", truncate)
        check_flag("parse_special", parse_special)
        if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
            raise ArgumentError(
                f"texts must be a list of texts, not {type(texts).__name__}", parameter="texts"
            )
        for i, text in enumerate(texts):
            try:
                yield self._tokenize_one(text, truncate, parse_special)
            except ArgumentError as error:
                yield error.within(f"texts[{i}]")

    def _tokenize_one(self, text: Text, truncate: bool, parse_special: bool) -> list[int]:
        if isinstance(text, str):
            if not truncate and is_far_too_long(self.model, text, self.ctx_size, parse_special):
                raise self._too_long(f"more than {2 * self.ctx_size}")
            tokens = self.model.tokenize(text, parse_special=parse_special)
        else:
            tokens = self.model.token_list(text, "text")
        if not tokens:
            raise ArgumentError("is empty, and the model adds no tokens around a text")
        if len(tokens) > self.ctx_size:
            if not truncate:
                raise self._too_long(len(tokens))
            tokens = self._rerank_prompt.cut(tokens)
        return tokens

    def _too_long(self, tokens: int | str) -> ArgumentError:
        return ContextLengthError(
            f"has {tokens} tokens, at most {self.ctx_size} are allowed",
            remedy="truncate=True drops its end, an Embedder with a larger ctx_size may take it "
            "whole",
            tokens=tokens,
            limit=self.ctx_size,
        )

    def _compute(self, sequences: list[list[int]]) -> EmbeddingResult:
        """Compute the row of each sequence, batch by batch."""
        values = np.empty((len(sequences), self.size), dtype=np.float32)
        lengths = [len(tokens) for tokens in sequences]
        for batch in pack_batches(lengths, self.batch_size, self._max_sequences):
            self._compute_batch([sequences[i] for i in batch], batch, values)
        for row in _rows_of_no_numbers(values):
            raise self._not_numbers(row)
        return EmbeddingResult(values, tuple(lengths))

    def _compute_each(
        self, texts: Sequence[Text], truncate: bool, parse_special: bool
    ) -> tuple[Float32, dict[int, LlcudaError]]:
        """Compute the rows of texts.

        Returns:
            A row for each text, without values for one that has none; and why, by its index.
        """
        sequences: list[list[int]] = []
        errors: dict[int, LlcudaError] = {}
        for i, tokens in enumerate(self._tokenize_each(texts, truncate, parse_special)):
            if isinstance(tokens, ArgumentError):
                errors[i] = tokens
            sequences.append([] if isinstance(tokens, ArgumentError) else tokens)
        values = np.zeros((len(sequences), self.size), dtype=np.float32)
        computed = [i for i in range(len(sequences)) if i not in errors]
        lengths = [len(sequences[i]) for i in computed]
        for places in pack_batches(lengths, self.batch_size, self._max_sequences):
            batch = [computed[place] for place in places]
            try:
                self._compute_batch([sequences[i] for i in batch], batch, values)
            except LlcudaError as error:
                if not is_of_one_text(error):
                    raise
                for i in batch:
                    errors[i] = error.with_traceback(None)
                    values[i] = 0
        errors |= {row: self._not_numbers(row) for row in _rows_of_no_numbers(values)}
        return values, errors

    def _not_numbers(self, row: int) -> DecodeError:
        return DecodeError(
            f"{self.model.path.name} computed values that are not numbers for texts[{row}]: its "
            "weights are damaged, or too large for the type they are computed in"
        )

    def _compute_batch(self, sequences: list[list[int]], rows: list[int], values: Float32) -> None:
        """Compute sequences in one batch, and write the results to these rows of `values`."""
        if os.getpid() != self._process:
            raise ForkError("this Embedder was made before the fork of this process")
        with self._lock:
            context = self._context
            if context.failed:  # in a batch before, whose caller was told
                context.renew()
            if context.remembers:
                context.memory.clear(data=False)
            if self._needs_last_token_only:
                context.set_embeddings(False)
                self._decode_all_but_last(sequences)
                context.set_embeddings(True)
                sequences = [tokens[-1:] for tokens in sequences]
            context.decode_batch(
                [token for tokens in sequences for token in tokens],
                [seq for seq, tokens in enumerate(sequences) for _ in tokens],
            )
            for seq, row in enumerate(rows):
                values[row] = context.sequence_embedding(seq)

    def _decode_all_but_last(self, sequences: list[list[int]]) -> None:
        """Compute all tokens but the last of each sequence, without outputs."""
        if len(sequences) == 1:
            if len(sequences[0]) > 1:  # decode() splits a long sequence into several batches
                self._context.decode(sequences[0][:-1], logits="none")
            return
        tokens = [token for tokens in sequences for token in tokens[:-1]]
        seqs = [seq for seq, tokens in enumerate(sequences) for _ in tokens[:-1]]
        if tokens:
            self._context.decode_batch(tokens, seqs, logits=[False] * len(tokens))

    # --- lifetime ---

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._context.closed

    def close(self) -> None:
        """Free the memory after the running batch; calls that continue raise ClosedError."""
        if os.getpid() == self._process:
            with self._lock:
                self._context.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def pack_batches(
    lengths: Sequence[int], max_tokens: int, max_sequences: int
) -> Iterator[list[int]]:
    """Yield the indices of the sequences in each batch, the longest first.

    Args:
        lengths: The tokens of each sequence.
        max_tokens: Tokens of a batch at most. A longer sequence has a batch of its own.
        max_sequences: Sequences of a batch at most.
    """
    remaining = deque(sorted(range(len(lengths)), key=lambda i: -lengths[i]))
    while remaining:
        batch = [remaining.popleft()]
        room = max_tokens - lengths[batch[0]]
        while remaining and len(batch) < max_sequences and lengths[remaining[-1]] <= room:
            longest_fits = lengths[remaining[0]] <= room
            i = remaining.popleft() if longest_fits else remaining.pop()
            batch.append(i)
            room -= lengths[i]
        yield batch


def max_tokens(model: Model, ctx_size: int | None) -> int:
    """Return the tokens of a text at most; the model may have a table of learned positions."""
    if ctx_size is None:
        return min(model.max_positions, model.train_ctx_size or DEFAULT_CTX_SIZE, DEFAULT_CTX_SIZE)
    check_number("ctx_size", ctx_size, "int", 1, INT32_MAX)
    if ctx_size > model.max_positions:
        rule = f"{model.path.name} has positions for {model.max_positions} tokens"
        raise wrong_value("ctx_size", ctx_size, rule)
    return ctx_size


def _pooling(model: Model, parameters: dict[str, Any]) -> tuple[str, bool]:
    """Return the pooling, and whether only the last token of a text needs outputs.

    A small context tells, because llama.cpp decides by the model's file and `parameters`.
    """
    small = ContextParams(ctx_size=32, batch_size=32, ubatch_size=32, **parameters)
    with without_repeated_warnings(), Context(model, params=small) as context:
        pooling, can_split = context.pooling, not context.whole_texts
    if pooling == "none" and parameters["pooling"] is None:
        raise ArgumentError(
            f"{model.path.name} names no pooling, so it was trained neither to embed nor to rerank",
            parameter="pooling",
            remedy="pooling='mean' or 'last' (llcuda serve --pooling) gives vectors all the same",
        )
    if pooling == "none":
        rule = "gives a vector for each token"
        raise wrong_value("pooling", pooling, rule, "use a Context with embeddings=True")
    if pooling == "rank":
        _check_rank_head(model)
    architecture = model.metadata.get("general.architecture", "")
    by_mean = f"{architecture}.classifier.pooling_type" in model.metadata
    return pooling, can_split and (pooling == "last" or (pooling == "rank" and not by_mean))


def classifier_layers(path: Path) -> list[str]:
    """Return the tensors of a file's classifier.

    Raises:
        ArgumentError: The file has no classifier.
    """
    with GGUFReader(path) as reader:
        layers = [name for name in reader.tensors if name.startswith("cls.")]
    if not layers:
        rule = f"{path.name} has no classifier, so it gives no scores"
        raise wrong_value("pooling", "rank", rule)
    return layers


def _check_rank_head(model: Model) -> None:
    """Raise ArgumentError for a file without a classifier, or with more classes than results."""
    layers = classifier_layers(model.path)
    if "cls.output.weight" not in layers and len(model.labels) > model.embedding_size:
        raise ArgumentError(
            f"{model.path.name} contradicts itself: {len(model.labels)} classes, and a classifier "
            f"with {model.embedding_size} results"
        )


def _rows_of_no_numbers(values: Float32) -> list[int]:
    """Return the rows with infinite values, or with NaN."""
    rows: list[int] = np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
    return rows


def _unit(vectors: Float32) -> Float32:
    """Return the vectors divided by their lengths; a vector of zeros stays zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    lengths[lengths == 0] = 1
    return np.asarray(vectors / lengths[:, None], dtype=np.float32)
