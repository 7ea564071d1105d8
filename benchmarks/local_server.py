"""A server at 127.0.0.1 in a process of its own, as long as a block runs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def running(
    command: list[str], port: int, path: str = "/health", *, seconds: float = 60, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; yield its process.

    Args:
        command: The command that starts it.
        port: The port that it listens on.
        path: A path that it answers when it is ready.
        seconds: Longest time until then.
        **options: Further arguments of `subprocess.Popen`.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) as process:
        try:
            _wait(process, f"http://127.0.0.1:{port}{path}", seconds)
            yield process
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        if process.poll() is not None:
            raise SystemExit(f"the server of {url} ended with {process.returncode}")
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer within {seconds:g} s")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
