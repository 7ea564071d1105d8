"""Guide: the protocol of objects that restrict a request's tokens.

Structured output is one guide. Any object with these methods is another.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Guide(Protocol):
    """Restricts the tokens of one request, step by step.

    The engine's thread calls it, `mask` while the model computes. An exception ends the request,
    and its reader gets the exception. Two optional methods save work:

    - `forced() -> list[int]` returns the tokens that come next without a choice, in order, often
      none. They are not sampled and need no mask. Several of them are computed at once where that
      saves steps, and `accept` is called with each. A token that ends the text ends it here too.
      The answer must depend on the accepted tokens alone, as `forced` is not called before each
      token.
    - A static method `masks(guides) -> list` is called in place of `mask` for all guides of its
      class. It returns for each guide the mask, or the exception that ends its request.
    """

    def mask(self) -> Any:
        """Return the tokens that may come next.

        Returns:
            A uint32 array of shape ((vocab_size + 31) // 32,), or None for all tokens. Bit i % 32
            of word i // 32 stands for token i. The array is copied at once. A mask of nothing but
            end tokens ends the text.
        """

    def accept(self, token: int) -> None:
        """Advance past a token that was sampled or forced.

        Args:
            token: The token's number.
        """
