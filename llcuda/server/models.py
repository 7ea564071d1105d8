"""Several models by name: loaded at their first request, unloaded when others need the memory."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llcuda.chat.template import ChatTemplate
from llcuda.embeddings.embedder import Embedder, classifier_layers
from llcuda.engine.autofit import Fitted, fit
from llcuda.engine.config import LOAD_UBATCH_SIZE, EngineConfig
from llcuda.engine.engine import Engine
from llcuda.errors import (
    DeviceLostError,
    LlcudaError,
    ModelChangedError,
    NoTextError,
    UnsupportedError,
)
from llcuda.hub.resolver import resolve
from llcuda.native.adapter import Adapter
from llcuda.native.estimate import DeviceMemory, memory_needed
from llcuda.native.model import Model
from llcuda.params import check_flag, check_number, check_texts, wrong_argument, wrong_value
from llcuda.server.errors import ApiError
from llcuda.server.leniency import ignore, is_strict
from llcuda.structured import read_vocabulary

logger = logging.getLogger("llcuda.server")

DEFAULTS = {"ubatch_size": LOAD_UBATCH_SIZE, "n_parallel": 4}  # where the server's are others
SHOWN_NAMES = 20  # in an error
SERVED_POOLINGS = ("mean", "cls", "last", "rank")  # with "none" a text has no vector


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve.

    Attributes:
        name: The clients' name of the model.
        source: A registry name, a path or "repo/id:file.gguf", as for
            `InferenceEngine.load_model`.
        filename: File of a Hugging Face repository.
        parameters: Further keywords of `load_model` (gpu_layers, ctx_size, n_parallel, ...), and
            `pooling` of the Embedder, `template` and `bare_tool_calls` of `Engine.chat`, and
            `adapters`: the files of LoRA adapters with their scales.
        aliases: Further names of the model.
    """

    name: str
    source: str
    filename: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_texts("aliases", self.aliases)
        for parameter, value in (("name", self.name), ("source", self.source)):
            if not isinstance(value, str):
                raise wrong_value(parameter, value, "expected a text")
        if not isinstance(self.parameters, Mapping):
            rule = "expected a mapping of keywords of load_model"
            raise wrong_value("parameters", self.parameters, rule, 'for example {"ctx_size": 2048}')

    def config(self) -> EngineConfig:
        """Return the settings of the model and its engine.

        Raises:
            ArgumentError: A value is outside what is allowed.
            TypeError: A keyword is unknown.
        """
        pooling = self.parameters.get("pooling")
        if pooling is not None and pooling not in SERVED_POOLINGS:
            raise wrong_value("pooling", pooling, f"expected one of {', '.join(SERVED_POOLINGS)}")
        check_flag("bare_tool_calls", self.parameters.get("bare_tool_calls", True))
        others = ("pooling", "template", "bare_tool_calls", "adapters")
        given = {k: v for k, v in self.parameters.items() if k not in others}
        return EngineConfig.from_kwargs(**{**DEFAULTS, **given})

    def fitted(self, path: Path, models: int = 1, budget: int | None = None) -> Fitted:
        """Return the settings for a model file on this machine; see `fit`."""
        return fit(self.config(), path, models=models, budget=budget)

    def check(self, path: Path) -> None:
        """Raise ArgumentError for a pooling or a chat template that a model file cannot have."""
        if self.parameters.get("pooling") == "rank":
            classifier_layers(path)
        if self.parameters.get("template") is not None:
            with Model(path, vocab_only=True) as model:
                ChatTemplate.of(model, self.parameters["template"])

    def memory_needed(self, path: Path) -> list[DeviceMemory]:
        """Return the memory of each device that a model file takes; [] where it cannot be told."""
        fitted = self.fitted(path)
        context = fitted.config.context_params(gpu=fitted.gpu_layers > 0)
        try:
            return memory_needed(path, model=fitted.config.model, context=context)
        except UnsupportedError:
            return []


