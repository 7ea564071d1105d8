"""Memory shared with torch, both ways."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from llcuda.core import DType, Tensor
from tests.support.tensor_tools import on_each_device

torch = pytest.importorskip("torch")

KINDS = {
    DType.Float32: torch.float32,
    DType.Float16: torch.float16,
    DType.BFloat16: torch.bfloat16,
    DType.Int32: torch.int32,
    DType.Int64: torch.int64,
    DType.UInt8: torch.uint8,
}


def wait(device: str) -> None:
    """Wait for torch's GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


@on_each_device
@pytest.mark.parametrize("dtype", KINDS)
def test_torch_and_tensors_share(device: str, dtype: DType) -> None:
    """What one writes the other sees, in every type, also through views with gaps."""
    source = torch.arange(24, device=device).reshape(4, 6).to(KINDS[dtype])
    tensor = Tensor.from_dlpack(source[1:, ::2])
    assert tensor.dtype is dtype and tensor.shape == [3, 3]
    source[1, 0] = 99
    wait(device)
    assert tensor.numpy()[0, 0] == 99
    own = Tensor.zeros([2, 3], dtype, device)
    seen = torch.from_dlpack(own.T)
    assert seen.dtype is KINDS[dtype] and list(seen.shape) == [3, 2]
    seen[2, 1] = 7
    wait(device)
    own_values = own.numpy()
    own.close()
    del own
    gc.collect()
    assert own_values[1, 2] == 7 and seen[2, 1] == 7


@on_each_device
@pytest.mark.parametrize("dtype", [DType.Float32, DType.Float16, DType.BFloat16])
def test_products_are_those_of_torch(device: str, dtype: DType) -> None:
    """A product of shared operands, transposed ones too, is torch's."""
    left: Any = torch.randn(70, 130, device=device).to(KINDS[dtype])
    right = torch.randn(90, 130, device=device).to(KINDS[dtype])
    actual = torch.from_dlpack(Tensor.from_dlpack(left) @ Tensor.from_dlpack(right).T)
    expected = left.float() @ right.float().T
    error = (actual.float() - expected).abs().max() / expected.abs().max()
    assert actual.dtype is KINDS[dtype]
    assert error < {DType.Float32: 1e-5, DType.Float16: 1e-3, DType.BFloat16: 8e-3}[dtype]


def test_what_torch_frees_is_freed() -> None:
    """A tensor over torch's memory keeps it, and lets go of it; so does torch."""
    source = torch.ones(1000)
    tensor = Tensor.from_dlpack(source)
    del source
    gc.collect()
    np.testing.assert_array_equal(tensor.numpy(), np.ones(1000, np.float32))
    for _ in range(1000):
        torch.from_dlpack(Tensor.from_dlpack(torch.ones(100_000)))
