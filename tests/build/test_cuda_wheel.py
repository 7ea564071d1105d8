"""What build/wheel.py and build/check_cuda.py do with a wheel that has the CUDA backend."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.build_scripts import load, write_library, write_wheel

ROOT = Path(__file__).parents[2]
WHEELS = sorted((ROOT / "dist" / "cuda").glob("*.whl"))
TOOLKIT = ROOT / ".build" / "cuda-12.4"
check_cuda, toolkit, wheel_script = load("check_cuda"), load("toolkit"), load("wheel")

MACHINE, PTX = 2, 1
LIBRARIES = ("libcuda.so.1", "libcudart.so.12", "libcublas.so.12")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def container(*codes: tuple[int, int]) -> bytes:
    """Return the code of a kernel file: (kind, architecture) of each entry, PTX of version 8.4."""
    entries = b""
    for kind, architecture in codes:
        minor, major = (4, 8) if kind == PTX else (7, 1)
        head = struct.pack("<HHIQIIHHI", kind, 0x101, 72, 24, 20, 72, minor, major, architecture)
        entries += head.ljust(72, b"\0") + b"x" * 24
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def cuda_wheel(
    folder: Path, *files: bytes, symbols: tuple[str, ...], needed: tuple[str, ...]
) -> Path:
    """Write a wheel whose CUDA backend has this code and needs these symbols and libraries."""
    lines = ["\t.text", *(f"\tcall {symbol}@PLT" for symbol in symbols)]
    if files:
        lines += [
            '\t.section .nv_fatbin,"a"',
            *(f"\t.byte {','.join(map(str, code))}" for code in files),
        ]
    write_library(folder / "libggml-cuda.so", "\n".join([*lines, ""]), needed)
    content = (folder / "libggml-cuda.so").read_bytes()
    write_wheel(folder, "llcuda", "3.0.0", {check_cuda.LIBRARY: content})
    return folder / "llcuda-3.0.0-py3-none-any.whl"


BOTH = container((PTX, 75), (MACHINE, 75))


@needs_cc
def test_a_wheel_as_it_must_be(tmp_path: Path) -> None:
    """The report says for what there is code, and what is needed."""
    wheel = cuda_wheel(tmp_path, BOTH, BOTH, symbols=("cudaMalloc", "cuMemMap"), needed=LIBRARIES)
    report = check_cuda.check(wheel, "75")
    assert "2 kernel files, each with machine code of 75 and PTX of 75 (PTX 8.4)" in report
    assert report.endswith("needs libcuda.so.1, libcudart.so.12, libcublas.so.12")


@needs_cc
@pytest.mark.parametrize(
    ("code", "architectures", "lacks"),
    [
        (container((PTX, 75)), "75", "kernel file 2 of 2 lacks machine code of 75"),
        (container((MACHINE, 75)), "75", "kernel file 2 of 2 lacks PTX of 75"),
        (BOTH, "75;90-real", "kernel file 1 of 2 lacks machine code of 90"),
    ],
)
def test_a_kernel_file_without_code(
    code: bytes, architectures: str, lacks: str, tmp_path: Path
) -> None:
    """One of many is enough to stop the build."""
    wheel = cuda_wheel(tmp_path, BOTH, code, symbols=("cudaMalloc",), needed=LIBRARIES)
    with pytest.raises(SystemExit, match=re.escape(lacks)):
        check_cuda.check(wheel, architectures)


@needs_cc
@pytest.mark.parametrize("symbol", ["cudaFromTomorrow", "cuFromTomorrow", "cublasFromTomorrow"])
def test_a_symbol_beyond_cuda_12_4(symbol: str, tmp_path: Path) -> None:
    """A wheel for CUDA 12 is not made with it; CUDA 13's is that of a linked toolkit."""
    wheel = cuda_wheel(tmp_path, BOTH, symbols=(symbol, "cudaMalloc", "memcpy"), needed=LIBRARIES)
    with pytest.raises(
        SystemExit, match=f"{symbol} is not a symbol that CUDA 12.4 is known to have"
    ):
        check_cuda.check(wheel, "75")
    thirteen = ("libcuda.so.1", "libcudart.so.13", "libcublas.so.13")
    wheel = cuda_wheel(tmp_path, BOTH, symbols=(symbol,), needed=thirteen)
    assert "libcudart.so.13" in check_cuda.check(wheel, "75")


