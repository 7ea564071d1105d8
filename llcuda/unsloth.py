"""Export of a model of transformers, PEFT or Unsloth in memory to a GGUF file, in one call.

The model is saved unchanged, with its adapter beside it, in files of a gigabyte. `llcuda.convert`
then merges the adapter, dequantizes 4-bit weights and quantizes. The model is not changed, and no
second copy of its weights is in memory.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import INDEX
from llcuda.conversion.convert import convert
from llcuda.errors import ArgumentError, ModelError
from llcuda.files import temporary_folder
from llcuda.native.quantization.file_types import check_file_type

SHARD_BYTES = 10**9  # of a file that holds several tensors
_ADAPTER_NAME = re.compile(r"\.(lora_\w+|modules_to_save)\.")


def save_pretrained_llcuda(
    model: Any,
    tokenizer: Any,
    path: str | os.PathLike[str],
    quantization: str = "q4_k_m",
    *,
    threads: int | None = None,
    progress: Callable[[float], bool | None] | bool | None = None,
) -> Path:
    """Write a model and its tokenizer as one GGUF file.

    While it runs, the folder of the file also holds the weights unchanged and once more in 16
    bits.

    Args:
        model: A model of transformers or Unsloth, or of PEFT with one active LoRA adapter, which
            is merged into the file. Its weights are in 16 or 32 bits, or in 4 bits of
            bitsandbytes (NF4, FP4).
        tokenizer: The tokenizer of transformers.
        path: A file that ends in .gguf, or a folder for model-TYPE.gguf, which is made if it does
            not exist.
        quantization: The type of the weights; see `llcuda.quantize`.
        threads: Threads of the quantization; None is every processor.
        progress: Called with the share that is done, 0.0 to 1.0; False stops. True draws a bar on
            stderr.

    Returns:
        The path of the GGUF file.

    Raises:
        ModelError: The model cannot be converted, or the file cannot be written.
        ArgumentError: An argument has the wrong type, or the quantization is unknown.
        LoadCancelledError: `progress` returned False.
        LlcudaError: A package of llcuda[convert] is missing.
    """
    file_type = check_file_type(quantization, parameter="quantization")
    target = Path(path).expanduser()
    if target.suffix != ".gguf":
        target = target / f"model-{file_type}.gguf"
    adapter, base = _parts(model)
    if not hasattr(tokenizer, "save_pretrained"):
        raise ArgumentError(
            f"{type(tokenizer).__name__}: expected a tokenizer of transformers",
            parameter="tokenizer",
        )
    weights = _weights(base)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot write in {target.parent}: {error.strerror}") from None
    with temporary_folder(target.parent) as temporary:
        folder = temporary / target.stem
        folder.mkdir()
        config = copy.deepcopy(base.config)
        config.architectures = [type(base).__name__]
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _save_weights(weights, folder)
        if adapter is None:
            return convert(folder, target, file_type, threads=threads, progress=progress)
        source = temporary / "adapter" / target.stem
        model.save_pretrained(source, selected_adapters=[adapter], save_embedding_layers=False)
        source = source if adapter == "default" else source / adapter
        return convert(
            source, target, file_type, base=folder, merge=True, threads=threads, progress=progress
        )


def attach(model: Any) -> Any:
    """Add the method `save_pretrained_llcuda(path, tokenizer)` to a model, e.g. of Unsloth.

    The order of the method's arguments is that of Unsloth's `save_pretrained_gguf`. It takes the
    other arguments of the function `save_pretrained_llcuda` by keyword.

    Args:
        model: The model.

    Returns:
        The same model.

    Raises:
        ArgumentError: `model` is not a model of transformers or PEFT.
    """

    def save(self: Any, path: str | os.PathLike[str], tokenizer: Any, **options: Any) -> Path:
        return save_pretrained_llcuda(self, tokenizer, path, **options)

    _check_model(model)
    model.save_pretrained_llcuda = types.MethodType(save, model)
    return model


def _parts(model: Any) -> tuple[str | None, Any]:
    """Return the adapter to merge, or None, and the model without it."""
    peft = sys.modules.get("peft")
    _check_model(model)
    if peft is None or not isinstance(model, peft.PeftModel):
        if any(_ADAPTER_NAME.search(name) for name in model.state_dict()):
            raise ModelError("the model has adapters without peft.PeftModel; wrap it in one")
        return None, model
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ModelError(f"{len(names)} adapters are active; expected one: model.set_adapter(name)")
    peft_type = model.peft_config[names[0]].peft_type
    type_name = getattr(peft_type, "value", peft_type)
    if type_name != "LORA":
        raise ModelError(f"the adapter is of type {type_name}; expected LORA")
    base = model.get_base_model()
    merged = {tuple(getattr(module, "merged_adapters", ())) for module in base.modules()} - {()}
    if merged - {(names[0],)}:
        raise ModelError("other adapters are merged into the weights: model.unmerge_adapter()")
    if any(getattr(module, "disable_adapters", None) is True for module in base.modules()):
        raise ModelError("the adapter is disabled: enable it, or model.unload() it")
    return (None if merged else names[0]), base


def _check_model(model: Any) -> None:
    if not hasattr(model, "config") or not hasattr(model, "state_dict"):
        raise ArgumentError(
            f"{type(model).__name__}: expected a model of transformers or PEFT", parameter="model"
        )


def _weights(base: Any) -> dict[str, Any]:
    """Return the weights by their names without an adapter, a tied weight once."""
    weights: dict[str, Any] = {}
    seen = set()
    for name, tensor in base.state_dict().items():
        if tensor.is_meta:
            raise ModelError("the model's weights are not in memory (offloaded to a disk)")
        storage = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if _ADAPTER_NAME.search(name) or (tensor.numel() and storage in seen):
            continue  # of the adapter, or tied to another
        seen.add(storage)
        weights[re.sub(r"\.(base_layer|original_module)\.", ".", name)] = tensor.detach()
    if "transformers.core_model_loading" in sys.modules:
        return _as_saved(base, weights)
    return weights


def _as_saved(base: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights by the names and in the shapes with which transformers saves them."""
    from transformers.core_model_loading import revert_weight_conversion

    conversions = getattr(base, "_weight_conversions", None)
    if conversions:
        base = copy.copy(base)  # shares the weights; reading 4 bits cannot and need not be reverted
        base._weight_conversions = [item for item in conversions if not _reads_4_bits(item)]
    try:
        return dict(revert_weight_conversion(base, weights))
    except (NotImplementedError, ValueError) as error:
        reason = str(error) or "a conversion cannot be reverted"
        raise ModelError(f"transformers cannot write {type(base).__name__}: {reason}") from error


def _reads_4_bits(conversion: Any) -> bool:
    """Return whether a conversion made 4-bit weights from a checkpoint's tensors."""
    operations = getattr(conversion, "operations", ())
    return any(type(operation).__name__ == "Bnb4bitDeserialize" for operation in operations)


def _save_weights(weights: Mapping[str, Any], folder: Path) -> None:
    """Save weights as safetensors files with their index."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, group in enumerate(_shards(weights), 1):
        file = f"model-{number:05}.safetensors"
        try:
            save_file({name: weights[name].contiguous() for name in group}, folder / file)
        except OSError as error:
            raise ModelError(f"cannot write {folder / file}: {error.strerror}") from None
        weight_map |= dict.fromkeys(group, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _shards(weights: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names of the tensors in each file."""
    group: list[str] = []
    size = 0
    for name, tensor in weights.items():
        if group and size + tensor.nbytes > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    yield group
