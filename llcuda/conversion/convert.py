"""From a Hugging Face checkpoint, or a LoRA adapter, to a GGUF file, by llama.cpp's own converter.

What is asked, where it comes from, and where it goes; `llcuda.converter` runs the converter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from llcuda import progress as progress_bar
from llcuda.conversion import lora
from llcuda.conversion import runner as converter
from llcuda.conversion.checkpoint import (
    INDEX,
    check_tokenizer,
    has_weights,
    plain_names,
    read_checkpoint,
    read_config,
    read_json,
)
from llcuda.conversion.runner import Source
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.files import cache_folder, check_room, check_target, sweep
from llcuda.hub import snapshot as hub_folder
from llcuda.native.estimate import check_loads
from llcuda.native.quantization.file_types import check_file_type
from llcuda.native.quantization.quantize import quantize

DIRECT = ("F32", "F16", "BF16")  # what the converter writes for us; other types are made from it
ADAPTER_TYPES = (*DIRECT, "Q8_0")
CONVERTING = 0.5  # of the time, where a quantisation follows
LARGE = 2**20  # bytes of a file whose checksum is worth remembering
QUANTIZED = 8.5 / 8  # bytes a weight of Q8_0, the largest of the other types
BLOB = 64  # hexadecimal digits of a SHA-256, the name of a large file in the Hugging Face cache
ADVICE = "name a target on another disk, or set XDG_CACHE_HOME to a folder there"

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
    """Write a Hugging Face checkpoint as a GGUF file and return its path.

    source: a folder, or a repository on the Hugging Face Hub: safetensors with their config.json
        and tokenizer, in 16 or 32 bits or quantised by bitsandbytes to 4 (NF4, FP4); or a LoRA
        adapter of PEFT, which becomes an adapter for `Adapter`, or with merge=True a model.
    target: a file, or a folder that exists; by default NAME-TYPE.gguf here.
    file_type: see `llcuda.quantize`; Q4_K_M for a model, F32 (or F16, BF16, Q8_0) for an adapter.
    base: the base model of an adapter, a folder or a repository; by default what the adapter names.
    threads: of the quantisation, None = every processor.
    progress: called with 0.0 to 1.0; False stops. True draws a bar on stderr.

    Nothing that the checkpoint brings is executed, and the whole of its weights is never in memory.
    Raises ModelNotFoundError for missing files, ModelError for what cannot be converted,
    ArgumentError, LoadCancelledError, LlcudaError without the packages of llcuda[convert].
    """
    found = _open(source, base, merge)
    if merge and found.adapter is None:
        raise ArgumentError(f"{source} is a model; merge=True goes with an adapter")
    file_type = _check_type(found, file_type)
    path = _target(found, target, file_type)
    converter.check_packages()
    return _write(found, path, file_type, threads, progress)


def cached(
    source: str | os.PathLike[str],
    file_type: str,
    *,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Path:
    """Return the GGUF file of a checkpoint, or of an adapter merged into its base model.

    It is kept in $XDG_CACHE_HOME/llcuda/checkpoints, by default ~/.cache/llcuda/checkpoints, under
    a name that depends on the content of the checkpoint's files. Raises as `convert` does.
    """
    found = _open(source, base, merge=True)
    file_type = _check_type(found, file_type)
    folder = cache_folder("checkpoints")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        path = folder / f"{found.name}-{file_type}-{_digest(found, file_type)[:16]}.gguf"
    except OSError as error:
        raise ModelError(f"cannot write in {folder}: {error.strerror}") from None
    if path.is_file():
        return path
    converter.check_packages()
    return _write(found, path, file_type, None, progress)


# --- what is asked ---


def _open(
    source: str | os.PathLike[str], base: str | os.PathLike[str] | None, merge: bool
) -> Source:
    """Return what `source` names, fetched and checked."""
    folder, name = _folder(source, weights=True)
    known = converter.architectures()
    if not lora.is_adapter(folder):
        if base is not None:
            raise ArgumentError(f"{source} is a model; base={str(base)!r} goes with an adapter")
        checkpoint = read_checkpoint(folder, known)
        return Source(name, folder, checkpoint.config, checkpoint, None)
    adapter = lora.read_adapter(folder)
    of = base or adapter.base
    if not of:
        raise ArgumentError(f"{source} does not say what its base model is: name it with base=")
    try:
        below, _ = _folder(of, weights=merge)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{source}, base model: {error}; see base=") from error
    config = read_config(below, known)
    if not merge and lora.others(adapter.tensors):
        raise ModelError(f"{source} replaces whole weights, which an adapter cannot: see merge=")
    if not merge and not has_weights(below):
        return Source(name, below, config, None, adapter)
    checkpoint = read_checkpoint(below, known)
    lora.check_fit(adapter, checkpoint)
    return Source(name, below, config, checkpoint if merge else None, adapter)


def _folder(source: str | os.PathLike[str], *, weights: bool) -> tuple[Path, str]:
    """Return a checkpoint's folder and its name, downloading what is not there yet."""
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path, path.resolve().name or "model"
    repo = hub_folder.repository(text) if isinstance(source, str) and text else None
    if repo is None or path.exists():
        raise ModelNotFoundError(f"no such folder: {text!r}; expected one, or repo/id on the hub")
    folder = hub_folder.fetch(repo, lambda file: file.endswith(converter.LINKED))
    adapter = (folder / lora.CONFIG).is_file()
    if not adapter:  # what cannot be converted is not downloaded
        read_config(folder, converter.architectures())
        check_tokenizer(folder)
    if weights:
        converter.check_packages()
        index = folder / INDEX
        places = read_json(index).get("weight_map") if index.is_file() else None
        names = plain_names(places.values(), index) if isinstance(places, dict) else None
        hub_folder.fetch(repo, lambda file: _is_weights(file, names))
    return folder, repo.partition("/")[2]


