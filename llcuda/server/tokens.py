"""/tokenize and /detokenize."""

from __future__ import annotations

from llcuda.native.model import Model
from llcuda.server.answer import ResponseWriter
from llcuda.server.checks import is_large
from llcuda.server.chunks import json_list
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import DetokenizeBody, TokenizeBody
from llcuda.server.submission import run_beside


async def answer_tokenize(body: TokenizeBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /tokenize."""
    await writer.json(await run_beside(is_large(body), _tokenize, loaded.model, body))


def _tokenize(model: Model, body: TokenizeBody) -> str:
    tokens = model.tokenize(body.content, body.add_special, body.parse_special)
    fields = f'"tokens": {json_list(tokens)}'
    if body.with_pieces:
        pieces = [list(model.piece_bytes(token, special=True)) for token in tokens]
        fields += f', "pieces": {json_list(pieces)}'
    return f"{{{fields}}}"


async def answer_detokenize(
    body: DetokenizeBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    """Answer POST /detokenize."""
    content = await run_beside(is_large(body), loaded.model.detokenize, body.tokens)
    await writer.json({"content": content})
