"""/v1/embeddings, /v1/rerank, /v1/classify and /v1/score."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from itertools import groupby
from typing import Any

from llcuda.embeddings.embedder import Embedder
from llcuda.errors import ArgumentError
from llcuda.params import wrong_value
from llcuda.server.answer import ResponseWriter
from llcuda.server.chunks import json_text, new_id, unix_time
from llcuda.server.errors import ApiError
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody


async def answer_embeddings(
    body: EmbeddingBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    """Answer POST /v1/embeddings: floats, or the bytes of little-endian float32 in base64."""

    def work(embedder: Embedder) -> tuple[str, int]:
        _check_size(body, embedder)
        parse_special = body.parse_special is not False
        result = embedder.embed_counted(body.texts(), parse_special=parse_special)
        vectors: list[Any] = result.values.tolist()
        if body.encoding_format == "base64":
            rows = (vector.astype("<f4").tobytes() for vector in result.values)
            vectors = [base64.b64encode(row).decode() for row in rows]
        data = [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(vectors)
        ]
        tokens = sum(result.token_counts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        document = {"object": "list", "data": data, "model": loaded.spec.name, "usage": usage}
        return json_text(document), tokens

    await writer.json(await compute(loaded, writer, work))


def _check_size(body: EmbeddingBody, embedder: Embedder) -> None:
    if body.dimensions not in (None, embedder.size):
        rule = f"expected {embedder.size}, the model's"
        raise wrong_value("dimensions", body.dimensions, rule)


async def compute(
    loaded: LoadedModel,
    writer: ResponseWriter,
    work: Callable[[Embedder], tuple[Any, int]],
    make: Callable[[LoadedModel], Embedder] = LoadedModel.embedder,
) -> Any:
    """Return the result of work with the embedder, on the thread of the model's embeddings.

    Args:
        loaded: The model.
        writer: Gets the usage.
        work: Returns a result and the number of its tokens.
        make: Returns the embedder.
    """
    result, tokens = await asyncio.get_running_loop().run_in_executor(
        loaded.embedding_executor, lambda: work(make(loaded))
    )
    writer.usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return result


def _classifier(loaded: LoadedModel) -> Embedder:
    """Return the embedder of a model that ranks. ApiError for another model."""
    try:
        embedder = loaded.embedder()
    except ArgumentError as error:
        if error.parameter != "pooling":
            raise
    else:
        if embedder.pooling == "rank":
            return embedder
    rule = "is not a rerank model or another classifier; start the server with one"
    raise ApiError(400, f"{loaded.spec.name} {rule}", code="unsupported")


async def answer_rerank(body: RerankBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /v1/rerank: the documents' indices in the request, the best document first."""
    texts, is_tei = body.candidates(), body.texts is not None
    if is_tei:
        body.places["documents"] = "texts"
    raw = not is_tei if body.raw_scores is None else body.raw_scores

    def work(embedder: Embedder) -> tuple[list[float], int]:
        result = embedder.rerank_counted(body.query, texts, truncate=bool(body.truncate))
        scores = result.values if raw else embedder.probabilities(result.values)
        return scores.tolist(), sum(result.token_counts)

    scores = await compute(loaded, writer, work, _classifier)
    ranking = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
    if is_tei:
        lines = [{"index": i, "score": scores[i]} for i in ranking]
        if body.return_text or body.return_documents:
            lines = [{**line, "text": texts[i]} for line, i in zip(lines, ranking, strict=True)]
        await writer.json(lines)
        return
    results: list[dict[str, Any]] = []
    for i in ranking:
        result: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
        if body.return_documents:
            result["document"] = {"text": texts[i]}
        results.append(result)
    await writer.json({
        "id": new_id("rerank-"),
        "model": loaded.spec.name,
        "results": results,
        "usage": writer.usage,
    })  # fmt: skip


async def answer_classify(body: ClassifyBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /v1/classify: the most probable class of each text, and all probabilities."""

    def work(embedder: Embedder) -> tuple[list[list[float]], int]:
        result = embedder.classify_counted(body.texts(), truncate=bool(body.truncate))
        return embedder.probabilities(result.values).tolist(), sum(result.token_counts)

    rows = await compute(loaded, writer, work, _classifier)
    labels = loaded.model.labels
    data = []
    for i, row in enumerate(rows):
        best = labels[row.index(max(row))]
        data.append({"index": i, "label": best, "probs": row, "num_classes": len(row)})
    await writer.json(json_text(_listed("classify-", data, loaded, writer) | {"labels": labels}))


async def answer_score(body: ScoreBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /v1/score: a number for each pair."""
    pairs, truncate = body.pairs(), bool(body.truncate)

    def ranked(embedder: Embedder) -> tuple[list[float], int]:
        scores: list[float] = []
        tokens = 0
        for query, group in groupby(pairs, key=lambda pair: pair[0]):
            documents = [document for _, document in group]
            result = embedder.rerank_counted(query, documents, truncate=truncate)
            scores += embedder.probabilities(result.values).tolist()
            tokens += sum(result.token_counts)
        return scores, tokens

    def compared(embedder: Embedder) -> tuple[list[float], int]:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        result = embedder.embed_counted(texts, truncate=truncate)
        vectors = dict(zip(texts, result.values, strict=True))
        scores = [float(vectors[first] @ vectors[second]) for first, second in pairs]
        return scores, sum(result.token_counts)

    def work(embedder: Embedder) -> tuple[list[float], int]:
        return ranked(embedder) if embedder.pooling == "rank" else compared(embedder)

    scores = await compute(loaded, writer, work)
    data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
    await writer.json(json_text(_listed("score-", data, loaded, writer)))


def _listed(
    prefix: str, data: list[dict[str, Any]], loaded: LoadedModel, writer: ResponseWriter
) -> dict[str, Any]:
    return {
        "id": new_id(prefix),
        "object": "list",
        "created": unix_time(),
        "model": loaded.spec.name,
        "data": data,
        "usage": writer.usage,
    }
