"""From what the user asked to what a model and an engine get: the automatic settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llcuda.device import check_gpu_compatibility
from llcuda.engine.engine import EngineParams, context_params
from llcuda.errors import ContextError, ModelError, UnsupportedError
from llcuda.native import library
from llcuda.native.estimate import DeviceMemory, FileFacts, read_facts, simulate
from llcuda.params import ContextParams, ModelParams

DEFAULT_CTX_SIZE = 2048
RESERVE = 384 * 2**20  # bytes of each GPU for what CUDA takes besides: twice what was seen
ENGINE_FIELDS = {item.name for item in fields(EngineParams)}
MODEL_FIELDS = {item.name for item in fields(ModelParams)} - {"gpu_layers"}
CONTEXT_FIELDS = {item.name for item in fields(ContextParams)}
logger = logging.getLogger("llcuda")


@dataclass
class Configuration:
    """Parameters of the model and of the engine, and what to tell the user."""

    model: ModelParams
    engine: dict[str, Any]
    gpu_layers: int = 0
    report: list[str] = field(default_factory=list)


def configure(request: dict[str, Any], path: Path | None = None) -> Configuration:
    """Check `request`, and with the model's file at hand choose what was left out.

    Raises ArgumentError for wrong values, TypeError for an unknown keyword, ModelError.
    """
    given = request["parameters"]
    unknown = given.keys() - ENGINE_FIELDS - MODEL_FIELDS - CONTEXT_FIELDS
    if unknown:
        raise TypeError(f"load_model() got an unknown keyword: {', '.join(sorted(unknown))}")
    ctx_size = DEFAULT_CTX_SIZE if request["ctx_size"] is None else request["ctx_size"]
    engine = {**request["engine"], "ctx_size": ctx_size}
    engine |= {k: v for k, v in given.items() if k in ENGINE_FIELDS | CONTEXT_FIELDS}
    _context_params(engine)
    chosen = {k: v for k, v in given.items() if k in MODEL_FIELDS}
    model = ModelParams(gpu_layers=request["gpu_layers"], **chosen)
    configuration = Configuration(model, engine)
    if path is not None:
        _choose(configuration, request["ctx_size"] is None, path)
    return configuration


def _context_params(engine: dict[str, Any], gpu: bool = False) -> ContextParams:
    """Return what an Engine with these settings gives its context; raise what it would."""
    own = {k: v for k, v in engine.items() if k in ENGINE_FIELDS}
    others = {k: v for k, v in engine.items() if k not in ENGINE_FIELDS}
    return context_params(EngineParams(**own), others, gpu)


def _choose(configuration: Configuration, any_ctx_size: bool, path: Path) -> None:
    """Fit the context to the model and the layers to the GPUs, and describe the machine."""
    facts, params = read_facts(path), configuration.model
    any_layers = params.gpu_layers is None
    if any_ctx_size and facts.train_ctx_size:
        configuration.engine["ctx_size"] = min(DEFAULT_CTX_SIZE, facts.train_ctx_size)
    devices, check, note = library.devices(), check_gpu_compatibility(), ""
    present = [device for device in devices if device.kind == "gpu"]
    gpus = present if check["compatible"] else []
    if not gpus:
        params = replace(params, gpu_layers=0, devices=() if present else params.devices)
    elif params.gpu_layers is None:
        gpu = params.split_mode != "tensor"
        context = _context_params(configuration.engine, gpu)
        params, note = _automatic_layers(path, facts, params, context, gpus)
    else:
        params = replace(params, gpu_layers=min(params.gpu_layers, facts.layers + 1))
    configuration.model, configuration.gpu_layers = params, params.gpu_layers or 0
    lines = configuration.report
    if any_layers or any_ctx_size:
        lines += ["", "Auto-configuring optimal settings..."]
    lines.append("GPU Check:")
    lines.append(f"  Platform: {check['platform']}")
    if gpus:
        lines.append(f"  GPU: {check['gpu_name']}")
        lines.append(f"  Compute Capability: {check['compute_capability']}")
        lines.append("  Status: ✓ Compatible")
        lines += [f"  Note: {said}" for said in (note, check.get("note")) if said]
        return
    cpu = next((d.description for d in devices if d.kind == "cpu"), "CPU")
    lines.append(f"  GPU: {check['gpu_name'] or 'none'}")
    lines.append(f"  Compute Capability: {check['compute_capability'] or 'none'}")
    reason = check["reason"] if not check["compatible"] else library.why_no_gpu()
    lines.append(f"  Status: CPU ({cpu}): {reason}")


def _automatic_layers(
    path: Path,
    facts: FileFacts,
    params: ModelParams,
    context: ContextParams,
    gpus: Sequence[library.DeviceInfo],
) -> tuple[ModelParams, str]:
    """Return `params` with the GPUs that have room and the layers that fit, and a note.

    Where llcuda cannot tell what fits, all layers: then loading says what is wrong.
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


def fitting_layers(most: int, needs: Callable[[int], Sequence[DeviceMemory]]) -> int | None:
    """Return the largest number of layers, at most `most`, that leaves RESERVE on every GPU.

    needs: what the model takes with so many layers on the GPUs, as `memory_needed` says. It grows
        with the layers, but for the last step: with all of them the buffers may be smaller.
    None: the GPUs have no room even for the buffers of a model on the CPU. Guesses by proportion,
    every third time by halves: 1 call where all fit, else 4 or 5, seldom more.
    """

    def spare(layers: int) -> list[int]:
        found = needs(layers)
        return [gpu.free - gpu.needed - RESERVE for gpu in found if gpu.kind != "cpu"]

    above = spare(most)
    if all(room >= 0 for room in above):
        return most if above else 0
    below = spare(0)
    if any(room < 0 for room in below):
        return None
    low, high, turn = 0, most, 0
    while high - low > 1:
        turn += 1
        share = min(b / (b - a) for b, a in zip(below, above, strict=True) if a < 0)
        step = (high - low) * (share if turn % 3 else 0.5)
        middle = min(max(low + int(step), low + 1), high - 1)
        rooms = spare(middle)
        if all(room >= 0 for room in rooms):
            low, below = middle, rooms
        else:
            high, above = middle, rooms
    return low
