"""What several tests of the engine use."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from llcuda import Engine

ENDLESS: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True, "overflow": "shift"}


def hold(engine: Engine) -> Callable[[], None]:
    """Keep the worker from its next step until the returned function is called."""
    gate = threading.Event()
    engine._desk.put(partial(gate.wait, 10))
    return gate.set


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what the worker does after it has woken its readers."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()
