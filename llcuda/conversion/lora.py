"""A LoRA adapter as PEFT saves it: its folder, read and checked, and the weights it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import Checkpoint, TensorInfo, has_weights, read_header, read_json
from llcuda.errors import ModelError, ModelNotFoundError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LORA_TENSOR = re.compile(r"\.lora_(?:(A|B)\.weight|embedding_(A|B))$")


@dataclass(frozen=True, slots=True)
class LoraFolder:
    """A folder with a LoRA adapter.

    Attributes:
        folder: The folder.
        config: The adapter's configuration.
        tensors: The adapter's tensors by their names in the file.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def base(self) -> str:
        """The base model that the adapter names, a folder or a repository, or ""."""
        return str(self.config.get("base_model_name_or_path") or "")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two tensors that change one weight.

    Attributes:
        a: The name of the first factor's tensor.
        b: The name of the second factor's tensor.
        embedding: Whether the weight is a table of vectors.
    """

    a: str
    b: str
    embedding: bool


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter without a model."""
    return (folder / ADAPTER_CONFIG).is_file() and not has_weights(folder)


def read_adapter(folder: Path) -> LoraFolder:
    """Read an adapter's folder.

    Raises:
        ModelNotFoundError: A file is missing.
        ModelError: The adapter is not a plain LoRA, or a file is broken.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder} is an adapter of type {kind}; expected LORA")
    for name in ("use_dora", "use_qalora", "lora_bias"):
        if config.get(name):
            raise ModelError(f"{folder}: a LoRA with {name} is not supported; merge it with PEFT")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or not alpha:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: lora_alpha is {alpha!r}")
    _check_patterns(config.get("alpha_pattern"), folder / ADAPTER_CONFIG)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelNotFoundError(f"{folder} has no {ADAPTER_WEIGHTS}")
    tensors = read_header(folder / ADAPTER_WEIGHTS)
    if not lora_pairs(tensors):
        raise ModelError(f"{folder / ADAPTER_WEIGHTS} has no LoRA tensors")
    return LoraFolder(folder, config, tensors)


def _check_patterns(patterns: Any, path: Path) -> None:
    """Raise ModelError unless these are regular expressions with a number each, or None."""
    if not isinstance(patterns, Mapping | None):
        raise ModelError(f"{path}: alpha_pattern is {patterns!r:.80}; expected an object")
    for pattern, alpha in (patterns or {}).items():
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise ModelError(f"{path}: alpha_pattern of {pattern!r:.80} is {alpha!r:.80}")
        try:
            re.compile(_module_pattern(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(
                f"{path}: alpha_pattern {pattern!r:.80} is not a regular expression: {error}"
            ) from None


def _module_pattern(pattern: str) -> str:
    """Return the regular expression by which PEFT compares a pattern with the name of a module."""
    return rf"(.*\.)?({pattern})$"


def lora_pairs(names: Iterable[str]) -> dict[str, LoraPair]:
    """Return the pairs among an adapter's tensors by the name of the weight that each changes.

    Raises:
        ModelError: One half of a pair is missing.
    """
    factors: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _LORA_TENSOR.search(name):
            factors.setdefault(weight_name(name), {})[match[1] or match[2]] = name
    for weight, pair in factors.items():
        if len(pair) != 2:
            raise ModelError(f"the adapter has half a pair for {weight}")
    return {
        weight: LoraPair(pair["A"], pair["B"], pair["A"].endswith("embedding_A"))
        for weight, pair in factors.items()
    }


def replaced_weights(names: Iterable[str]) -> dict[str, str]:
    """Return the adapter's tensors that replace a whole weight, by the name of the weight."""
    return {weight_name(name): name for name in names if not _LORA_TENSOR.search(name)}


def weight_name(name: str) -> str:
    """Return the name of the weight that an adapter's tensor changes."""
    match = _LORA_TENSOR.search(name)
    stem = name[: match.start()] + ".weight" if match else name
    return stem.removeprefix("base_model.model.").replace(".base_layer.", ".")


def common_name(name: str) -> str:
    """Return a weight's name without the prefix of a model that also takes images.

    Versions of transformers put that prefix in different places.
    """
    return name.replace("language_model.", "")


def lora_scale(config: Mapping[str, Any], weight: str, rank: int) -> float:
    """Return the factor of B @ A for a weight, as PEFT computes it.

    It is alpha / rank, or alpha / sqrt(rank) with rsLoRA. The time is not bounded: the adapter's
    regular expressions may take exponential time.

    Args:
        config: The adapter's configuration.
        weight: The name of the weight.
        rank: The rank of the pair.
    """
    module = weight.removesuffix(".weight")
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(_module_pattern(pattern), module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_base(adapter: LoraFolder, base: Checkpoint) -> None:
    """Raise ModelError if the names or shapes of an adapter do not fit a base model."""
    names = {common_name(name): name for name in base.tensors}
    for weight, pair in lora_pairs(adapter.tensors).items():
        base_name = names.get(common_name(weight))
        if base_name is None:
            raise ModelError(
                f"{adapter.folder} is not an adapter of {base.folder}, which has no {weight}"
            )
        if f"{base_name}.absmax" in base.tensors:  # packed: its quantization state has the shape
            continue
        shape = base.tensors[base_name].shape
        a, b = adapter.tensors[pair.a].shape, adapter.tensors[pair.b].shape
        transposed = pair.embedding or bool(adapter.config.get("fan_in_fan_out"))
        product = (*b[:1], *a[1:]) if len(a) == len(b) == 2 and a[0] == b[1] else None
        if product is None or shape != (product[::-1] if transposed else product):
            raise ModelError(
                f"{adapter.folder} is not an adapter of {base.folder}: {weight} is"
                f" {list(shape)}, its change {list(b)} x {list(a)}"
            )
