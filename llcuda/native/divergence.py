"""How far the logits of one context are from those of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError
from llcuda.native import layout, library
from llcuda.native.context import Context


def compare(
    contexts: tuple[Context, Context], tokens: Sequence[int], indices: Sequence[int]
) -> npt.NDArray[np.void]:
    """Compare rows of the last decode of two contexts.

    Args:
        contexts: The context to judge, and the reference.
        tokens: The token to look up at each row.
        indices: The index of each row, as in `Context.logits`, the same in both contexts.

    Returns:
        A structured array, one element a row: `logprob` and `reference_logprob` of the token; the
        Kullback-Leibler `divergence` sum p log(p / q), with p of the reference; `same_best`,
        whether both find the same token most probable. NaN where logits are NaN.

    Raises:
        ArgumentError: `tokens` and `indices` differ in length.
        NoOutputError: No logits were computed for a row.
    """
    ffi, lib = library.load()
    if len(tokens) != len(indices):
        problem = f"{len(tokens)} tokens, {len(indices)} indices: expected as many of each"
        raise ArgumentError(problem, parameter="indices")
    rows = np.empty(len(tokens), layout.dtype("llcuda_comparison"))
    owners = [context.handle.owner for context in contexts]
    status = lib.llcuda_compare(
        *(owner.pointer for owner in owners),
        len(rows),
        list(indices),
        list(tokens),
        ffi.from_buffer("struct llcuda_comparison[]", rows),
    )
    library.check(status, lambda: f"{len(rows)} rows of two contexts")
    return rows
