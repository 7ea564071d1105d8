"""What `llcuda.conversion` starts as a process of its own: llcuda's use of llama.cpp's converter.

The converter's scripts run as they are. The class that they choose for a model is extended before
they see it: its tensors come dequantised from 4 bits and with a LoRA adapter merged into them, each
computed when it is written. The job is a line of JSON on stdin; when stdin ends, so does this
process, because its parent has.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llcuda.conversion import lora
from llcuda.conversion.checkpoint import read_json
from llcuda.conversion.chunks import in_parts
from llcuda.conversion.sentencepiece import complete
from llcuda.errors import ModelError
from llcuda.nf4 import QuantState

PACKED = ".quant_state.bitsandbytes__"
IN_PARTS = ("token_embd.weight", "output.weight")  # one row a token, in every model
EXACT = 1e-9  # a relative difference that is rounding

Loader = Callable[[], Any]


class LastError(logging.Handler):
    """Keeps the last error that the converter logged: its message before it exits with 1."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if record.levelno >= logging.ERROR:
            self.message = record.getMessage()


def main() -> None:
    """Run one job; why it failed is written to the job's `report`."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    errors = LastError()
    logging.getLogger().addHandler(errors)
    try:
        _run(job)
    except SystemExit as error:
        if error.code:
            _report(job, errors.message or f"it ended with {error.code}")
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ImportError) else None
        _report(job, str(error) or type(error).__name__, missing)
        raise


def _report(job: dict[str, Any], message: str, missing: str | None = None) -> None:
    lines = message.strip().splitlines()
    answer = {"message": lines[0] if lines else message, "missing": missing}
    Path(job["report"]).write_text(json.dumps(answer))


def _end_with_parent() -> None:
    """End this process when its parent has ended."""
    sys.stdin.read()
    os._exit(1)


def _run(job: dict[str, Any]) -> None:
    """Run one of the converter's two scripts."""
    sys.path.insert(0, job["converter"])
    import conversion

    if not job["merge"]:
        _rescale(Path(job["adapter"]))
        script, options = "convert_lora_to_gguf.py", ["--base", job["folder"], job["adapter"]]
    else:
        complete(Path(job["folder"]))
        find = conversion.get_model_class
        change = Path(job["adapter"]) if job["adapter"] else None
        conversion.get_model_class = lambda name, mmproj=False: extended(find(name, mmproj), change)
        script, options = "convert_hf_to_gguf.py", ["--model-name", job["name"], job["folder"]]
    sys.argv = [script, "--outfile", job["target"], "--outtype", job["type"], *options]
    runpy.run_path(str(Path(job["converter"]) / script), run_name="__main__")


def extended(model_class: Any, adapter: Path | None) -> Any:
    """Return the converter's class for a model, with other tensors than those of the files."""

    class Extended(model_class):  # type: ignore[misc]
        model_arch = model_class.model_arch
        indexing = False

        @classmethod
        def filter_tensors(cls, item: tuple[str, Loader]) -> tuple[str, Loader] | None:
            """Choose and name a tensor; not before the parts of a weight are put together."""
            return item if cls.indexing else super().filter_tensors(item)

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Loader]:
            """Return what makes each tensor, by name."""
            type(self).indexing = True
            tensors = unpacked(super().index_tensors(remote_hf_model_id=remote_hf_model_id))
            type(self).indexing = False
            if adapter is not None:
                tensors = merged(tensors, adapter)
            return dict(filter(None, map(self.filter_tensors, tensors.items())))

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            """Yield what becomes of a tensor, the embedding and the output matrix in parts."""
            for new_name, tensor in super().modify_tensors(data_torch, name, bid):
                whole = new_name not in IN_PARTS
                yield new_name, tensor if whole else in_parts(tensor)

    return Extended


def unpacked(tensors: dict[str, Loader]) -> dict[str, Loader]:
    """Return the tensors, those of 4 bits in the type that they had before bitsandbytes."""
    packed = {name.partition(PACKED)[0] for name in tensors if PACKED in name}
    groups: dict[str, dict[str, Loader]] = {name: {} for name in packed}
    found: dict[str, Loader] = {}
    for name, load in tensors.items():
        weight = next((stem for stem in _stems(name) if stem in packed), None)
        if weight is None:
            found[name] = load
        else:
            groups[weight][name] = load
            found[weight] = partial(_dequantized, weight, groups[weight])
    return found