def _is_weights(file: str, indexed: list[str] | None) -> bool:
    """Whether a repository's file holds weights; indexed: those that an index names."""
    if file == lora.WEIGHTS or indexed is not None:
        return file == lora.WEIGHTS or file in (indexed or ())
    return file.startswith("model") and file.endswith(".safetensors")


def _check_type(found: Source, file_type: str | None) -> str:
    if found.checkpoint is not None:
        return check_file_type(file_type or "Q4_K_M")
    return check_file_type(file_type or "F32", ADAPTER_TYPES)


def _target(found: Source, target: str | os.PathLike[str] | None, file_type: str) -> Path:
    name = f"{found.name}-{file_type}.gguf"
    path = Path(target or name).expanduser()
    path = path / name if path.is_dir() else path
    check_target(path, *_files(found))
    return path


def _files(found: Source) -> list[Path]:
    """Return the files that the source is read from."""
    folders = {found.base, found.adapter.folder} if found.adapter else {found.base}
    return [
        path
        for folder in sorted(folders)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.endswith((*converter.LINKED, ".safetensors"))
    ]


def _digest(found: Source, file_type: str) -> str:
    """Return a SHA-256 over what the file is made from and how."""
    made = [[path.name, _content(path)] for path in _files(found)]
    return hashlib.sha256(json.dumps([converter.version(), file_type, made]).encode()).hexdigest()


def _content(path: Path) -> str:
    """Return the SHA-256 of a file; a large one's is remembered until something touches it."""
    path = path.resolve()
    if path.parent.name == "blobs" and len(path.name) == BLOB:  # the Hugging Face cache
        return path.name
    facts = path.stat()
    if facts.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    state = (str(path), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    key = hashlib.sha256(json.dumps([*state, facts.st_ctime_ns]).encode()).hexdigest()
    known = cache_folder("checkpoints") / f"{key}.sha256"
    if known.is_file():
        return known.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    part = known.with_name(f".{key}.{os.getpid()}.part")
    part.write_text(digest)
    part.replace(known)
    return digest


# --- what is written ---


def _write(
    found: Source,
    target: Path,
    file_type: str,
    threads: int | None,
    progress: Progress | bool | None,
) -> Path:
    """Write the target, which appears when it is whole."""
    part = target.with_name(f".convert.{os.getpid()}.{threading.get_ident()}.part")
    with contextlib.ExitStack() as stack:
        stack.callback(part.unlink, missing_ok=True)
        if progress is True:
            progress = stack.enter_context(progress_bar.bar(f"Converting {found.name}"))
        report = progress if callable(progress) else lambda share: None
        try:
            _make(found, part, target, file_type, threads, report)
        except OSError as error:
            raise ModelError(f"cannot write {target}: {error.strerror}") from error
    return target


def _make(
    found: Source,
    part: Path,
    target: Path,
    file_type: str,
    threads: int | None,
    report: Progress,
) -> None:
    if found.checkpoint is None:
        converter.run(found, part, file_type, 0, report)
        part.replace(target)
        return
    plain = "F32" if found.checkpoint.full_precision else "auto"
    wanted = file_type if file_type in DIRECT else plain
    size = found.checkpoint.weight_count * (4 if wanted == "F32" else 2)
    direct = file_type in DIRECT
    more = 0 if direct else int(found.checkpoint.weight_count * QUANTIZED)
    check_room(target.parent, size + more, ADVICE)
    share = 1.0 if direct else CONVERTING
    converter.run(found, part, wanted, size, lambda done: report(done * share))
    try:
        check_loads(part)
    except ModelError as error:
        reason = str(error).rpartition("error loading model: ")[2].partition("\n")[0]
        raise ModelError(
            f"{found.name}: config.json and the weights do not fit: {reason}"
        ) from error
    if direct:
        part.replace(target)
    else:
        quantize(
            part, target, file_type, threads=threads,
            progress=lambda done: report(share + done * (1 - share)),
        )  # fmt: skip
