"""When make installs llcuda again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
FILES = (
    "build/fetch.py", "llcuda/__init__.py", "llcuda/engine/loop.py", "llcuda/native/shim/fault.cpp",
    "llcuda/lib/converter/convert.py", "pyproject.toml", "vendor/llama.cpp.toml",
)  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(folder: Path) -> list[str]:
    """Return what `make test` would run."""
    result = subprocess.run(
        ["make", "-n", "test"], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def installs(folder: Path) -> bool:
    """Return whether `make test` would install llcuda."""
    return any("--editable" in command for command in commands(folder))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tree that `make test` has installed from."""
    shutil.copy(MAKEFILE, tmp_path)
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
    (touch,) = [command for command in commands(tmp_path) if command.startswith("touch ")]
    assert installs(tmp_path)
    (tmp_path / ".venv").mkdir()
    subprocess.run(touch.split(), cwd=tmp_path, check=True)
    assert not installs(tmp_path)
    return tmp_path


def test_an_edit_of_a_module_installs_nothing(checkout: Path) -> None:
    """An editable install reads the module where it lies; bytecode and the converter are none."""
    (checkout / "llcuda" / "engine" / "loop.py").write_text("pass\n")
    (checkout / "llcuda" / "lib" / "converter" / "other.py").touch()
    (checkout / "llcuda" / "__init__.pyc").touch()
    assert not installs(checkout)


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_another_set_of_modules_installs(change: str, checkout: Path) -> None:
    """The install has a list of their names, so that new ones are missing in it."""
    module = checkout / "llcuda" / "engine" / "loop.py"
    if change == "add":
        module.with_name("new.py").touch()
    elif change == "remove":
        module.unlink()
    else:
        module.rename(module.with_name("engine.py"))
    assert installs(checkout)


@pytest.mark.parametrize("name", ["llcuda/native/shim/fault.cpp", "pyproject.toml"])
def test_another_native_library_installs(name: str, checkout: Path) -> None:
    """It is compiled again."""
    (checkout / name).write_text("")
    assert installs(checkout)


def test_one_stamp_at_a_time(checkout: Path) -> None:
    """An older set of modules that comes back is installed again."""
    (checkout / "llcuda" / "new.py").touch()
    (removal,) = [command for command in commands(checkout) if command.startswith("rm -f")]
    subprocess.run(removal, cwd=checkout, check=True, shell=True)
    assert [] == list((checkout / ".venv").iterdir())
