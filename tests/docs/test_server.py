"""docs/server.md runs as printed, on another port."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.server import Served

TEXT = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "python"])
def test_python(block: str, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """A block runs and shows something."""
    if "langchain" in block and not importlib.util.find_spec("langchain_openai"):
        pytest.skip("needs langchain-openai")
    code = compile(block.replace("http://127.0.0.1:8080", server.url), "server.md", "exec")
    exec(code, {"__name__": "server"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_curl(command: str, server: Served) -> None:
    """A command is answered with 200."""
    result = subprocess.run(
        command.replace("http://127.0.0.1:8080", server.url).replace("curl", "curl --fail"),
        shell=True, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert 0 == result.returncode, result.stderr
    assert result.stdout.strip()
