"""The scripts of peers' users on Qwen: as they are, or as their errors have told to write."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llcuda.server import ModelSpec
from tests.newcomers.walks import NEEDS, WALKS, finished, missing, run
from tests.real.conftest import QWEN, file
from tests.support.server import served


@pytest.mark.parametrize("name", [name for name in WALKS if name not in NEEDS])
def test_a_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends well and prints a text."""
    path = str(file(QWEN))
    if name == "openai_client":
        spec = ModelSpec(path, path, parameters={"ctx_size": 512, "n_parallel": 2})
        with served(spec) as server:
            run(name, finished(name, path, server.url))
    else:
        run(name, finished(name, path))
    assert len(capsys.readouterr().out.strip()) > 3


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("langchain_llama_cpp", "\n"),
        ("instructor_schema", "name='Jason' age=25\n"),
        ("outlines_choice", "\n"),
    ],
)
def test_a_script_of_another_library(name: str, printed: str) -> None:
    """As it is, where the library is installed."""
    if modules := missing(name):
        pytest.skip(f"needs {', '.join(modules)}")
    program = [sys.executable, "-c", finished(name, str(file(QWEN)))]
    result = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert printed in result.stdout
