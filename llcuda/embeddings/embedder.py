"""Texts to vectors, and documents to scores: many texts in one batch, whatever their lengths.

    with Model("bge-small-en-v1.5-q8_0.gguf") as model, Embedder(model) as embedder:
        vectors = embedder.embed(["a text", "another"])

The tokens of several texts make a full batch: the longest texts first, the shortest in the gaps.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.embeddings.rerank import Pairs
from llcuda.errors import ArgumentError, DecodeError, ForkError, UnsupportedError
from llcuda.gguf_parser import GGUFReader
from llcuda.native.callbacks import repeats_unsaid
from llcuda.native.context import Context
from llcuda.native.model import Model
from llcuda.params import INT32_MAX, ContextParams, check_number, default_threads

Float32 = npt.NDArray[np.float32]
Text = str | Sequence[int]

DEFAULT_CTX_SIZE = 2048
MOST_TEXTS = 256  # sequences of one context
CHOSEN = ("sequences", "ubatch_size", "outputs_max", "unified_kv", "embeddings", "device_logits")


@dataclass(frozen=True, slots=True)
class Counted:
    """What was computed, a row for each text, and how many tokens each text had."""

    values: Float32
    tokens: tuple[int, ...]


class Embedder:
    """Computes embeddings, or the scores of a classifier, with `model`; any thread may call it.

    pooling: how a text's vector comes from those of its tokens: "mean", "cls" (the first), "last",
        or "rank" for a classifier's scores; None = as the model's file says.
    ctx_size: most tokens of a text; None = as many as the model was trained on, at most 2,048.
    batch_size: most tokens of several texts that are computed at once; a longer text goes alone.
    parameters: further fields of ContextParams.
    size: numbers of a vector, or classes. labels: the names of a classifier's classes.

    A context of its own: a model may generate text meanwhile. Calls take turns, batch by batch.
    Raises ArgumentError for a model whose file names no pooling, where none is given, and for
    pooling="rank" without a classifier; UnsupportedError for encoder-decoder models.
    """

    def __init__(
        self,
        model: Model,
        *,
        pooling: str | None = None,
        ctx_size: int | None = None,
        batch_size: int = 512,
        **parameters: Any,
    ) -> None:
        for name in CHOSEN:
            if name in parameters:
                raise ArgumentError(
                    f"{name}={parameters[name]!r}: an Embedder chooses that itself", parameter=name
                )
        if not isinstance(model, Model):
            raise ArgumentError(f"model={model!r}: expected a Model", parameter="model")
        if model.has_encoder:
            raise UnsupportedError(f"{model.path.name}: encoder-decoder models are not supported")
        check_number("batch_size", batch_size, "int", 1, 2**20)
        self.model = model
        self.ctx_size = _most_tokens(model, ctx_size)
        self.batch_size = batch_size
        if parameters.get("threads") is None:
            parameters.setdefault("threads_batch", default_threads())
        parameters |= {"pooling": pooling, "embeddings": True}
        self.pooling, self._splits = _kind(model, parameters)
        self.labels = model.labels if self.pooling == "rank" else []
        self.size = len(self.labels) or model.embedding_size
        # Every sequence of a recurrent model has a state, and takes part in each micro-batch.
        several = not (model.is_recurrent or model.is_hybrid)
        self._most_texts = min(MOST_TEXTS, batch_size) if several else 1
        longest = max(batch_size, self.ctx_size)
        width = batch_size if self._splits else longest
        self._context = Context(
            model,
            ctx_size=-(-longest // self._most_texts),
            sequences=self._most_texts,
            batch_size=width,
            ubatch_size=width,
            outputs_max=self._most_texts if self._splits else 0,
            **parameters,
        )
        self._pairs = Pairs(model, self.ctx_size)
        self._lock = threading.Lock()
        self._process = os.getpid()
        _close_at_exit(self)

    # --- embeddings ---

    def embed(
        self,
        texts: Sequence[Text],
        *,
        normalize: bool = True,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> Float32:
        """Return the vectors of `texts` in their order: float32, shape (len(texts), size).

        texts: each a text, or its tokens, which are taken as they are.
        normalize: divide each vector by its length. dimensions: only so many first numbers, for
            models that were trained for that.
        truncate: drop the end of a text with more than ctx_size tokens, which else is an error.
        Raises ArgumentError, naming the text, before anything is computed; DecodeError.
        """
        return self.embed_counted(
            texts, normalize=normalize, truncate=truncate, dimensions=dimensions
        ).values

    def embed_counted(
        self,
        texts: Sequence[Text],
        *,
        normalize: bool = True,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> Counted:
        """Return what `embed` returns, and how many tokens each text had."""
        if self.pooling == "rank":
            raise ArgumentError(
                f"{self.model.path.name} gives scores, no embeddings: use rerank() or classify()"
            )
        if dimensions is not None:
            check_number("dimensions", dimensions, "int", 1, self.size)
        counted = self._run(self._tokens(texts, truncate))
        vectors = counted.values[:, :dimensions]
        return Counted(_unit(vectors) if normalize else vectors, counted.tokens)

    # --- scores ---

    def rerank(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> Float32:
        """Return how well each document answers `query`: float32, shape (len(documents),).

        The scores are the model's own: higher is better, and their range is the model's matter (of
        several classes the first, "yes", counts). Nothing in the texts is read as a control token.
        truncate: drop the end of a document that does not fit into ctx_size tokens with the query.
        Raises ArgumentError for a model that is no reranker.
        """
        return self.rerank_counted(query, documents, truncate=truncate).values

    def rerank_counted(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> Counted:
        """Return what `rerank` returns, and how many tokens each pair had."""
        self._check_classifier("rerank")
        counted = self._run(self._pairs.tokens(query, documents, truncate))
        return Counted(counted.values[:, 0].copy(), counted.tokens)

    def classify(self, texts: Sequence[Text], *, truncate: bool = False) -> Float32:
        """Return a classifier's scores: float32, shape (len(texts), len(labels))."""
        self._check_classifier("classify")
        return self._run(self._tokens(texts, truncate)).values

    def _check_classifier(self, what: str) -> None:
        if self.pooling != "rank":
            raise ArgumentError(
                f"{what}() needs a rerank model or another classifier; {self.model.path.name} "
                f"gives embeddings (pooling {self.pooling!r})"
            )

    # --- from tokens to rows ---

    def _tokens(self, texts: Sequence[Text], truncate: bool) -> list[list[int]]:
        """Return the tokens of each text; ArgumentError for one that has none, or too many."""
        if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
            raise ArgumentError(
                f"texts must be a list of texts, not {type(texts).__name__}", parameter="texts"
            )
        found = []
        for i, text in enumerate(texts):
            try:
                found.append(self._fitting(text, truncate))
            except ArgumentError as error:
                raise ArgumentError(
                    f"texts[{i}]: {error.problem}", parameter=f"texts[{i}]", remedy=error.remedy
                ) from error
        return found

    def _fitting(self, text: Text, truncate: bool) -> list[int]:
        if isinstance(text, str):
            tokens = self.model.tokenize(text)
        else:
            tokens = self.model.token_list(text, "text")
        if not tokens:
            raise ArgumentError("is empty, and the model puts no token of its own around a text")
        if len(tokens) > self.ctx_size:
            if not truncate:
                raise ArgumentError(
                    f"has {len(tokens)} tokens, at most {self.ctx_size} are allowed",
                    remedy="truncate=True drops its end, an Embedder with a larger ctx_size may "
                    "take it whole",
                )
            tokens = self._pairs.cut(tokens)
        return tokens

    def _run(self, texts: list[list[int]]) -> Counted:
        """Compute the row of each text, pack by pack."""
        values = np.empty((len(texts), self.size), dtype=np.float32)
        lengths = [len(tokens) for tokens in texts]
        for pack in packs(lengths, self.batch_size, self._most_texts):
            self._compute([texts[i] for i in pack], pack, values)
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise DecodeError(
                f"{self.model.path.name} computed no number for texts[{int(finite.argmin())}]: "
                "its weights are damaged, or too large for the type they are computed in"
            )
        return Counted(values, tuple(lengths))

    def _compute(self, texts: list[list[int]], rows: list[int], values: Float32) -> None:
        """Compute `texts` in one batch, and write their results to these rows of `values`."""
        if os.getpid() != self._process:
            raise ForkError("this Embedder was made before the fork of this process")
        with self._lock:
            context = self._context
            if context.remembers:
                context.memory.clear(data=False)
            if self._splits:
                context.set_embeddings(False)
                self._decode_beginnings(texts)
                context.set_embeddings(True)
                texts = [tokens[-1:] for tokens in texts]
            context.decode_batch(
                [token for tokens in texts for token in tokens],
                [seq for seq, tokens in enumerate(texts) for _ in tokens],
            )
            for seq, row in enumerate(rows):
                values[row] = context.sequence_embedding(seq)

    def _decode_beginnings(self, texts: list[list[int]]) -> None:
        """Compute all but the last token of each text, whose outputs nobody needs."""
        if len(texts) == 1:
            if len(texts[0]) > 1:  # of any length: split over several batches
                self._context.decode(texts[0][:-1], logits="none")
            return
        tokens = [token for tokens in texts for token in tokens[:-1]]
        seqs = [seq for seq, tokens in enumerate(texts) for _ in tokens[:-1]]
        if tokens:
            self._context.decode_batch(tokens, seqs, logits=[False] * len(tokens))

    # --- life ---

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._context.closed

    def close(self) -> None:
        """Free the memory when the batch that runs is done; calls that go on get ClosedError."""
        if os.getpid() == self._process:
            with self._lock:
                self._context.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_open: weakref.WeakSet[Embedder] = weakref.WeakSet()


