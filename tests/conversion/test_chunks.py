"""Which tensors are computed whole; tests/oracles compares those that are computed in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf.lazy import LazyNumpyTensor

from llcuda.conversion.chunks import CHUNK_BYTES, split_large

COLUMNS = 4096
ROWS = CHUNK_BYTES // (4 * COLUMNS) + 1  # one row more than a chunk


def zeros(*shape: int) -> Any:
    """Return zeros that take no memory."""
    return np.broadcast_to(np.float32(0), shape)


def lazy(*shape: int) -> Any:
    """Return a tensor that would be read from a file when it is computed."""
    meta = LazyNumpyTensor.meta_with_dtype_and_shape(np.dtype("float32"), shape)
    return LazyNumpyTensor(meta=meta, args=(), func=lambda: pytest.fail("computed"))


@pytest.mark.parametrize(
    "tensor",
    [
        zeros(ROWS, COLUMNS),
        lazy(ROWS - 1, COLUMNS),
        lazy(ROWS * COLUMNS),
        lazy(2, ROWS, COLUMNS),
        LazyNumpyTensor.from_eager(zeros(ROWS, COLUMNS)),
        lazy(ROWS, COLUMNS) + lazy(ROWS, COLUMNS),
        lazy(ROWS, COLUMNS).transpose(),
    ],
    ids=[
        "not lazy", "small", "a vector", "three dimensions", "in memory", "of two tensors",
        "transposed",
    ],
)  # fmt: skip
def test_tensors_that_are_computed_whole(tensor: Any) -> None:
    """They come back as they are, and nothing is computed to find that out."""
    assert split_large(tensor) is tensor
