"""The scripts of peers' users on Qwen: as they are, or as their errors have told to write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda.server import ModelSpec
from tests.newcomers import habits, walks
from tests.newcomers.habits import HABITS
from tests.real.conftest import QWEN, file
from tests.support.server import Served, served


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    parameters = {"ctx_size": 512, "n_parallel": 2, "pooling": "mean"}
    with served(ModelSpec("qwen", str(file(QWEN)), parameters=parameters)) as running:
        yield running


@pytest.mark.parametrize("name", HABITS)
def test_a_habit(name: str, server: Served, tmp_path: Path) -> None:
    """As it is, where its library is installed, it ends well and prints a text."""
    if modules := habits.missing(name):
        pytest.skip(f"needs {', '.join(modules)}")
    text = habits.source(name, str(file(QWEN)), server.url)
    shown = habits.printed(name, text, tmp_path)
    assert len(shown.strip()) > 3
    if name == "instructor_schema.py":
        assert "name='Jason' age=25\n" in shown


@pytest.mark.parametrize("name", walks.WALKS)
def test_a_walk(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At its end it prints a text."""
    habits.run(name, walks.finished(name, str(file(QWEN))))
    assert len(capsys.readouterr().out.strip()) > 3
