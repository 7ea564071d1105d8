"""Scripts that errors lead to their end, on the demo model."""

from __future__ import annotations

import pytest

from tests.newcomers.walks import SCRIPTS, WALKS, walk


def test_every_script_has_a_walk() -> None:
    """And every walk has steps."""
    assert sorted(WALKS) == sorted(path.stem for path in SCRIPTS.iterdir())
    assert all(WALKS.values())


@pytest.mark.parametrize("name", WALKS)
def test_a_walk(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each error says what to write next; in the end the script prints a text."""
    walk(name)
    assert len(capsys.readouterr().out.strip()) > 3
