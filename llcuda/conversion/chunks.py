"""A large matrix on its way through llama.cpp's converter, some rows at a time.

The converter computes one tensor at a time: of a small model with many tokens that is a third of
the weights, in float32 and once more in what they become. A tensor waits there as a chain of
functions over the file's bytes. Where each of these gives a row for a row, some rows go through the
chain after others.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

PART = 2**26  # bytes of float32 that are computed at once


def in_parts(tensor: Any) -> Any:
    """Return the same matrix, computed in parts where it is large and that can be done."""
    import gguf
    from gguf.lazy import LazyBase

    shape = tensor.shape  # to ask a lazy tensor for numel() would compute it
    if not isinstance(tensor, LazyBase) or len(shape) != 2 or 4 * math.prod(shape) <= PART:
        return tensor
    steps: list[Any] = []
    leaf: Any = tensor
    while leaf._args and isinstance(leaf._args[0], LazyBase):
        steps.append(leaf)
        leaf = leaf._args[0]
    load, nodes = leaf._func, [*steps, leaf]
    others = [item for node in nodes for item in (*node._args[1:], *node._kwargs.values())]
    if load is None or any(isinstance(item, (LazyBase, list, tuple)) for item in others):
        return tensor
    rows, columns = shape
    count = max(1, PART // (4 * columns))
    bounds = [(start, min(start + count, rows)) for start in range(0, rows, count)]

    def through(part: Any) -> Any:
        for step in reversed(steps):
            part = step._func(part, *step._args[1:], **step._kwargs)
        return part

    for start, stop in (bounds[0], bounds[-1]):
        if tuple(through(leaf._meta[start:stop]).shape) != (stop - start, columns):
            return tensor

    def compute(start: int, stop: int) -> Any:
        return through(load(*leaf._args, **leaf._kwargs)[start:stop]).numpy()

    parts = [partial(compute, *pair) for pair in bounds]
    # newer than PyPI's gguf, which mypy looks at
    chunked = gguf.LazyChunkedTensor  # type: ignore[attr-defined]
    return chunked(parts, (rows, columns), compute(0, 1).dtype)
