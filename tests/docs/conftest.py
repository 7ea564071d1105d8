"""The folder in which the guides' blocks run, and the server that their requests ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import place_files
from tests.support.server import Served, served


@pytest.fixture(scope="session")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    place_files(folder)
    return folder


@pytest.fixture
def folder(_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with the model files that the guides name."""
    for file in _files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    """A server of the demo model."""
    with served() as running:
        yield running
