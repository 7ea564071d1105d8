"""Automatic settings: the layers that fit on the GPUs, and the context that a model allows."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llcuda.device import Compatibility, check_gpu_compatibility
from llcuda.engine.config import CTX_SIZE, EngineConfig
from llcuda.errors import ContextError, ModelError, UnsupportedError
from llcuda.native import library
from llcuda.native.estimate import DeviceMemory, FileFacts, read_facts, simulate
from llcuda.native.model import Model
from llcuda.params import INT32_MAX, ContextParams, ModelParams

RESERVE = 384 * 2**20  # bytes of each GPU for what CUDA takes besides: twice what was seen
CELL_STEP = 256  # llama.cpp rounds the cells of a sequence up to a multiple of this
logger = logging.getLogger("llcuda")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Settings for one model on this machine.

    Attributes:
        config: The settings, with nothing left open.
        report: Lines that tell the user what was chosen, and for which machine.
    """

    config: EngineConfig
    report: tuple[str, ...]

    @property
    def gpu_layers(self) -> int:
        """Layers on GPUs."""
        return self.config.model.gpu_layers or 0


def fit(config: EngineConfig, path: Path, *, models: int = 1, budget: int | None = None) -> Fitted:
    """Choose what `config` leaves open: the layers on the GPUs, and the size of the context.

    Layers come first: as many as fit beside the least context.

    Args:
        config: The settings; `model.gpu_layers=None` = as many layers as fit,
            `engine.ctx_size=None` = as `EngineParams` says.
        path: The model's file.
        models: Models that share the memory, each with as much of it for its context.
        budget: Bytes that they may take together on all devices; None = what is free.

    Raises:
        ModelNotFoundError, GGUFError: There is no such file, or it is damaged.
        ArgumentError: The settings do not go with the model.
    """
    facts = read_facts(path)
    automatic_ctx_size = config.engine.ctx_size is None
    if automatic_ctx_size:
        config = config.with_ctx_size(_least_ctx_size(facts.train_ctx_size))
    params = config.model
    automatic = params.gpu_layers is None or automatic_ctx_size
    present, check, note = library.gpus(), check_gpu_compatibility(), ""
    gpus = [gpu for gpu in present if check["compatible"] or gpu.backend != library.CUDA]
    on_cuda = any(gpu.backend == library.CUDA for gpu in gpus)
    if not gpus:
        if params.gpu_layers != 0:
            log_unused_gpu(check)
        params = replace(params, gpu_layers=0, devices=() if present else params.devices)
    elif params.gpu_layers is None:
        context = config.context_params(on_cuda and params.split_mode != "tensor")
        params, note = _automatic_layers(path, facts, params, context, gpus)
    else:
        params = replace(params, gpu_layers=min(params.gpu_layers, facts.layers + 1))
    config = replace(config, model=params)
    if automatic_ctx_size:
        share = _Share(models, budget)
        config = config.with_ctx_size(_ctx_size(config, path, facts, on_cuda, share))
    lines = ["", "Auto-configuring optimal settings..."] if automatic else []
    lines.append("GPU Check:")
    lines.append(f"  Platform: {check['platform']}")
    lines += _gpu_lines(check, gpus, note) if gpus else _cpu_lines(check, library.devices())
    return Fitted(config, tuple(lines))


def ctx_size_for(model: Model, config: EngineConfig, gpu: bool) -> int:
    """Return the size of each sequence that `EngineParams` promises, for a loaded model.

    Args:
        model: The model.
        config: The settings, with ctx_size=None.
        gpu: Whether CUDA computes.
    """
    train = model.train_ctx_size
    if train <= CTX_SIZE:
        return _least_ctx_size(train)
    facts = FileFacts(
        model.metadata.get("general.architecture", ""), model.vocab_size, model.layer_count, train
    )
    config = replace(config, model=model.params).with_ctx_size(CTX_SIZE)
    return _ctx_size(config, model.path, facts, gpu, _Share(loaded=True))


