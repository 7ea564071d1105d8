"""Quantization of model files, by llama.cpp."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from llcuda.errors import LoadCancelledError, ModelError
from llcuda.files import atomic_write, check_target, local_path
from llcuda.hub.resolver import resolve
from llcuda.keywords import explain_keywords
from llcuda.native import callbacks, library
from llcuda.native.gguf.check import check_file, parts
from llcuda.native.quantization.check import check_matrix, check_weights
from llcuda.native.quantization.imatrix import ImportanceMatrix
from llcuda.native.quantization.plan import QuantizeJob, QuantizePlan

FULL_DISK = 2**20  # free bytes, below which a full disk is taken as the reason of a failure


@explain_keywords
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
    """Write a model file with weights of another type.

    The target appears when it is complete, and replaces a file of the same name.

    Args:
        source: The model, as `llcuda.hub.resolve` takes it.
        target: The file to write.
        file_type: One of `llcuda.FILE_TYPES`, or of `llcuda.MATRIX_TYPES`, which need `imatrix`.
            A tensor whose shape does not fit gets a larger type.
        imatrix: An importance matrix of this model, or its file. It improves every type.
        tensor_types: One of `llcuda.TENSOR_TYPES` for single tensors. Each name is a regular
            expression that is searched in the tensors' names; the first match counts.
        threads: Processors; None is all.
        requantize: Allow weights that are quantized already.
        progress: Called with 0.0 to 1.0 after each tensor. False cancels, an exception cancels and
            is raised again.

    Returns:
        The path of the target.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: The model cannot be quantized, or the disk is full.
        LoadCancelledError: `progress` returned False.
        ArgumentError: An argument is not allowed.
    """
    into = Path(local_path(target, "target"))
    job = QuantizeJob(source, file_type, imatrix, tensor_types, threads)
    matrix_file = [Path(job.matrix_file)] if job.matrix_file else []
    check_target(into, *parts(job.path), *matrix_file)
    plan = job.plan()
    check_matrix(job, plan)
    check_weights(job, plan)
    if plan.requantizes and not requantize:
        raise ModelError(
            f"the weights of {job.path} are quantized already; allow it with requantize=True "
            "(--requantize)"
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
    """Return what `quantize` would make of each tensor, without writing a file.

    Args:
        source: As for `quantize`.
        file_type: As for `quantize`; a missing importance matrix is not an error here.
        imatrix: As for `quantize`.
        tensor_types: As for `quantize`.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: The model cannot be quantized.
        ArgumentError: An argument is not allowed.
    """
    return QuantizeJob(source, file_type, imatrix, tensor_types).plan()


def tensor_size(path: str | os.PathLike[str], name: str) -> int:
    """Return the bytes of a tensor in a model file; 0 if the file does not have it.

    Args:
        path: The model, as `llcuda.hub.resolve` takes it.
        name: The tensor.

    Raises:
        ModelNotFoundError: The file does not exist.
        ModelError: The file is damaged.
    """
    path = resolve(path, parameter="path")
    check_file(path)
    _, lib = library.load()
    size: int = lib.llcuda_tensor_size(os.fsencode(path), name.encode())
    if size < 0:
        library.fail(ModelError, f"cannot read {path}")
    return size


def _write(
    job: QuantizeJob, part: Path, plan: QuantizePlan, requantize: bool, progress: Any
) -> None:
    """Write the target file."""
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
        raise LoadCancelledError(f"quantizing {job.path} was cancelled by progress()")
    if status == lib.LLCUDA_FILE_CHANGED:
        library.check(status, lambda: "quantize()")
    if status:
        log = library.errors(ffi, lib, keep=True)
        if shutil.disk_usage(part.parent).free < FULL_DISK or "iostream error" in log:
            raise ModelError(f"the disk of {part.parent} is full, or a limit is reached")
        library.fail(ModelError, f"cannot quantize {job.path}")