def _close_at_exit(embedder: Embedder) -> None:
    """Have `embedder` closed before Python frees what a daemon thread may be computing with.

    The C objects' finalizers hang on one exit function, registered with the first of them; exit
    functions run in reverse, so ours, registered anew, comes before it.
    """
    _open.add(embedder)
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for embedder in list(_open):
        embedder.close()


def packs(lengths: Sequence[int], most_tokens: int, most_texts: int) -> Iterator[list[int]]:
    """Yield the indices of the texts of each batch: the longest, and what fits beside them.

    A text with more than `most_tokens` is a batch of its own.
    """
    left = deque(sorted(range(len(lengths)), key=lambda i: -lengths[i]))
    while left:
        pack = [left.popleft()]
        room = most_tokens - lengths[pack[0]]
        while left and len(pack) < most_texts and lengths[left[-1]] <= room:
            i = left.popleft() if lengths[left[0]] <= room else left.pop()
            pack.append(i)
            room -= lengths[i]
        yield pack


def _most_tokens(model: Model, ctx_size: int | None) -> int:
    """Return the most tokens of a text; ArgumentError beyond a table of learned positions."""
    if ctx_size is None:
        return min(model.most_positions, model.train_ctx_size or DEFAULT_CTX_SIZE, DEFAULT_CTX_SIZE)
    check_number("ctx_size", ctx_size, "int", 1, INT32_MAX)
    if ctx_size > model.most_positions:
        raise ArgumentError(
            f"ctx_size={ctx_size}: {model.path.name} has positions for {model.most_positions} "
            "tokens",
            parameter="ctx_size",
        )
    return ctx_size