class LoadedModel:
    """A model in memory.

    Attributes:
        spec: The model as it was asked for.
        needs: Bytes that it takes, as `memory_needed` says; 0 where that is unknown.
        users: Requests that use it now.
        used: Time of the last use, by `time.monotonic`.
        engine: Generates text; None for a model that generates none.
        adapters: The LoRA adapters that were loaded with it, and their scales.
        embedding_executor: Computes embeddings, one request after the other.
    """

    def __init__(self, spec: ModelSpec, path: Path, needs: int, progress: bool = False) -> None:
        config = spec.fitted(path).config
        self.spec = spec
        self.needs = needs
        self.users = 0
        self.used = time.monotonic()
        self.engine: Engine | None = None
        self.adapters: dict[Adapter, float] = {}
        self._embedder: Embedder | None = None
        self._lock = threading.Lock()
        self.embedding_executor = ThreadPoolExecutor(1, "llcuda-embedder")
        self.model = Model(path, params=config.model, progress=progress)
        try:
            try:
                self.engine = Engine(self.model, config=config)
                with suppress(UnsupportedError):  # it has no token that ends a text
                    read_vocabulary(self.model)
            except NoTextError as error:
                try:
                    self.embedder()
                except LlcudaError:
                    raise error from None
            given = self.spec.parameters.get("adapters", ())
            self.adapters = {Adapter(self.model, file): scale for file, scale in given}
            self.scale_adapters(list(self.adapters.values()))
        except BaseException:
            self.model.close()
            raise

    @property
    def state(self) -> str:
        """The state of its engine, as `Engine.state`; "running" without one."""
        return "running" if self.engine is None else self.engine.state

    @property
    def lost_device(self) -> bool:
        """Whether its engine has ended because a GPU failed."""
        return self.engine is not None and isinstance(self.engine.failure, DeviceLostError)

    def failure(self) -> ApiError:
        """Return the error that clients get after its engine has failed."""
        reason = "its computation failed again and again"
        if self.lost_device:
            reason = "a GPU failed"
        elif self.engine is not None and isinstance(self.engine.failure, ModelChangedError):
            reason = "its file was changed while it was in use"
        return failed(f"the model {self.spec.name} has failed: {reason}")

    def text_engine(self) -> Engine:
        """Return the engine.

        Raises:
            ArgumentError: The model generates no text.
            ApiError: Its engine has failed.
        """
        if self.state == "failed":
            raise self.failure()
        if self.engine is None:
            rule = "generates no text; /v1/embeddings and /v1/rerank take it"
            raise wrong_value("model", self.spec.name, rule)
        return self.engine

    def embedder(self) -> Embedder:
        """Return the embedder, made at the first call; this takes a while."""
        with self._lock:
            if self._embedder is None:
                chosen = self.spec.parameters
                given = {name: chosen[name] for name in ("pooling", "threads") if name in chosen}
                self._embedder = Embedder(self.model, **given)
            return self._embedder

    def adapter_scales(self) -> list[dict[str, Any]]:
        """Return the scale of each adapter by its id."""
        return [{"id": i, "scale": scale} for i, scale in enumerate(self.adapters.values())]

    def scale_adapters(self, scales: Sequence[float]) -> None:
        """Scale the adapters, from the next step on also for requests that run.

        Args:
            scales: The scale of each.
        """
        self.adapters = dict(zip(self.adapters, scales, strict=True))
        if self.adapters and self.engine is not None:
            self.engine.context.set_adapters(self.adapters)

    def close(self) -> None:
        """Free the model and all that runs on it."""
        self.embedding_executor.shutdown(cancel_futures=True)
        for owner in (self._embedder, self.engine, self.model):
            if owner is not None:
                owner.close()


def failed(problem: str) -> ApiError:
    """Return the error of a problem that only another process helps against."""
    return ApiError(503, f"{problem}; restart the server", code="model_failed")


