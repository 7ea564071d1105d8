"""Checks before a quantization: the importance matrix fits, the weights are plausible."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from llcuda.errors import ArgumentError, ModelError
from llcuda.native import library
from llcuda.native.gguf.check import parts
from llcuda.native.gguf.mapped import MappedFile, Record, floats
from llcuda.native.gguf.types import GGMLType
from llcuda.native.quantization.file_types import DEMANDING, EMBEDDINGS, PLAIN
from llcuda.native.quantization.imatrix import Float32, ImportanceMatrix
from llcuda.native.quantization.plan import QuantizeJob, QuantizePlan, TensorPlan

# The types that look weights up in a grid assert that they find some. Beyond MAX_WEIGHT they may
# not, and no quantized type holds such weights; only the WIDE types do.
GRIDS = {*DEMANDING, GGMLType.IQ3_S}
WIDE = {GGMLType.F32, GGMLType.BF16, GGMLType.MXFP4, GGMLType.NVFP4}
MAX_WEIGHT = 1e9
SLAB = 2**22  # values in memory at once
_LAYER = re.compile(r"blk\.\d+\.[\w.]+\.weight")  # llama.cpp's matrices name views of tensors too


def check_matrix(job: QuantizeJob, plan: QuantizePlan) -> None:
    """Check that the importance matrix is there where it is needed, and fits the model.

    Args:
        job: The quantization.
        plan: Its plan.

    Raises:
        ArgumentError: The matrix is missing, lacks a tensor or belongs to another model.
    """
    matrix = job.matrix
    needed = plan.needs_matrix
    if matrix is None:
        if needed:
            raise ArgumentError(
                f"imatrix=None: {job.file_type} needs an importance matrix, without one "
                f"{len(needed)} tensors would be garbage, for example {needed[0]}",
                parameter="imatrix",
                remedy="give imatrix=, which `llcuda imatrix` makes",
            )
        return
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    other = "the importance matrix belongs to another model"
    for name, (sums, _) in matrix.entries.items():
        if name not in tensors:
            if _LAYER.fullmatch(name):
                problem = f"{other}: it has {name}, {job.path} has not"
                raise ArgumentError(problem, parameter="imatrix")
        elif sums.size != _columns(tensors[name]) and name not in EMBEDDINGS:
            expected = _columns(tensors[name])
            problem = f"{other}: {name} has {sums.size} columns there, {expected} here"
            raise ArgumentError(problem, parameter="imatrix")
    quantized = [t.name for t in plan.tensors if t.new_type not in PLAIN]
    quantized = [name for name in quantized if name not in EMBEDDINGS]
    missing = [name for name in quantized if name not in matrix.entries]
    if len(missing) == len(quantized) and quantized:
        problem = f"{other}: it has no entry for any tensor, for example {quantized[0]}"
        raise ArgumentError(problem, parameter="imatrix")
    if lost := [n for n in needed if n not in matrix.entries or _misfits(matrix, tensors[n])]:
        raise ArgumentError(
            f"the importance matrix has no entry for {lost[0]}, which needs one as "
            f"{tensors[lost[0]].new_type.name}",
            parameter="imatrix",
            remedy="give the tensor another type with tensor_types=",
        )
    if missing:
        library.logger.info("quantized without an importance matrix: %s", ", ".join(missing))


def check_weights(job: QuantizeJob, plan: QuantizePlan) -> None:
    """Check that no weight is so large that quantizing it would end the process.

    Args:
        job: The quantization.
        plan: Its plan.

    Raises:
        ModelError: A weight is.
    """
    at_risk = {t.name for t in plan.tensors if t.old_type in WIDE and t.new_type in GRIDS}
    for path in parts(job.path) if at_risk else ():
        file = MappedFile(path)
        for record in (record for record in file.index.tensors if record.name in at_risk):
            largest = max(map(_largest, _slabs(file, record)))
            if not largest <= MAX_WEIGHT:
                raise ModelError(
                    f"{record.name} in {path} has a weight of {largest:.3g}; quantized types end "
                    f"before {MAX_WEIGHT:.0e}"
                )
        file.close()


def _slabs(file: MappedFile, record: Record) -> Iterator[Float32]:
    numel, start = math.prod(record.sizes), file.index.data_offset + record.offset
    step = min(SLAB, numel)
    for begin in range(0, numel, step):
        count = min(step, numel - begin)
        offset, size = (record.size * n // numel for n in (begin, count))
        if file.mmap:
            yield floats(file.mmap, start + offset, size, record.type, count)


def _largest(values: Float32) -> float:
    return float(np.abs(values).max())


def _columns(tensor: TensorPlan) -> int:
    """Return how many means the entry of a tensor has: its columns, for each expert."""
    return tensor.shape[-1] * (tensor.shape[-3] if len(tensor.shape) > 2 else 1)


def _misfits(matrix: ImportanceMatrix, tensor: TensorPlan) -> bool:
    return matrix.entries[tensor.name][0].size != _columns(tensor)
