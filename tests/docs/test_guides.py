"""Every code block of the README and of the guides runs; docs/server.md has a test of its own."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import call
from tests.support.documents import (
    DOCS,
    GUIDES,
    ROOT,
    SERVER_URL,
    Block,
    blocks,
    check_curl,
    commands,
    environment,
)
from tests.support.server import Served

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(guide for guide in GUIDES if guide.name != "server.md"),
]
JSON = [block for document in DOCUMENTS for block in blocks(document, "json")]
PYTHON = [block for document in DOCUMENTS for block in blocks(document, "python")]
COMMANDS = dict.fromkeys(line for document in DOCUMENTS for line in commands(document))
SHOWN = {"console", "mermaid", "text"}  # not run
ELSEWHERE = {
    DOCS / "conversion.md": {"py", "sh"},  # run by `make oracles`
    DOCS / "scale-out.md": {"py"},  # by `make ray`
}
SHELL = set("|<>$*;&")  # what only a shell understands


@pytest.mark.parametrize("block", PYTHON, ids=str)
@pytest.mark.usefixtures("folder")
def test_python_block(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """A Python block runs as printed and shows something."""
    block.run()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", JSON, ids=str)
def test_json_block(block: Block, tmp_path: Path) -> None:
    """A line of JSON is a request that `llcuda batch` answers."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(block.text, encoding="utf-8")
    finished = call("batch", str(source), str(target), "--model", "demo")
    assert finished.status == 0, finished.stderr
    assert len(target.read_bytes().splitlines()) == len(block.text.splitlines())


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(("make", "curl"))])
@pytest.mark.usefixtures("folder")
def test_command(command: str) -> None:
    """A command exits with 0 and shows something; one without a pipe runs in this process."""
    words = shlex.split(command)
    if words[0] == "llcuda" and not SHELL.intersection(command):
        finished = call(*words[1:])
        assert finished.status == 0, finished.stderr
        assert finished.stdout.strip()
        return
    result = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.strip()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("curl")])
def test_curl(command: str, server: Served) -> None:
    """A request is answered with 200."""
    check_curl(command.replace(SERVER_URL, server.url))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_target(command: str) -> None:
    """A make target exists; `make test` is what runs this."""
    result = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()


def test_no_block_is_left_out() -> None:
    """A block's language says who runs it."""
    for document in DOCUMENTS:
        known = {"json", "python", "bash"} | SHOWN | ELSEWHERE.get(document, set())
        for block in blocks(document):
            assert block.language in known, block


def test_the_readme_is_short() -> None:
    """A newcomer reads one screen."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
