"""The demo model, which ships with the package for demonstrations and tests."""

from __future__ import annotations

import os
from pathlib import Path

from llcuda.files import data_file, local_path

DEMO_NAME = "demo"


def demo_model() -> Path:
    """Return the path of the demo model, a llama of 5 million parameters that tells stories."""
    return data_file("demo.gguf")


def resolve(path: str | os.PathLike[str], parameter: str = "path") -> Path:
    """Return a caller's path as a Path; the name "demo" is that of the demo model.

    Args:
        path: The path, or "demo".
        parameter: The caller's name of it, for an error.

    Raises:
        TypeError: It is not a path.
    """
    text = local_path(path, parameter)
    return demo_model() if text == DEMO_NAME else Path(text)
