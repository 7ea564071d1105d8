"""What is said where a full disk, or a hand, left only a part of llcuda's files."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import llcuda
from llcuda.native.library import installation
from llcuda.native.shared_objects import is_truncated
from tests.support.programs import run

PACKAGE = Path(llcuda.__file__).parent
LIBRARIES, _ = installation()
BINDING = "native/_llama.abi3.so"
FILES = (BINDING, *(f"lib/{path.name}" for path in sorted(LIBRARIES.glob("*.so"))))

# Loads the library from the copy, without the finder of an editable installation, which would lead
# to the checkout. Argument: the folder of the copy.
LOADS = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
sys.path.insert(0, sys.argv[1])
import llcuda
from llcuda.errors import LibraryError
from llcuda.native import library

assert llcuda.__file__.startswith(sys.argv[1])
try:
    library.load()
except LibraryError as error:
    print(error)
else:
    print("loaded")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with its libraries."""
    copy = tmp_path_factory.mktemp("copy") / "llcuda"
    left_out = shutil.ignore_patterns("lib", "data", "shim", "*.so", "__pycache__")
    shutil.copytree(PACKAGE, copy, ignore=left_out)
    (copy / "lib").mkdir()
    for path in LIBRARIES.glob("*.so"):
        shutil.copy(path, copy / "lib")
    shutil.copy(LIBRARIES.parent / BINDING, copy / BINDING)
    return copy


@pytest.fixture
def file(request: pytest.FixtureRequest, package: Path) -> Iterator[Path]:
    """A file of the copy that is whole again after the test."""
    path = package / request.param
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


def load(package: Path) -> str:
    """Load the library of the copy in a process that must end by itself; return what it says."""
    result = run(LOADS, package.parent)
    assert 0 == result.returncode, result.stderr
    return result.stdout.strip()


def test_a_whole_copy_loads(package: Path) -> None:
    """So the errors below are those of what is missing."""
    assert "loaded" == load(package)


@pytest.mark.parametrize("file", FILES, indirect=True)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9, 0.999])
def test_a_truncated_library(kept: float, file: Path, package: Path) -> None:
    """It is named and not loaded: the linker would read beyond its end, which ends the process."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert load(package).startswith(f"{file} is truncated")


@pytest.mark.parametrize("file", FILES, indirect=True)
def test_a_missing_library(file: Path, package: Path) -> None:
    """It is named, and a new installation is the remedy; a backend for GPUs may be missing."""
    file.unlink()
    said = load(package)
    if "cuda" in file.name:
        assert "loaded" == said
    else:
        assert file.name.partition(".")[0] in said or "has no CPU backend" in said
        assert "again" in said


def test_whole_files_are_not_truncated() -> None:
    """Neither the libraries of this build nor those of the system."""
    others = Path(sysconfig.get_path("platlib")).rglob("*.so")
    assert [] == [path for path in (*LIBRARIES.glob("*.so"), *others) if is_truncated(path)]
