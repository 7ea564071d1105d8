"""What is wrong with a model file, before llama.cpp opens it.

llama.cpp answers damage with an error of its own, mostly. What is checked here is what it would
answer by ending the process.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from llcuda.errors import GGUFError, ModelError, ModelNotFoundError
from llcuda.native import library

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def check_file(path: Path) -> None:
    """Refuse what cannot be a model before C opens it."""
    try:
        if not path.is_file() and path.exists():
            raise ModelError(f"cannot read {path}: it is a folder, or no regular file")
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelNotFoundError(f"GGUF file not found: {path}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"cannot open {str(path)!r}: {error}") from None
    if magic != b"GGUF":
        what = "is empty" if not magic else f"begins with {magic!r} instead of b'GGUF'"
        raise GGUFError(f"{path} is no GGUF file: it {what}")


def check_tensors(path: Path) -> int:
    """Refuse tensors that llama.cpp's kernels cannot compute with, in all parts of a split model.

    Returns how many positions a table of learned positions holds, 0 without such a table.
    """
    ffi, lib = library.load()
    positions = ffi.new("int64_t *")
    found = 0
    for part in parts(path):
        status = lib.llcuda_gguf_check(os.fsencode(part), positions)
        if status:
            library.fail(ModelError, f"cannot load {part}")
        found = max(found, positions[0])
    return found


def part_names(path: Path) -> list[Path]:
    """Return all files of a split model by one's name, `path` alone of a whole one."""
    split = _PART.fullmatch(path.name)
    if not split:
        return [path]
    stem, _, count = split.groups()
    names = (f"{stem}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1))
    return [path.with_name(name) for name in names]


def parts(path: Path) -> list[Path]:
    """Return the files of a split model that are there, `path` alone of a whole one."""
    return [part for part in part_names(path) if part.is_file()] or [path]
