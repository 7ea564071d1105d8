"""What restricts a text's tokens, step by step: a mask before each, and word of what was chosen.

Structured output is one; a guide of one's own is any object with these two methods, and a third
where tokens can be told in advance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llcuda.errors import ArgumentError
from llcuda.params import check_number

MOST_FORCED = 512  # tokens that are taken of one answer of `forced`


@runtime_checkable
class Guide(Protocol):
    """Follows one text. Runs on the engine's thread, `mask` while the model computes.

    A guide may also have a method `forced() -> list[int]`: the tokens that come next without a
    choice, in order, often none. They are not sampled and need no mask, several are computed at
    once where that saves steps, and each is told to `accept`; one that ends a text ends it. What
    comes next must depend on the accepted tokens alone: `forced` is not asked before each token.
    And it may have a static method `masks(guides) -> list`, which is called in the place of `mask`
    for all guides of its class: the mask of each, or the exception that ends its text.
    """

    def mask(self) -> Any:
        """Return the tokens that may come next, uint32, ((vocab_size + 31) // 32,); None = all.

        Bit i % 32 of word i // 32 is token i's. The array is copied at once. To
        end the text, allow only tokens that end it.
        """

    def accept(self, token: int) -> None:
        """Go on behind `token`, which was sampled or forced."""


class Follower:
    """What the engine asks a guide for, checked; what the guide raises comes through."""

    def __init__(self, guide: Guide, vocab_size: int) -> None:
        self._guide = guide
        self._forced = getattr(guide, "forced", None)
        self._vocab_size = vocab_size
        self._known: deque[int] | None = None  # forced tokens; None = the guide is to be asked

    def forced(self) -> Sequence[int]:
        """Return the tokens that come next without a choice."""
        if self._forced is None:
            return ()
        if self._known is None:
            self._known = deque(self._checked(self._forced()))
        return self._known

    def accept(self, token: int) -> None:
        """Go on behind `token`."""
        self._guide.accept(token)
        if self._known:
            self._known.popleft()
        if not self._known:
            self._known = None

    @staticmethod
    def masks(followers: Sequence[Follower]) -> list[Any]:
        """Return a mask for each, None for all tokens, or what its guide raises."""
        found: list[Any] = [None] * len(followers)
        together: dict[type, list[int]] = {}
        for i, follower in enumerate(followers):
            kind = type(follower._guide)
            if hasattr(kind, "masks"):
                together.setdefault(kind, []).append(i)
            else:
                found[i] = _outcome(lambda one=follower: one._copied(one._guide.mask()))
        for kind, places in together.items():
            for i, mask in zip(places, _masks_of(kind, followers, places), strict=True):
                found[i] = _outcome(followers[i]._copied, mask)
        return found

    def _copied(self, mask: Any) -> Any:
        """Return a copy of a mask: guides may share an array, and all are read at once."""
        if mask is None or isinstance(mask, BaseException):
            return mask
        words = (self._vocab_size + 31) // 32
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint32 or mask.shape != (words,):
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise ArgumentError(
                f"a guide's mask: {kind} of shape {np.shape(mask)}, expected uint32 ({words},)"
            )
        return mask.copy()

    def _checked(self, tokens: Any) -> Sequence[int]:
        if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
            kind = type(tokens).__name__
            raise ArgumentError(f"a guide's forced tokens: expected a list of tokens, not {kind}")
        checked: Sequence[int] = tokens[:MOST_FORCED]
        for token in checked:
            check_number("a guide's forced token", token, "int", 0, self._vocab_size - 1)
        return checked


def _masks_of(kind: Any, followers: Sequence[Follower], places: Sequence[int]) -> Sequence[Any]:
    """Return what the guides at `places` answer, which are of one class, asked together."""
    masks = _outcome(kind.masks, [followers[i]._guide for i in places])
    if isinstance(masks, list) and len(masks) == len(places):
        return masks
    if not isinstance(masks, BaseException):
        masks = ArgumentError(f"{kind.__name__}.masks: expected a list with a mask for each guide")
    return [masks] * len(places)


def _outcome(call: Callable[..., Any], *given: Any) -> Any:
    """Return what a call returns, or what it raises: sys.exit() in a guide ends its text only."""
    try:
        return call(*given)
    except BaseException as error:
        return error
