"""What restricts a text's tokens, step by step: a mask before each, and word of what was chosen.

Structured output is one; a guide of one's own is any object with these two methods.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Guide(Protocol):
    """Follows one text. Runs on the engine's thread, `mask` while the model computes."""

    def mask(self) -> Any:
        """Return the tokens that may come next, uint32, ((vocab_size + 31) // 32,); None = all.

        Bit i % 32 of word i // 32 is token i's. The array is copied at once. To
        end the text, allow only tokens that end it.
        """

    def accept(self, token: int) -> None:
        """Go on behind `token`, which was sampled."""
