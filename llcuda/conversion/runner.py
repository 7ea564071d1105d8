"""Runs llama.cpp's converter, a Python program that comes with the package and needs torch.

It runs in a process of its own: its imports and logs stay there, its memory is freed when it ends,
and it can be stopped. It sees a folder of links to the files of a checkpoint, without code and with
a configuration that names no code, and no network. Nothing that a checkpoint brings is executed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcuda._version import __version__
from llcuda.conversion.checkpoint import (
    INDEX,
    TOKENIZERS,
    Checkpoint,
    indexed_weights,
    read_json,
)
from llcuda.conversion.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraFolder, replaced_weights
from llcuda.conversion.modules import has_dense_modules, module_files
from llcuda.errors import LibraryError, LlcudaError, LoadCancelledError, ModelError
from llcuda.native.library import installation

MODULES = ("torch", "transformers", "safetensors", "sentencepiece", "yaml", "requests", "tqdm")
READ_SUFFIXES = (".jinja", ".model", ".tiktoken", ".txt")
MODEL_CARD = "README.md"
CONFIG = "config.json"
READ_CONFIGS = (
    CONFIG, "tokenizer_config.json", "generation_config.json", "hf_quant_config.json",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"
POLL_SECONDS = 0.1  # between two reports of the progress
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
_READ_JSON = re.compile(
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab.*|tekken|chat_template|modules)\.json"
)
_MODULE_FILE = re.compile(r"\d+_\w+/config\.json|\d+_Dense/model\.safetensors")
_TOKENIZER = re.compile(
    r"(tokenizer.*|special_tokens_map|added_tokens|merges|chat_template)\.\w+"
    rf"|{TEMPLATES}/.*"
)

logger = logging.getLogger("llcuda.converter")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint or an adapter to convert.

    Attributes:
        name: The name of the model in the result.
        base: The folder with the model's configuration and tokenizer.
        config: The content of config.json in `base`.
        checkpoint: The weights; None for an adapter alone.
        adapter: The adapter to convert, or to merge into the checkpoint; None for a model.
    """

    name: str
    base: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint | None
    adapter: LoraFolder | None


def check_packages() -> None:
    """Raise LlcudaError if a package that the converter imports is missing."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise _missing_package(missing[0])


def converter_version() -> str:
    """Return the versions that the content of a converted file depends on."""
    return f"{__version__} {installation()[1]}"


@functools.cache
def architectures() -> frozenset[str]:
    """Return the names of the transformers classes whose checkpoints can be converted."""
    code = (converter_folder() / "conversion" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(code).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP":
            return frozenset(ast.literal_eval(ast.unparse(node.value) if node.value else "{}"))
    raise LibraryError("this llama.cpp's converter does not say which models it knows")


def run_converter(
    source: Source,
    target: Path,
    file_type: str,
    size: int,
    progress: Callable[[float], bool | None],
) -> None:
    """Write a GGUF file, which after an error may be incomplete.

    Args:
        source: The checkpoint or adapter.
        target: The file to write.
        file_type: "F32", "F16", "BF16", "Q8_0", or "auto" for the checkpoint's own 16 bits.
        size: The size of the file in bytes, about; 0 is unknown.
        progress: Called with the share that is written, 0.0 to 1.0; False stops the converter.

    Raises:
        LoadCancelledError: `progress` returned False.
        ModelError: The converter fails.
        LlcudaError: A package of llcuda[convert] is missing.
    """
    with tempfile.TemporaryDirectory(prefix="llcuda-convert-") as temporary:
        folder = Path(temporary)
        job = {
            "converter": str(converter_folder()),
            "target": str(target.absolute()),
            "type": file_type.lower(),
            "name": source.name,
            "folder": str(stage_model(source, folder / "model")),
            "adapter": str(_stage_adapter(source, folder / "adapter")) if source.adapter else None,
            "merge": source.checkpoint is not None,
            "dense": has_dense_modules(source.base),
            "report": str(folder / "report.json"),
        }
        try:
            code = _run_job(job, folder / "log", lambda: progress(_share(target, size)))
        finally:
            for line in (folder / "log").read_text(errors="replace").splitlines():
                logger.debug("%s", line)
        report = folder / "report.json"
        failure = json.loads(report.read_text()) if report.is_file() else {}
    if code == 0:
        return
    if failure.get("missing"):
        raise _missing_package(failure["missing"])
    reason = failure.get("message") or f"the process ended with {code}"
    if code < 0:
        reason = f"the process was ended by signal {-code}; was there too little memory?"
    if "pre-tokenizer was not recognized" in reason:
        reason = "this llama.cpp does not know its tokenizer"
    raise ModelError(f"cannot convert {source.name}: {reason}")


def _run_job(job: Mapping[str, Any], log: Path, report: Callable[[], bool | None]) -> int:
    """Run the process and return its exit code; an exception in `report` ends the process."""
    command = [sys.executable, "-P", "-m", "llcuda.conversion.child"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C reaches this process, which then ends the other
        )
    with process, contextlib.suppress(BrokenPipeError):  # its exit code says why it ended
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                if report() is False:
                    raise LoadCancelledError(f"converting {job['name']} was stopped")
        finally:
            process.kill()
    return process.returncode


def _share(target: Path, size: int) -> float:
    """Return how much of the target is written, 0.0 to 1.0."""
    return min(target.stat().st_size / size, 1.0) if size and target.is_file() else 0.0


# --- the folder of links ---


def stage_model(source: Source, folder: Path) -> Path:
    """Fill and return a folder inside `folder` that the converter sees as the model's."""
    folder = folder / source.name
    folder.mkdir(parents=True)
    merged_adapter = source.adapter if source.checkpoint else None
    tokenizer_folder = source.base
    if merged_adapter and any((merged_adapter.folder / name).is_file() for name in TOKENIZERS):
        tokenizer_folder = merged_adapter.folder  # with the tokens that were added in training
    for name in files_read(source.base):
        if name != CONFIG and not _is_tokenizer(name):
            _link(source.base / name, folder / name)
    for name in filter(_is_tokenizer, files_read(tokenizer_folder)):
        _link(tokenizer_folder / name, folder / name)
    config = _without_code(source.config)
    for part in (config, config.get("text_config")):
        settings = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(settings, dict) and settings.get("quant_method") == "bitsandbytes":
            del part["quantization_config"]
    vocabulary_size = _vocabulary_size(merged_adapter)
    if vocabulary_size is not None:
        config["vocab_size"] = vocabulary_size
    _write_json(folder / CONFIG, config)
    if source.checkpoint is not None:
        weights = [path.name for path in source.checkpoint.weights]
        indexed = set((indexed_weights(source.base) or {}).values()) == set(weights)
        for name in [*weights, INDEX] if indexed else weights:
            _link(source.base / name, folder / name)
    return folder


