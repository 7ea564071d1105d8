"""A Hugging Face checkpoint's folder, read and checked before anything is computed.

Only JSON and the headers of safetensors files are read. A file that names another must name one in
the same folder: an index that points elsewhere is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcuda.errors import ModelError, ModelNotFoundError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json",
    "spiece.model", "sentencepiece.bpe.model", "rwkv_vocab_v20230424.txt",
)  # fmt: skip
QUANTIZATIONS = (
    "bitsandbytes", "bitnet", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4",
)  # fmt: skip
MAX_NAME = 255  # bytes of a file's name, on all common file systems
MAX_JSON = 100_000_000  # bytes; safetensors' own limit for a header
MAX_DIMENSIONS = 8
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
_PART = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_NUMBERED = re.compile(r"model-\d+\.safetensors")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in the header of a safetensors file.

    Attributes:
        dtype: The type as safetensors names it, e.g. "BF16".
        shape: The dimensions, outermost first.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a model's configuration, its tokenizer and the headers of its weights.

    Attributes:
        folder: The folder.
        config: The content of config.json.
        weights: The safetensors files.
        tensors: The tensors of all files by name.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def weight_count(self) -> int:
        """The number of weights; a byte that bitsandbytes packed holds two."""
        return sum(
            info.numel * (2 if f"{name}.absmax" in self.tensors else 1)
            for name, info in self.tensors.items()
        )

    @property
    def full_precision(self) -> bool:
        """Whether all matrices are float32."""
        matrices = [info.dtype for info in self.tensors.values() if len(info.shape) > 1]
        return set(matrices) == {"F32"}


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds a model's weights or their index."""
    return (folder / INDEX).is_file() or any(folder.glob("model*.safetensors"))


def weight_files(names: Iterable[str], indexed: Iterable[str] | None) -> list[str]:
    """Return the names of the files that hold a model's weights, also of those that are missing.

    A repository may hold the weights once more in another precision (`model.fp16.safetensors`), or
    an index of parts that are gone. Neither is a part of the model.

    Args:
        names: The files in the folder.
        indexed: The files that the folder's index names; None without an index.
    """
    present, listed = set(names), sorted(indexed or ())
    if listed and (WEIGHTS not in present or WEIGHTS in listed or present.issuperset(listed)):
        return listed
    candidates = sorted(
        name for name in present if name.startswith("model") and name.endswith(".safetensors")
    )
    if WEIGHTS in present:
        return [WEIGHTS, *filter(_NUMBERED.fullmatch, candidates)]
    if match := next(filter(None, map(_PART.fullmatch, candidates)), None):
        return [f"model-{i:05}-of-{match[2]}.safetensors" for i in range(1, 1 + int(match[2]))]
    return [name for name in candidates if not name.startswith("model.")] or candidates


def indexed_weights(folder: Path) -> dict[str, str] | None:
    """Return the file of each tensor by the folder's index; None without an index.

    Raises:
        ModelError: The index names no files, or files that are not in the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} has no weight_map")
    plain_names(weight_map.values(), path)
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelNotFoundError: The file does not exist.
        ModelError: It is too large, or not a JSON object.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"{path.parent} has no {path.name}")
    if path.stat().st_size > MAX_JSON:
        raise ModelError(f"{path}: has more than {MAX_JSON:,} bytes, too many for JSON")
    return _object(path.read_bytes(), str(path))


def read_config(folder: Path, architectures: frozenset[str]) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        folder: The checkpoint's folder.
        architectures: The architectures that can be converted.

    Raises:
        ModelNotFoundError: There is no config.json.
        ModelError: The architecture or the quantization is unknown.
    """
    path = folder / "config.json"
    config = read_json(path)
    named = _architectures(config)
    if not named:
        raise ModelError(f"{path} names no architecture")
    if not architectures & named:
        raise ModelError(
            f"{path}: {' and '.join(sorted(named))} is not a model that this llama.cpp converts"
        )
    settings = _quantization(config)
    method = settings.get("quant_method")
    if method is not None and method not in QUANTIZATIONS:
        raise ModelError(
            f"{path}: quantized by {method!r}; expected one of {', '.join(QUANTIZATIONS)},"
            " or weights in 16 or 32 bits"
        )
    if method == "bitsandbytes" and (settings.get("load_in_8bit") or settings.get("_load_in_8bit")):
        raise ModelError(_EIGHT_BITS.format(folder))
    return config


def read_checkpoint(folder: Path, architectures: frozenset[str]) -> Checkpoint:
    """Read a checkpoint's folder.

    Args:
        folder: The checkpoint's folder.
        architectures: The architectures that can be converted.

    Raises:
        ModelNotFoundError: A file is missing.
        ModelError: A file is broken, files contradict each other, or the model cannot be
            converted.
    """
    config = read_config(folder, architectures)
    check_tokenizer(folder)
    weights, indexed = _weights(folder)
    tensors: dict[str, TensorInfo] = {}
    for path in weights:
        header = read_header(path)
        if duplicates := tensors.keys() & header.keys():
            raise ModelError(f"{min(duplicates)} is in two files of {folder}")
        tensors |= header
    if indexed is not None and indexed ^ tensors.keys():
        name = min(indexed ^ tensors.keys())
        where = "in no file" if name in indexed else "not in the index"
        raise ModelError(f"{folder / INDEX} and the files beside it differ: {name} is {where}")
    if not tensors:
        raise ModelError(f"{folder} has no tensors")
    _check_packed(folder, tensors)
    return Checkpoint(folder, config, weights, tensors)


