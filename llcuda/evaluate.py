"""The quality of a model: perplexity on a text, divergence from a reference, importance matrices.

The text is split into chunks. Each is a text of its own, which begins with BOS if the model wants
it. As in llama.cpp's tools, only the second half of a chunk is scored, where every token has
context.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError, DecodeError, LoadCancelledError, UnsupportedError
from llcuda.keywords import EvaluationKeywords
from llcuda.native.context import Context
from llcuda.native.divergence import compare
from llcuda.native.model import Model
from llcuda.native.quantization.imatrix import Collector, ImportanceMatrix
from llcuda.params import check_flag, check_number, check_texts, default_threads, wrong_value

DEFAULT_CHUNK = 512  # tokens; published figures mostly have this size
MAX_LOGITS = 2**26  # values in memory at once, which take 256 MiB
MAX_BATCH = 2048  # tokens
PERCENTILES = (0.1, 1, 5, 10, 50, 90, 95, 99, 99.9)

Source = Model | str | os.PathLike[str]
Progress = Callable[[float], bool | None]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The perplexity of a model on a text: exp of the mean of -log p over the scored tokens.

    Attributes:
        value: The perplexity.
        error: One standard error of the value, as if tokens were independent.
        tokens: The number of scored tokens.
        chunks: The number of chunks.
        chunk: The tokens of a chunk.
    """

    value: float
    error: float
    tokens: int
    chunks: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """The Kullback-Leibler divergence of a model from a reference: sum p log(p / q).

    p are the probabilities of the reference, q those of the model. Errors are one standard error,
    as if tokens were independent.

    Attributes:
        perplexity: The perplexity of the model.
        reference: The perplexity of the reference.
        mean: The mean divergence of a token in nats.
        error: The error of `mean`.
        maximum: The largest divergence of a token.
        percentiles: Percentiles of the divergence of a token, by "0.1" to "99.9".
        same_best: The share of tokens at which both models find the same token most probable.
        same_best_error: The error of `same_best`.
        delta_p: The root mean square difference of the probability of the text's token.
        log_ratio: The logarithm of the model's perplexity over the reference's.
        log_ratio_error: The error of `log_ratio`.
    """

    perplexity: Perplexity
    reference: Perplexity
    mean: float
    error: float
    maximum: float
    percentiles: dict[str, float]
    same_best: float
    same_best_error: float
    delta_p: float
    log_ratio: float
    log_ratio_error: float


