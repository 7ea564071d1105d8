"""Checks of a model file before llama.cpp opens it.

llama.cpp reports most damage itself. These checks find what would make it end the process.
"""

from __future__ import annotations

import os
from pathlib import Path

from llcuda.errors import GGUFError, ModelError, ModelNotFoundError
from llcuda.hub.formats import HEAD_BYTES, describe_head
from llcuda.hub.names import part_names
from llcuda.native import library


def check_file(path: Path) -> None:
    """Check that a path is a file that begins as GGUF files do.

    Args:
        path: The file.

    Raises:
        ModelNotFoundError: The file does not exist.
        GGUFError: The file begins otherwise.
        ModelError: The file cannot be read.
    """
    try:
        if not path.is_file() and path.exists():
            raise ModelError(f"cannot read {path}: it is not a regular file")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise ModelNotFoundError(f"GGUF file not found: {path}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"cannot open {str(path)!r}: {error}") from None
    if head[:4] != b"GGUF":
        begin = f"begins with {head[:4]!r} instead of b'GGUF'"
        reason = "is empty" if not head else describe_head(head, path.name) or begin
        raise GGUFError(f"{path} is not a GGUF file: it {reason}")


def check_tensors(path: Path) -> int:
    """Check that llama.cpp's kernels can compute with the tensors, in all files of a split model.

    Args:
        path: The file, or one of the files.

    Returns:
        How many positions a table of learned positions has, 0 without such a table.

    Raises:
        ModelError: They cannot.
    """
    ffi, lib = library.load()
    positions = ffi.new("int64_t *")
    largest = 0
    for part in parts(path):
        status = lib.llcuda_gguf_check(os.fsencode(part), positions)
        if status:
            library.fail(ModelError, f"cannot load {part}")
        largest = max(largest, positions[0])
    return largest


def parts(path: Path) -> list[Path]:
    """Return the files of a split model that exist; `path` alone for another model.

    Args:
        path: One of the files.
    """
    names = (path.with_name(name) for name in part_names(path.name))
    return [part for part in names if part.is_file()] or [path]
