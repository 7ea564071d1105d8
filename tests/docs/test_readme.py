"""Every code block of the README runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("#")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_block(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A Python block runs as printed and shows something."""
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make")])
def test_command(command: str) -> None:
    """A command of the README exits with 0 and shows something."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, shell=True, env={**os.environ, "PATH": path}, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.strip()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_target(command: str) -> None:
    """A make target of the README exists; `make test` is what runs this."""
    result = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()


def test_tree_names_the_packages() -> None:
    """The annotated tree names every package of llcuda, and no other."""
    (tree,) = [text for language, text in BLOCKS if language == ""]
    named = set(re.findall(r"(?m)^  (\w+)/", tree))
    folders = (ROOT / "llcuda").iterdir()
    assert named == {f.name for f in folders if f.is_dir() and f.name not in ("lib", "__pycache__")}
