"""The routes of OpenAI's API.

Each further API is a module with such a function, which `app.APIS` lists.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from llcuda.server.anthropic import described_model, is_anthropic, listed_models
from llcuda.server.bodies import BodyRoute
from llcuda.server.chat import answer_chat, answer_response
from llcuda.server.completions import answer_completion
from llcuda.server.embeddings import (
    answer_classify,
    answer_embeddings,
    answer_rerank,
    answer_score,
)
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    EmbeddingBody,
    RerankBody,
    ResponsesBody,
    ScoreBody,
)
from llcuda.server.service import ERRORS, Service


def cohere_routes(service: Service) -> APIRouter:
    """Return the route of the second version of Cohere's API.

    Args:
        service: The state of the server.
    """
    router = APIRouter(responses=ERRORS, route_class=BodyRoute)

    @router.post("/v2/rerank")
    async def rerank(body: RerankBody) -> Response:
        """Order documents by how well they answer a query."""
        return service.answer(body, answer_rerank)

    return router


def openai_routes(service: Service, prefix: str = "") -> APIRouter:
    """Return the routes of OpenAI's API.

    Args:
        service: The state of the server.
        prefix: The beginning of each path.
    """
    router = APIRouter(prefix=prefix, responses=ERRORS, route_class=BodyRoute)
    deadline = service.limits.deadline

    @router.post("/completions")
    async def completions(body: CompletionBody) -> Response:
        """Continue texts."""
        return service.answer(body, partial(answer_completion, deadline=deadline))

    @router.post("/chat/completions")
    async def chat(body: ChatBody) -> Response:
        """Answer a conversation."""
        return service.answer(body, partial(answer_chat, deadline=deadline))

    @router.post("/responses")
    async def responses(body: ResponsesBody) -> Response:
        """Answer a conversation, in items."""
        work = partial(answer_response, deadline=deadline, store=service.responses)
        return service.answer(body, work)

    @router.get("/responses/{response_id}")
    async def response(response_id: str) -> dict[str, Any]:
        """Return a response that is kept."""
        return service.responses.get(response_id).document

    @router.delete("/responses/{response_id}")
    async def delete_response(response_id: str) -> dict[str, Any]:
        """Forget a response."""
        service.responses.delete(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.get("/responses/{response_id}/input_items")
    async def response_input(response_id: str) -> dict[str, Any]:
        """List the items of a response's request."""
        items = [
            {"id": f"item_{i}", "type": "message", **item}
            for i, item in enumerate(service.responses.get(response_id).input)
        ]
        ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
        return {"object": "list", "data": items, "has_more": False, **ends}

    @router.post("/embeddings")
    async def embeddings(body: EmbeddingBody) -> Response:
        """Turn texts into vectors."""
        return service.answer(body, answer_embeddings)

    @router.post("/rerank")
    async def rerank(body: RerankBody) -> Response:
        """Order documents by how well they answer a query."""
        return service.answer(body, answer_rerank)

    @router.post("/classify")
    async def classify(body: ClassifyBody) -> Response:
        """Give texts to a classifier."""
        return service.answer(body, answer_classify)

    @router.post("/score")
    async def score(body: ScoreBody) -> Response:
        """Score pairs of texts."""
        return service.answer(body, answer_score)

    def describe(name: str) -> dict[str, Any]:
        model = service.models.named(name)
        loaded = service.models.loaded.get(model)
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "llcuda",
            "root": model,  # which an alias stands for
            "loaded": loaded is not None,
            **({"meta": _meta(loaded)} if loaded is not None else {}),
        }

    def describe_for_anthropic(name: str) -> dict[str, Any]:
        loaded = service.models.loaded.get(service.models.named(name))
        engine = None if loaded is None else loaded.engine
        return described_model(name, service.started, None if engine is None else engine.ctx_size)

    @router.get("/models")
    async def models(request: Request) -> dict[str, Any]:
        """List the models, each by every name; with `anthropic-version` in Anthropic's shape."""
        if is_anthropic(request):
            return listed_models([describe_for_anthropic(name) for name in service.models.names])
        return {"object": "list", "data": [describe(name) for name in service.models.names]}

    @router.get("/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        """Describe one model."""
        if is_anthropic(request):
            return describe_for_anthropic(name)
        return describe(name)

    return router


def _meta(loaded: LoadedModel) -> dict[str, Any]:
    """Return the sizes of a model, as llama-server names them."""
    model, engine = loaded.model, loaded.engine
    return {
        "n_vocab": model.vocab_size,
        "n_ctx": None if engine is None else engine.ctx_size,
        "n_ctx_train": model.train_ctx_size,
        "n_embd": model.embedding_size,
        "n_params": model.parameter_count,
        "size": model.size,
    }
