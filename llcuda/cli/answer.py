"""Shows a text while it is generated; Ctrl-C stops it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llcuda.cli.console import on_ctrl_c
from llcuda.errors import DecodeAbortedError

if TYPE_CHECKING:
    from llcuda.chat.session import Chat
    from llcuda.engine.request import Request
    from llcuda.native.context import Context

# Why a text ended before its own end, in the words of a user.
ENDED = {
    "length": "ended: --max-tokens is reached",
    "context": "ended: the context is full; a larger --ctx-size has room for more",
    "timeout": "ended: timeout",
}


def end_of(reason: str, *, has_limit: bool) -> str:
    """Return why a text ended.

    Args:
        reason: The finish reason.
        has_limit: Whether the number of its tokens was limited. The end of a text without a limit
            is that of the context.
    """
    return "context" if reason == "length" and not has_limit else reason


def show_text(handle: Chat[Any] | Request, context: Context, show: Callable[[Any], None]) -> bool:
    """Show each piece of a text as it comes, up to its end or Ctrl-C.

    Args:
        handle: The text: a chat, whose pieces are deltas, or a request, whose pieces are strings.
        context: The context that computes it.
        show: Shows a piece.

    Returns:
        Whether Ctrl-C stopped it. Then `handle` has a result unless a step was aborted, which
        happens before the first piece.
    """
    begun = stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        handle.cancel()
        if not begun:  # a step of a long prompt takes seconds
            context.cancel()

    with on_ctrl_c(stop), contextlib.suppress(DecodeAbortedError):
        for piece in handle:
            begun = True
            show(piece)
    return stopped
