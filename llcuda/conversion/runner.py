"""llama.cpp's converter, a Python program that comes with the package and needs torch.

It runs as a process of its own. What it imports, changes and logs stays there; its memory is the
system's again when it ends, and a converter that does not end can be stopped. It sees a folder of
links to the files of a checkpoint, without code and with a configuration that names none, and no
network: nothing that a checkpoint brings is executed.
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
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from llcuda.conversion import lora
from llcuda.conversion.checkpoint import TOKENIZERS, Checkpoint, plain_names, read_json
from llcuda.errors import LibraryError, LlcudaError, LoadCancelledError, ModelError
from llcuda.native.library import installation

MODULES = ("torch", "transformers", "safetensors", "sentencepiece", "yaml", "requests", "tqdm")
LINKED = (".json", ".jinja", ".md", ".model", ".tiktoken", ".txt")  # no code, and no weights
STEP = 0.1  # seconds between two looks at how far it is
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
_TOKENIZER = re.compile(r"(tokenizer.*|special_tokens_map|added_tokens|merges|chat_template)\.\w+")

logger = logging.getLogger("llcuda.converter")


@dataclass(frozen=True, slots=True)
class Source:
    """What is converted.

    base: the folder with the model's configuration, `config`, and tokenizer. checkpoint: its
    weights, None for an adapter alone. adapter: alone, or merged into the checkpoint.
    """

    name: str
    base: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint | None
    adapter: lora.LoraFolder | None


def check_packages() -> None:
    """Raise LlcudaError when a package that the converter imports is absent."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise _lacking(missing[0])


def version() -> str:
    """Return what the content of a converted file depends on, besides the checkpoint."""
    return f"{package_version('llcuda')} {installation()[1]}"