@dataclass(frozen=True, slots=True)
class _Share:
    """The part of the memory that a model may use.

    Attributes:
        models: Models that share it.
        budget: Bytes that they may take together on all devices; None = what is free.
        loaded: Whether the weights are in memory, so that what is free is free beside them.
    """

    models: int = 1
    budget: int | None = None
    loaded: bool = False

    def room(self, devices: Sequence[DeviceMemory]) -> list[int]:
        """Return the bytes that are left of each part of the memory; below 0 = too few.

        KV cells may take half of what is free beside the weights, and with the buffers all of it.
        """
        parts = []
        for device in devices:
            if device.kv:
                gpu = device.kind != "cpu"
                taken = 0 if gpu and self.loaded else device.model
                free = device.free // self.models - taken - (RESERVE if gpu else 0)
                parts.append((free, device.kv, device.compute))
        if self.budget is not None:
            model, kv, compute = (
                sum(getattr(device, name) for device in devices)
                for name in ("model", "kv", "compute")
            )
            parts.append((self.budget // self.models - model, kv, compute))
        return [min(free // 2 - kv, free - kv - compute) for free, kv, compute in parts]


def _least_ctx_size(train_ctx_size: int) -> int:
    return min(CTX_SIZE, train_ctx_size or CTX_SIZE)


def _ctx_size(config: EngineConfig, path: Path, facts: FileFacts, gpu: bool, share: _Share) -> int:
    """Return as many tokens as `share` has room for, at most what the model was trained on.

    Args:
        config: The settings, with the layers and the least context.
        path: The model's file.
        facts: What its header says.
        gpu: Whether CUDA computes.
        share: The memory.
    """
    least = _least_ctx_size(facts.train_ctx_size)
    train = min(facts.train_ctx_size, INT32_MAX // config.engine.slots)  # cells that C can count
    if train <= least:
        return least

    def size(steps: int) -> int:
        return min(steps * CELL_STEP, train)

    def room(steps: int) -> list[int]:
        context = config.with_ctx_size(size(steps)).context_params(gpu)
        return share.room(simulate(path, facts, config.model, context))

    try:
        steps = largest(-(-least // CELL_STEP), -(-train // CELL_STEP), room)
    except (ModelError, ContextError, UnsupportedError) as error:
        logger.info("cannot tell how large a context fits beside %s: %s", path, error)
        return least
    return least if steps is None else max(least, size(steps))


def log_unused_gpu(check: Compatibility) -> None:
    """Log, once, that a GPU is here and the CPU is used, unless the library has logged it.

    Args:
        check: What `check_gpu_compatibility` returned.
    """
    is_logged = library.why_no_gpu() is not None or library.refused_gpus()
    if check["gpu_name"] and not check["compatible"] and not is_logged:
        _warn_once(check["reason"])


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("%s", reason)


def _gpu_lines(check: Compatibility, gpus: Sequence[library.DeviceInfo], note: str) -> list[str]:
    name, capability = check["gpu_name"], check["compute_capability"]
    if not check["compatible"]:
        name, capability = gpus[0].description, f"none ({gpus[0].backend})"
    return [
        f"  GPU: {name}",
        f"  Compute Capability: {capability}",
        "  Status: ✓ Compatible",
        *(f"  Note: {text}" for text in (note, check.get("note")) if text),
    ]


def _cpu_lines(check: Compatibility, devices: Sequence[library.DeviceInfo]) -> list[str]:
    cpu = next((device.description for device in devices if device.kind == "cpu"), "CPU")
    reason = check["reason"] if not check["compatible"] else library.why_no_gpu()
    return [
        f"  GPU: {check['gpu_name'] or 'none'}",
        f"  Compute Capability: {check['compute_capability'] or 'none'}",
        f"  Status: CPU ({cpu}): {reason}",
    ]


def _automatic_layers(
    path: Path,
    facts: FileFacts,
    params: ModelParams,
    context: ContextParams,
    gpus: Sequence[library.DeviceInfo],
) -> tuple[ModelParams, str]:
    """Return `params` with the GPUs that have room and the layers that fit, and a note.

    All layers are tried where llcuda cannot tell what fits: then loading says what is wrong.
    """
    on_cpu = replace(params, gpu_layers=0, devices=())
    full, note = "too little memory of the GPU is free; the CPU is used", ""
    if params.devices is None and params.tensor_split is None and not params.main_gpu:
        roomy = [gpu.name for gpu in gpus if gpu.free_memory >= RESERVE]
        if not roomy:
            return on_cpu, full
        if len(roomy) < len(gpus):
            params = replace(params, devices=roomy)
            note = f"too little memory is free on others than {', '.join(roomy)}"

    def needs(layers: int) -> list[DeviceMemory]:
        return simulate(path, facts, replace(params, gpu_layers=layers), context)

    try:
        layers = fitting_layers(facts.layers + 1, needs)
    except (ModelError, ContextError, UnsupportedError) as error:
        logger.warning("cannot tell how much memory %s needs: %s", path, error)
        note = "all layers go to the GPU, which may be too many: give gpu_layers= then"
        return replace(params, gpu_layers=facts.layers + 1), note
    return (on_cpu, full) if layers is None else (replace(params, gpu_layers=layers), note)


def fitting_layers(all_layers: int, needs: Callable[[int], Sequence[DeviceMemory]]) -> int | None:
    """Return the largest number of layers that leaves RESERVE free on every GPU.

    Args:
        all_layers: Layers of the model, the largest number to return.
        needs: Returns what the model takes of each device with so many layers on the GPUs, as
            `memory_needed` does. It grows with the layers, except for the last step: with all of
            them the buffers may be smaller.

    Returns:
        None where the GPUs have no room even for the buffers of a model on the CPU.
    """
    has_gpu = False

    def room(layers: int) -> list[int]:
        nonlocal has_gpu
        left = [gpu.free - gpu.needed - RESERVE for gpu in needs(layers) if gpu.kind != "cpu"]
        has_gpu = bool(left)
        return left

    layers = largest(0, all_layers, room)
    return layers if layers is None or has_gpu else 0


def largest(low: int, high: int, room: Callable[[int], Sequence[int]]) -> int | None:
    """Return the largest number from `low` to `high` that every part of the memory has room for.

    Guesses by proportion, every third time by halves: 1 estimate where `high` fits, otherwise 4 or
    5, seldom more.

    Args:
        low: The smallest number.
        high: The largest number, tried first.
        room: Returns the bytes that each part of the memory has left, below 0 where it has too few.

    Returns:
        None where there is no room for `low`.
    """
    above = room(high)
    if all(size >= 0 for size in above):
        return high
    below = room(low)
    if any(size < 0 for size in below):
        return None
    turn = 0
    while high - low > 1:
        turn += 1
        if len(below) == len(above):
            share = min(b / (b - a) for b, a in zip(below, above, strict=True) if a < 0)
        else:
            share = 0.5
        step = (high - low) * (share if turn % 3 else 0.5)
        middle = min(max(low + int(step), low + 1), high - 1)
        left = room(middle)
        if all(size >= 0 for size in left):
            low, below = middle, left
        else:
            high, above = middle, left
    return low
