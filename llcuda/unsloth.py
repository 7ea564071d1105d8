"""From a live transformers or PEFT model, and so from Unsloth's, to a GGUF file, in one call.

The model is written as it is, its adapter beside it, in files of a gigabyte; merging, dequantising
from 4 bits and quantising happen on the way from there (`llcuda.conversion`). The model stays as it
was, and no second copy of its weights is in memory.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import INDEX
from llcuda.conversion.convert import convert
from llcuda.errors import ArgumentError, ModelError
from llcuda.native.quantization.file_types import check_file_type

SHARD = 10**9  # bytes of a file, or one tensor
_ADAPTER = re.compile(r"\.(lora_\w+|modules_to_save)\.")


def save_pretrained_llcuda(
    model: Any,
    tokenizer: Any,
    path: str | os.PathLike[str],
    quantization: str = "q4_k_m",
    *,
    threads: int | None = None,
    progress: Callable[[float], bool | None] | bool | None = None,
) -> Path:
    """Write a model and its tokenizer as one GGUF file and return its path.

    model: of transformers, or of PEFT with one active LoRA adapter, which is merged into what is
        written; in 16 or 32 bits, or in 4 of bitsandbytes (NF4, FP4).
    path: a file that ends in .gguf, or a folder, made if need be, for model-Q4_K_M.gguf.
    quantization: see `llcuda.quantize`. threads, progress: see `llcuda.conversion.convert`.

    Meanwhile the folder holds the weights as they are, and once more in 16 bits.
    Raises ModelError for a model that cannot be converted, ArgumentError.
    """
    file_type = check_file_type(quantization)
    target = Path(path).expanduser()
    if target.suffix != ".gguf":
        target = target / f"model-{file_type}.gguf"
    adapter, base = _parts(model)
    if not hasattr(tokenizer, "save_pretrained"):
        raise ArgumentError(f"{type(tokenizer).__name__}: expected a tokenizer of transformers")
    weights = _weights(base)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent)
    except OSError as error:
        raise ModelError(f"cannot write in {target.parent}: {error.strerror}") from None
    with place as temporary:
        folder = Path(temporary) / target.stem
        folder.mkdir()
        config = copy.deepcopy(base.config)
        config.architectures = [type(base).__name__]
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write(weights, folder)
        if adapter is None:
            return convert(folder, target, file_type, threads=threads, progress=progress)
        source = Path(temporary) / "adapter" / target.stem
        model.save_pretrained(source, selected_adapters=[adapter], save_embedding_layers=False)
        source = source if adapter == "default" else source / adapter
        return convert(
            source, target, file_type, base=folder, merge=True, threads=threads, progress=progress
        )


def attach(model: Any) -> Any:
    """Give a model, e.g. of Unsloth, `model.save_pretrained_llcuda(path, tokenizer)`; return it.

    The order of the arguments is that of Unsloth's own `save_pretrained_gguf`; `quantization` and
    what else `save_pretrained_llcuda` takes go by keyword.
    """

    def save(self: Any, path: str | os.PathLike[str], tokenizer: Any, **options: Any) -> Path:
        return save_pretrained_llcuda(self, tokenizer, path, **options)

    _check(model)
    model.save_pretrained_llcuda = types.MethodType(save, model)
    return model


def _parts(model: Any) -> tuple[str | None, Any]:
    """Return the adapter to merge, or None, and the model without it."""
    peft = sys.modules.get("peft")
    _check(model)
    if peft is None or not isinstance(model, peft.PeftModel):
        if any(_ADAPTER.search(name) for name in model.state_dict()):
            raise ModelError("the model has adapters without peft.PeftModel; wrap it in one")
        return None, model
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ModelError(f"{len(names)} adapters are active; expected one: model.set_adapter(name)")
    kind = model.peft_config[names[0]].peft_type
    if getattr(kind, "value", kind) != "LORA":
        raise ModelError(f"the adapter is of type {getattr(kind, 'value', kind)}; expected LORA")
    base = model.get_base_model()
    merged = {tuple(getattr(module, "merged_adapters", ())) for module in base.modules()} - {()}
    if merged - {(names[0],)}:
        raise ModelError("other adapters are merged into the weights: model.unmerge_adapter()")
    if any(getattr(module, "disable_adapters", None) is True for module in base.modules()):
        raise ModelError("the adapter is disabled: enable it, or model.unload() it")
    return (None if merged else names[0]), base


def _check(model: Any) -> None:
    if not hasattr(model, "config") or not hasattr(model, "state_dict"):
        raise ArgumentError(f"{type(model).__name__}: expected a model of transformers or PEFT")


def _weights(base: Any) -> dict[str, Any]:
    """Return the weights by the names that they have without an adapter, each once."""
    found: dict[str, Any] = {}
    seen = set()
    for name, tensor in base.state_dict().items():
        if tensor.is_meta:
            raise ModelError("the model's weights are not in memory (offloaded to a disk)")
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if _ADAPTER.search(name) or (tensor.numel() and place in seen):
            continue  # of the adapter, or tied to another
        seen.add(place)
        found[re.sub(r"\.(base_layer|original_module)\.", ".", name)] = tensor.detach()
    return _as_saved(base, found) if "transformers.core_model_loading" in sys.modules else found


def _as_saved(base: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights by the names, and in the shapes, that transformers saves them with."""
    from transformers.core_model_loading import revert_weight_conversion

    conversions = getattr(base, "_weight_conversions", None)
    if conversions:
        base = copy.copy(base)  # the same weights, and what reads 4 bits has no way back nor need
        base._weight_conversions = [each for each in conversions if not _unpacks(each)]
    try:
        return dict(revert_weight_conversion(base, weights))
    except (NotImplementedError, ValueError) as error:
        reason = str(error) or "a conversion has no way back"
        raise ModelError(f"transformers cannot write {type(base).__name__}: {reason}") from error


def _unpacks(conversion: Any) -> bool:
    """Whether a conversion made the weights of 4 bits from a checkpoint's tensors."""
    operations = getattr(conversion, "operations", ())
    return any(type(operation).__name__ == "Bnb4bitDeserialize" for operation in operations)


def _write(weights: Mapping[str, Any], folder: Path) -> None:
    """Write safetensors files and their index."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    for number, group in enumerate(_groups(weights), 1):
        file = f"model-{number:05}.safetensors"
        try:
            save_file({name: weights[name].contiguous() for name in group}, folder / file)
        except OSError as error:
            raise ModelError(f"cannot write {folder / file}: {error.strerror}") from None
        places |= dict.fromkeys(group, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def _groups(weights: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names of the tensors of each file."""
    group: list[str] = []
    size = 0
    for name, tensor in weights.items():
        if group and size + tensor.nbytes > SHARD:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    yield group
