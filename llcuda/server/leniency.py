"""What a request asked for and does not get, collected for one header and for the log.

    ignore("store", "nothing is stored")  # in whatever answers a request, also in its threads

A strict server refuses such a request instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import quote

from llcuda.server.errors import ApiError

HEADER = "x-llcuda-ignored"
MAX_NOTES = 32
MAX_NOTE = 200  # characters
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@dataclass
class Ignored:
    """The notes of one request.

    Attributes:
        strict: Whether a request with a note is refused.
        notes: `field` or `field: reason`, in ASCII.
        count: Notes in all, those beyond the limit included.
    """

    strict: bool = False
    notes: list[str] = field(default_factory=list)
    count: int = 0

    def __str__(self) -> str:
        further = self.count - len(self.notes)
        return "; ".join([*self.notes, *([f"and {further} more"] if further else [])])


_current: ContextVar[Ignored | None] = ContextVar("llcuda_ignored", default=None)


@contextmanager
def collect_ignored(strict: bool) -> Iterator[Ignored]:
    """Collect the notes of the request that the block answers.

    Args:
        strict: Whether a request with a note is refused.
    """
    ignored = Ignored(strict)
    token = _current.set(ignored)
    try:
        yield ignored
    finally:
        _current.reset(token)


def is_strict() -> bool:
    """Whether the server refuses what it would ignore."""
    ignored = _current.get()
    return ignored is not None and ignored.strict


def ignore(name: str, reason: str = "", *, code: str = "unsupported_parameter") -> None:
    """Note that a part of the request is ignored or relaxed.

    Args:
        name: The part, for example "text.verbosity".
        reason: Why, or what is meant or done instead.
        code: The code of the error of a strict server.

    Raises:
        ApiError: The server is strict.
    """
    ignored = _current.get()
    if ignored is None:
        return
    if ignored.strict:
        problem = "unknown parameter" if code == "unknown_parameter" else "not supported"
        message = f"{problem}: {name}{reason and '; '}{reason}"
        raise ApiError(400, message, param=name, code=code)
    note = quote(f"{name}{reason and ': '}{reason}"[:MAX_NOTE], safe=_PRINTABLE)
    if note in ignored.notes:
        return
    ignored.count += 1
    if len(ignored.notes) < MAX_NOTES:
        ignored.notes.append(note)
