"""Vectors on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from llcuda import Embedder, Model

pytestmark = pytest.mark.gpu

TEXTS = ["The fox ran home.", "One day", "There was a little girl who had a red ball. " * 20] * 20


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_the_cpu(pooling: str) -> None:
    """In full batches on both; what differs is rounding."""
    vectors = []
    for layers in (0, 99):
        with Model("demo", gpu_layers=layers) as model, Embedder(model, pooling=pooling) as to:
            vectors.append(to.embed(TEXTS))
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.99
    np.testing.assert_allclose(vectors[1][:3], vectors[1][3:6], rtol=0, atol=0.05)
