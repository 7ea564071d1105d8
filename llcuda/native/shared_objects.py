"""Whether a shared library is whole. The linker trusts a file's head, and reads beyond its end."""

from __future__ import annotations

import struct
from pathlib import Path

_HEAD, _SEGMENT = "<16xHHIQQQIHHHHHH", "<IIQQQQQQ"  # ELF64, elf(5)
_LOADED = 1  # PT_LOAD


def is_truncated(path: Path) -> bool:
    """Return whether an ELF file ends before what its head announces; False for other formats.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(struct.calcsize(_HEAD))
        if len(head) < struct.calcsize(_HEAD):
            return True
        if not head.startswith(b"\x7fELF"):  # macOS's libraries are Mach-O
            return False
        _, _, _, _, segments, sections, _, _, _, count, section_size, section_count, _ = (
            struct.unpack(_HEAD, head)
        )
        if sections + section_size * section_count > size:
            return True
        file.seek(segments)
        table = file.read(count * struct.calcsize(_SEGMENT))
    if len(table) < count * struct.calcsize(_SEGMENT):
        return True
    return any(
        kind == _LOADED and offset + length > size
        for kind, _, offset, _, _, length, *_ in struct.iter_unpack(_SEGMENT, table)
    )
