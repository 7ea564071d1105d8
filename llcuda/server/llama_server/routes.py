"""The routes of llama-server's own API."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from llcuda.params import wrong_value
from llcuda.server.answer import ResponseWriter
from llcuda.server.bodies import BodyReader, BodyRoute
from llcuda.server.chat import prompt_of
from llcuda.server.checks import given_scales
from llcuda.server.errors import ApiError
from llcuda.server.llama_server.completion import answer_infill, answer_native_completion
from llcuda.server.llama_server.protocol import (
    AdaptersBody,
    ApplyTemplateBody,
    InfillBody,
    NativeCompletionBody,
    SlotBody,
)
from llcuda.server.llama_server.settings import properties
from llcuda.server.llama_server.slots import (
    answer_erase,
    answer_restore,
    answer_save,
    answer_slots,
)
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import ModelBody
from llcuda.server.service import ERRORS, Service
from llcuda.server.submission import run_beside


def llama_server_routes(service: Service) -> APIRouter:
    """Return the routes.

    Args:
        service: The state of the server.
    """
    router = APIRouter(responses=ERRORS, route_class=BodyRoute)
    deadline = service.limits.deadline

    @router.post("/completion")
    @router.post("/completions")
    async def completion(body: NativeCompletionBody) -> Response:
        """Continue texts, in llama-server's shape."""
        return service.answer(body, partial(answer_native_completion, deadline=deadline))

    @router.post("/infill")
    async def infill(body: InfillBody) -> Response:
        """Fill the gap between two texts."""
        return service.answer(body, partial(answer_infill, deadline=deadline))

    @router.post("/apply-template")
    async def apply_template(body: ApplyTemplateBody) -> Response:
        """Return the prompt of a conversation."""
        return service.answer(body, _answer_template)

    @router.post("/v1/chat/completions/input_tokens")
    @router.post("/chat/completions/input_tokens")
    async def input_tokens(body: ApplyTemplateBody) -> Response:
        """Count the tokens of a conversation."""
        return service.answer(body, _answer_input_tokens)

    @router.get("/props")
    async def props(model: str | None = None) -> Response:
        """Describe the server and a model."""

        async def work(body: ModelBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
            path = service.models.paths[loaded.spec.name].name
            await writer.json(properties(loaded, path))

        return service.answer(ModelBody(model=model), work)

    @router.post("/props")
    async def change_props() -> Response:
        """Refuse: settings are those of the start."""
        message = "this server changes no settings while it runs; start it with others"
        raise ApiError(501, message, code="unsupported")

    @router.get("/slots")
    async def slots(model: str | None = None, fail_on_no_slot: str = "") -> Response:
        """List the slots of a model."""
        work = partial(answer_slots, needs_free=fail_on_no_slot not in ("", "0", "false"))
        return service.answer(ModelBody(model=model), work)

    @router.post("/slots/{slot:int}")
    async def change_slot(request: Request, slot: int, action: str = "") -> Response:
        """Save, restore or erase a slot."""
        if action == "erase":
            model = request.query_params.get("model")
            return service.answer(ModelBody(model=model), partial(answer_erase, slot=slot))
        answers = {"save": answer_save, "restore": answer_restore}
        if action not in answers:
            raise wrong_value("action", action[:100], "expected save, restore or erase")
        reader: BodyReader = request.app.state.bodies
        body = await reader.read(SlotBody, request)
        assert isinstance(body, SlotBody)
        work = partial(answers[action], slot=slot, folder=service.slot_folder)
        return service.answer(body, work)

    @router.get("/lora-adapters")
    async def adapters(model: str | None = None) -> Response:
        """List the adapters of a model."""

        async def work(body: ModelBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
            await writer.json(_adapters(loaded))

        return service.answer(ModelBody(model=model), work)

    @router.post("/lora-adapters")
    async def change_adapters(body: AdaptersBody) -> Response:
        """Scale the adapters of a model."""
        return service.answer(body, _answer_adapters)

    return router


async def _answer_template(
    body: ApplyTemplateBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    prompt = await run_beside(True, prompt_of, body, loaded)
    await writer.json({"prompt": prompt.text})


async def _answer_input_tokens(
    body: ApplyTemplateBody, loaded: LoadedModel, writer: ResponseWriter
) -> None:
    prompt = await run_beside(True, prompt_of, body, loaded)
    await writer.json({"object": "response.input_tokens", "input_tokens": len(prompt.tokens)})


def _adapters(loaded: LoadedModel) -> list[dict[str, Any]]:
    return [
        {"id": i, "path": adapter.path.name, "scale": scale}
        for i, (adapter, scale) in enumerate(loaded.adapters.items())
    ]


async def _answer_adapters(body: AdaptersBody, loaded: LoadedModel, writer: ResponseWriter) -> None:
    loaded.scale_adapters(given_scales(loaded, "", body.adapters))
    await writer.json(_adapters(loaded))