def _kind(model: Model, parameters: dict[str, Any]) -> tuple[str, bool]:
    """Return the pooling, and whether only a text's last token needs outputs.

    What llama.cpp makes of the model's file and of `parameters` a small context shows.
    """
    small = ContextParams(ctx_size=32, batch_size=32, ubatch_size=32, **parameters)
    with repeats_unsaid(), Context(model, params=small) as context:
        pooling, splits = context.pooling, not context.whole_texts
    name = model.path.name
    if pooling == "none":
        raise ArgumentError(
            f"{name} names no pooling, so it was trained neither to embed nor to rerank: "
            "pooling='mean' or 'last' (llcuda serve --pooling) has vectors of it all the same"
            if parameters["pooling"] is None
            else "pooling='none' gives a vector for each token: a Context with embeddings=True does"
        )
    if pooling == "rank":
        _check_classifier(model)
    architecture = model.metadata.get("general.architecture", "")
    by_mean = f"{architecture}.classifier.pooling_type" in model.metadata
    return pooling, splits and (pooling == "last" or (pooling == "rank" and not by_mean))


def _check_classifier(model: Model) -> None:
    """Raise ArgumentError for a file without a classifier, or with more classes than it has."""
    with GGUFReader(model.path) as reader:
        layers = [name for name in reader.tensors if name.startswith("cls.")]
    if not layers:
        raise ArgumentError(f"{model.path.name} has no classifier, so it gives no scores")
    if "cls.output.weight" not in layers and len(model.labels) > model.embedding_size:
        raise ArgumentError(
            f"{model.path.name} contradicts itself: {len(model.labels)} classes, and a classifier "
            f"with {model.embedding_size} results"
        )


def _unit(vectors: Float32) -> Float32:
    """Return the vectors divided by their lengths; a vector of zeros stays one."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    lengths[lengths == 0] = 1
    return np.asarray(vectors / lengths[:, None], dtype=np.float32)
