"""llcuda.running: which servers run on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda.running import announce, running_servers


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No server of this user."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_a_server_is_listed_while_it_runs() -> None:
    """With its address and models; none before and after."""
    assert running_servers() == []
    with announce("http://127.0.0.1:1", ["a", "b"]), announce("http://127.0.0.1:2", []):
        first, second = running_servers()
        assert (first.address, first.models, first.pid) == (
            *("http://127.0.0.1:1", ["a", "b"]),
            os.getpid(),
        )
        assert second.started >= first.started
    assert running_servers() == []


@pytest.mark.parametrize("runtime", [True, False])
def test_a_killed_server_is_not_listed(
    folders: Path, monkeypatch: pytest.MonkeyPatch, runtime: bool
) -> None:
    """Its file is deleted; one that still runs is listed, whichever folder it is in."""
    if runtime:
        (folders / "run").mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folders / "run"))
    program = (
        "from llcuda.running import announce\n"
        "with announce('http://127.0.0.1:3', ['x']): print('ready', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert [server.pid for server in running_servers()] == [process.pid]
    process.kill()
    process.communicate()
    assert running_servers() == []
    assert not list(folders.rglob("*.part"))


def test_a_server_that_cannot_be_listed_runs(
    folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be made is a line in the log."""
    (folders / "state").write_text("a file")
    with caplog.at_level("INFO", "llcuda.server"), announce("http://127.0.0.1:4", ["x"]):
        assert "`llcuda ps` does not show this server" in caplog.text
        assert running_servers() == []


def test_a_file_that_is_not_whole(folders: Path) -> None:
    """It is left out."""
    with announce("http://127.0.0.1:5", ["x"]):
        (path,) = folders.rglob("*.part")
        path.write_text("{")
        assert running_servers() == []