def _stage_adapter(source: Source, folder: Path) -> Path:
    """Fill and return the folder that the converter sees as the adapter's."""
    assert source.adapter is not None
    folder = folder / source.name
    folder.mkdir(parents=True)
    _write_json(folder / ADAPTER_CONFIG, _without_code(source.adapter.config))
    (folder / ADAPTER_WEIGHTS).symlink_to((source.adapter.folder / ADAPTER_WEIGHTS).resolve())
    return folder


def is_read(name: str) -> bool:
    """Return whether the converter may read a file of a repository, apart from the weights.

    Args:
        name: The path of the file in the repository.
    """
    folder, _, file = name.rpartition("/")
    if folder:
        is_template = folder == TEMPLATES and file.endswith(".jinja")
        return is_template or bool(_MODULE_FILE.fullmatch(name))
    if file in READ_CONFIGS or file in (INDEX, MODEL_CARD) or file.endswith(READ_SUFFIXES):
        return True
    return bool(_READ_JSON.fullmatch(file))


def files_read(folder: Path) -> list[str]:
    """Return the files of a checkpoint's folder that the converter may read apart from the weights.

    They are the tokenizer, configurations, chat templates, the model card, and the modules of an
    embedding model after its layers, e.g. pooling.

    Raises:
        ModelError: The list of modules is broken.
    """
    names = [path.name for path in folder.iterdir() if is_read(path.name) and path.name != INDEX]
    names += [f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")]
    names += module_files(folder)
    return sorted(name for name in names if (folder / name).is_file())


def _is_tokenizer(name: str) -> bool:
    return name in TOKENIZERS or bool(_TOKENIZER.fullmatch(name))


def _link(path: Path, link: Path) -> None:
    """Link a file, or copy a configuration of classes without the names of code."""
    link.parent.mkdir(exist_ok=True)
    if path.name == "tokenizer_config.json":
        _write_json(link, _without_code(read_json(path)))
    else:
        link.symlink_to(path.resolve())


def _vocabulary_size(adapter: LoraFolder | None) -> int | None:
    """Return the number of tokens of an adapter that replaces the embedding; else None."""
    if adapter is None:
        return None
    for weight, name in replaced_weights(adapter.tensors).items():
        if weight.endswith("embed_tokens.weight"):
            return adapter.tensors[name].shape[0]
    return None


def _without_code(value: Any) -> Any:
    """Return a configuration without `auto_map`, which names classes to import."""
    if isinstance(value, Mapping):
        return {key: _without_code(item) for key, item in value.items() if key != "auto_map"}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def converter_folder() -> Path:
    """Return the folder of llama.cpp's converter in the package."""
    folder = installation()[0] / "converter"
    if not folder.is_dir():
        raise LibraryError(f"{folder} is missing: install llcuda again")
    return folder


def _missing_package(module: str) -> LlcudaError:
    return LlcudaError(
        f"converting needs the Python package {module}: pip install 'llcuda[convert]'"
    )
