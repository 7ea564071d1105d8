"""How good a model file is: perplexity on a text, divergence from a reference, what matters in it.

The text is cut into chunks, each a text of its own that begins with BOS where the model wants one.
As llama.cpp's tools do, only the second half of a chunk is scored: there every token has
something to follow from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError, DecodeError, LoadCancelledError, UnsupportedError
from llcuda.native.context import Context
from llcuda.native.divergence import compare
from llcuda.native.model import Model
from llcuda.native.quantization.imatrix import Collector, ImportanceMatrix
from llcuda.params import check_number, default_threads

CHUNK = 512  # tokens; figures of others are mostly of these
LOGITS = 2**26  # numbers in memory at once: 256 MiB
BATCH = 2048  # tokens
PERCENTILES = (0.1, 1, 5, 10, 50, 90, 95, 99, 99.9)

Source = Model | str | os.PathLike[str]
Progress = Callable[[float], bool | None]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean of -log p, over `tokens` tokens of `chunks` chunks.

    error: one standard error of the value, as if tokens were independent.
    """

    value: float
    error: float
    tokens: int
    chunks: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's probabilities are from a reference's, which are p in sum p log(p / q).

    mean, error: of the divergence of a token, in nats; percentiles: of its distribution, by
    "0.1" to "99.9"; maximum. same_best: the share of tokens for which both find the same token
    most probable; same_best_error. delta_p: root of the mean square of the difference in the
    text's token's probability. log_ratio, log_ratio_error: of both perplexities.
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
    chunk: int = CHUNK,
    chunks: int | None = None,
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    **parameters: Any,
) -> Perplexity:
    """Return the perplexity of `model` on `text`.

    model: a Model, or its file, loaded with `gpu_layers`. chunk: tokens; chunks: how many at most.
    progress: called with the share that is done; False stops (LoadCancelledError).
    parameters: further ones of Context, e.g. threads, type_k, flash_attention.

    Raises ArgumentError for a text shorter than a chunk, UnsupportedError for a model that does
    not continue texts.
    """
    with ExitStack() as stack:
        loaded = _open(stack, model, gpu_layers)
        parts = cut(loaded, text, chunk, chunks)
        context = stack.enter_context(_context(loaded, chunk, parameters))
        scores = []
        for part in _counted(parts, progress):
            for tokens, indices in _decode(part, chunk // 2, context):
                scores += [value for value, _ in context.logprobs(tokens, indices)]
    return _perplexity(np.array(scores), len(parts), chunk)


def divergence(
    model: Source,
    reference: Source,
    text: str | bytes,
    *,
    chunk: int = CHUNK,
    chunks: int | None = None,
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    **parameters: Any,
) -> Divergence:
    """Return how far `model` is from `reference` on `text`, chunk by chunk in both at once.

    Parameters and errors as of `perplexity`; ArgumentError too for different vocabularies.
    """
    with ExitStack() as stack:
        ours, theirs = (_open(stack, source, gpu_layers) for source in (model, reference))
        parts = cut(ours, text, chunk, chunks)
        _check_vocabulary(ours, theirs, parts == cut(theirs, text, chunk, chunks))
        contexts = (
            stack.enter_context(_context(ours, chunk, parameters)),
            stack.enter_context(_context(theirs, chunk, parameters)),
        )
        rows = np.concatenate(
            [
                compare(contexts, tokens, indices)
                for part in _counted(parts, progress)
                for tokens, indices in _decode(part, chunk // 2, *contexts)
            ]
        )
    logprobs, bases, divergences = (
        rows[name] for name in ("logprob", "reference_logprob", "divergence")
    )
    same = float(rows["same_best"].mean())
    quantiles = np.percentile(divergences, PERCENTILES)
    return Divergence(
        perplexity=_perplexity(logprobs, len(parts), chunk),
        reference=_perplexity(bases, len(parts), chunk),
        mean=float(divergences.mean()),
        error=_error(divergences),
        maximum=float(divergences.max()),
        percentiles={f"{p:g}": float(q) for p, q in zip(PERCENTILES, quantiles, strict=True)},
        same_best=same,
        same_best_error=_error(rows["same_best"].astype(float)),
        delta_p=float(np.sqrt(np.mean((np.exp(logprobs) - np.exp(bases)) ** 2))),
        log_ratio=float((bases - logprobs).mean()),
        log_ratio_error=_error(bases - logprobs),
    )


def importance_matrix(
    model: Source,
    text: str | bytes,
    *,
    chunk: int = CHUNK,
    chunks: int | None = None,
    output: bool = False,
    dataset: str = "",
    progress: Progress | None = None,
    gpu_layers: int | None = None,
    **parameters: Any,
) -> ImportanceMatrix:
    """Return how much `model` uses each column of its weights on `text`.

    output: also those of the output matrix. dataset: where the text is from, for the file.
    Other parameters and errors as of `perplexity`. Some 100 chunks of what the model is used for
    are enough.
    """
    with ExitStack() as stack:
        loaded = _open(stack, model, gpu_layers)
        parts = cut(loaded, text, chunk, chunks)
        rows = min(chunk, BATCH, _most_rows(loaded))
        collector = Collector(
            loaded,
            output=output,
            ctx_size=chunk,
            batch_size=rows,
            outputs_max=rows,
            **_threads(parameters),
        )
        context = stack.enter_context(collector.context)
        for part in _counted(parts, progress):
            context.memory.clear()
            for begin in range(0, chunk, rows):
                context.decode(part[begin : begin + rows], logits="all")
        entries = collector.entries()
    return ImportanceMatrix(entries, (dataset,) if dataset else (), len(parts), chunk)


def cut(
    model: Model, text: str | bytes, chunk: int = CHUNK, chunks: int | None = None
) -> list[list[int]]:
    """Return the tokens of `text` in chunks, as they are decoded; what is left over is dropped."""
    check_number("chunk", chunk, "int", 4)
    if chunks is not None:
        check_number("chunks", chunks, "int", 1)
    facts = model.metadata
    causal = facts.get(f"{facts.get('general.architecture')}.attention.causal", "true")
    if model.has_encoder or not model.has_decoder or causal == "false":
        raise UnsupportedError(f"{model.path.name} does not continue texts token by token")
    tokens = model.tokenize(text)
    if len(tokens) < chunk:
        raise ArgumentError(
            f"the text has {len(tokens)} tokens, a chunk {chunk}: give a longer text or a smaller "
            "chunk"
        )
    begins = range(0, len(tokens) - chunk + 1, chunk)
    parts = [tokens[begin : begin + chunk] for begin in begins][:chunks]
    if model.adds_bos and model.bos is not None:
        for part in parts:
            part[0] = model.bos
    return parts


def _open(stack: ExitStack, model: Source, gpu_layers: int | None) -> Model:
    if isinstance(model, Model):
        return model
    return stack.enter_context(Model(model, gpu_layers=gpu_layers))


def _most_rows(model: Model) -> int:
    """Return of how many tokens the logits fit into memory at once."""
    return max(LOGITS // model.vocab_size, 1)


def _counted(parts: Sequence[list[int]], progress: Progress | None) -> Iterator[list[int]]:
    for i, part in enumerate(parts, 1):
        yield part
        if progress is not None and progress(i / len(parts)) is False:
            raise LoadCancelledError("progress() stopped it")


def _context(model: Model, chunk: int, parameters: dict[str, Any]) -> Context:
    batch = min(chunk, BATCH)
    outputs = min(batch, _most_rows(model))
    return Context(
        model, ctx_size=chunk, batch_size=batch, outputs_max=outputs, **_threads(parameters)
    )


def _threads(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with all processors: batches use them, with small models too."""
    return {"threads_batch": parameters.get("threads") or default_threads(), **parameters}


def _decode(part: list[int], first: int, *contexts: Context) -> Iterator[tuple[list[int], range]]:
    """Decode a chunk in all contexts, batch by batch.

    Yields the tokens that follow from the rows after `first`, and these rows' indices.
    """
    for context in contexts:
        context.memory.clear()
    batch = contexts[0].params.batch_size
    most = min(context.params.outputs_max for context in contexts)
    begin, last = 0, len(part) - 1  # what follows the last token nobody knows
    while begin <= last:
        start = max(first, begin)
        end = min(begin + batch, len(part), start + most)
        rows = range(start, min(end, last))
        for context in contexts:
            flags = [i in rows for i in range(begin, end)]
            context.decode_batch(part[begin:end], [0] * (end - begin), logits=flags)
        if rows:
            yield part[rows.start + 1 : rows.stop + 1], range(start - begin, rows.stop - begin)
        begin = end


def _check_vocabulary(model: Model, reference: Model, same_tokens: bool) -> None:
    sizes = model.vocab_size, reference.vocab_size
    if sizes[0] != sizes[1]:
        raise ArgumentError(f"the vocabularies differ: {sizes[0]} tokens, {sizes[1]} the reference")
    tokens = range(sizes[0])
    texts = (loaded.detokenize(tokens, special=True) for loaded in (model, reference))
    if not same_tokens or next(texts) != next(texts):
        raise ArgumentError("the vocabularies differ: the reference has other words for its tokens")


def _perplexity(logprobs: Float64, chunks: int, chunk: int) -> Perplexity:
    if np.isnan(logprobs).any():
        raise DecodeError("the model computes logits that are no numbers on this text")
    value = float(np.exp(-logprobs.mean()))
    return Perplexity(value, _error(logprobs) * value, len(logprobs), chunks, chunk)


def _error(values: Float64) -> float:
    """Return one standard error of the mean."""
    return float(values.std() / np.sqrt(max(len(values) - 1, 1)))
