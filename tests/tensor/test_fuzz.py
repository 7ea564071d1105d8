"""No argument of a tensor's operation ends the process: random shapes, types, views and operations.

An operation either works or raises an error of llcuda's; ggml's own answer to what it does not
expect would be the end of this test run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llcuda import core
from llcuda.core import DType, Tensor
from llcuda.errors import LlcudaError
from tests.support.tensor_tools import PLAIN, TABLES, on_each_device

ROUNDS = int(os.environ.get("LLCUDA_FUZZ_ROUNDS", "8000"))
SIZES = [1, 1, 2, 3, 4, 5, 7, 8, 16, 32, 33, 64, 256]
TYPES = [dtype for dtype in DType if dtype not in TABLES]
MOST = 2**16  # values of a tensor
KEPT = 60
UNARY = (
    "exp", "log", "sqrt", "square", "tanh", "sigmoid", "relu", "silu", "gelu", "gelu_erf",
    "softmax", "rms_norm", "layer_norm",
)  # fmt: skip


class Fuzz:
    """Random tensors, and random operations on them and on what they gave."""

    def __init__(self, seed: int, device: str) -> None:
        self.random = np.random.default_rng(seed)
        self.device = device
        self.tensors: list[Tensor] = []
        self.operations: list[Callable[[Tensor, Tensor], Any]] = [
            lambda a, b: a + b,
            lambda a, b: a - b,
            lambda a, b: a * b,
            lambda a, b: a / b,
            lambda a, b: a @ b,
            lambda a, b: a @ b.T,
            lambda a, b: b @ a.T,
            lambda a, b: 2 - a * 3,
            lambda a, b: 1 / abs(-a),
            lambda a, b: getattr(core, str(self.random.choice(UNARY)))(a),
            lambda a, b: core.scale(a, self.number(), self.number()),
            lambda a, b: core.clamp(a, -1, 1),
            lambda a, b: core.softmax(a, self.whole(-3, 3)),
            lambda a, b: core.rms_norm(a, b),
            lambda a, b: core.concat([a, b], self.whole(-2, 3)),
            lambda a, b: core.concat([a, a, a], self.whole(-4, 4)),
            lambda a, b: core.get_rows(a, b),
            lambda a, b: core.get_rows(a, self.numbers(self.shape()[:2], 0, 40)),
            lambda a, b: core.rope(a, b),
            lambda a, b: core.rope(
                a, self.numbers(a.shape[-3:-2], -5, 999), dims=self.whole(1, 9), factors=b
            ),
            lambda a, b: core.rope(a, self.numbers(a.shape[-3:-2], -5, 999), neox=True),
            lambda a, b: a.sum(self.random.choice([None, 0, 1, -1, 3])),
            lambda a, b: a.mean(self.whole(-3, 3)),
            lambda a, b: a.argmax(self.random.choice([None, 0, 1, -1, 3])),
            lambda a, b: a.reshape(self.shape()),
            lambda a, b: a.reshape(-1),
            lambda a, b: a.view(self.shape()),
            lambda a, b: a.transpose(*self.random.permutation(a.ndim)),
            lambda a, b: a[self.whole(-3, 3)],
            lambda a, b: a[self.whole(0, 3) :],
            lambda a, b: a[..., :: self.whole(1, 3)],
            lambda a, b: a[:, self.whole(0, 4)],
            lambda a, b: a[1:3, 1:],
            lambda a, b: a.to(self.random.choice(np.array(TYPES))),
            lambda a, b: a.contiguous(),
            lambda a, b: Tensor.from_dlpack(a),
            lambda a, b: Tensor.from_numpy(a.numpy(), self.device),
            lambda a, b: Tensor.from_bytes(a.tobytes(), a.shape, a.dtype, self.device),
            lambda a, b: self.noise(a),
        ]

    def whole(self, low: int, high: int) -> int:
        """Return a whole number below `high`."""
        return int(self.random.integers(low, high))

    def number(self) -> float:
        """Return a number, often an awkward one."""
        return float(self.random.choice([0, 1, -1, 1e30, np.inf, np.nan, self.random.normal()]))

    def shape(self) -> list[int]:
        """Return a shape of at most MOST values."""
        while True:
            sizes = [int(size) for size in self.random.choice(SIZES, self.whole(0, 5))]
            if np.prod(sizes) <= MOST:
                return sizes

    def numbers(self, shape: list[int], low: int, high: int) -> Tensor:
        """Return Int32 numbers."""
        values = self.random.integers(low, high, shape).astype(np.int32)
        return Tensor.from_numpy(values, self.device)

    def noise(self, a: Tensor) -> Tensor:
        """Return a tensor whose bytes are random."""
        return Tensor.from_bytes(self.random.bytes(a.nbytes()), a.shape, a.dtype, self.device)

    def fresh(self) -> Tensor:
        """Return a new tensor of any type, with values small, huge or none at all."""
        shape, dtype = self.shape(), TYPES[self.whole(0, len(TYPES))]
        match self.whole(0, 6):
            case 0:
                return Tensor.zeros(shape, dtype, self.device)
            case 1:
                return self.noise(Tensor(shape, dtype, self.device))
            case 2:
                return self.numbers(shape, 0, 5).to(PLAIN[self.whole(0, len(PLAIN))])
        values = self.random.normal(0, self.random.choice([1, 1, 1e4, 1e30]), shape)
        if self.random.random() < 0.1:
            values = np.where(values > 0, values, self.random.choice([np.nan, np.inf, 0]))
        return Tensor.from_numpy(values.astype(np.float32), self.device).to(dtype)

    def pick(self) -> Tensor:
        """Return a tensor: a new one, or what an operation gave."""
        if not self.tensors or self.random.random() < 0.2:
            return self.fresh()
        return self.tensors[self.whole(0, len(self.tensors))]

    def apply(self, a: Tensor, b: Tensor) -> Any:
        """Return what a random operation gives."""
        return self.operations[self.whole(0, len(self.operations))](a, b)

    def step(self) -> Any:
        """Do something; return what it gave."""
        a, b = self.pick(), self.pick()
        if self.random.random() < 0.8:
            return self.apply(a, b)
        with core.lazy():
            return self.apply(self.apply(self.apply(a, b), b), a)

    def keep(self, tensor: Tensor) -> None:
        """Take a tensor for later steps, in the place of an older one."""
        if tensor.numel() <= MOST:
            self.tensors.append(tensor)
        if len(self.tensors) > KEPT:
            self.tensors.pop(self.whole(0, KEPT))


@on_each_device
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_nothing_ends_the_process(device: str, seed: int) -> None:
    """Thousands of random operations: results and errors, some of each."""
    fuzz, worked = Fuzz(seed, device), 0
    for _ in range(ROUNDS):
        try:
            tensor = fuzz.step()
        except (LlcudaError, BufferError) as error:  # the latter is DLPack's
            # What ggml refuses, we should have seen; values too large to quantize nobody foresees.
            assert not re.match(r".* failed\nassertion failed", str(error))
            continue
        worked += 1
        fuzz.keep(tensor)
    assert ROUNDS // 10 < worked < ROUNDS
