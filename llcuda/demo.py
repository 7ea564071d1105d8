"""The demo model, which ships with the package for demonstrations and tests."""

from __future__ import annotations

from pathlib import Path

from llcuda.files import data_file

DEMO_NAME = "demo"


def demo_model() -> Path:
    """Return the path of the demo model, a llama of 5 million parameters that tells stories."""
    return data_file("demo.gguf")
