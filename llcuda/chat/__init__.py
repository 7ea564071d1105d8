"""Chat: templates, messages, tool calls and reasoning.

`llcuda.chat(model, messages)` calls this package, which answers by `llcuda.inference.chat`.
"""

from __future__ import annotations

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.chat.template import ChatTemplate as ChatTemplate
else:  # a checker would take every name for one of this package
    __getattr__, __dir__ = lazy(__name__, {"ChatTemplate": "llcuda.chat.template"})


class _CallablePackage(ModuleType):
    """The type of this package."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Answer a text or a conversation; see `llcuda.inference.chat`."""
        from llcuda.inference import chat

        given = len(arguments) + len(keywords.keys() & {"model", "messages"})
        if given != 2:
            rule = f"expected two arguments, the model and the messages, not {given}"
            raise TypeError(f'llcuda.chat: {rule}; such as llcuda.chat("demo", "Hello")')
        return chat(*arguments, **keywords)

    @property
    def __signature__(self) -> Signature:
        """The signature of the call, for `inspect` and for the completion of editors."""
        from llcuda.inference import chat

        return signature(chat)


sys.modules[__name__].__class__ = _CallablePackage
