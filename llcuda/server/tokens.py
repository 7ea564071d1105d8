"""/tokenize and /detokenize."""

from __future__ import annotations

from functools import partial

from llcuda.native.model import Model
from llcuda.params import wrong_argument
from llcuda.server.answer import ResponseWriter
from llcuda.server.checks import is_large
from llcuda.server.chunks import json_text
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import MAX_TOKENIZED, DetokenizeBody, TokenizeBody
from llcuda.server.submission import run_beside


async def answer_tokenize(body: TokenizeBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    """Answer POST /tokenize."""
    await writer.json(await run_beside(is_large(body), _tokenize, loaded.model, body))


def _tokenize(model: Model, body: TokenizeBody) -> str:
    parts = [body.content] if isinstance(body.content, str) else body.content
    size = sum(len(part) for part in parts if isinstance(part, str))
    if size > MAX_TOKENIZED:
        raise wrong_argument("content", f"at most {MAX_TOKENIZED} characters, not {size}")
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, str):
            special = body.add_special and not tokens
            tokens += model.tokenize(part, special, body.parse_special)
        else:
            model.check_token(part, "content")
            tokens.append(part)
    if not body.with_pieces:
        return json_text({"tokens": tokens})
    pieces = [model.piece_bytes(token, special=True) for token in tokens]
    return json_text(
        {
            "tokens": [
                {"id": token, "piece": _piece(piece)}
                for token, piece in zip(tokens, pieces, strict=True)
            ]
        }
    )


def _piece(piece: bytes) -> str | list[int]:
    """Return the text of a token; its bytes where they are no whole characters."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def answer_detokenize(
    body: DetokenizeBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    """Answer POST /detokenize."""
    detokenize = partial(loaded.model.detokenize, body.tokens, special=True)
    content = await run_beside(is_large(body), detokenize)
    await writer.json({"content": content})
