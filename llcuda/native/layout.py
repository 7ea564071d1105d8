"""The layout of C structs as the compiler chose it, for arrays of them that Python fills or reads.

cffi knows each field's offset; so a struct that changes in the shim changes here with it.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import numpy as np

from llcuda.native import library

_LETTERS = {
    "int8_t": "b", "uint8_t": "B", "int32_t": "i", "uint32_t": "I", "int64_t": "q",
    "uint64_t": "Q", "float": "f", "double": "d", "_Bool": "?",
}  # fmt: skip


@functools.cache
def packer(name: str) -> struct.Struct:
    """Return what packs the numbers of a C struct, pointers as addresses, in its fields' order.

    Args:
        name: The struct's name.
    """
    ffi, _ = library.load()
    parts, end = ["="], 0
    for offset, count, letter in _fields(name):
        parts.append(f"{offset - end}x{count}{letter}")
        end = offset + struct.calcsize(f"={count}{letter}")
    parts.append(f"{ffi.sizeof(f'struct {name}') - end}x")
    return struct.Struct("".join(parts))


@functools.cache
def dtype(name: str) -> np.dtype[np.void]:
    """Return the numpy type of a C struct, with its fields' names.

    Args:
        name: The struct's name.
    """
    ffi, _ = library.load()
    fields = _fields(name)
    return np.dtype(
        {
            "names": [field for field, _ in ffi.typeof(f"struct {name}").fields],
            "formats": [(letter, (count,)) if count > 1 else letter for _, count, letter in fields],
            "offsets": [offset for offset, _, _ in fields],
            "itemsize": ffi.sizeof(f"struct {name}"),
        }
    )


def _fields(name: str) -> list[tuple[int, int, str]]:
    """Return the offset, the count and the struct module's letter of each field."""
    ffi, _ = library.load()
    fields: list[tuple[int, int, str]] = []
    for _, field in ffi.typeof(f"struct {name}").fields:
        kind: Any = field.type
        count, item = (kind.length, kind.item) if kind.kind == "array" else (1, kind)
        letter = "Q" if item.kind == "pointer" else _LETTERS[item.cname]
        fields.append((field.offset, count, letter))
    return fields
