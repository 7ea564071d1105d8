"""Which tests see the GPUs of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("arguments", "visible"),
    [
        (["tests"], ""),
        (["tests/gpu/test_nf4.py", "tests/test_nf4.py"], ""),
        (["tests/gpu"], "0"),
        (["tests/gpu/test_nf4.py", "tests/real"], "0"),
        (["tests/test_nf4.py", "-m", "gpu"], "0"),
    ],
)
def test_only_tests_for_gpus_see_them(arguments: list[str], visible: str, tmp_path: Path) -> None:
    plugin = tmp_path / "shows_gpus.py"
    plugin.write_text(
        "import os, pytest\n"
        "@pytest.hookimpl(trylast=True)\n"
        "def pytest_configure(config):\n"
        "    pytest.exit('GPUs: ' + os.environ['CUDA_VISIBLE_DEVICES'], 0)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "shows_gpus", "-p", "no:cacheprovider", *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert f"GPUs: {visible}\n" in answer.stdout + answer.stderr
