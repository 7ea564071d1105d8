"""The process in which `llcuda.conversion.runner` runs llama.cpp's converter.

The converter's scripts run unchanged. The class that they choose for a model is extended before
they see it: its tensors are dequantized from 4 bits and have a LoRA adapter merged into them, each
computed when it is written. The job is one line of JSON on stdin. When stdin ends, the parent has
ended, and this process ends too.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import read_json
from llcuda.conversion.chunks import split_large
from llcuda.conversion.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    common_name,
    lora_pairs,
    lora_scale,
    replaced_weights,
)
from llcuda.conversion.runner import MODEL_CARD
from llcuda.conversion.sentencepiece import complete_tokenizer
from llcuda.errors import ModelError
from llcuda.nf4 import QuantState

QUANT_STATE = ".quant_state.bitsandbytes__"
SPLIT_TENSORS = ("token_embd.weight", "output.weight")  # one row for each token, in every model
PATTERN_SECONDS = 10.0  # for all regular expressions of an adapter
ROUNDING = 1e-9  # the largest relative difference that counts as none

Loader = Callable[[], Any]  # returns a tensor


class LastError(logging.Handler):
    """Keeps the last error that the converter logged, because it then exits with 1.

    Attributes:
        message: The message of that error, or "".
    """

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of an error."""
        if record.levelno >= logging.ERROR:
            self.message = record.getMessage()


def main() -> None:
    """Run one job; after a failure, write the reason to the file `report` of the job."""
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
    failure = {"message": lines[0] if lines else message, "missing": missing}
    Path(job["report"]).write_text(json.dumps(failure))


def _end_with_parent() -> None:
    """End this process when its parent has ended."""
    sys.stdin.read()
    os._exit(1)


def _run(job: dict[str, Any]) -> None:
    """Run one of the converter's two scripts."""
    sys.path.insert(0, job["converter"])
    import conversion

    if not job["merge"]:
        _rescale_pairs(Path(job["adapter"]))
        script, options = "convert_lora_to_gguf.py", ["--base", job["folder"], job["adapter"]]
    else:
        complete_tokenizer(Path(job["folder"]))
        drop_broken_card(Path(job["folder"]))
        get_model_class = conversion.get_model_class
        adapter = Path(job["adapter"]) if job["adapter"] else None
        conversion.get_model_class = lambda name, mmproj=False: extended(
            get_model_class(name, mmproj), adapter
        )
        script, options = "convert_hf_to_gguf.py", ["--model-name", job["name"], job["folder"]]
        if job["dense"]:
            options.append("--sentence-transformers-dense-modules")
    sys.argv = [script, "--outfile", job["target"], "--outtype", job["type"], *options]
    runpy.run_path(str(Path(job["converter"]) / script), run_name="__main__")


def drop_broken_card(folder: Path) -> None:
    """Delete the link to a model card from which the converter cannot read the model's names."""
    import gguf

    try:
        gguf.Metadata.load(None, folder)
    except Exception as error:  # of YAML, of the encoding, or of a value's type
        logging.getLogger(__name__).warning("the model card is ignored: %s", error)
        (folder / MODEL_CARD).unlink(missing_ok=True)


def extended(model_class: Any, adapter: Path | None) -> Any:
    """Return a subclass of the converter's class for a model that changes the tensors it reads.

    Args:
        model_class: The converter's class.
        adapter: The folder of an adapter to merge, or None.
    """

    class Extended(model_class):  # type: ignore[misc]
        model_arch = model_class.model_arch
        indexing = False

        @classmethod
        def filter_tensors(cls, item: tuple[str, Loader]) -> tuple[str, Loader] | None:
            """Choose and name a tensor, but only after the parts of a weight are combined."""
            return item if cls.indexing else super().filter_tensors(item)

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Loader]:
            """Return the loader of each tensor by name."""
            type(self).indexing = True
            tensors = dequantized(super().index_tensors(remote_hf_model_id=remote_hf_model_id))
            type(self).indexing = False
            if adapter is not None:
                tensors = merged(tensors, adapter)
            return dict(filter(None, map(self.filter_tensors, tensors.items())))

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            """Yield the converted tensors, the embedding and the output matrix in parts."""
            for new_name, tensor in super().modify_tensors(data_torch, name, bid):
                yield new_name, split_large(tensor) if new_name in SPLIT_TENSORS else tensor

    return Extended


def dequantized(tensors: dict[str, Loader]) -> dict[str, Loader]:
    """Return the tensors, those of 4 bits in the type that they had before bitsandbytes."""
    packed = {name.partition(QUANT_STATE)[0] for name in tensors if QUANT_STATE in name}
    groups: dict[str, dict[str, Loader]] = {name: {} for name in packed}
    result: dict[str, Loader] = {}
    for name, load in tensors.items():
        weight = next((prefix for prefix in _prefixes(name) if prefix in packed), None)
        if weight is None:
            result[name] = load
        else:
            groups[weight][name] = load
            result[weight] = partial(_dequantized, weight, groups[weight])
    return result


