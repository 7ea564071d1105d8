"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from llcuda.server.answer import ResponseWriter
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import DetokenizeBody, TokenizeBody


async def answer_tokenize(body: TokenizeBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /tokenize."""
    model = loaded.model
    tokens = model.tokenize(body.content, body.add_special, body.parse_special)
    answer: dict[str, Any] = {"tokens": tokens}
    if body.with_pieces:
        answer["pieces"] = [list(model.piece_bytes(token, special=True)) for token in tokens]
    await writer.json(answer)


async def answer_detokenize(
    body: DetokenizeBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    """Answer POST /detokenize."""
    await writer.json({"content": loaded.model.detokenize(body.tokens)})
