"""What would make a quantisation useless, or end the process: a wrong matrix, absurd weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from llcuda.errors import ArgumentError, ModelError
from llcuda.native import library
from llcuda.native.gguf import mapped as gguf
from llcuda.native.gguf.check import parts
from llcuda.native.gguf.types import GGMLType
from llcuda.native.quantization.file_types import DEMANDING, EMBEDDINGS, PLAIN
from llcuda.native.quantization.imatrix import Float32, ImportanceMatrix
from llcuda.native.quantization.plan import Job, QuantizePlan, TensorPlan

# What looks its weights up in a grid asserts that it finds some; beyond LARGEST it may not, and no
# quantised type holds such weights. Only the WIDE types do.
GRIDS = {*DEMANDING, GGMLType.IQ3_S}
WIDE = {GGMLType.F32, GGMLType.BF16, GGMLType.MXFP4, GGMLType.NVFP4}
LARGEST = 1e9
SLAB = 2**22  # values in memory at once
_LAYER = re.compile(r"blk\.\d+\.[\w.]+\.weight")  # llama.cpp's matrices name views of tensors too


def check_matrix(job: Job, plan: QuantizePlan) -> None:
    """Raise ArgumentError for a matrix that is missing, lacks a tensor or is another model's."""
    matrix = job.matrix
    needed = plan.needs_matrix
    if matrix is None:
        if needed:
            raise ArgumentError(
                f"{job.file_type} needs an importance matrix (imatrix=): {len(needed)} tensors, "
                f"{needed[0]} for one, would be garbage without; llcuda imatrix makes one"
            )
        return
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    other = "the importance matrix is another model's"
    for name, (sums, _) in matrix.entries.items():
        if name not in tensors:
            if _LAYER.fullmatch(name):
                raise ArgumentError(f"{other}: it has {name}, {job.path} has not")
        elif sums.size != _columns(tensors[name]) and name not in EMBEDDINGS:
            expected = _columns(tensors[name])
            raise ArgumentError(f"{other}: {name} has {sums.size} columns there, {expected} here")
    quantised = [t.name for t in plan.tensors if t.new_type not in PLAIN]
    quantised = [name for name in quantised if name not in EMBEDDINGS]
    missing = [name for name in quantised if name not in matrix.entries]
    if len(missing) == len(quantised) and quantised:
        raise ArgumentError(f"{other}: it has none of its tensors, e.g. {quantised[0]}")
    if lost := [n for n in needed if n not in matrix.entries or _misfits(matrix, tensors[n])]:
        raise ArgumentError(
            f"the importance matrix has no entry for {lost[0]}, which cannot do without as "
            f"{tensors[lost[0]].new_type.name}; see tensor_types="
        )
    if missing:
        library.logger.info("quantised without an importance matrix: %s", ", ".join(missing))


def check_weights(job: Job, plan: QuantizePlan) -> None:
    """Raise ModelError for weights so large that quantising them would end the process."""
    at_risk = {t.name for t in plan.tensors if t.old_type in WIDE and t.new_type in GRIDS}
    for path in parts(job.path) if at_risk else ():
        file = gguf.MappedFile(path)
        for record in (record for record in file.index.tensors if record.name in at_risk):
            largest = max(map(_largest, _slabs(file, record)))
            if not largest <= LARGEST:
                raise ModelError(
                    f"{record.name} in {path} has a weight of {largest:.3g}; quantised types end "
                    f"before {LARGEST:.0e}"
                )
        file.close()


def _slabs(file: gguf.MappedFile, record: gguf.Record) -> Iterator[Float32]:
    numel, start = math.prod(record.sizes), file.index.data_offset + record.offset
    step = min(SLAB, numel)
    for begin in range(0, numel, step):
        count = min(step, numel - begin)
        at, size = (record.size * n // numel for n in (begin, count))
        if file.mmap:
            yield gguf.floats(file.mmap, start + at, size, record.type, count)


def _largest(values: Float32) -> float:
    return float(np.abs(values).max())


def _columns(tensor: TensorPlan) -> int:
    """Return how many means a tensor's entry has: columns, of each expert."""
    return tensor.shape[-1] * (tensor.shape[-3] if len(tensor.shape) > 2 else 1)


def _misfits(matrix: ImportanceMatrix, tensor: TensorPlan) -> bool:
    return matrix.entries[tensor.name][0].size != _columns(tensor)
