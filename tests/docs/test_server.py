"""docs/server.md runs as printed, on another port."""

import importlib.util

import pytest

from tests.support.documents import DOCS, SERVER_URL, Block, blocks, check_curl, commands
from tests.support.server import Served

GUIDE = DOCS / "server.md"


@pytest.mark.parametrize("block", blocks(GUIDE, "python"), ids=str)
def test_python(block: Block, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """A block runs and shows something."""
    if "langchain" in block.text and not importlib.util.find_spec("langchain_openai"):
        pytest.skip("needs langchain-openai")
    block.run({SERVER_URL: server.url})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", commands(GUIDE))
def test_curl(command: str, server: Served) -> None:
    """A command is answered with 200."""
    check_curl(command.replace(SERVER_URL, server.url))
