"""Waiting for threads and processes, on a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which a test gives up waiting for what takes milliseconds on an idle machine.
PATIENCE = 120.0
#: A request that is still running when the test has done what it does beside it.
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True, "overflow": "shift"}


def eventually(condition: Callable[[], bool]) -> bool:
    """Return whether a change comes that another thread or process makes."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()
