"""A LoRA adapter as PEFT saves it: its folder, read and checked, and what it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import Checkpoint, TensorInfo, has_weights, read_header, read_json
from llcuda.errors import ModelError, ModelNotFoundError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"\.lora_(?:(A|B)\.weight|embedding_(A|B))$")


@dataclass(frozen=True, slots=True)
class LoraFolder:
    """What a folder with a LoRA adapter says. tensors: by their names in the file."""

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def base(self) -> str:
        """The base model that the adapter names: a folder or a repository, or nothing."""
        return str(self.config.get("base_model_name_or_path") or "")


@dataclass(frozen=True, slots=True)
class Pair:
    """The names of the two tensors that change one weight. embedding: of a table of vectors."""

    a: str
    b: str
    embedding: bool


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model of its own."""
    return (folder / CONFIG).is_file() and not has_weights(folder)


def read_adapter(folder: Path) -> LoraFolder:
    """Return what an adapter's folder holds; ModelError for what is no plain LoRA."""
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder} is an adapter of type {kind}; expected LORA")
    for name in ("use_dora", "use_qalora", "lora_bias"):
        if config.get(name):
            raise ModelError(f"{folder}: a LoRA with {name} is not supported; merge it with PEFT")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or not alpha:
        raise ModelError(f"{folder / CONFIG}: lora_alpha is {alpha!r}")
    if not (folder / WEIGHTS).is_file():
        raise ModelNotFoundError(f"{folder} has no {WEIGHTS}")
    tensors = read_header(folder / WEIGHTS)
    if not pairs(tensors):
        raise ModelError(f"{folder / WEIGHTS} has no LoRA tensors")
    return LoraFolder(folder, config, tensors)


def pairs(names: Iterable[str]) -> dict[str, Pair]:
    """Return the pairs by the name of the weight that each changes; ModelError for half a pair."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _NAME.search(name):
            found.setdefault(target_of(name), {})[match[1] or match[2]] = name
    for target, parts in found.items():
        if len(parts) != 2:
            raise ModelError(f"the adapter has half a pair for {target}")
    return {
        target: Pair(parts["A"], parts["B"], parts["A"].endswith("embedding_A"))
        for target, parts in found.items()
    }


def others(names: Iterable[str]) -> dict[str, str]:
    """Return what replaces a weight as a whole: the weight's name -> the adapter's."""
    return {target_of(name): name for name in names if not _NAME.search(name)}


def target_of(name: str) -> str:
    """Return the name of the weight that a tensor of an adapter belongs to."""
    match = _NAME.search(name)
    stem = name[: match.start()] + ".weight" if match else name
    return stem.removeprefix("base_model.model.").replace(".base_layer.", ".")


def common_name(name: str) -> str:
    """Return a weight's name without what models of text and images put before it.

    Old and new versions of transformers put it in different places.
    """
    return name.replace("language_model.", "")


def scale(config: Mapping[str, Any], target: str, rank: int) -> float:
    """Return the factor of B @ A for a weight, as PEFT has it: alpha / rank, or / sqrt(rank)."""
    module = target.removesuffix(".weight")
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_fit(adapter: LoraFolder, base: Checkpoint) -> None:
    """Raise ModelError for an adapter of another base model, by the names and shapes."""
    names = {common_name(name): name for name in base.tensors}
    for target, pair in pairs(adapter.tensors).items():
        own = names.get(common_name(target))
        if own is None:
            raise ModelError(f"{adapter.folder} is no adapter of {base.folder}, without {target}")
        if f"{own}.absmax" in base.tensors:  # packed: the quant state knows the shape
            continue
        weight = base.tensors[own]
        a, b = adapter.tensors[pair.a].shape, adapter.tensors[pair.b].shape
        turned = pair.embedding or bool(adapter.config.get("fan_in_fan_out"))
        made = (*b[:1], *a[1:]) if len(a) == len(b) == 2 and a[0] == b[1] else None
        if made is None or weight.shape != (made[::-1] if turned else made):
            raise ModelError(
                f"{adapter.folder} is no adapter of {base.folder}: {target} is"
                f" {list(weight.shape)}, its change {list(b)} x {list(a)}"
            )
