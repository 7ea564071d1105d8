"""How much memory the KV cells of a context take at least, against what this machine has.

llama.cpp fills the cells with zeros as it creates them: without enough memory, Linux ends the
process instead of returning an error. The size of a cell is what the model file says, which need
not be true.
"""

from __future__ import annotations

from typing import Any

from llcuda.errors import ContextError, OutOfMemoryError
from llcuda.native import library
from llcuda.native.model import Model
from llcuda.native.oom import available_memory

# Bytes of an element, as ggml packs it.
_ELEMENT = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip

NOTES = 52  # bytes that llama.cpp notes of each cell, on the CPU
MAX_SHARE_OF_PARAMETERS = 4  # layers may differ; a plain transformer stays below 1
UNCHECKED = 2**28  # bytes that every machine has


def check_kv_size(model: Model, cells: int, type_k: str, type_v: str, swa_full: bool) -> None:
    """Check that the KV cells alone fit the memory of the machine and its GPUs.

    Args:
        model: The model.
        cells: KV cells of all sequences.
        type_k: The type of the keys, as in `ContextParams`.
        type_v: The type of the values.
        swa_full: Whether sliding-window layers keep all cells.

    Raises:
        OutOfMemoryError: The cells do not fit.
        ContextError: The model file contradicts itself.
    """
    if model.is_recurrent or model.is_hybrid:
        return
    owner = model.handle.owner
    key, value = _cell(model, owner.pointer)
    # A cell's numbers are products with the rows of two matrices, which are parameters.
    embedding = max(library.load()[1].llama_model_n_embd(owner.pointer), 1)
    del owner  # or an error's traceback would keep the weights
    limit = MAX_SHARE_OF_PARAMETERS * model.parameter_count / embedding
    if model.layer_count * (key + value) > limit:
        raise ContextError(
            f"{model.path} contradicts itself: a KV cell of {model.layer_count} layers with "
            f"{key} + {value} numbers, but only {model.parameter_count} parameters"
        )
    layers = model.layer_count if swa_full or not model.sliding_window else 1
    size = layers * (key * _ELEMENT[type_k] + value * _ELEMENT[type_v]) + NOTES
    needed = int(cells * size)
    if needed < UNCHECKED:
        return
    gpus = sum(d.total_memory for d in library.devices() if d.kind != "cpu")
    check_room(cells, needed, available_memory() + gpus)


def check_room(cells: int, needed: int, present: int, where: str = "free") -> None:
    """Raise OutOfMemoryError where KV cells need more memory than there is.

    Args:
        cells: The KV cells of all sequences.
        needed: Bytes that they need at least.
        present: Bytes that are there for them.
        where: How the message calls these: "free", or "in this machine".
    """
    if needed > present:
        raise OutOfMemoryError(
            f"{cells:,} KV cells need at least {needed / 2**30:,.1f} GiB, and "
            f"{present / 2**30:,.1f} GiB are {where}",
            parameter="ctx_size",
            remedy="choose a smaller ctx_size, fewer sequences or a smaller KV type",
        )


def _cell(model: Model, pointer: Any) -> tuple[int, int]:
    """Return how many numbers the key and the value of a cell have in the first layer."""
    _, lib = library.load()
    heads = lib.llama_model_n_head_kv(pointer)
    default = lib.llama_model_n_embd(pointer) // max(lib.llama_model_n_head(pointer), 1)
    metadata = model.metadata
    arch = metadata.get("general.architecture", "")
    key, value = (metadata.get(f"{arch}.attention.{name}_length", "") for name in ("key", "value"))
    sizes = [int(size) if size.isdigit() else default for size in (key, value)]
    return heads * sizes[0], heads * sizes[1]