@functools.cache
def architectures() -> frozenset[str]:
    """Return the names of the transformers classes whose checkpoints can be converted."""
    source = (_folder() / "conversion" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP":
            return frozenset(ast.literal_eval(ast.unparse(node.value) if node.value else "{}"))
    raise LibraryError("this llama.cpp's converter does not say which models it knows")


def run(
    source: Source,
    target: Path,
    file_type: str,
    size: int,
    progress: Callable[[float], bool | None],
) -> None:
    """Write `target`, of about `size` bytes; raise what went wrong.

    file_type: "F32", "F16", "BF16", "Q8_0", or "auto" for the checkpoint's own 16 bits.
    progress: False stops (LoadCancelledError). The target is left to the caller, whole or not.
    """
    with tempfile.TemporaryDirectory(prefix="llcuda-convert-") as place:
        folder = Path(place)
        order = {
            "converter": str(_folder()),
            "target": str(target.absolute()),
            "type": file_type.lower(),
            "name": source.name,
            "folder": str(_stage_model(source, folder / "model")),
            "adapter": str(_stage_adapter(source, folder / "adapter")) if source.adapter else None,
            "merge": source.checkpoint is not None,
            "report": str(folder / "report.json"),
        }
        started = functools.partial(_share, target, size)
        try:
            code = _wait(order, folder / "log", lambda: progress(started()))
        finally:
            for line in (folder / "log").read_text(errors="replace").splitlines():
                logger.debug("%s", line)
        report = folder / "report.json"
        answer = json.loads(report.read_text()) if report.is_file() else {}
    if code == 0:
        return
    if answer.get("missing"):
        raise _lacking(answer["missing"])
    reason = answer.get("message") or f"the process ended with {code}"
    if code < 0:
        reason = f"the process was ended by signal {-code}; was there too little memory?"
    if "pre-tokenizer was not recognized" in reason:
        reason = "its tokenizer is none that this llama.cpp knows"
    raise ModelError(f"cannot convert {source.name}: {reason}")


def _wait(order: Mapping[str, Any], log: Path, look: Callable[[], bool | None]) -> int:
    """Start the process and return its exit code; what is raised here ends it."""
    command = [sys.executable, "-P", "-m", "llcuda.conversion.child"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
    with process, contextlib.suppress(BrokenPipeError):  # its end is found by waiting for it
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STEP)
                if look() is False:
                    raise LoadCancelledError(f"converting {order['name']} was stopped")
        finally:
            process.kill()
    return process.returncode


def _share(target: Path, size: int) -> float:
    """Return how much of the target is written, 0.0 to 1.0."""
    return min(target.stat().st_size / size, 1.0) if size and target.is_file() else 0.0


# --- the folder of links ---


def _stage_model(source: Source, folder: Path) -> Path:
    """Fill and return the folder that the converter sees as the model's."""
    folder = folder / source.name
    folder.mkdir(parents=True)
    merging = source.adapter if source.checkpoint else None
    tokenizer = source.base
    if merging and any((merging.folder / name).is_file() for name in TOKENIZERS):
        tokenizer = merging.folder  # with the tokens that were added while it was trained
    for path in sorted(source.base.iterdir()):
        if not _of_tokenizer(path.name):
            _link(path, folder)
    for path in sorted(tokenizer.iterdir()):
        if _of_tokenizer(path.name):
            _link(path, folder)
    config = _without_code(source.config)
    for part in (config, config.get("text_config")):
        settings = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(settings, dict) and settings.get("quant_method") == "bitsandbytes":
            del part["quantization_config"]
    rows = _rows(merging)
    if rows is not None:
        config["vocab_size"] = rows
    _write_json(folder / "config.json", config)
    _link_modules(source.base, folder)
    for path in source.checkpoint.weights if source.checkpoint else ():
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _stage_adapter(source: Source, folder: Path) -> Path:
    """Fill and return the folder that the converter sees as the adapter's."""
    assert source.adapter is not None
    folder = folder / source.name
    folder.mkdir(parents=True)
    _write_json(folder / lora.CONFIG, _without_code(source.adapter.config))
    (folder / lora.WEIGHTS).symlink_to((source.adapter.folder / lora.WEIGHTS).resolve())
    return folder


def _of_tokenizer(name: str) -> bool:
    return name in TOKENIZERS or bool(_TOKENIZER.fullmatch(name))


def _link(path: Path, folder: Path) -> None:
    """Link a file that the converter reads; a configuration is copied without what names code."""
    if not path.is_file() or not path.name.endswith(LINKED):
        return
    if path.name.endswith("config.json"):
        _write_json(folder / path.name, _without_code(read_json(path)))
    else:
        (folder / path.name).symlink_to(path.resolve())


def _link_modules(base: Path, folder: Path) -> None:
    """Link the configurations of what an embedding model puts behind its layers, e.g. pooling."""
    path = base / "modules.json"
    if not path.is_file():
        return
    try:
        places = [module["path"] for module in json.loads(path.read_bytes())]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(f"{path} is no list of modules") from None
    for name in plain_names(filter(None, places), path):
        if (base / name / "config.json").is_file():
            (folder / name).mkdir()
            _link(base / name / "config.json", folder / name)


def _rows(adapter: lora.LoraFolder | None) -> int | None:
    """Return the size of the vocabulary that an adapter brings, if it replaces the embedding."""
    for target, name in lora.others(adapter.tensors).items() if adapter else ():
        if target.endswith("embed_tokens.weight"):
            return adapter.tensors[name].shape[0] if adapter else None
    return None


def _without_code(value: Any) -> Any:
    """Return a configuration without `auto_map`, which names classes to be imported."""
    if isinstance(value, Mapping):
        return {key: _without_code(item) for key, item in value.items() if key != "auto_map"}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _folder() -> Path:
    folder = installation()[0] / "converter"
    if not folder.is_dir():
        raise LibraryError(f"{folder} is missing: install llcuda again")
    return folder


def _lacking(module: str) -> LlcudaError:
    return LlcudaError(
        f"converting needs the Python package {module}: pip install 'llcuda[convert]'"
    )
