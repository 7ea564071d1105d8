"""Scripts of peers' users that run as they are, on the demo model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from llcuda.cli.main import app
from tests.newcomers.habits import HABITS, SCRIPTS, missing, printed, run, server_arguments, source
from tests.support.server import Served, demo, served

HERE = [name for name, habit in HABITS.items() if not (habit.modules or habit.infill)]
PYTHON = [name for name in HERE if name.endswith(".py")]
SHELL = [name for name in HERE if name.endswith(".sh")]
OTHERS = [name for name, habit in HABITS.items() if habit.modules]
SERVERS = [name for name in HABITS if server_arguments(name)]
COMMANDS: Any = get_command(app)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(demo()) as running:
        yield running


def test_every_script_is_listed() -> None:
    """And at least ten peers have one that needs nothing more than the tests do."""
    assert sorted(HABITS) == sorted(path.name for path in SCRIPTS.iterdir())
    assert len({HABITS[name].peer for name in HERE}) >= 10


@pytest.mark.parametrize("name", SERVERS)
def test_the_command_of_a_server(name: str) -> None:
    """It is one of llcuda, with valid options."""
    command, *arguments = server_arguments(name)
    with COMMANDS.commands[command].make_context(command, arguments) as context:
        assert len(context.params["models"]) == 1


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("name", PYTHON)
def test_python(name: str, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends well and prints a text; like its readers it leaves its client open."""
    run(name, source(name, address=server.url))
    gc.collect()
    assert len(capsys.readouterr().out.strip()) > 3


@pytest.mark.parametrize("name", SHELL)
def test_a_shell(name: str, server: Served, tmp_path: Path) -> None:
    """Each of its lines ends well."""
    assert len(printed(name, source(name, address=server.url), tmp_path).strip()) > 3


@pytest.mark.parametrize("name", OTHERS)
def test_another_library(name: str, server: Served, tmp_path: Path) -> None:
    """Where it is installed."""
    if modules := missing(name):
        pytest.skip(f"needs {', '.join(modules)}")
    assert len(printed(name, source(name, address=server.url), tmp_path).strip()) > 3
