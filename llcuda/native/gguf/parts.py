"""The files of a split model, opened together."""

from __future__ import annotations

import os
from pathlib import Path

from llcuda.errors import GGUFError
from llcuda.files import local_path
from llcuda.hub.names import part_names
from llcuda.hub.resolver import resolve
from llcuda.native.gguf.mapped import MappedFile
from llcuda.native.gguf.metadata import Metadata


def model_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file, or of the file that a model's name stands for.

    Args:
        path: A path, or a name as `llcuda.hub.resolve` takes it.
    """
    given = Path(local_path(path))
    return given if given.is_file() else resolve(path, parameter="path")


def open_parts(path: Path, split: bool = True) -> list[MappedFile]:
    """Return the files of a model in their order.

    Args:
        path: One of the files.
        split: Whether to open all files of a split model; False opens only this one.

    Raises:
        ModelNotFoundError: A file does not exist.
        GGUFError: A file is damaged, or its name is not that of a part.
    """
    named = MappedFile(path)
    count = Metadata(named).get("split.count", 1) if split else 1
    if count == 1:
        return [named]
    paths = [path.with_name(name) for name in part_names(path.name)]
    if len(paths) != count:
        raise GGUFError(
            f"{path} says that it is one of {count} files, and its name does not; "
            "rename it as it was, or read it alone with split=False"
        )
    return [named if part == path else MappedFile(part) for part in paths]
