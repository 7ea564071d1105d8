"""Chat: templates, messages, tool calls and reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.chat.template import ChatTemplate as ChatTemplate
else:  # a checker would take every name for one of this package
    __getattr__, __dir__ = lazy(__name__, {"ChatTemplate": "llcuda.chat.template"})
