"""Large matrices converted some rows at a time, to save memory in llama.cpp's converter.

The converter computes one whole tensor at a time, in float32 and in the new type. The embedding of
a small model with many tokens is a third of the weights. In the converter a tensor is a chain of
functions over the file's bytes. If each function maps rows to rows, this module sends the rows
through the chain in chunks.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

CHUNK_BYTES = 2**26  # of float32, computed at once


def split_large(tensor: Any) -> Any:
    """Return the same tensor, computed in chunks if it is a large matrix that allows it."""
    import gguf
    from gguf.lazy import LazyBase

    shape = tensor.shape  # numel() of a lazy tensor would compute it
    if not isinstance(tensor, LazyBase) or len(shape) != 2 or 4 * math.prod(shape) <= CHUNK_BYTES:
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
    count = max(1, CHUNK_BYTES // (4 * columns))
    bounds = [(start, min(start + count, rows)) for start in range(0, rows, count)]

    def apply_steps(chunk: Any) -> Any:
        for step in reversed(steps):
            chunk = step._func(chunk, *step._args[1:], **step._kwargs)
        return chunk

    for start, stop in (bounds[0], bounds[-1]):
        if tuple(apply_steps(leaf._meta[start:stop]).shape) != (stop - start, columns):
            return tensor

    def compute(start: int, stop: int) -> Any:
        return apply_steps(load(*leaf._args, **leaf._kwargs)[start:stop]).numpy()

    chunks = [partial(compute, *pair) for pair in bounds]
    # PyPI's gguf, which mypy reads, is older and does not have this class.
    chunked = gguf.LazyChunkedTensor  # type: ignore[attr-defined]
    return chunked(chunks, (rows, columns), compute(0, 1).dtype)
