"""Automatic settings: the layers that fit on the GPUs, and the context that a model allows."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llcuda.device import Compatibility, check_gpu_compatibility
from llcuda.engine.config import EngineConfig
from llcuda.errors import ContextError, ModelError, UnsupportedError
from llcuda.native import library
from llcuda.native.estimate import DeviceMemory, FileFacts, read_facts, simulate
from llcuda.params import ContextParams, ModelParams

RESERVE = 384 * 2**20  # bytes of each GPU for what CUDA takes besides: twice what was seen
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


def fit(config: EngineConfig, path: Path, *, automatic_ctx_size: bool) -> Fitted:
    """Choose what `config` leaves open: the layers on the GPUs, and the size of the context.

    Args:
        config: The settings; `model.gpu_layers=None` = as many layers as fit.
        path: The model's file.
        automatic_ctx_size: Whether the context is made as small as the model's training context
            where that is smaller.

    Raises:
        ModelNotFoundError, GGUFError: There is no such file, or it is damaged.
        ArgumentError: The settings do not go with the model.
    """
    facts = read_facts(path)
    if automatic_ctx_size and facts.train_ctx_size:
        ctx_size = min(config.engine.ctx_size, facts.train_ctx_size)
        config = replace(config, engine=replace(config.engine, ctx_size=ctx_size))
    params = config.model
    automatic = params.gpu_layers is None or automatic_ctx_size
    devices, check, note = library.devices(), check_gpu_compatibility(), ""
    present = [device for device in devices if device.kind == "gpu"]
    gpus = present if check["compatible"] else []
    if not gpus:
        if params.gpu_layers != 0:
            log_unused_gpu(check)
        params = replace(params, gpu_layers=0, devices=() if present else params.devices)
    elif params.gpu_layers is None:
        context = config.context_params(gpu=params.split_mode != "tensor")
        params, note = _automatic_layers(path, facts, params, context, gpus)
    else:
        params = replace(params, gpu_layers=min(params.gpu_layers, facts.layers + 1))
    lines = ["", "Auto-configuring optimal settings..."] if automatic else []
    lines.append("GPU Check:")
    lines.append(f"  Platform: {check['platform']}")
    lines += _gpu_lines(check, note) if gpus else _cpu_lines(check, devices)
    return Fitted(replace(config, model=params), tuple(lines))


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


def _gpu_lines(check: Compatibility, note: str) -> list[str]:
    return [
        f"  GPU: {check['gpu_name']}",
        f"  Compute Capability: {check['compute_capability']}",
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

    Guesses by proportion, every third time by halves: 1 estimate where all layers fit, otherwise
    4 or 5, seldom more.

    Args:
        all_layers: Layers of the model, the largest number to return.
        needs: Returns what the model takes of each device with so many layers on the GPUs, as
            `memory_needed` does. It grows with the layers, except for the last step: with all of
            them the buffers may be smaller.

    Returns:
        None where the GPUs have no room even for the buffers of a model on the CPU.
    """

    def room(layers: int) -> list[int]:
        """Bytes that each GPU has left, below 0 where it has too few."""
        return [gpu.free - gpu.needed - RESERVE for gpu in needs(layers) if gpu.kind != "cpu"]

    above = room(all_layers)
    if all(size >= 0 for size in above):
        return all_layers if above else 0
    below = room(0)
    if any(size < 0 for size in below):
        return None
    low, high, turn = 0, all_layers, 0
    while high - low > 1:
        turn += 1
        share = min(b / (b - a) for b, a in zip(below, above, strict=True) if a < 0)
        step = (high - low) * (share if turn % 3 else 0.5)
        middle = min(max(low + int(step), low + 1), high - 1)
        left = room(middle)
        if all(size >= 0 for size in left):
            low, below = middle, left
        else:
            high, above = middle, left
    return low
