"""A model file with other types of weights: llama.cpp's quantisation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llcuda.demo import resolve
from llcuda.errors import ArgumentError, LoadCancelledError, ModelError
from llcuda.native import callbacks, library
from llcuda.native.gguf_check import check_file, check_tensors
from llcuda.params import check_number, default_threads

# Those that llama.cpp makes without an importance matrix, largest first.
FILE_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_1", "Q4_K_M",
    "Q4_K_S", "IQ4_NL", "Q4_0", "IQ4_XS", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "Q2_K",
)  # fmt: skip
BUFFER_SIZE = 2**28  # bytes of rows in memory at once; llama.cpp would take 8 GiB
FULL = 2**20  # a disk with fewer bytes left is why writing failed


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    file_type: str = "Q4_K_M",
    *,
    threads: int | None = None,
    requantize: bool = False,
    progress: Callable[[float], bool | None] | None = None,
) -> Path:
    """Write the model `source` to `target` with weights of `file_type`; return the target's path.

    file_type: one of FILE_TYPES; what does not fit a tensor's shape gets a larger type.
    threads: None = every processor. requantize: also from weights that are quantised already.
    progress: called with 0.0 to 1.0 after each tensor; False stops (LoadCancelledError), an
        exception stops and is raised again.
    The target appears when it is whole; one that is there is replaced.

    Raises ModelNotFoundError, ModelError (with llama.cpp's reason, or a full disk), ArgumentError.
    """
    path, into = resolve(os.fspath(source)), Path(target)
    file_type = check_file_type(file_type)
    if threads is not None:
        check_number("threads", threads, "int", 1, 512)
    if into.is_dir() or not into.parent.is_dir():
        raise ArgumentError(f"{into}: expected the name of a file in a folder that exists")
    if into.exists() and into.samefile(path):
        raise ArgumentError(f"{into} is the source itself; write to another file")
    check_file(path)
    _, lib = library.load()
    library.sync_log_level(lib)
    check_tensors(path)
    params = lib.llama_model_quantize_default_params()
    params.nthread = threads or default_threads()
    kind = "ALL" if file_type == "F32" else "MOSTLY"
    params.ftype = getattr(lib, f"LLAMA_FTYPE_{kind}_{file_type}")
    params.allow_requantize = bool(requantize)
    params.max_buf_size = BUFFER_SIZE
    part = into.with_name(f".{into.name}.{os.getpid()}.part")
    try:
        _write(path, part, params, progress)
        part.replace(into)
    except OSError as error:
        raise ModelError(f"cannot write {into}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return into


def check_file_type(name: Any) -> str:
    """Return the name of a file type as FILE_TYPES has it; ArgumentError for any other."""
    if not isinstance(name, str) or name.upper() not in FILE_TYPES:
        raise ArgumentError(f"type {name!r}: expected one of {', '.join(FILE_TYPES)}")
    return name.upper()


def tensor_size(path: str | os.PathLike[str], name: str) -> int:
    """Return the bytes of a tensor in a model file, 0 where it has none of this name."""
    path = resolve(os.fspath(path))
    check_file(path)
    _, lib = library.load()
    size: int = lib.llcuda_tensor_size(os.fsencode(path), name.encode())
    if size < 0:
        library.fail(ModelError, f"cannot read {path}")
    return size


def _write(path: Path, part: Path, params: Any, progress: Any) -> None:
    """Write the file; raise what `progress` raised, and ModelError for what failed."""
    ffi, lib = library.load()
    # Called in any case: that is when Python's main thread hears Ctrl-C.
    handle = ffi.new_handle(lambda fraction: progress is None or progress(fraction) is not False)
    status = lib.llcuda_quantize(
        os.fsencode(path), os.fsencode(part), params, lib.llcuda_on_progress, handle
    )
    if status == lib.LLCUDA_ABORTED:
        callbacks.reraise()
        raise LoadCancelledError(f"quantising {path} was stopped by progress()")
    if status:
        if shutil.disk_usage(part.parent).free < FULL:
            raise ModelError(f"the disk of {part.parent} is full: nothing was written")
        if "requantizing" in library.errors(ffi, lib, keep=True):
            raise ModelError(f"the weights of {path} are quantised already: see requantize=")
        library.fail(ModelError, f"cannot quantise {path}")
