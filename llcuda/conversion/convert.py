"""Hugging Face checkpoints and LoRA adapters to GGUF files, by llama.cpp's own converter.

This module finds and checks the source and writes the result; `llcuda.conversion.runner` runs the
converter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from llcuda.conversion.checkpoint import (
    check_tokenizer,
    has_weights,
    indexed_weights,
    read_checkpoint,
    read_config,
    weight_files,
)
from llcuda.conversion.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_base,
    is_adapter,
    read_adapter,
    replaced_weights,
)
from llcuda.conversion.modules import check_modules
from llcuda.conversion.runner import (
    Source,
    architectures,
    check_packages,
    converter_version,
    files_read,
    is_read,
    run_converter,
)
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.files import (
    atomic_write,
    cache_folder,
    check_free_space,
    check_target,
    local_path,
    remove_abandoned,
    temporary_file,
)
from llcuda.hub.snapshot import download_folder, parse_repository
from llcuda.native.estimate import check_loads
from llcuda.native.quantization.file_types import check_file_type
from llcuda.native.quantization.quantize import quantize
from llcuda.params import wrong_value
from llcuda.progress import progress_bar

CONVERTER_TYPES = ("F32", "F16", "BF16")  # written by the converter; all others are made from them
ADAPTER_TYPES = (*CONVERTER_TYPES, "Q8_0")
CONVERSION_SHARE = 0.5  # of the time, if a quantization follows
LARGE_FILE = 2**20  # bytes; the checksums of larger files are kept
MAX_BYTES_PER_WEIGHT = 8.5 / 8  # of a quantized type, which is Q8_0's
SHA256_DIGITS = 64  # the length of a large file's name in the Hugging Face cache
REMEDY = "name a target on another disk, or set XDG_CACHE_HOME to a folder there"

Progress = Callable[[float], bool | None]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    file_type: str | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    merge: bool = False,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> Path:
    """Write a Hugging Face checkpoint or a LoRA adapter as a GGUF file.

    No code of the checkpoint is executed, and its weights are never in memory all at once.

    Args:
        source: A folder or a repository on the Hugging Face Hub. It holds safetensors with
            config.json and a tokenizer, in 16 or 32 bits or quantized by bitsandbytes to 4 bits
            (NF4, FP4), or a LoRA adapter of PEFT.
        target: The file to write, or a folder that exists; None is NAME-TYPE.gguf in the current
            folder.
        file_type: The type of the weights; see `llcuda.quantize`. None is Q4_K_M for a model and
            F32 for an adapter, which also has F16, BF16 and Q8_0.
        base: The base model of an adapter, a folder or a repository; None is the one that the
            adapter names.
        merge: Whether to merge an adapter into its base model. Without, the result is an adapter
            for `llcuda.Adapter`.
        threads: Threads of the quantization; None is every processor.
        progress: Called with the share that is done, 0.0 to 1.0; False stops the conversion. True
            draws a bar on stderr.

    Returns:
        The path of the GGUF file, which appears when it is complete.

    Raises:
        ModelNotFoundError: The source, or one of its files, does not exist.
        ModelError: The source cannot be converted, or the file cannot be written.
        ArgumentError: An argument does not fit the source.
        LoadCancelledError: `progress` returned False.
        LlcudaError: A package of llcuda[convert] is missing.
    """
    opened = _open(source, base, merge)
    if merge and opened.adapter is None:
        raise wrong_value("merge", merge, f"goes with an adapter, but {source} is a model")
    file_type = _check_type(opened, file_type)
    path = _target_path(opened, target, file_type)
    check_packages()
    return _write(opened, path, file_type, threads, progress)


def convert_cached(
    source: str | os.PathLike[str],
    file_type: str,
    *,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Path:
    """Return the GGUF file of a checkpoint, or of an adapter merged into its base model.

    The file is kept in $XDG_CACHE_HOME/llcuda/checkpoints, by default
    ~/.cache/llcuda/checkpoints, under a name that depends on the content of the source's files.

    Args:
        source: The checkpoint or adapter, as `convert` takes it.
        file_type: The type of the weights.
        base: The base model of an adapter.
        progress: As `convert` takes it.

    Raises:
        ModelNotFoundError: As `convert` raises it.
        ModelError: As `convert` raises it.
        ArgumentError: As `convert` raises it.
        LoadCancelledError: As `convert` raises it.
        LlcudaError: As `convert` raises it.
    """
    opened = _open(source, base, merge=True)
    file_type = _check_type(opened, file_type)
    folder = cache_folder("checkpoints")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        digest = source_digest(opened, file_type)
        path = folder / f"{opened.name}-{file_type}-{digest[:16]}.gguf"
    except OSError as error:
        raise ModelError(f"cannot write in {folder}: {error.strerror}") from None
    if path.is_file():
        return path
    check_packages()
    return _write(opened, path, file_type, None, progress)


# --- the source ---


def _open(
    source: str | os.PathLike[str], base: str | os.PathLike[str] | None, merge: bool
) -> Source:
    """Return the checkpoint or adapter that `source` names, downloaded and checked."""
    folder, name = _source_folder(source, weights=True)
    known = architectures()
    if not is_adapter(folder):
        if base is not None:
            raise wrong_value("base", base, f"goes with an adapter, but {source} is a model")
        checkpoint = read_checkpoint(folder, known)
        check_modules(folder, checkpoint.config)
        return Source(name, folder, checkpoint.config, checkpoint, None)
    adapter = read_adapter(folder)
    base = base or adapter.base
    if not base:
        raise ArgumentError(
            f"{source} does not say what its base model is: name it with base=", parameter="base"
        )
    try:
        base_folder, _ = _source_folder(base, weights=merge)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{source}, base model: {error}; see base=") from error
    config = read_config(base_folder, known)
    if not merge and replaced_weights(adapter.tensors):
        raise ModelError(f"{source} replaces whole weights, which an adapter cannot: see merge=")
    if not merge and not has_weights(base_folder):
        return Source(name, base_folder, config, None, adapter)
    checkpoint = read_checkpoint(base_folder, known)
    check_base(adapter, checkpoint)
    return Source(name, base_folder, config, checkpoint if merge else None, adapter)


def _source_folder(source: str | os.PathLike[str], *, weights: bool) -> tuple[Path, str]:
    """Return a checkpoint's folder and name, downloading the files that are missing."""
    text = local_path(source, "source")
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path, path.resolve().name or "model"
    repo = parse_repository(text) if isinstance(source, str) and text else None
    if text and path.is_file():
        raise ModelNotFoundError(
            f"{text!r} is a file, and a checkpoint is a folder; Model(path) loads a GGUF file"
        )
    if repo is None or path.exists():
        raise ModelNotFoundError(f"no such folder: {text!r}; expected one, or repo/id on the hub")
    folder = download_folder(
        repo, lambda names: [name for name in names if name == ADAPTER_CONFIG or is_read(name)]
    )
    if not (folder / ADAPTER_CONFIG).is_file():  # refuse before the weights are downloaded
        check_modules(folder, read_config(folder, architectures()))
        check_tokenizer(folder)
    if weights:
        check_packages()
        weight_map = indexed_weights(folder)
        listed = weight_map.values() if weight_map else None
        download_folder(repo, lambda names: [ADAPTER_WEIGHTS, *weight_files(names, listed)])
    return folder, repo.partition("/")[2]


