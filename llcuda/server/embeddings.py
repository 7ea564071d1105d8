"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from llcuda.embeddings.embedder import Embedder
from llcuda.server.chunks import new_id
from llcuda.server.errors import ApiError
from llcuda.server.models import Loaded
from llcuda.server.protocol import EmbeddingBody, RerankBody
from llcuda.server.sse import Output


async def embed(body: EmbeddingBody, loaded: Loaded, output: Output) -> None:
    """Answer POST /v1/embeddings: floats, or the bytes of little-endian float32 in base64."""

    def compute() -> tuple[list[Any], int]:
        embedder = loaded.embedder()
        _check_size(body, embedder)
        result = embedder.embed_counted(body.texts())
        if body.encoding_format == "base64":
            rows = (vector.astype("<f4").tobytes() for vector in result.values)
            return [base64.b64encode(row).decode() for row in rows], sum(result.token_counts)
        return result.values.tolist(), sum(result.token_counts)

    vectors, tokens = await asyncio.get_running_loop().run_in_executor(loaded.bench, compute)
    await output.json({
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(vectors)
        ],
        "model": loaded.spec.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })  # fmt: skip


def _check_size(body: EmbeddingBody, embedder: Embedder) -> None:
    if body.dimensions not in (None, embedder.size):
        wrong = f"dimensions={body.dimensions}: this model has {embedder.size}"
        raise ApiError(400, wrong, param="dimensions")


async def rerank(body: RerankBody, loaded: Loaded, output: Output) -> None:
    """Answer POST /v1/rerank: the documents' places in the list, the best one first."""
    texts = [one if isinstance(one, str) else one.text for one in body.documents]

    def compute() -> tuple[list[float], int]:
        result = loaded.embedder().rerank_counted(body.query, texts)
        return result.values.tolist(), sum(result.token_counts)

    scores, tokens = await asyncio.get_running_loop().run_in_executor(loaded.bench, compute)
    best = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
    results: list[dict[str, Any]] = []
    for i in best:
        result: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
        if body.return_documents:
            result["document"] = {"text": texts[i]}
        results.append(result)
    spent = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"id": new_id("rerank-"), "model": loaded.spec.name, "results": results}
    await output.json({**answer, "usage": spent})
