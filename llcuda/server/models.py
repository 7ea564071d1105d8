"""Several models by name: loaded when they are asked for, unloaded when others need the room."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llcuda.chat.template import ChatTemplate
from llcuda.embeddings.embedder import Embedder
from llcuda.engine.autofit import Fitted, fit
from llcuda.engine.config import LOAD_UBATCH_SIZE, EngineConfig
from llcuda.engine.engine import Engine
from llcuda.errors import ArgumentError, LlcudaError, UnsupportedError
from llcuda.hub import registry as hub
from llcuda.native.estimate import DeviceMemory, memory_needed
from llcuda.native.model import Model
from llcuda.server.errors import ApiError

logger = logging.getLogger("llcuda.server")

DEFAULTS = {"ubatch_size": LOAD_UBATCH_SIZE, "n_parallel": 4}  # where the server's are others


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve.

    name: what clients call it; source, filename: as those of `InferenceEngine.load_model`;
    parameters: its further keywords (gpu_layers, ctx_size, n_parallel, ...); `pooling` for
    embeddings, see Embedder; `template` for chats, see `Engine.chat`.
    """

    name: str
    source: str
    filename: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> EngineConfig:
        """Return what the model and its engine get; raise ArgumentError or TypeError."""
        given = {k: v for k, v in self.parameters.items() if k not in ("pooling", "template")}
        if self._automatic_ctx_size():
            given.pop("ctx_size", None)
        return EngineConfig.from_kwargs(**{**DEFAULTS, **given})

    def fitted(self, path: Path) -> Fitted:
        """Return what they get on this machine, with the model's file at hand."""
        return fit(self.config(), path, automatic_ctx_size=self._automatic_ctx_size())

    def _automatic_ctx_size(self) -> bool:
        return self.parameters.get("ctx_size") is None


class Loaded:
    """A model in memory. users: requests that are in it now.

    engine: generates texts, None for a model that does not; bench: where embeddings are computed,
    one after the other; needs: bytes that it takes, as `memory_needed` says, 0 where that is
    unknown.
    """

    def __init__(self, spec: ModelSpec, path: Path, needs: int) -> None:
        config = spec.fitted(path).config
        self.spec = spec
        self.needs = needs
        self.users = 0
        self.used = time.monotonic()
        self.engine: Engine | None = None
        self._embedder: Embedder | None = None
        self._lock = threading.Lock()
        self.bench = ThreadPoolExecutor(1, "llcuda-embedder")
        self.model = Model(path, params=config.model)
        try:
            if spec.parameters.get("template") is not None:
                ChatTemplate.of(self.model, spec.parameters["template"])
            try:
                self.engine = Engine(self.model, config=config)
            except ArgumentError as error:  # it generates no text
                try:
                    self.embedder()
                except LlcudaError:
                    raise error from None
        except BaseException:
            self.model.close()
            raise

    @property
    def failed(self) -> bool:
        """Whether it must be loaded anew."""
        return self.engine is not None and self.engine.closed

    def writer(self) -> Engine:
        """Return what generates text; ApiError for a model that does not."""
        if self.engine is None:
            silent = f"{self.spec.name} generates no text; it has /v1/embeddings or /v1/rerank"
            raise ApiError(400, silent, param="model")
        return self.engine

    def embedder(self) -> Embedder:
        """Return what computes embeddings and scores, made at the first call; it takes a while."""
        with self._lock:
            if self._embedder is None:
                chosen = self.spec.parameters
                given = {name: chosen[name] for name in ("pooling", "threads") if name in chosen}
                self._embedder = Embedder(self.model, **given)
            return self._embedder

    def close(self) -> None:
        """Free it."""
        self.bench.shutdown(cancel_futures=True)
        for owner in (self._embedder, self.engine, self.model):
            if owner is not None:
                owner.close()


