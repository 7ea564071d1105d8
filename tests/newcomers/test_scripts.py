"""Scripts of peers' users, run on the demo model until they end well."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.newcomers.walks import NEEDS, SCRIPTS, WALKS, missing, source, walk
from tests.support.server import Served, demo, served

HERE = [name for name in WALKS if name not in NEEDS]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(demo()) as running:
        yield running


def test_every_script_has_a_walk() -> None:
    """And at least one script for each of ten peers."""
    assert sorted(WALKS) == sorted(path.stem for path in SCRIPTS.glob("*.py"))
    assert len({name.partition("_")[0] for name in WALKS}) >= 10


@pytest.mark.parametrize("name", HERE)
def test_a_script(
    name: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """It runs as it is, or each error says what to write next; in the end it prints a text."""
    address = None
    if name == "openai_client":
        address = request.getfixturevalue("server").url
    walk(name, address=address)
    assert len(capsys.readouterr().out.strip()) > 3


@pytest.mark.parametrize("name", NEEDS)
def test_a_script_of_another_library(name: str) -> None:
    """As it is, in a process of its own, where the library is installed."""
    if modules := missing(name):
        pytest.skip(f"needs {', '.join(modules)}")
    program = [sys.executable, "-c", source(name)]
    result = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