@needs_cc
@pytest.mark.parametrize(
    ("files", "needed"), [((), LIBRARIES), ((BOTH,), LIBRARIES[1:]), ((BOTH,), LIBRARIES[:1])]
)
def test_a_backend_that_cannot_load(
    files: tuple[bytes, ...], needed: tuple[str, ...], tmp_path: Path
) -> None:
    """Without kernels, without the driver's library among those that it needs, without CUDA's."""
    with pytest.raises(SystemExit, match=f"has {len(files)} kernel files and needs"):
        check_cuda.check(cuda_wheel(tmp_path, *files, symbols=(), needed=needed), "75")


def test_no_architecture() -> None:
    """The option is named."""
    with pytest.raises(SystemExit, match="--architectures=75,80: '75,80' is no architecture"):
        check_cuda.wanted("75,80")


@pytest.mark.parametrize(
    ("version", "architectures", "name"),
    [
        ((12, 4), "75", "cu124"),
        ((13, 0), "75", "cu130"),
        ((12, 4), "75;80;90-real", "cu124.sm75.sm80.sm90real"),
    ],
)
def test_the_kind_of_a_wheel(version: tuple[int, int], architectures: str, name: str) -> None:
    """Wheels with other code have other versions."""
    assert name == wheel_script.kind(version, architectures)


def test_a_wheel_with_a_local_version(tmp_path: Path) -> None:
    """Its name, its metadata and the folder of these have it; pip tells it from the other."""
    write_wheel(
        tmp_path, "llcuda", "3.0.0", {"llcuda/__init__.py": b"", "llcuda-3.0.0.txt": b"3.0.0"}
    )
    renamed = wheel_script.with_local_version(tmp_path / "llcuda-3.0.0-py3-none-any.whl", "cu124")
    assert renamed.name == "llcuda-3.0.0+cu124-py3-none-any.whl"
    with zipfile.ZipFile(renamed) as archive:
        names = set(archive.namelist())
        assert b"Version: 3.0.0+cu124\n" in archive.read("llcuda-3.0.0+cu124.dist-info/METADATA")
        record = archive.read("llcuda-3.0.0+cu124.dist-info/RECORD").decode().splitlines()
    assert {"llcuda/__init__.py", "llcuda-3.0.0+cu124.dist-info/WHEEL"} < names
    assert names == {line.split(",")[0] for line in record}


@pytest.mark.skipif(
    not TOOLKIT.is_dir(), reason="no toolkit of pinned packages: 'make wheel-cuda' makes one"
)
def test_the_known_symbols_are_those_of_cuda_12_4() -> None:
    """Each is in the libraries of the toolkit, or in the header of its driver."""
    symbols = toolkit.read_pins(12)["symbols"]
    header = (TOOLKIT / "include" / "cuda.h").read_text()
    declared = set(re.findall(r"CUDAAPI (cu\w+)\(", header))
    assert set(symbols["driver"]) <= declared
    for part, library in (("runtime", "libcudart.so"), ("cublas", "libcublas.so")):
        with (TOOLKIT / "lib64" / library).open("rb") as file:
            table = check_cuda.ELFFile(file).get_section_by_name(".dynsym")
            has = {
                symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"
            }
        assert set(symbols[part]) <= has


@pytest.mark.skipif(not WHEELS, reason="no wheel in dist/cuda: 'make wheel-cuda' makes one")
@pytest.mark.parametrize("wheel", WHEELS, ids=lambda path: path.name)
def test_a_wheel_in_dist(wheel: Path) -> None:
    """Its backend has the code that its name says, and its tag is one that Colab's system takes."""
    name = re.match(r"llcuda-[\d.]+\+cu(\d\d)(\d)((?:\.sm\w+)*)-", wheel.name)
    assert name is not None
    architectures = name[3].replace(".sm", ";").lstrip(";").replace("real", "-real") or "75"
    command = [sys.executable, str(ROOT / "build" / "check_cuda.py"), str(wheel)]
    result = subprocess.run(
        [*command, f"--architectures={architectures}"], capture_output=True, text=True
    )
    assert 0 == result.returncode, result.stderr
    assert f"libcudart.so.{name[1]}" in result.stdout
    if name[1] + name[2] == "124":  # driver 550 compiles PTX up to 8.4
        assert {"8.4"} == set(re.findall(r"PTX ([\d.]+)", result.stdout))
    glibc = re.search(r"manylinux_2_(\d+)_", wheel.name)
    assert glibc is not None and int(glibc[1]) <= 35
