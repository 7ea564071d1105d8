"""Weights of 4 bits as Tensors, on the CPU; tests/gpu has them on a GPU."""

import dataclasses
from typing import Any

import pytest

from llcuda import core, nf4
from llcuda.errors import ArgumentError
from tests.test_nf4 import checkpoint


@pytest.mark.parametrize("dtype", [None, core.DType.Float32, core.DType.Float16])
def test_tensor(dtype: Any) -> None:
    """A state becomes a Tensor of its shape, by default of the type that the weights had."""
    state = nf4.QuantState.from_tensors("w", checkpoint())
    tensor = core.from_nf4(state, dtype, device="cpu")
    assert [5, 20] == tensor.shape and (dtype or core.DType.BFloat16) is tensor.dtype
    name = (dtype or core.DType.BFloat16).name.lower()
    assert state.dequantize(name).tobytes() == tensor.tobytes()


def test_tensor_refuses() -> None:
    """Types that are no floats, more than four axes, and what is no state."""
    state = nf4.QuantState.from_tensors("w", checkpoint())
    with pytest.raises(ArgumentError, match="dtype"):
        core.from_nf4(state, core.DType.Q4_K, device="cpu")
    with pytest.raises(ArgumentError, match="expected a QuantState"):
        core.from_nf4(checkpoint(), device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="shape"):
        core.from_nf4(dataclasses.replace(state, shape=(5, 2, 1, 2, 5)), device="cpu")
