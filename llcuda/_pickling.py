"""What an object that lives in one process says when it is pickled or copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

Class = TypeVar("Class", bound=type)
# What to send in place of an engine.
RECIPE = "llcuda.BatchProcessor(...), or the model's name or path, and load it there"


def stays_in_process(instead: str) -> Callable[[Class], Class]:
    """Return a decorator for a class whose objects hold memory, threads or files of a process.

    Pickling or copying such an object is a TypeError that says what to send to another process.

    Args:
        instead: What to send, such as "its path".
    """

    def decorate(kind: Class) -> Class:
        def refuse(self: Any, protocol: Any) -> NoReturn:
            name = type(self).__name__
            raise TypeError(f"{name} cannot be pickled: it lives in this process; send {instead}")

        kind.__reduce_ex__ = refuse  # type: ignore[assignment, method-assign]
        return kind

    return decorate
