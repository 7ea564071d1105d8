"""What systemd says of the unit, and how it fits the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from llcuda.cli.serve import serve

UNIT = Path(__file__).parents[2] / "packaging" / "llcuda.service"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is here instead of /opt/llcuda/bin/llcuda."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/llcuda/bin/llcuda", sys.executable))
    return copy


def analyze(*arguments: str) -> tuple[int, str]:
    """Return the exit status and the output of systemd-analyze."""
    command = ["systemd-analyze", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@needs_systemd
def test_systemd_reads_every_line(unit: Path) -> None:
    """It warns of unknown names and wrong values, and ends with 1 for missing programs."""
    assert (0, "") == analyze("verify", "--man=no", str(unit))


@needs_systemd
def test_a_wrong_line_is_found(unit: Path) -> None:
    """The check above can fail."""
    unit.write_text(unit.read_text().replace("DynamicUser=yes", "DynamicUsers=yes"))
    assert "'DynamicUsers' in section" in analyze("verify", "--man=no", str(unit))[1]


@needs_systemd
def test_the_service_is_confined(unit: Path) -> None:
    """Of systemd's ten points of exposure at most two are left."""
    code, report = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(unit))
    assert 0 == code, report


def test_the_time_to_stop_is_longer_than_the_drain() -> None:
    """Requests that run may end before systemd kills the server."""
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert seconds is not None
    assert signature(serve).parameters["drain"].default < int(seconds[1])
