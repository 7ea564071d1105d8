"""Values of a wrong type, in every public call: errors in the words of the caller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llcuda
from llcuda.gguf_parser import GGUFReader, inspect_gguf
from llcuda.gguf_writer import write_gguf

PATHS: dict[str, Callable[[Any, Path], Any]] = {
    "Model": lambda wrong, _: llcuda.Model(wrong),
    "memory_needed": lambda wrong, _: llcuda.memory_needed(wrong),
    "perplexity": lambda wrong, _: llcuda.perplexity(wrong, "text"),
    "GGUFReader": lambda wrong, _: GGUFReader(wrong),
    "inspect_gguf": lambda wrong, _: inspect_gguf(wrong),
    "write_gguf": lambda wrong, _: write_gguf(wrong, {}, {}),
    "convert": lambda wrong, folder: llcuda.convert(wrong, folder / "x.gguf"),
    "quantize": lambda wrong, folder: llcuda.quantize(wrong, folder / "x.gguf", "Q8_0"),
    "quantize to": lambda wrong, _: llcuda.quantize("demo", wrong, "Q8_0"),
    "ImportanceMatrix.load": lambda wrong, _: llcuda.ImportanceMatrix.load(wrong),
}


@pytest.mark.parametrize("wrong", [5, None, b"bytes.gguf", ["list"]], ids=str)
@pytest.mark.parametrize("call", PATHS)
def test_a_path_of_another_type(call: str, wrong: Any, tmp_path: Path) -> None:
    """A TypeError that shows the value and says what a path is."""
    with pytest.raises(TypeError, match=r"=.*: expected a path; give a str or a pathlib\.Path"):
        PATHS[call](wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5, {}), "metadata=5: expected a mapping"),
        (({}, [1]), r"tensors=\[1\]: expected a mapping"),
    ],
)
def test_write_gguf_takes_mappings(arguments: Any, says: str, tmp_path: Path) -> None:
    """The parameter is named, and no file is begun."""
    with pytest.raises(llcuda.errors.ArgumentError, match=says):
        write_gguf(tmp_path / "x.gguf", *arguments)
    assert list(tmp_path.iterdir()) == []
