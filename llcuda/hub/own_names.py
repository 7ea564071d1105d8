"""Names that the user gave to models with `llcuda cp`, in one file of the state folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llcuda.errors import ArgumentError, ModelError
from llcuda.files import atomic_write, state_folder

_OWN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?::[\w.-]+)?")
FILE = "names.json"


def own_target(text: str) -> str | None:
    """Return the name of the model that a name of the user's stands for; None for another text.

    Args:
        text: A text, which may be a path. The file of the names is read only if it can be a name.

    Raises:
        ModelError: The file of the names is damaged or cannot be read.
    """
    return own_names().get(text) if _OWN_NAME.fullmatch(text) else None


def own_names() -> dict[str, str]:
    """Return the user's names and the names of the models that they stand for.

    Raises:
        ModelError: The file of the names is damaged or cannot be read.
    """
    path = _path()
    if path is None:
        return {}
    try:
        names = json.loads(path.read_bytes())
        if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
            raise ValueError("expected names and texts")
        if chained := names.keys() & names.values():
            raise ValueError(f"{min(chained)!r} stands for a model, and a name stands for it")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}; correct it, or delete it") from error
    return names


def set_own_name(name: str, target: str) -> None:
    """Give a model a name of the user's.

    Args:
        name: Letters, digits, `_`, `.` and `-`, and a tag after a colon if it shall have one.
        target: A name of the model that holds in every folder.

    Raises:
        ArgumentError: `name` has other characters.
        ModelError: The file cannot be read or written.
    """
    if not _OWN_NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        rule = "expected letters, digits, '_', '.' and '-', and not the ending .gguf"
        raise ArgumentError(f"{name!r}: {rule}; a tag may follow after ':'")
    _write({**own_names(), name: target})


def remove_own_name(name: str) -> None:
    """Forget a name of the user's; does nothing for another one.

    Args:
        name: The name.

    Raises:
        ModelError: The file cannot be read or written.
    """
    _write({key: value for key, value in own_names().items() if key != name})


def _path() -> Path | None:
    try:
        return state_folder() / FILE
    except ModelError:  # no home folder: nothing was ever written
        return None


def _write(names: dict[str, str]) -> None:
    path = state_folder() / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"cannot make {path.parent}: {error.strerror}; set XDG_STATE_HOME to another folder"
        ) from error
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
