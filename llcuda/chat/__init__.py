"""Chat: templates, messages, tool calls and reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.chat.parser import ChatDelta as ChatDelta
    from llcuda.chat.session import Chat as Chat
    from llcuda.chat.session import ChatCompletion as ChatCompletion
    from llcuda.chat.template import ChatTemplate as ChatTemplate

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Chat": "llcuda.chat.session",
        "ChatCompletion": "llcuda.chat.session",
        "ChatDelta": "llcuda.chat.parser",
        "ChatTemplate": "llcuda.chat.template",
    },
)
