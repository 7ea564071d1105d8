"""The licenses in a wheel are those of the software in it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LLAMA_CPP = ROOT / "vendor" / "llama.cpp"
PAGE = ROOT / "vendor" / "page"


def test_every_license_is_in_the_metadata_and_in_the_notice() -> None:
    """The patterns of pyproject.toml match all files, and NOTICE.txt names each."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
    matched = {path for pattern in patterns for path in ROOT.glob(pattern)}
    licenses = set((ROOT / "licenses").iterdir())
    assert {ROOT / "LICENSE", *licenses} == matched
    notice = (ROOT / "licenses" / "NOTICE.txt").read_text()
    others = {path.name for path in licenses} - {"NOTICE.txt"}
    assert others == {name for name in others if f"see {name}" in " ".join(notice.split())}


@pytest.mark.parametrize(
    ("license_file", "source"),
    [
        ("llama.cpp.txt", "LICENSE"),
        ("gguf-py.txt", "gguf-py/LICENSE"),
        ("llamafile-sgemm.txt", "ggml/src/ggml-cpu/llamafile/sgemm.cpp"),
    ],
)
def test_a_license_is_that_of_the_pinned_source(license_file: str, source: str) -> None:
    """Another llama.cpp may bring other words; the head of a C++ file is a comment."""
    if not (LLAMA_CPP / source).is_file():
        pytest.skip("llama.cpp's source is not here: a build fetches it")
    lines = (LLAMA_CPP / source).read_text().splitlines()
    if source.endswith(".cpp"):
        lines = [line.removeprefix("//").removeprefix(" ") for line in lines]
    text = (ROOT / "licenses" / license_file).read_text().splitlines()
    assert text == lines[: len(text)]


@pytest.mark.parametrize(
    ("license_file", "source"),
    [
        ("dompurify.txt", "purify.LICENSE"),
        ("highlight.js.txt", "highlight.LICENSE"),
        ("katex.txt", "katex.LICENSE"),
        ("markdown-it.txt", "markdown-it.LICENSE"),
    ],
)
def test_a_license_is_that_of_the_page_s_library(license_file: str, source: str) -> None:
    """Another version may bring other words."""
    if not (PAGE / source).is_file():
        pytest.skip("the page's libraries are not here: a build fetches them")
    assert (ROOT / "licenses" / license_file).read_text() == (PAGE / source).read_text()
