"""The modules of a sentence-transformers checkpoint, which follow the model's own layers.

llama.cpp computes one pooling, and for EmbeddingGemma two dense matrices after it. A checkpoint
with anything else is refused, because its vectors would be others without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import plain_names, read_json
from llcuda.errors import ModelError

MODULES_FILE = "modules.json"
MODULE_CONFIG = "config.json"
MODULE_WEIGHTS = "model.safetensors"
WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize", "Dropout")
DENSE_ARCHITECTURE = "Gemma3TextModel"  # whose dense matrices the converter reads
DENSE_FOLDERS = ["2_Dense", "3_Dense"]  # the names that the converter knows


def module_files(folder: Path) -> list[str]:
    """Return the files of the modules that the converter reads, also of those that are missing.

    Args:
        folder: The checkpoint's folder.

    Raises:
        ModelError: The list of modules is broken.
    """
    kinds = _modules(folder)
    return [f"{name}/{MODULE_CONFIG}" for name in kinds if name] + [
        f"{name}/{MODULE_WEIGHTS}" for name, kind in kinds.items() if kind == "Dense"
    ]


def has_dense_modules(folder: Path) -> bool:
    """Return whether dense matrices follow the pooling."""
    return "Dense" in _modules(folder).values()


def check_modules(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose modules llama.cpp does not compute.

    Args:
        folder: The checkpoint's folder.
        config: The content of its config.json.

    Raises:
        ModelError: The list of modules is broken, or names one that cannot be converted.
    """
    dense = []
    for name, kind in _modules(folder).items():
        if kind == "Pooling":
            _check_pooling(folder / name / MODULE_CONFIG)
        elif kind == "Dense":
            dense.append(name)
        elif kind not in WITHOUT_WEIGHTS:
            raise _refused(folder, name, kind)
    if not dense:
        return
    if DENSE_ARCHITECTURE not in config.get("architectures", ()) or dense != DENSE_FOLDERS:
        raise _refused(folder, dense[0], "Dense")
    size = config.get("hidden_size")
    for name in dense:
        settings = read_json(folder / name / MODULE_CONFIG)
        if size != settings.get("in_features"):
            raise _refused(folder, name, f"Dense of {settings.get('in_features')} inputs")
        function = str(settings.get("activation_function"))
        if settings.get("bias") or not function.endswith("Identity"):
            raise _refused(folder, name, "Dense with a bias or an activation function")
        if not (folder / name / MODULE_WEIGHTS).is_file():
            raise ModelError(f"{folder / name} lacks {MODULE_WEIGHTS}")
        size = settings.get("out_features")
    if size != config.get("hidden_size"):
        raise _refused(folder, dense[-1], f"Dense of {size} outputs")


def _refused(folder: Path, name: str, kind: str) -> ModelError:
    return ModelError(
        f"{folder / MODULES_FILE}: llama.cpp cannot compute the module {name!r} ({kind}); "
        "without it the vectors would differ from the checkpoint's"
    )


def _check_pooling(path: Path) -> None:
    """Refuse several poolings at once, of which the converter would take the first."""
    if not path.is_file():
        raise ModelError(f"{path.parent} lacks {path.name}")
    settings = read_json(path)
    modes = [key for key in settings if key.startswith("pooling_mode_") and settings[key] is True]
    if len(modes) > 1:
        raise ModelError(f"{path}: llama.cpp computes one pooling, not {' and '.join(modes)}")


def _modules(folder: Path) -> dict[str, str]:
    """Return the kind of each module by its folder, in their order."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return {}
    try:
        kinds = {
            module["path"]: module["type"].rpartition(".")[2]
            for module in json.loads(path.read_bytes())
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelError(f"{path} is not a list of modules") from None
    plain_names(filter(None, kinds), path)
    return kinds
