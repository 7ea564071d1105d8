"""A slice of the hostile inputs: each is answered or refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.stress.hostile_inputs import KINDS, World, run_number


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Models, engines, a server and files."""
    world = World(tmp_path_factory.mktemp("world"), seconds=100)
    with world.stack:
        yield world


# Starlette leaves a file of a form that ends in the middle to the garbage collector.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.Spooled:ResourceWarning")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "downloads"])
def test_no_input_ends_in_a_foreign_exception(kind: str, world: World) -> None:
    """Nor takes too much memory; what takes too long is not asked of a busy machine."""
    assert [] == run_number(3, [kind], world, inputs=8)["failures"]


def test_no_damaged_cache_ends_in_a_foreign_exception() -> None:
    """A process of its own, whose cache of downloads is in a folder of its own."""
    command = [sys.executable, "-m", "tests.stress.hostile_inputs", "--kinds", "downloads"]
    result = subprocess.run(
        [*command, "--number", "3"], capture_output=True, text=True, timeout=120
    )
    assert 0 == result.returncode, result.stdout + result.stderr
