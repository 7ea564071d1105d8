"""Check the CUDA backend of a wheel: the code of each kernel file, and the symbols that it needs.

Each file with kernels must have machine code and PTX of the architectures that the wheel is built
for, and a wheel for CUDA 12 may need no symbol that CUDA 12.4 and driver 525 lack (`symbols` in
cuda-12.4.toml).
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile
from toolkit import Version, read_pins, text

LIBRARY = "llcuda/lib/libggml-cuda.so"
MAGIC = 0xBA55ED50
PTX, MACHINE = 1, 2


@dataclass(frozen=True)
class Code:
    """The code of one kernel file for one architecture.

    Attributes:
        is_machine: Whether it is machine code; otherwise it is PTX.
        architecture: The architecture, e.g. 75.
        version: The version of PTX; of machine code, that of its format.
    """

    is_machine: bool
    architecture: int
    version: Version


def kernel_files(section: bytes) -> Iterator[list[Code]]:
    """Yield the code of each kernel file in a library's section .nv_fatbin.

    The format, which NVIDIA does not document, is as cuobjdump reads it: containers with a head of
    16 bytes, and in each the entries of one kernel file, with heads that say their size, kind and
    architecture.

    Args:
        section: The bytes of the section.
    """
    at = 0
    while at + 16 <= len(section):
        magic, _, head, size = struct.unpack_from("<IHHQ", section, at)
        if magic != MAGIC:
            raise ValueError(f".nv_fatbin has no container at byte {at}")
        entry, end = at + head, at + head + size
        codes = []
        while entry < end:
            kind, _, head, size = struct.unpack_from("<HHIQ", section, entry)
            minor, major, architecture = struct.unpack_from("<HHI", section, entry + 24)
            if kind in (PTX, MACHINE):
                codes.append(Code(kind == MACHINE, architecture, (major, minor)))
            entry += head + size
        yield codes
        at = (end + 7) // 8 * 8


def wanted(architectures: str) -> set[tuple[bool, int]]:
    """Return what each kernel file must have, as (machine code or PTX, architecture).

    Args:
        architectures: Architectures as CMake takes them, ; between: 75 is both, 80-real is machine
            code.
    """
    codes = set()
    for name in architectures.split(";"):
        match = re.fullmatch(r"(\d+)[af]?(-real|-virtual)?", name.strip())
        if match is None:
            sys.exit(
                f"error: --architectures={architectures}: {name!r} is no architecture, such as 75"
                " or 80-real"
            )
        if match[2] != "-virtual":
            codes.add((True, int(match[1])))
        if match[2] != "-real":
            codes.add((False, int(match[1])))
    return codes


def check(wheel: Path, architectures: str) -> str:
    """Return a report on the CUDA backend of a wheel; exit if it is not as it must be.

    Args:
        wheel: The wheel.
        architectures: The architectures that it was built for, ; between.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(LIBRARY)
    library = ELFFile(BytesIO(content))
    section = library.get_section_by_name(".nv_fatbin")
    files = list(kernel_files(section.data() if section else b""))
    lacking = [
        f"kernel file {number} of {len(files)} lacks {'machine code' if machine else 'PTX'}"
        f" of {architecture}"
        for number, codes in enumerate(files, start=1)
        for machine, architecture in sorted(wanted(architectures))
        if (machine, architecture) not in {(code.is_machine, code.architecture) for code in codes}
    ]
    needed = [tag.needed for tag in library.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
    runtime = next((name for name in needed if name.startswith("libcudart.so.")), None)
    if not files or runtime is None or "libcuda.so.1" not in needed:
        sys.exit(f"error: {LIBRARY} has {len(files)} kernel files and needs {', '.join(needed)}")
    pins = read_pins(int(runtime.rpartition(".")[2]))
    known = {name for names in pins.get("symbols", {}).values() for name in names}
    unknown = [name for name in cuda_symbols(library) if known and name not in known]
    lacking += [
        f"{name} is not a symbol that CUDA {pins['version']} is known to have; if it has it, add it"
        f" to build/cuda-{pins['version']}.toml"
        for name in unknown
    ]
    if lacking:
        sys.exit("\n  ".join([f"error: {LIBRARY} in {wheel.name}:", *lacking]))
    codes = sorted({code for codes in files for code in codes}, key=lambda code: code.architecture)
    machine = ", ".join(str(code.architecture) for code in codes if code.is_machine)
    ptx = ", ".join(
        f"{code.architecture} (PTX {text(code.version)})" for code in codes if not code.is_machine
    )
    return (
        f"{LIBRARY}: {len(content) / 2**20:.1f} MiB, {len(files)} kernel files, each with machine"
        f" code of {machine or 'nothing'} and PTX of {ptx or 'nothing'}; needs {', '.join(needed)}"
    )


def cuda_symbols(library: ELFFile) -> list[str]:
    """Return the names that a library takes from the driver, the run-time library and cuBLAS."""
    symbols = library.get_section_by_name(".dynsym").iter_symbols()
    names = sorted({symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"})
    return [name for name in names if re.match(r"(__cuda|cuda|cublas|cu)[A-Z]", name)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--architectures", default="75", help="what it was built for, ; between")
    options = parser.parse_args()
    print(check(options.wheel, options.architectures))
