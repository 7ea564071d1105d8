"""Model files that are not GGUF files: which format they have, and how a GGUF file is made of them.

This module reads first bytes and file names. It knows nothing of the native library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from llcuda.files import PREFIX

HEAD_BYTES = 512  # what `describe_head` needs of a file
SAFETENSORS_HEADER = 2**27  # bytes; safetensors' own limit is 100 MB
UNFINISHED = (".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2", ".!qb")

_ARCHIVES = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
)
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt and ggla as 32-bit numbers
_CONVERT = "`llcuda convert FOLDER` makes a GGUF file of a checkpoint's folder"
_SAVE = "save the model by transformers (save_pretrained), then `llcuda convert FOLDER`"
_NO_CONVERTER = "take the original model's GGUF, or convert its unquantized checkpoint"


def describe_head(head: bytes, name: str) -> str | None:
    """Return what a file is that does not begin as GGUF files do, and the remedy; None if unknown.

    Args:
        head: The first bytes of the file, `HEAD_BYTES` or fewer.
        name: The name of the file.

    Returns:
        The end of a sentence whose subject is the file.
    """
    suffix = PurePosixPath(name).suffix.lower()
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    size = int.from_bytes(head[:8], "little")
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file: `git lfs pull` brings it, or `llcuda pull`"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page, perhaps of a login or an error: download the file itself again"
    if head[8:9] == b"{" and 2 <= size <= SAFETENSORS_HEADER:
        return f"is a safetensors file; {_CONVERT}"
    if head.startswith(b"PK\x03\x04"):
        if suffix == ".npz":
            return f"is a file of numpy or MLX; {_NO_CONVERTER}"
        if suffix in (".pt", ".pth", ".bin", ".ckpt"):
            return f"is a PyTorch file (pickle in zip); {_SAVE}"
        return f"is a zip archive: unpack it; of a PyTorch file in it {_SAVE}"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return f"is a pickle file, as old PyTorch files are; {_SAVE}"
    if suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a")):
        return f"is an ONNX file; {_NO_CONVERTER}"
    if head.startswith(_OLD_GGML):
        return "is a GGML file of 2023, older than GGUF; download the model as GGUF"
    if head[4:8] == b"TFL3":
        return f"is a TensorFlow Lite file; {_NO_CONVERTER}"
    if head.startswith(b"\x89HDF"):
        return f"is an HDF5 file, as Keras writes; {_NO_CONVERTER}"
    if archive := next((what for magic, what in _ARCHIVES if head.startswith(magic)), None):
        return f"is {archive}: unpack it first"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if not head.strip(b"\0"):
        return "begins with zeros: a download that was not finished, or a damaged disk"
    if text.startswith(b"{"):
        return "is a JSON file"
    return None


def unfinished(path: Path) -> str | None:
    """Return which unfinished download a path is, or None.

    Args:
        path: The path of a file. aria2 gives an unfinished file its final name and its final size,
            and keeps a file of the same name and ".aria2" beside it. A partial file of llcuda's own
            is read by the call that writes it.
    """
    if path.name.lower().endswith(UNFINISHED) and not path.name.startswith(PREFIX):
        return f"{path} is an unfinished download; let the program that began it finish"
    control = path.with_name(f"{path.name}.aria2")
    if control.is_file():
        return f"{path} is an unfinished download of aria2; finish it, or delete {control}"
    return None


def describe_files(files: Sequence[str], tags: Collection[str] = (), config: bytes = b"") -> str:
    """Return what a folder or repository without GGUF files holds, and the remedy.

    Args:
        files: The paths of its files.
        tags: The tags of a repository on the hub.
        config: The content of its config.json, if that is known.

    Returns:
        The end of a sentence whose subject is the folder or repository. It has the placeholder
        `SOURCE` for its name.
    """
    names = [file.lower() for file in files]
    suffixes = {PurePosixPath(name).suffix for name in names}
    is_mlx = "mlx" in tags or _has_mlx_config(config)
    if ".safetensors" in suffixes and is_mlx:
        return f"holds MLX weights (safetensors for Apple's MLX); {_NO_CONVERTER}"
    if ".safetensors" in suffixes and any(name.endswith("adapter_config.json") for name in names):
        return "holds a LoRA adapter (safetensors); `llcuda convert SOURCE` makes a GGUF file of it"
    if ".safetensors" in suffixes:
        return (
            "holds a checkpoint (safetensors) and no GGUF file; `llcuda convert SOURCE` makes one"
        )
    if suffixes & {".onnx", ".onnx_data"}:
        return f"holds an ONNX model; {_NO_CONVERTER}"
    if any(re.search(r"(^|/)weights\S*\.npz$", name) for name in names):
        return f"holds MLX weights (npz); {_NO_CONVERTER}"
    if suffixes & {".bin", ".pt", ".pth", ".ckpt"}:
        return f"holds a PyTorch checkpoint (pickle); {_SAVE}"
    kinds = {
        ".tflite": "a TensorFlow Lite model",
        ".task": "a MediaPipe model",
        ".litertlm": "a LiteRT model",
        ".h5": "a Keras model",
        ".msgpack": "a Flax model",
        ".engine": "a TensorRT engine",
        ".mlmodel": "a Core ML model",
        ".mlpackage": "a Core ML model",
    }
    if kind := next((what for suffix, what in kinds.items() if suffix in suffixes), None):
        return f"holds {kind}; {_NO_CONVERTER}"
    return "holds no model file" if files else "is empty"


def _has_mlx_config(config: bytes) -> bool:
    """Return whether a config.json is that of weights that MLX quantized."""
    try:
        document = json.loads(config) if config else {}
    except ValueError:
        return False
    plan = document.get("quantization") if isinstance(document, dict) else None
    return isinstance(plan, dict) and "group_size" in plan
