"""The model that ships with the package: a demonstration and a test fixture, no assistant."""

from __future__ import annotations

from pathlib import Path

from llcuda.files import data_file

DEMO_NAME = "demo"


def demo_model() -> Path:
    """Return the path of the shipped model (a 5-million-parameter llama that tells stories)."""
    return data_file("demo.gguf")


def resolve(path: str | Path) -> Path:
    """Return `path` as a Path, the shipped model's for the name "demo"."""
    return demo_model() if path == DEMO_NAME else Path(path)