def perplexity(
    model: Source,
    text: str | bytes,
    *,
    chunk: int = DEFAULT_CHUNK,
    chunks: int | None = None,
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    **parameters: Unpack[EvaluationKeywords],
) -> Perplexity:
    """Return the perplexity of a model on a text.

    Args:
        model: A Model, or the path of its file.
        text: The text; bytes are UTF-8.
        chunk: Tokens of a chunk.
        chunks: Chunks to read at most; None is all.
        progress: Called with the share that is done, 0.0 to 1.0; False stops.
        gpu_layers: Layers on GPUs if `model` is a path; None is all, whether they fit or not.
        **parameters: Further fields of ContextParams, e.g. `threads`, `type_k` or
            `flash_attention`.

    Raises:
        ArgumentError: The text is shorter than a chunk.
        UnsupportedError: The model does not generate text.
        LoadCancelledError: `progress` returned False.
        DecodeError: The computation fails or gives values that are not numbers.
    """
    with ExitStack() as stack:
        loaded = _open(stack, model, gpu_layers)
        token_chunks = split_chunks(loaded, text, chunk, chunks)
        context = stack.enter_context(_context(loaded, chunk, parameters))
        logprobs = []
        for tokens in _with_progress(token_chunks, progress):
            for targets, indices in _decode(tokens, chunk // 2, context):
                logprobs += [logprob for logprob, _ in context.logprobs(targets, indices)]
    return _perplexity(np.array(logprobs), len(token_chunks), chunk)


def divergence(
    model: Source,
    reference: Source,
    text: str | bytes,
    *,
    chunk: int = DEFAULT_CHUNK,
    chunks: int | None = None,
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    **parameters: Unpack[EvaluationKeywords],
) -> Divergence:
    """Return the divergence of a model from a reference on a text.

    Both models are in memory at once and read the text chunk by chunk.

    Args:
        model: A Model, or the path of its file, e.g. a quantized one.
        reference: The reference, e.g. the same model before quantization.
        text: The text; bytes are UTF-8.
        chunk: Tokens of a chunk.
        chunks: Chunks to read at most; None is all.
        progress: Called with the share that is done, 0.0 to 1.0; False stops.
        gpu_layers: Layers on GPUs of a model given as a path; None is all, whether they fit or not.
        **parameters: Further fields of ContextParams, e.g. `threads`, `type_k` or
            `flash_attention`.

    Raises:
        ArgumentError: The text is shorter than a chunk, or the vocabularies differ.
        UnsupportedError: A model does not generate text.
        LoadCancelledError: `progress` returned False.
        DecodeError: The computation fails or gives values that are not numbers.
    """
    with ExitStack() as stack:
        loaded, loaded_reference = (
            _open(stack, source, gpu_layers) for source in (model, reference)
        )
        token_chunks = split_chunks(loaded, text, chunk, chunks)
        reference_chunks = split_chunks(loaded_reference, text, chunk, chunks)
        _check_vocabulary(loaded, loaded_reference, token_chunks == reference_chunks)
        contexts = (
            stack.enter_context(_context(loaded, chunk, parameters)),
            stack.enter_context(_context(loaded_reference, chunk, parameters)),
        )
        rows = np.concatenate(
            [
                compare(contexts, targets, indices)
                for tokens in _with_progress(token_chunks, progress)
                for targets, indices in _decode(tokens, chunk // 2, *contexts)
            ]
        )
    logprobs, reference_logprobs, divergences = (
        rows[name] for name in ("logprob", "reference_logprob", "divergence")
    )
    quantiles = np.percentile(divergences, PERCENTILES)
    return Divergence(
        perplexity=_perplexity(logprobs, len(token_chunks), chunk),
        reference=_perplexity(reference_logprobs, len(token_chunks), chunk),
        mean=float(divergences.mean()),
        error=_error(divergences),
        maximum=float(divergences.max()),
        percentiles={f"{p:g}": float(q) for p, q in zip(PERCENTILES, quantiles, strict=True)},
        same_best=float(rows["same_best"].mean()),
        same_best_error=_error(rows["same_best"].astype(float)),
        delta_p=float(np.sqrt(np.mean((np.exp(logprobs) - np.exp(reference_logprobs)) ** 2))),
        log_ratio=float((reference_logprobs - logprobs).mean()),
        log_ratio_error=_error(reference_logprobs - logprobs),
    )


def importance_matrix(
    model: Source,
    text: str | bytes,
    *,
    chunk: int = DEFAULT_CHUNK,
    chunks: int | None = None,
    output: bool = False,
    dataset: str = "",
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    **parameters: Unpack[EvaluationKeywords],
) -> ImportanceMatrix:
    """Return how much a model uses each column of its weights on a text.

    `llcuda.quantize` takes the result as `imatrix`. About 100 chunks of typical text are enough.

    Args:
        model: A Model, or the path of its file.
        text: The text; bytes are UTF-8.
        chunk: Tokens of a chunk.
        chunks: Chunks to read at most; None is all.
        output: Whether to measure the output matrix too.
        dataset: The source of the text, which the matrix's file names.
        progress: Called with the share that is done, 0.0 to 1.0; False stops.
        gpu_layers: Layers on GPUs if `model` is a path; None is all, whether they fit or not.
        **parameters: Further fields of ContextParams, e.g. `threads`.

    Raises:
        ArgumentError: The text is shorter than a chunk.
        UnsupportedError: The model does not generate text.
        LoadCancelledError: `progress` returned False.
    """
    check_flag("output", output)
    check_texts("dataset", [dataset])
    with ExitStack() as stack:
        loaded = _open(stack, model, gpu_layers)
        token_chunks = split_chunks(loaded, text, chunk, chunks)
        rows = min(chunk, MAX_BATCH, _max_rows(loaded))
        collector = Collector(
            loaded,
            output=output,
            ctx_size=chunk,
            batch_size=rows,
            outputs_max=rows,
            **_threads(parameters),
        )
        context = stack.enter_context(collector.context)
        for tokens in _with_progress(token_chunks, progress):
            context.memory.clear()
            for begin in range(0, chunk, rows):
                context.decode(tokens[begin : begin + rows], logits="all")
        entries = collector.entries()
    return ImportanceMatrix(entries, (dataset,) if dataset else (), len(token_chunks), chunk)


def split_chunks(
    model: Model, text: str | bytes, chunk: int = DEFAULT_CHUNK, chunks: int | None = None
) -> list[list[int]]:
    """Return the tokens of a text in chunks of equal size; an incomplete last one is dropped.

    Args:
        model: The model whose tokens they are.
        text: The text; bytes are UTF-8.
        chunk: Tokens of a chunk, at least 4.
        chunks: Chunks at most; None is all.

    Raises:
        ArgumentError: The text is shorter than a chunk.
        UnsupportedError: The model does not generate text.
    """
    check_number("chunk", chunk, "int", 4)
    if chunks is not None:
        check_number("chunks", chunks, "int", 1)
    facts = model.metadata
    causal = facts.get(f"{facts.get('general.architecture')}.attention.causal", "true")
    if model.has_encoder or not model.has_decoder or causal == "false":
        raise UnsupportedError(f"{model.path.name} does not generate text token by token")
    tokens = model.tokenize(text)
    if len(tokens) < chunk:
        rule = f"the text is shorter, {len(tokens)} tokens long; give a longer text"
        raise wrong_value("chunk", chunk, rule)
    begins = range(0, len(tokens) - chunk + 1, chunk)
    token_chunks = [tokens[begin : begin + chunk] for begin in begins][:chunks]
    if model.adds_bos and model.bos is not None:
        for tokens in token_chunks:
            tokens[0] = model.bos
    return token_chunks


def _open(stack: ExitStack, model: Source, gpu_layers: int | None) -> Model:
    if isinstance(model, Model):
        return model
    return stack.enter_context(Model(model, gpu_layers=gpu_layers))


def _max_rows(model: Model) -> int:
    """Return the number of tokens whose logits fit into memory at once."""
    return max(MAX_LOGITS // model.vocab_size, 1)


def _with_progress(
    token_chunks: Sequence[list[int]], progress: Progress | None
) -> Iterator[list[int]]:
    for i, tokens in enumerate(token_chunks, 1):
        yield tokens
        if progress is not None and progress(i / len(token_chunks)) is False:
            raise LoadCancelledError("progress() returned False")


def _context(model: Model, chunk: int, parameters: EvaluationKeywords) -> Context:
    batch_size = min(chunk, MAX_BATCH)
    defaults: dict[str, Any] = {
        "ctx_size": chunk,
        "batch_size": batch_size,
        "outputs_max": min(batch_size, _max_rows(model)),
    }
    return Context(model, **defaults, **_threads(parameters))


def _threads(parameters: EvaluationKeywords) -> dict[str, Any]:
    """Return the parameters with every processor, because batches are large."""
    threads = parameters.get("threads")
    return {"threads_batch": default_threads() if threads is None else threads, **parameters}


def _decode(tokens: list[int], first: int, *contexts: Context) -> Iterator[tuple[list[int], range]]:
    """Decode a chunk in all contexts, batch by batch.

    Yields:
        The tokens to score, which follow the rows from `first` on, and the indices of these rows.
    """
    for context in contexts:
        context.memory.clear()
    batch = contexts[0].params.batch_size
    outputs_max = min(context.params.outputs_max for context in contexts)
    begin, last = 0, len(tokens) - 1  # nothing follows the last token
    while begin <= last:
        start = max(first, begin)
        end = min(begin + batch, len(tokens), start + outputs_max)
        rows = range(start, min(end, last))
        for context in contexts:
            flags = [i in rows for i in range(begin, end)]
            context.decode_batch(tokens[begin:end], [0] * (end - begin), logits=flags)
        if rows:
            yield tokens[rows.start + 1 : rows.stop + 1], range(start - begin, rows.stop - begin)
        begin = end


def _check_vocabulary(model: Model, reference: Model, same_tokens: bool) -> None:
    sizes = model.vocab_size, reference.vocab_size
    if sizes[0] != sizes[1]:
        raise ArgumentError(
            f"the vocabularies differ: the model has {sizes[0]} tokens, the reference {sizes[1]}",
            parameter="reference",
        )
    tokens = range(sizes[0])
    texts = (loaded.detokenize(tokens, special=True) for loaded in (model, reference))
    if not same_tokens or next(texts) != next(texts):
        raise ArgumentError(
            "the vocabularies differ: the tokens of the reference stand for other text",
            parameter="reference",
        )


def _perplexity(logprobs: Float64, chunks: int, chunk: int) -> Perplexity:
    if np.isnan(logprobs).any():
        raise DecodeError("the model computes logits that are not numbers on this text")
    value = float(np.exp(-logprobs.mean()))
    return Perplexity(value, _error(logprobs) * value, len(logprobs), chunks, chunk)


def _error(values: Float64) -> float:
    """Return one standard error of the mean."""
    return float(values.std() / np.sqrt(max(len(values) - 1, 1)))