class ModelPool:
    """The models of a server, by name. Belongs to one event loop.

    The model that was used longest ago is unloaded first; a model in use is never unloaded.

    Args:
        specs: The models.
        memory_budget: Bytes that the models may take together, weights, KV cells and buffers on all
            devices; None = what each device has free when a further model is loaded.

    Raises:
        ArgumentError: A value is outside what is allowed, or a name is missing or there twice.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        memory_budget: int | None = None,
    ) -> None:
        if (
            isinstance(specs, str)
            or not isinstance(specs, Sequence)
            or not all(isinstance(spec, ModelSpec) for spec in specs)
        ):
            example = '[ModelSpec("demo", "demo")]'
            raise wrong_value("models", specs, "expected a list of ModelSpec", f"give {example}")
        self.specs = {spec.name: spec for spec in specs}
        names = [(name, spec.name) for spec in specs for name in (spec.name, *spec.aliases)]
        self.names = dict(names)  # each name and alias -> the name of the model
        if not specs or len(self.names) != len(names) or "" in self.names:
            raise wrong_argument(
                "models", "expected at least one model, each with names of its own"
            )
        if memory_budget is not None:
            check_number("memory_budget", memory_budget, "int", 1)
        self.loaded: dict[str, LoadedModel] = {}
        self._device_lost = False  # a GPU failed: not only for the model that noticed
        self.loads = self.unloads = 0
        self.memory_budget = memory_budget
        self._lock = asyncio.Lock()
        self.paths: dict[str, Path] = {}
        for spec in specs:
            spec.config()

    def open(self, preload: bool, progress: bool = False) -> None:
        """Find or download every file, before there is an event loop.

        Args:
            preload: Whether to load the first model.
            progress: Whether to draw a bar on stderr meanwhile.

        Raises:
            ArgumentError: A model is larger than the budget, or has no such pooling or template.
            ModelNotFoundError: There is no such file.
            ModelError: The first model cannot be loaded.
        """
        sizes = {}
        for name, spec in self.specs.items():
            path = self.paths[name] = resolve(spec.source, spec.filename)
            config = spec.fitted(path, len(self.specs), self.memory_budget).config
            chosen = {**spec.parameters, "ctx_size": config.engine.ctx_size}  # also when reloaded
            spec = self.specs[name] = replace(spec, parameters=chosen)
            sizes[name] = needs = sum(device.needed for device in spec.memory_needed(path))
            if self.memory_budget is not None and needs > self.memory_budget:
                raise wrong_argument(
                    "memory_budget",
                    f"{name} alone takes {needs / 1e9:.3g} GB, and the budget is"
                    f" {self.memory_budget / 1e9:.3g} GB",
                    "give more, or leave it out for what is free",
                )
            spec.check(path)
        if preload:
            name, spec = next(iter(self.specs.items()))
            self.loaded[name] = LoadedModel(spec, self.paths[name], sizes[name], progress)
            self.loads += 1

    def find(self, name: str | None) -> str:
        """Return the model that answers a request; the only one answers to any name.

        Args:
            name: The name or alias that the request has.

        Raises:
            ApiError: There is no such model.
            ArgumentError: None, and there are several models.
        """
        only = next(iter(self.specs)) if len(self.specs) == 1 else None
        if name is None and only is not None:
            return only
        if name is None:
            raise wrong_argument("model", f"missing; expected {self._names_shown()}")
        if name not in self.names and only is not None and not is_strict():
            ignore("model", f"answered by {only}")
            return only
        return self.named(name)

    def named(self, name: str) -> str:
        """Return the model with a name or an alias. Raises ApiError."""
        if name not in self.names:
            error = wrong_value("model", name, f"no such model; expected {self._names_shown()}")
            raise ApiError(404, str(error), param="model", code="model_not_found")
        return self.names[name]

    def _names_shown(self) -> str:
        shown = [*self.names][:SHOWN_NAMES]
        further = len(self.names) - len(shown)
        return ", ".join(shown) + (f" and {further} more, see /v1/models" if further else "")

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[LoadedModel]:
        """Keep a model loaded while the block runs. Raises ApiError, ArgumentError, ModelError."""
        name = self.find(name)
        try:
            while (loaded := self.loaded.get(name)) is None:
                await self._ensure_loaded(name)
            loaded.users += 1
            try:
                yield loaded
            finally:
                loaded.users -= 1
                loaded.used = time.monotonic()
        except DeviceLostError:
            self._device_lost = True
            raise

    def failure(self) -> ApiError | None:
        """Return why another process should answer in place of this one; None if none should.

        A failed GPU stays the reason when the models on it are unloaded.
        """
        for loaded in self.loaded.values():
            if loaded.state == "failed":
                return loaded.failure()
        return failed("a GPU failed") if self._device_lost else None

    async def _ensure_loaded(self, name: str) -> None:
        """Load a model that is not loaded, after making room for it; one at a time."""
        async with self._lock:
            if name in self.loaded:
                return
            spec, path = self.specs[name], self.paths[name]
            needs = await self._make_room(spec, path)
            started = time.monotonic()
            work = asyncio.ensure_future(asyncio.to_thread(LoadedModel, spec, path, needs))
            try:
                loaded = await asyncio.shield(work)
            except asyncio.CancelledError:  # the client has left; the model is loaded anyway
                loaded = await work
                self.loaded[name] = loaded
                raise
            self.loaded[name] = loaded
            self.loads += 1
            logger.info("loaded %s in %.1f s", name, time.monotonic() - started)

    async def _make_room(self, spec: ModelSpec, path: Path) -> int:
        """Unload idle models until another one fits, and return the bytes that it takes."""
        while True:
            devices = await asyncio.to_thread(spec.memory_needed, path)
            needs = sum(device.needed for device in devices)
            if not self.loaded or self._fits(devices, needs):
                return needs
            idle = [loaded for loaded in self.loaded.values() if not loaded.users]
            if not idle:
                message = f"no memory for {spec.name} while {', '.join(self.loaded)} is in use"
                raise ApiError(503, message, code="model_unavailable", retry=2)
            await self._unload(min(idle, key=lambda loaded: loaded.used).spec.name)

    def _fits(self, devices: Sequence[DeviceMemory], needs: int) -> bool:
        if self.memory_budget is None:
            return all(device.needed <= device.free for device in devices)
        return needs + sum(loaded.needs for loaded in self.loaded.values()) <= self.memory_budget

    async def _unload(self, name: str) -> None:
        loaded = self.loaded.pop(name)
        self._device_lost |= loaded.lost_device
        self.unloads += 1
        logger.info("unloading %s", name)
        await asyncio.to_thread(loaded.close)

    async def close(self) -> None:
        """Unload all models."""
        async with self._lock:
            for name in list(self.loaded):
                await self._unload(name)
