"""Helpers of the engine's tests."""

import time
from collections.abc import Callable
from typing import Any

ENDLESS: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True, "overflow": "shift"}


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for a change that the engine makes after it has woken its readers."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()
