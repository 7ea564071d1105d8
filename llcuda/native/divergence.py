"""The rows of one context against those of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError
from llcuda.native import library
from llcuda.native.context import Context

ROW = np.dtype(
    [
        ("logprob", "f8"),
        ("reference_logprob", "f8"),
        ("divergence", "f8"),
        ("same_best", "?"),
    ],
    align=True,
)


def compare(
    contexts: tuple[Context, Context], tokens: Sequence[int], indices: Sequence[int]
) -> npt.NDArray[np.void]:
    """Return how far the first context's logits are from those of the second, the reference.

    indices: of the last decode, as of Context.logits, the same in both. tokens: one for each.
    A row of the result: log p of the token in both, the Kullback-Leibler divergence
    sum p log(p / q) with p the reference's, whether both find the same token best. NaN where
    logits are no numbers.
    """
    ffi, lib = library.load()
    if len(tokens) != len(indices):
        raise ArgumentError(f"{len(tokens)} tokens, {len(indices)} indices: expected as many")
    rows = np.empty(len(tokens), ROW)
    status = lib.llcuda_compare(
        *(context._handle.owner.pointer for context in contexts),
        len(rows),
        list(indices),
        list(tokens),
        ffi.from_buffer("struct llcuda_comparison[]", rows),
    )
    library.check(status, lambda: f"{len(rows)} rows of two contexts")
    return rows