class Models:
    """The models of a server, by name. Belongs to one event loop.

    memory_budget: bytes that they may take together, weights, KV cells and buffers on all devices;
    None: what each device has free when a further one is loaded. One that is in use stays; of
    the others the one that was used longest ago goes first.
    Raises ArgumentError for parameters that are wrong, or a model that is larger than the budget.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        memory_budget: int | None = None,
        load: Callable[[ModelSpec, Path, int], Loaded] = Loaded,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        if not specs or len(self.specs) != len(specs) or "" in self.specs:
            raise ArgumentError("expected at least one model, each with a name of its own")
        self.loaded: dict[str, Loaded] = {}
        self.loads = self.unloads = 0
        self._budget = memory_budget
        self._load = load
        self._lock = asyncio.Lock()
        self.paths: dict[str, Path] = {}
        for spec in specs:
            spec.config()

    def open(self, preload: bool) -> None:
        """Find, or fetch, every file, and load the first model; before there is an event loop.

        Raises ArgumentError for a model beyond the budget, and what loading raises.
        """
        sizes = {}
        for name, spec in self.specs.items():
            path = self.paths[name] = hub.resolve(spec.source, spec.filename)
            sizes[name] = needs = sum(device.needed for device in _needs(spec, path))
            if self._budget is not None and needs > self._budget:
                raise ArgumentError(
                    f"memory_budget={self._budget}: {name} alone takes {needs}",
                    parameter="memory_budget",
                )
        if preload:
            name, spec = next(iter(self.specs.items()))
            self.loaded[name] = self._load(spec, self.paths[name], sizes[name])
            self.loads += 1

    def find(self, name: str | None) -> str:
        """Return the name of a model that is served; None means the only one. ApiError."""
        if name is None and len(self.specs) == 1:
            return next(iter(self.specs))
        if name is None:
            several = f"name one of the models: {', '.join(self.specs)}"
            raise ApiError(400, several, param="model")
        if name not in self.specs:
            unknown = f"the model {name[:200]!r} does not exist here; GET /v1/models lists them"
            raise ApiError(404, unknown, param="model", code="model_not_found")
        return name

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Loaded]:
        """Have a model loaded for as long as the block runs. ApiError, ModelError."""
        name = self.find(name)
        loaded = self.loaded.get(name)
        while loaded is None or loaded.failed:
            loaded = await self._bring(name)
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()

    async def _bring(self, name: str) -> Loaded:
        """Load a model, after making room for it; one at a time."""
        async with self._lock:
            loaded = self.loaded.get(name)
            if loaded is not None and loaded.failed:  # it failed, e.g. its GPU
                await self._drop(name)
            elif loaded is not None:
                return loaded
            spec, path = self.specs[name], self.paths[name]
            needs = await self._make_room(spec, path)
            started = time.monotonic()
            work = asyncio.ensure_future(asyncio.to_thread(self._load, spec, path, needs))
            try:
                loaded = await asyncio.shield(work)
            except asyncio.CancelledError:  # who asked has gone; the model is loaded all the same
                loaded = await work
                self.loaded[name] = loaded
                raise
            self.loaded[name] = loaded
            self.loads += 1
            logger.info("loaded %s in %.1f s", name, time.monotonic() - started)
            return loaded

    async def _make_room(self, spec: ModelSpec, path: Path) -> int:
        """Unload what is idle until a model fits, and return the bytes that it takes."""
        while True:
            devices = await asyncio.to_thread(_needs, spec, path)
            needs = sum(device.needed for device in devices)
            if not self.loaded or self._fits(devices, needs):
                return needs
            idle = [loaded for loaded in self.loaded.values() if not loaded.users]
            if not idle:
                busy = f"no room for {spec.name} while {', '.join(self.loaded)} is in use"
                raise ApiError(503, busy, code="model_unavailable", retry=2)
            await self._drop(min(idle, key=lambda loaded: loaded.used).spec.name)

    def _fits(self, devices: Sequence[DeviceMemory], needs: int) -> bool:
        if self._budget is None:
            return all(device.needed <= device.free for device in devices)
        return needs + sum(loaded.needs for loaded in self.loaded.values()) <= self._budget

    async def _drop(self, name: str) -> None:
        loaded = self.loaded.pop(name)
        self.unloads += 1
        logger.info("unloading %s", name)
        await asyncio.to_thread(loaded.close)

    async def close(self) -> None:
        """Unload everything."""
        async with self._lock:
            for name in list(self.loaded):
                await self._drop(name)


def _needs(spec: ModelSpec, path: Path) -> list[DeviceMemory]:
    """Return what a model takes of each device; nothing where llama.cpp cannot say."""
    fitted = spec.fitted(path)
    context = fitted.config.context_params(gpu=fitted.gpu_layers > 0)
    try:
        return memory_needed(path, model=fitted.config.model, context=context)
    except UnsupportedError:
        return []
