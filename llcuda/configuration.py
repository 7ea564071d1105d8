"""From what the user asked to what a model and an engine get: the automatic settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llcuda.device import check_gpu_compatibility
from llcuda.engine import EngineParams
from llcuda.native import library
from llcuda.native.model import Model
from llcuda.params import ContextParams, ModelParams

DEFAULT_CTX_SIZE = 2048
RESERVE = 512 * 2**20  # bytes of GPU memory left for compute buffers
ENGINE_FIELDS = {item.name for item in fields(EngineParams)}
MODEL_FIELDS = {item.name for item in fields(ModelParams)} - {"gpu_layers"}
CONTEXT_FIELDS = {item.name for item in fields(ContextParams)}


@dataclass
class Configuration:
    """Parameters of the model and of the engine, and what to tell the user."""

    model: ModelParams
    engine: dict[str, Any]
    gpu_layers: int = 0
    report: list[str] = field(default_factory=list)


def configure(request: dict[str, Any], path: Path | None = None) -> Configuration:
    """Check `request`, and with the model's file at hand choose what was left out.

    Raises ArgumentError for wrong values, TypeError for an unknown keyword.
    """
    given = request["parameters"]
    unknown = given.keys() - ENGINE_FIELDS - MODEL_FIELDS - CONTEXT_FIELDS
    if unknown:
        raise TypeError(f"load_model() got an unknown keyword: {', '.join(sorted(unknown))}")
    ctx_size = DEFAULT_CTX_SIZE if request["ctx_size"] is None else request["ctx_size"]
    engine = {**request["engine"], "ctx_size": ctx_size}
    engine |= {k: v for k, v in given.items() if k in ENGINE_FIELDS | CONTEXT_FIELDS}
    EngineParams(**{k: v for k, v in engine.items() if k in ENGINE_FIELDS})
    ContextParams(**{k: v for k, v in engine.items() if k in CONTEXT_FIELDS - ENGINE_FIELDS})
    chosen = {k: v for k, v in given.items() if k in MODEL_FIELDS}
    layers = request["gpu_layers"]
    configuration = Configuration(ModelParams(gpu_layers=layers, **chosen), engine)
    if path is not None:
        _choose(configuration, request, path, chosen)
    return configuration


def _choose(
    configuration: Configuration, request: dict[str, Any], path: Path, chosen: dict[str, Any]
) -> None:
    """Fit the context to the model and the layers to the GPU, and describe the machine."""
    asked_layers, asked_ctx = request["gpu_layers"], request["ctx_size"]
    with Model(path, vocab_only=True) as facts:  # has metadata, but no sizes of its own
        metadata = facts.metadata
    architecture = metadata.get("general.architecture", "")
    layer_count = int(metadata.get(f"{architecture}.block_count", 0))
    train_ctx_size = int(metadata.get(f"{architecture}.context_length", 0))
    if asked_ctx is None and train_ctx_size:
        configuration.engine["ctx_size"] = min(DEFAULT_CTX_SIZE, train_ctx_size)
    gpus = [device for device in library.devices() if device.kind == "gpu"]
    check = check_gpu_compatibility()
    usable = bool(gpus) and bool(check["compatible"])
    if not usable:
        layers = 0
    elif asked_layers is None:
        cells = configuration.engine["ctx_size"] * configuration.engine["n_parallel"]
        cells = max(cells, configuration.engine["cache_size"] or 0)
        need = _file_size(path) + cells * _cell_size(metadata, architecture)
        layers = _fitting_layers(need, layer_count, sum(gpu.free_memory for gpu in gpus))
    else:
        layers = min(asked_layers, layer_count + 1)
    configuration.gpu_layers = layers
    configuration.model = ModelParams(gpu_layers=layers, **chosen)
    lines = configuration.report
    if asked_layers is None or asked_ctx is None:
        lines += ["", "Auto-configuring optimal settings..."]
    lines.append("GPU Check:")
    lines.append(f"  Platform: {check['platform']}")
    if usable:
        lines.append(f"  GPU: {check['gpu_name']}")
        lines.append(f"  Compute Capability: {check['compute_capability']}")
        lines.append("  Status: ✓ Compatible")
        return
    cpu = next((d.description for d in library.devices() if d.kind == "cpu"), "CPU")
    lines.append(f"  GPU: {check['gpu_name'] or 'none'}")
    lines.append(f"  Compute Capability: {check['compute_capability'] or 'none'}")
    reason = check["reason"] if not check["compatible"] else "this build has no CUDA backend"
    lines.append(f"  Status: CPU ({cpu}): {reason}")


def _fitting_layers(need: int, layer_count: int, free: int) -> int:
    """Return how many layers fit into `free` bytes, the output layer counted as one.

    need: bytes of weights and KV cells, taken as spread evenly over the layers.
    """
    per_layer = need / (layer_count + 1)
    return layer_count + 1 if need + RESERVE <= free else max(0, int((free - RESERVE) / per_layer))


def _file_size(path: Path) -> int:
    """Return the bytes of a model file; of a split one those of all its parts."""
    parts = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if parts is None:
        return path.stat().st_size
    stem, count = parts.groups()
    names = (f"{stem}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1))
    return sum(path.with_name(name).stat().st_size for name in names)


def _cell_size(metadata: Mapping[str, str], architecture: str) -> int:
    """Return the bytes of one token's keys and values in F16, over all layers."""

    def number(key: str, default: int) -> int:
        text = metadata.get(f"{architecture}.{key}", "")
        return int(text) if text.isdigit() else default

    heads = number("attention.head_count", 1)
    size = number("embedding_length", 0) // max(heads, 1)
    keys = number("attention.key_length", size) + number("attention.value_length", size)
    return 2 * keys * number("attention.head_count_kv", heads) * number("block_count", 0)
