"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from llcuda.embeddings.embedder import Embedder
from llcuda.params import wrong_value
from llcuda.server.answer import ResponseWriter
from llcuda.server.chunks import json_text, new_id
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import EmbeddingBody, RerankBody


async def answer_embeddings(
    body: EmbeddingBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    """Answer POST /v1/embeddings: floats, or the bytes of little-endian float32 in base64."""

    def compute() -> tuple[str, dict[str, int]]:
        embedder = loaded.embedder()
        _check_size(body, embedder)
        parse_special = body.parse_special is not False
        result = embedder.embed_counted(body.texts(), parse_special=parse_special)
        tokens = sum(result.token_counts)
        vectors: list[Any] = result.values.tolist()
        if body.encoding_format == "base64":
            rows = (vector.astype("<f4").tobytes() for vector in result.values)
            vectors = [base64.b64encode(row).decode() for row in rows]
        data = [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        document = {
            "object": "list",
            "data": data,
            "model": loaded.spec.name,
            "usage": usage,
        }
        return json_text(document), usage

    text, writer.usage = await asyncio.get_running_loop().run_in_executor(
        loaded.embedding_executor, compute
    )
    await writer.json(text)


def _check_size(body: EmbeddingBody, embedder: Embedder) -> None:
    if body.dimensions not in (None, embedder.size):
        rule = f"expected {embedder.size}, the model's"
        raise wrong_value("dimensions", body.dimensions, rule)


async def answer_rerank(body: RerankBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /v1/rerank: the documents' indices in the request, the best document first."""
    texts = [
        document if isinstance(document, str) else document.text for document in body.documents
    ]

    def compute() -> tuple[list[float], int]:
        result = loaded.embedder().rerank_counted(body.query, texts)
        return result.values.tolist(), sum(result.token_counts)

    scores, tokens = await asyncio.get_running_loop().run_in_executor(
        loaded.embedding_executor, compute
    )
    ranking = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
    results: list[dict[str, Any]] = []
    for i in ranking:
        result: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
        if body.return_documents:
            result["document"] = {"text": texts[i]}
        results.append(result)
    writer.usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    await writer.json({
        "id": new_id("rerank-"),
        "model": loaded.spec.name,
        "results": results,
        "usage": writer.usage,
    })  # fmt: skip
