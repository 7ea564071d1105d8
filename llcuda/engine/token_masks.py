"""TokenMaskState: the checked answers of a request's guide."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError
from llcuda.guide import Guide
from llcuda.params import check_number

MAX_FORCED = 512  # tokens taken from one answer of `forced`


class TokenMaskState:
    """A guide on the engine's thread; exceptions of the guide come through.

    Args:
        guide: The request's guide.
        vocab_size: Tokens of the vocabulary, which is the number of bits in a mask.
    """

    def __init__(self, guide: Guide, vocab_size: int) -> None:
        self.guide = guide
        self._ask_forced = getattr(guide, "forced", None)
        self._vocab_size = vocab_size
        self._forced: deque[int] | None = None  # None: the guide is to be asked

    def forced(self) -> Sequence[int]:
        """Return the tokens that come next without a choice."""
        if self._ask_forced is None:
            return ()
        if self._forced is None:
            self._forced = deque(self._checked_tokens(self._ask_forced()))
        return self._forced

    def accept(self, token: int) -> None:
        """Advance the guide past `token`."""
        self.guide.accept(token)
        if self._forced:
            self._forced.popleft()
        if not self._forced:
            self._forced = None

    def checked_mask(self, mask: Any) -> Any:
        """Return a copy of the guide's mask, as guides may share one array."""
        if mask is None or isinstance(mask, BaseException):
            return mask
        words = (self._vocab_size + 31) // 32
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint32 or mask.shape != (words,):
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise ArgumentError(
                f"guide.mask() returned {kind} of shape {np.shape(mask)}: expected uint32 of shape "
                f"({words},)",
                parameter="guide",
            )
        return mask.copy()

    def _checked_tokens(self, tokens: Any) -> Sequence[int]:
        if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
            kind = type(tokens).__name__
            raise ArgumentError(
                f"guide.forced() returned {kind}: expected a list of tokens", parameter="guide"
            )
        checked: Sequence[int] = tokens[:MAX_FORCED]
        for token in checked:
            check_number("guide.forced()", token, "int", 0, self._vocab_size - 1)
        return checked


def mask_without(tokens: Iterable[int], vocab_size: int) -> npt.NDArray[np.uint32]:
    """Return a mask of all tokens but these."""
    mask = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
    for token in tokens:
        mask[token // 32] &= ~np.uint32(1 << token % 32)
    return mask


def joined_mask(mask: Any, continuing: Any) -> Any:
    """Return a guide's mask without the tokens that end the text, unless it has no others.

    Args:
        mask: The guide's mask; None = all tokens.
        continuing: The mask of the tokens that do not end the text; None = all tokens.
    """
    if mask is None or continuing is None:
        return continuing if mask is None else mask
    joined = mask & continuing
    return joined if joined.any() else mask


def token_masks(states: Sequence[TokenMaskState]) -> list[Any]:
    """Return the mask of each state; None allows all tokens, an exception ends the request.

    Guides of a class with a static method `masks` are asked together, as they may work in parallel.
    """
    masks: list[Any] = [None] * len(states)
    by_class: dict[type, list[int]] = {}
    for i, state in enumerate(states):
        kind = type(state.guide)
        if hasattr(kind, "masks"):
            by_class.setdefault(kind, []).append(i)
        else:
            masks[i] = _outcome(lambda state=state: state.checked_mask(state.guide.mask()))
    for kind, indices in by_class.items():
        answers = _answers(kind, [states[i].guide for i in indices])
        for i, mask in zip(indices, answers, strict=True):
            masks[i] = _outcome(states[i].checked_mask, mask)
    return masks


def _answers(kind: Any, guides: list[Guide]) -> Sequence[Any]:
    """Return the masks of guides of one class, or the same exception for each."""
    masks = _outcome(kind.masks, guides)
    if isinstance(masks, list) and len(masks) == len(guides):
        return masks
    if not isinstance(masks, BaseException):
        masks = ArgumentError(
            f"{kind.__name__}.masks(): expected a list with a mask for each guide",
            parameter="guide",
        )
    return [masks] * len(guides)


def _outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call, or its exception: sys.exit() in a guide ends its text only."""
    try:
        return call(*arguments)
    except BaseException as error:
        return error