def merged(tensors: dict[str, Loader], adapter: Path) -> dict[str, Loader]:
    """Return the tensors with the change that an adapter makes to them."""
    import gguf
    from conversion import LazyTorchTensor

    config = read_json(adapter / lora.CONFIG)
    with gguf.utility.SafetensorsLocal(adapter / lora.WEIGHTS) as parts:
        loaders = {
            name: partial(LazyTorchTensor.from_local_tensor, part) for name, part in parts.items()
        }
    names = {lora.common_name(name): name for name in tensors}
    found = dict(tensors)
    for target, name in lora.others(loaders).items():
        common = lora.common_name(target)
        if common not in names and common != "lm_head.weight":
            raise ModelError(f"the adapter changes {target}, which the model does not have")
        found[names.get(common, target)] = loaders[name]
    for target, pair in lora.pairs(loaders).items():
        own = names[lora.common_name(target)]
        a, b = loaders[pair.a], loaders[pair.b]
        factor = lora.scale(config, target, parts[pair.b].shape[1])
        turned = pair.embedding or bool(config.get("fan_in_fan_out"))
        found[own] = partial(_changed, found[own], a, b, factor, turned)
    return found


def _stems(name: str) -> Iterator[str]:
    """Yield a name, and what is left of it without its last parts."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _dequantized(name: str, group: dict[str, Loader]) -> Any:
    """Return the lazy tensor of a weight of 4 bits."""
    import torch
    from conversion import LazyTorchTensor

    (state,) = (load for key, load in group.items() if PACKED in key)
    facts = json.loads(_array(LazyTorchTensor.to_eager(state())).tobytes())
    dtype = getattr(torch, facts["dtype"])

    def compute(names: tuple[str, ...], parts: tuple[Any, ...]) -> Any:
        arrays = {key: _array(part) for key, part in zip(names, parts, strict=True)}
        return torch.from_numpy(QuantState.from_tensors(name, arrays).dequantize()).view(dtype)

    meta = LazyTorchTensor.meta_with_dtype_and_shape(dtype, tuple(facts["shape"]))
    parts = tuple(load() for load in group.values())
    return LazyTorchTensor(meta=meta, args=(tuple(group), parts), func=compute)


def _array(tensor: Any) -> Any:
    """Return a tensor as numpy has it; the bytes of a type that numpy lacks."""
    import torch

    known = tensor.dtype in (torch.uint8, torch.float32)
    return (tensor if known else tensor.contiguous().view(torch.uint8)).numpy()


def _changed(load: Loader, a: Loader, b: Loader, factor: float, turned: bool) -> Any:
    """Return the lazy tensor W + factor * B @ A, computed in float32 and rounded to W's type."""
    from conversion import LazyTorchTensor

    def compute(weight: Any, a: Any, b: Any) -> Any:
        change = b.float() @ a.float()
        change *= factor
        return (change.T if turned else change).add_(weight).to(weight.dtype)

    weight = load()
    meta = LazyTorchTensor.eager_to_meta(weight._meta)
    return LazyTorchTensor(meta=meta, args=(weight, a(), b()), func=compute)


def _rescale(folder: Path) -> None:
    """Give an adapter's pairs the scale that llama.cpp computes, lora_alpha / rank, for all."""
    from safetensors.torch import load_file, save_file

    config, path = read_json(folder / lora.CONFIG), folder / lora.WEIGHTS
    tensors, changed = load_file(path), False
    for target, pair in lora.pairs(tensors).items():
        rank = tensors[pair.b].shape[1]
        ratio = lora.scale(config, target, rank) * rank / config["lora_alpha"]
        if abs(ratio - 1) > EXACT:
            tensors[pair.b] = (tensors[pair.b].float() * ratio).to(tensors[pair.b].dtype)
            changed = True
    if changed:
        path.unlink()  # a link to the adapter's own file
        save_file(tensors, path)


if __name__ == "__main__":
    main()
