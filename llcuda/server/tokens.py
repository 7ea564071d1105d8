"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from llcuda.native.model import Model
from llcuda.server.answer import ResponseWriter
from llcuda.server.checks import is_large
from llcuda.server.chunks import json_text
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import DetokenizeBody, TokenizeBody
from llcuda.server.submission import run_beside


async def answer_tokenize(body: TokenizeBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /tokenize."""
    await writer.json(await run_beside(is_large(body), _tokenize, loaded.model, body))


def _tokenize(model: Model, body: TokenizeBody) -> str:
    tokens = model.tokenize(body.content, body.add_special, body.parse_special)
    answer: dict[str, Any] = {"tokens": tokens}
    if body.with_pieces:
        answer["pieces"] = [list(model.piece_bytes(token, special=True)) for token in tokens]
    return json_text(answer)


async def answer_detokenize(
    body: DetokenizeBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    """Answer POST /detokenize."""
    content = await run_beside(is_large(body), loaded.model.detokenize, body.tokens)
    await writer.json({"content": content})
