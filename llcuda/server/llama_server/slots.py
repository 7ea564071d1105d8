"""/slots: the slots of a model's KV cache, and their states in files of one folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from llcuda.engine.engine import Engine
from llcuda.engine.slots import SlotState
from llcuda.errors import ConcurrencyError
from llcuda.params import wrong_value
from llcuda.server.answer import ResponseWriter
from llcuda.server.errors import ApiError
from llcuda.server.file_store import disk_errors
from llcuda.server.llama_server.protocol import SlotBody
from llcuda.server.models import LoadedModel
from llcuda.server.protocol import ModelBody
from llcuda.server.submission import run_beside

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


async def answer_slots(
    body: ModelBody, loaded: LoadedModel, writer: ResponseWriter, *, needs_free: bool
) -> None:
    """Answer GET /slots.

    Args:
        body: Names the model.
        loaded: The model.
        writer: Writes the answer.
        needs_free: Whether it is an error if no slot is free.
    """
    engine = loaded.text_engine()
    states = engine.slots()
    if needs_free and all(state.request is not None for state in states):
        raise ApiError(503, "no slot is free", code="unavailable", retry=1)
    await writer.json([_slot(engine, state) for state in states])


def _slot(engine: Engine, state: SlotState) -> dict[str, Any]:
    request = state.request
    document: dict[str, Any] = {
        "id": state.slot,
        "n_ctx": engine.ctx_size,
        "speculative": bool(engine.params.speculation),
        "is_processing": request is not None,
        "n_prompt_tokens": state.tokens,
    }
    if request is not None:
        done, limit = len(request.tokens), request.params.max_tokens
        text = {"has_next_token": True, "has_new_line": False, "n_decoded": done}
        document["next_token"] = [{**text, "n_remain": limit - done}]
    return document


def slot_file(folder: Path | None, name: str) -> Path:
    """Return the file of a name that a client gave.

    Args:
        folder: The folder of such files; None = there is none.
        name: The name.

    Raises:
        ApiError: There is no folder.
        ArgumentError: The name could lead out of the folder.
    """
    if folder is None:
        message = "this server keeps no slots in files; start it with --slot-save-path FOLDER"
        raise ApiError(501, message, code="unsupported")
    if not _NAME.fullmatch(name):
        rule = "expected a name of at most 200 letters, digits, dots, hyphens and underscores"
        raise wrong_value("filename", name[:200], rule)
    path = folder / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise wrong_value("filename", name, "this is not a file of a slot")
    return path


async def answer_save(
    body: SlotBody, loaded: LoadedModel, writer: ResponseWriter, *, slot: int, folder: Path | None
) -> None:
    """Answer POST /slots/ID?action=save."""
    path, engine = slot_file(folder, body.filename), loaded.text_engine()
    started = perf_counter()
    with disk_errors():
        tokens = await _work(slot, lambda: engine.save_slot(slot, path))
    document = {"id_slot": slot, "filename": body.filename, "n_saved": tokens}
    size, passed = path.stat().st_size, 1000 * (perf_counter() - started)
    await writer.json({**document, "n_written": size, "timings": {"save_ms": passed}})


async def answer_restore(
    body: SlotBody, loaded: LoadedModel, writer: ResponseWriter, *, slot: int, folder: Path | None
) -> None:
    """Answer POST /slots/ID?action=restore."""
    path, engine = slot_file(folder, body.filename), loaded.text_engine()
    if not path.is_file():
        raise wrong_value("filename", body.filename, "no slot was saved under this name")
    started = perf_counter()
    tokens = await _work(slot, lambda: engine.restore_slot(slot, path))
    document = {"id_slot": slot, "filename": body.filename, "n_restored": tokens}
    size, passed = path.stat().st_size, 1000 * (perf_counter() - started)
    await writer.json({**document, "n_read": size, "timings": {"restore_ms": passed}})


async def answer_erase(
    body: ModelBody, loaded: LoadedModel, writer: ResponseWriter, *, slot: int
) -> None:
    """Answer POST /slots/ID?action=erase."""
    engine = loaded.text_engine()
    tokens = await _work(slot, lambda: engine.erase_slot(slot))
    await writer.json({"id_slot": slot, "n_erased": tokens})


async def _work(slot: int, work: Callable[[], int]) -> int:
    """Do something with a slot beside the event loop."""
    try:
        return await run_beside(True, work)
    except ConcurrencyError:
        busy = f"slot {slot} is in use; try again later"
        raise ApiError(503, busy, code="slot_in_use", retry=1) from None
