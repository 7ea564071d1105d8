"""A model file with other types of weights: llama.cpp's quantisation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from llcuda.demo import resolve
from llcuda.errors import LoadCancelledError, ModelError
from llcuda.files import atomic_write, check_target
from llcuda.native import callbacks, library
from llcuda.native.gguf.check import check_file, parts
from llcuda.native.quantization.check import check_matrix, check_weights
from llcuda.native.quantization.imatrix import ImportanceMatrix
from llcuda.native.quantization.plan import Job, QuantizePlan

FULL = 2**20  # a disk with fewer bytes left is why writing failed


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    file_type: str = "Q4_K_M",
    *,
    imatrix: ImportanceMatrix | str | os.PathLike[str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    threads: int | None = None,
    requantize: bool = False,
    progress: Callable[[float], bool | None] | None = None,
) -> Path:
    """Write the model `source` to `target` with weights of `file_type`; return the target's path.

    file_type: one of file_types.FILE_TYPES, or of MATRIX_TYPES, which need `imatrix`; all get
        better by it. What does not fit a tensor's shape gets a larger type.
    imatrix: an importance matrix of this model, or its file.
    tensor_types: name -> one of TENSOR_TYPES, for single tensors; the name is a regular
        expression that is searched in tensors' names, the first that is found counts.
    threads: None = every processor. requantize: also from weights that are quantised already.
    progress: called with the share that is done, 0.0 to 1.0, after each tensor; False stops
        (LoadCancelledError), an exception stops and is raised again.
    The target appears when it is whole; one that is there is replaced.

    Raises ModelNotFoundError, ModelError (with llama.cpp's reason, or a full disk), ArgumentError.
    """
    into = Path(target)
    job = Job(source, file_type, imatrix, tensor_types, threads)
    matrix_file = [Path(job.matrix_file)] if job.matrix_file else []
    check_target(into, *parts(job.path), *matrix_file)
    plan = job.plan()
    check_matrix(job, plan)
    check_weights(job, plan)
    if plan.requantizes and not requantize:
        raise ModelError(
            f"the weights of {job.path} are quantised already: see requantize= (--requantize)"
        )
    free = shutil.disk_usage(into.parent).free
    if plan.nbytes > free:
        raise ModelError(f"{into} needs {plan.nbytes:,} bytes, the disk has {free:,} left")
    with atomic_write(into) as part:
        _write(job, part, plan, bool(requantize), progress)
    return into


def quantize_plan(
    source: str | os.PathLike[str],
    file_type: str = "Q4_K_M",
    *,
    imatrix: ImportanceMatrix | str | os.PathLike[str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
) -> QuantizePlan:
    """Return what `quantize` would make of each tensor, without writing anything.

    The parameters and errors are those of `quantize`; a missing matrix is none.
    """
    return Job(source, file_type, imatrix, tensor_types).plan()


def tensor_size(path: str | os.PathLike[str], name: str) -> int:
    """Return the bytes of a tensor in a model file, 0 where it has none of this name."""
    path = resolve(os.fspath(path))
    check_file(path)
    _, lib = library.load()
    size: int = lib.llcuda_tensor_size(os.fsencode(path), name.encode())
    if size < 0:
        library.fail(ModelError, f"cannot read {path}")
    return size


def _write(job: Job, part: Path, plan: QuantizePlan, requantize: bool, progress: Any) -> None:
    """Write the file; raise what `progress` raised, and ModelError for what failed."""
    ffi, lib = library.load()
    done = [0, *accumulate(tensor.old_nbytes for tensor in plan.tensors)]

    # Called in any case: that is when Python's main thread hears Ctrl-C.
    def report(fraction: float) -> bool:
        tensors = round(fraction * len(plan.tensors))
        return progress is None or progress(done[tensors] / max(done[-1], 1)) is not False

    handle = ffi.new_handle(report)
    status = lib.llcuda_quantize(
        os.fsencode(job.path), os.fsencode(part), job.c_params(requantize),
        lib.llcuda_on_progress, handle,
    )  # fmt: skip
    if status == lib.LLCUDA_ABORTED:
        callbacks.reraise()
        raise LoadCancelledError(f"quantising {job.path} was stopped by progress()")
    if status:
        lines = library.errors(ffi, lib, keep=True)
        if shutil.disk_usage(part.parent).free < FULL or "iostream error" in lines:
            raise ModelError(f"the disk of {part.parent} is full, or a limit is reached")
        library.fail(ModelError, f"cannot quantise {job.path}")
