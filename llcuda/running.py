"""The running servers of this user: each describes itself in a file, which ends with its process.

The file is locked while the server runs, so that the file of a killed server is known as such.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llcuda._version import __version__
from llcuda.errors import LlcudaError
from llcuda.files import PREFIX, SUFFIX, path_exists, remove_abandoned, state_folder, temporary_file

logger = logging.getLogger("llcuda.server")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server of this user that runs now.

    Attributes:
        pid: The number of its process.
        address: Its URL.
        models: The names of the models that it serves.
        started: The time of its start, in seconds since 1970.
        version: The version of llcuda.
    """

    pid: int
    address: str
    models: list[str]
    started: float
    version: str


@contextlib.contextmanager
def announce(address: str, models: Sequence[str]) -> Iterator[None]:
    """Let `running_servers` find this process during the block.

    A server whose file cannot be written runs all the same; the log says so.

    Args:
        address: The URL of the server.
        models: The names of its models.
    """
    server = RunningServer(os.getpid(), address, list(models), time.time(), __version__)
    with contextlib.ExitStack() as stack:
        try:
            folder = _folders()[0]
            folder.mkdir(parents=True, exist_ok=True)
            path = stack.enter_context(temporary_file(folder))
            path.write_text(json.dumps(asdict(server)), encoding="utf-8")
        except (LlcudaError, OSError) as error:
            logger.info("`llcuda ps` does not show this server: %s", error)
        yield


def running_servers() -> list[RunningServer]:
    """Return the servers of this user that run on this machine now, by the time of their start."""
    servers = []
    with contextlib.suppress(LlcudaError):
        for folder in _folders():
            if path_exists(folder):
                remove_abandoned(folder)
                servers += [server for path in _files(folder) if (server := _read(path))]
    return sorted(servers, key=lambda server: server.started)


def _folders() -> list[Path]:
    """Return the folders that servers describe themselves in, the preferred one first."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    folders = []
    if runtime.is_absolute() and path_exists(runtime):
        folders.append(runtime / "llcuda")
    try:
        folders.append(state_folder() / "servers")
    except LlcudaError:
        if not folders:
            raise
    return folders


def _files(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX}*{SUFFIX}"))


def _read(path: Path) -> RunningServer | None:
    """Return the server that a file describes; None for one that begins or ends right now."""
    try:
        return RunningServer(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