def merged(tensors: dict[str, Loader], adapter: Path) -> dict[str, Loader]:
    """Return the tensors with an adapter merged into them."""
    import gguf
    from conversion import LazyTorchTensor

    config = read_json(adapter / ADAPTER_CONFIG)
    with gguf.utility.SafetensorsLocal(adapter / ADAPTER_WEIGHTS) as parts:
        loaders = {
            name: partial(LazyTorchTensor.from_local_tensor, part) for name, part in parts.items()
        }
    names = {common_name(name): name for name in tensors}
    result = dict(tensors)
    for weight, name in replaced_weights(loaders).items():
        common = common_name(weight)
        if common not in names and common != "lm_head.weight":
            raise ModelError(f"the adapter changes {weight}, which the model does not have")
        result[names.get(common, weight)] = loaders[name]
    pairs = lora_pairs(loaders)
    factors = lora_scales(config, {w: parts[pair.b].shape[1] for w, pair in pairs.items()})
    for weight, pair in pairs.items():
        base_name = names[common_name(weight)]
        a, b, factor = loaders[pair.a], loaders[pair.b], factors[weight]
        transposed = pair.embedding or bool(config.get("fan_in_fan_out"))
        result[base_name] = partial(_with_pair, result[base_name], a, b, factor, transposed)
    return result


def lora_scales(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Return the factor of each pair by the name of its weight.

    A signal interrupts a regular expression of the adapter that takes too long, so this must run
    in the main thread.

    Args:
        config: The adapter's configuration.
        ranks: The rank of each pair by the name of its weight.

    Raises:
        ModelError: The regular expressions take longer than 10 seconds.
    """

    def stop(*_: object) -> None:
        raise ModelError(
            f"the regular expressions of alpha_pattern take longer than {PATTERN_SECONDS:g} s"
        )

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATTERN_SECONDS)
    try:
        return {weight: lora_scale(config, weight, rank) for weight, rank in ranks.items()}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _prefixes(name: str) -> Iterator[str]:
    """Yield a dotted name, then the same without its last part, and so on."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _dequantized(name: str, group: dict[str, Loader]) -> Any:
    """Return the lazy tensor of a weight that bitsandbytes packed in 4 bits."""
    import torch
    from conversion import LazyTorchTensor

    (state,) = (load for key, load in group.items() if QUANT_STATE in key)
    facts = json.loads(_array(LazyTorchTensor.to_eager(state())).tobytes())
    dtype = getattr(torch, facts["dtype"])

    def compute(names: tuple[str, ...], parts: tuple[Any, ...]) -> Any:
        arrays = {key: _array(part) for key, part in zip(names, parts, strict=True)}
        return torch.from_numpy(QuantState.from_tensors(name, arrays).dequantize()).view(dtype)

    meta = LazyTorchTensor.meta_with_dtype_and_shape(dtype, tuple(facts["shape"]))
    parts = tuple(load() for load in group.values())
    return LazyTorchTensor(meta=meta, args=(tuple(group), parts), func=compute)


def _array(tensor: Any) -> Any:
    """Return a tensor as a numpy array, as bytes if numpy does not have its type."""
    import torch

    has_type = tensor.dtype in (torch.uint8, torch.float32)
    return (tensor if has_type else tensor.contiguous().view(torch.uint8)).numpy()


def _with_pair(load: Loader, a: Loader, b: Loader, factor: float, transposed: bool) -> Any:
    """Return the lazy tensor W + factor * B @ A, computed in float32 and rounded to W's type."""
    from conversion import LazyTorchTensor

    def compute(weight: Any, a: Any, b: Any) -> Any:
        change = b.float() @ a.float()
        change *= factor
        return (change.T if transposed else change).add_(weight).to(weight.dtype)

    weight = load()
    meta = LazyTorchTensor.eager_to_meta(weight._meta)
    return LazyTorchTensor(meta=meta, args=(weight, a(), b()), func=compute)


def _rescale_pairs(folder: Path) -> None:
    """Scale an adapter's pairs for llama.cpp, which multiplies all of them by lora_alpha / rank."""
    from safetensors.torch import load_file, save_file

    config, path = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    tensors, changed = load_file(path), False
    pairs = lora_pairs(tensors)
    ranks = {weight: tensors[pair.b].shape[1] for weight, pair in pairs.items()}
    factors = lora_scales(config, ranks)
    for weight, pair in pairs.items():
        ratio = factors[weight] * ranks[weight] / config["lora_alpha"]
        if abs(ratio - 1) > ROUNDING:
            tensors[pair.b] = (tensors[pair.b].float() * ratio).to(tensors[pair.b].dtype)
            changed = True
    if changed:
        path.unlink()  # a link to the adapter's own file
        save_file(tensors, path)


if __name__ == "__main__":
    main()