def _check_type(source: Source, file_type: str | None) -> str:
    if source.checkpoint is not None:
        return check_file_type(file_type or "Q4_K_M")
    return check_file_type(file_type or "F32", ADAPTER_TYPES)


def _target_path(source: Source, target: str | os.PathLike[str] | None, file_type: str) -> Path:
    name = f"{source.name}-{file_type}.gguf"
    path = Path(target or name).expanduser()
    path = path / name if path.is_dir() else path
    check_target(path, *_source_files(source).values())
    return path


def _source_files(source: Source) -> dict[str, Path]:
    """Return the files that are read for a conversion, by names that do not depend on the place."""
    files = {name: source.base / name for name in files_read(source.base)}
    files |= {path.name: path for path in (source.checkpoint.weights if source.checkpoint else ())}
    if source.adapter is not None:
        folder = source.adapter.folder
        names = [*files_read(folder), ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        files |= {f"adapter/{name}": folder / name for name in names}
    return files


def source_digest(source: Source, file_type: str) -> str:
    """Return a SHA-256 over the content of the source's files, the converter and the type."""
    files = [[name, file_digest(path)] for name, path in _source_files(source).items()]
    key = json.dumps([converter_version(), file_type, files])
    return hashlib.sha256(key.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large file is kept until the file changes."""
    path = path.resolve()
    if path.parent.name == "blobs" and len(path.name) == SHA256_DIGITS:  # Hugging Face cache
        return path.name
    status = path.stat()
    if status.st_size < LARGE_FILE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    state = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    key = hashlib.sha256(json.dumps([*state, status.st_ctime_ns]).encode()).hexdigest()
    kept = cache_folder("checkpoints") / f"{key}.sha256"
    if kept.is_file():
        return kept.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with atomic_write(kept) as partial:
        partial.write_text(digest)
    return digest


# --- the result ---


def _write(
    source: Source,
    target: Path,
    file_type: str,
    threads: int | None,
    progress: Progress | bool | None,
) -> Path:
    """Write the target, which appears when it is complete."""
    with contextlib.ExitStack() as stack:
        if progress is True:
            progress = stack.enter_context(progress_bar(f"Converting {source.name}"))
        report = progress if callable(progress) else lambda share: None
        if source.checkpoint is None:
            partial = stack.enter_context(atomic_write(target))
            run_converter(source, partial, file_type, 0, report)
        else:
            _write_model(source, target, file_type, threads, report)
    return target


def _write_model(
    source: Source, target: Path, file_type: str, threads: int | None, report: Progress
) -> None:
    """Convert a model in 16 or 32 bits and, for another type, quantize the result."""
    checkpoint = source.checkpoint
    assert checkpoint is not None
    direct = file_type in CONVERTER_TYPES
    unquantized = "F32" if checkpoint.full_precision else "auto"
    partial_type = file_type if direct else unquantized
    size = checkpoint.weight_count * (4 if partial_type == "F32" else 2)
    quantized_size = 0 if direct else int(checkpoint.weight_count * MAX_BYTES_PER_WEIGHT)
    check_free_space(target.parent, size + quantized_size, REMEDY)
    if direct:
        with atomic_write(target) as partial:
            _convert_model(source, partial, partial_type, size, report)
        return
    with temporary_file(target.parent) as partial:
        share = CONVERSION_SHARE
        _convert_model(source, partial, partial_type, size, lambda done: report(done * share))
        quantize(
            partial, target, file_type, threads=threads,
            progress=lambda done: report(share + done * (1 - share)),
        )  # fmt: skip


def _convert_model(
    source: Source, partial: Path, file_type: str, size: int, report: Progress
) -> None:
    """Convert a model and check that llama.cpp loads the result."""
    run_converter(source, partial, file_type, size, report)
    try:
        check_loads(partial)
    except ModelError as error:
        reason = str(error).rpartition("error loading model: ")[2].partition("\n")[0]
        raise ModelError(
            f"{source.name}: config.json and the weights do not fit: {reason}"
        ) from error
