"""llcuda where Ray is not installed; these tests need no Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_without_ray(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that cannot import Ray."""
    (folder / "ray.py").write_text("raise ModuleNotFoundError('gone', name='ray')\n")
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_command_says_what_to_install(tmp_path: Path) -> None:
    program = "from llcuda.__main__ import main\nsys.argv = ['llcuda', 'serve', '--ray']\nmain()"
    result = run_without_ray(tmp_path, program)
    assert 1 == result.returncode
    assert "the cluster needs ray: pip install 'llcuda[ray]'" in result.stderr


@pytest.mark.parametrize("module", ["llcuda", "llcuda.server.app", "llcuda.cli.serve"])
def test_nothing_else_imports_ray(module: str, tmp_path: Path) -> None:
    result = run_without_ray(tmp_path, f"import {module}\nprint('ray' in sys.modules)")
    assert "False\n" == result.stdout