def check_tokenizer(folder: Path) -> None:
    """Raise ModelNotFoundError if a folder has no tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelNotFoundError(
            f"{folder} has no tokenizer: save it there with tokenizer.save_pretrained()"
        )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file.

    Raises:
        ModelError: The file is truncated or hostile.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_JSON, size - 8):
            file.seek(0)
            if file.read(7) == b"version":
                raise ModelError(f"{path} is a pointer of Git LFS, not the file: git lfs pull")
            raise ModelError(f"{path} is not a safetensors file, or it is truncated")
        header = _object(file.read(length), str(path))
    header.pop("__metadata__", None)
    end, tensors = 0, {}
    ranges: list[tuple[int, int, str]] = []
    for name, facts in header.items():
        info, start, stop = _tensor(path, name, facts)
        tensors[name] = info
        ranges.append((start, stop, name))
    for start, stop, name in sorted(ranges):
        if start < end or stop > size - 8 - length:
            reason = "overlaps another" if start < end else "lies beyond the end: truncated?"
            raise ModelError(f"{path}: the tensor {name} {reason}")
        end = stop
    return tensors


def plain_names(names: Iterable[Any], source: Path) -> list[str]:
    """Return the names that a file has for others in its folder, each once.

    Args:
        names: The names, of any type.
        source: The file that has them.

    Raises:
        ModelError: A name is not that of a file in the folder itself.
    """
    unique: dict[str, None] = {}
    for name in names:
        if not _is_plain(name):
            raise ModelError(f"{source} names {name!r:.200}, which is not a file in its folder")
        unique[name] = None
    return list(unique)


def _is_plain(name: Any) -> bool:
    """Whether a value is the name of a file that a folder can hold."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        return False
    return len(name.encode("utf-8", "replace")) <= MAX_NAME


def _weights(folder: Path) -> tuple[tuple[Path, ...], set[str] | None]:
    """Return the files of weights, and the tensors in their index, if there is one."""
    weight_map = indexed_weights(folder)
    listed = sorted(set(weight_map.values())) if weight_map else None
    names = weight_files((path.name for path in folder.iterdir()), listed)
    indexed = set(weight_map) if weight_map and names == listed else None
    if not names:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        other = f"; {pickles[0]} is a pickle: save it as safetensors" if pickles else ""
        raise ModelNotFoundError(f"{folder} has no model.safetensors{other}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more of {len(names)}" if len(missing) > 1 else ""
        raise ModelNotFoundError(f"{folder} lacks {missing[0]}{more}")
    return tuple(folder / name for name in sorted(names)), indexed


def _check_packed(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError for weights of bitsandbytes without 4 bits or without their state."""
    for name, info in tensors.items():
        if name.endswith(".SCB"):
            raise ModelError(_EIGHT_BITS.format(folder))
        state = f"{name}.quant_state.bitsandbytes__"
        if f"{name}.absmax" in tensors and not any(state + q in tensors for q in ("nf4", "fp4")):
            raise ModelError(f"{folder}: {name} is packed, but its quantization state is missing")
        column = len(info.shape) == 2 and info.shape[1] == 1
        if info.dtype == "U8" and column and f"{name}.absmax" not in tensors:
            raise ModelError(f"{folder}: {name} is packed, but its scales are missing")


def _tensor(path: Path, name: str, facts: Any) -> tuple[TensorInfo, int, int]:
    """Return a tensor of a header, and where its bytes begin and end."""
    try:
        dtype, shape = facts["dtype"], tuple(facts["shape"])
        start, stop = facts["data_offsets"]
        whole = len(shape) <= MAX_DIMENSIONS and all(
            type(number) is int and number >= 0 for number in (*shape, start, stop)
        )
        if whole and stop - start == math.prod(shape) * ITEM_BYTES[dtype]:
            return TensorInfo(dtype, shape), start, stop
    except (KeyError, TypeError, ValueError):
        pass
    raise ModelError(f"{path}: the tensor {name} has a contradictory header")


def _object(content: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{source} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{source} is not a JSON object")
    return value


def _architectures(config: Mapping[str, Any]) -> set[str]:
    """Return the class names by which the converter looks for a model."""
    named = [part.get("architectures") for part in _config_parts(config)]
    return {str(names[0]) for names in named if isinstance(names, list) and names}


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = [part.get("quantization_config") for part in _config_parts(config)]
    return next((part for part in settings if isinstance(part, dict)), {})


def _config_parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a configuration and, for a model that also takes images, that of its text model."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


_EIGHT_BITS = (
    "{} is quantized by bitsandbytes to 8 bits; expected its 4 bits (NF4, FP4), or weights in 16 or"
    " 32 bits"
)
