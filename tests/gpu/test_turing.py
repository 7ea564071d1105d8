"""What compute capability 7.5 computes by its own code, which its PTX brings to every newer GPU.

Products with quantized matrices by int8 Tensor Cores (mmq) and vector kernels (mmvq), attention by
the kernels of Turing, and BF16 weights as F16.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from llcuda import Adapter, Context, Model, core, device, memory_needed, quantize
from llcuda.core import DType
from llcuda.errors import UnsupportedError
from tests.support import models
from tests.support.chains import Float32
from tests.support.tensor_tools import QUANTIZED, close, made, normal

pytestmark = pytest.mark.gpu

ON_GPU: dict[str, Any] = {"gpu_layers": 99, "devices": ["CUDA0"]}
SANITIZED = pytest.mark.sanitizer

# --- products ---

# One row and 8 are those of the vector kernels; 9 and 64 those of the tiles.
ROWS = [1, 8, 9, 64]
# Whole tiles, and a matrix whose rows end within one.
SHAPES = [(256, 512), (130, 256)]
CHECKED = (DType.Q4_0, DType.Q8_0, DType.Q4_K, DType.Q6_K)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(t, marks=SANITIZED) if t in CHECKED else t for t in QUANTIZED],
    ids=lambda dtype: dtype.name,
)
def test_quantized_products(dtype: DType, shape: tuple[int, int], rows: int) -> None:
    """Every type at every kind of kernel is within the rounding of activations to 8 bits."""
    w, weights = made(normal(*shape, scale=0.1), "cuda:0", dtype)
    x, values = made(normal(rows, shape[1], seed=2), "cuda:0")
    try:
        actual = x @ w.T
    except UnsupportedError:
        pytest.skip(f"CUDA has no kernels for {dtype.name}")
    assert close(actual, values @ weights.T, 0.02)
    on_cpu = core.Tensor.from_numpy(values, "cpu") @ w.to("cpu").T
    assert close(actual, on_cpu.numpy().astype(np.float32), 0.02)


# --- attention ---

# KV type, and how far the logits may be from those of F32 cells, in parts of their spread: from
# twice (quantized) to ten times (F16, beside products in TF32) what the same cells do on the CPU.
KV_TYPES = [("f16", 0.01), ("q8_0", 0.02), ("q4_0", 0.1)]
DEPTHS = [40, 300, 1100]


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Tiny llamas by the size of their heads."""
    folder = tmp_path_factory.mktemp("heads")
    files = {}
    for size in (64, 128, 256):
        metadata, tensors = models.llama(head_size=size)
        metadata["llama.context_length"] = 4096
        files[size] = models.write(folder / f"{size}.gguf", metadata, tensors)
    return files


def logits_after(model: Model, depth: int, **parameters: Any) -> Float32:
    """Return the logits of the last rows of a prompt and of three steps after it."""
    tokens = np.random.default_rng(depth).integers(1, 250, depth).tolist()
    with Context(model, ctx_size=depth + 8, outputs_max=1, **parameters) as context:
        context.decode(tokens)
        seen = [context.logits().copy()]
        for token in (5, 6, 7):
            context.decode([token])
            seen.append(context.logits().copy())
    return np.stack(seen)


def distance(actual: Float32, expected: Float32) -> float:
    """Return the root mean square of the differences, in parts of the logits' spread."""
    return float(np.sqrt(np.mean((actual - expected) ** 2)) / expected.std())


@pytest.mark.parametrize(
    "depth", [pytest.param(d, marks=SANITIZED) if d < 1000 else d for d in DEPTHS]
)
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_attention(head_size: int, depth: int, headed: dict[int, Path]) -> None:
    """Flash attention on F16 and quantized cells, and attention without it, near the CPU's."""
    with Model(headed[head_size], gpu_layers=0, devices=()) as model:
        exact = logits_after(model, depth, flash_attention=False, type_k="f32", type_v="f32")
    with Model(headed[head_size], **ON_GPU) as model:
        plain = logits_after(model, depth, flash_attention=False)
        assert distance(plain, exact) < KV_TYPES[0][1]
        for kind, most in KV_TYPES:
            cells: dict[str, Any] = {"type_k": kind, "type_v": kind}
            assert distance(logits_after(model, depth, flash_attention=True, **cells), exact) < most


# --- BF16 ---


@pytest.fixture(scope="module")
def bf16(model_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama with BF16 weights."""
    path = tmp_path_factory.mktemp("bf16") / "bf16.gguf"
    quantize(model_files["llama"], path, "BF16")
    return path


@pytest.mark.sanitizer
@pytest.mark.parametrize("depth", [1, 6, 40])
def test_bf16_weights_become_f16(depth: int, bf16: Path, tmp_path: Path) -> None:
    """The logits are those of an F16 file with the same weights, bit for bit, in as much memory."""
    f16 = tmp_path / "f16.gguf"
    quantize(bf16, f16, "F16")
    seen = []
    for path, wanted in ((f16, None), (bf16, True), (bf16, False)):
        with Model(path, bf16_to_f16=wanted, **ON_GPU) as model:
            seen.append(logits_after(model, depth))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert distance(seen[2], seen[0]) < 0.02
    sizes = {
        memory_needed(bf16, ctx_size=64, bf16_to_f16=wanted, **ON_GPU)[0].model
        for wanted in (True, False)
    }
    assert len(sizes) == 1


def test_numbers_beyond_f16_stay_bf16(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A matrix with such a number is computed as BF16; the others become F16; the log says so."""
    metadata, tensors = models.llama()
    tensors["output.weight"][7, 5] = 1e5  # so that only this token's logit is far from the others
    source, path = models.write(tmp_path / "f32.gguf", metadata, tensors), tmp_path / "bf16.gguf"
    quantize(source, path, "BF16")
    with Model(path, gpu_layers=0, devices=()) as model:
        expected = np.delete(logits_after(model, 6), 7, axis=1)
    with caplog.at_level(logging.INFO, "llcuda"), Model(path, bf16_to_f16=True, **ON_GPU) as model:
        actual = np.delete(logits_after(model, 6), 7, axis=1)
    messages = [r.getMessage() for r in caplog.records if "BF16" in r.getMessage()]
    assert ["1 tensors stay BF16" in message for message in messages].count(True) == 1
    assert any("BF16 tensors are F16 on the GPU" in message for message in messages)
    assert np.isfinite(actual).all()
    assert distance(actual, expected) < 0.05


def test_adapters_become_f16(model_files: dict[str, Path], tmp_path: Path) -> None:
    """The logits with a BF16 adapter are those with an F16 one of the same weights, bit for bit."""
    bf16, f16 = GGMLQuantizationType.BF16, GGMLQuantizationType.F16
    metadata, tensors = models.lora()
    rounded = {
        name: quants.dequantize(quants.quantize(values, bf16), bf16)
        for name, values in tensors.items()
    }
    seen = []
    with Model(model_files["llama"], bf16_to_f16=True, **ON_GPU) as model:
        for kind in (bf16, f16):
            path = models.write(tmp_path / f"{kind.name}.gguf", metadata, rounded, kind)
            with Context(model, ctx_size=64) as context:
                context.set_adapters({Adapter(model, path): 1.0})
                context.decode(list(range(1, 25)))
                seen.append(context.logits().copy())
        plain = logits_after(model, 24)
    np.testing.assert_array_equal(*seen)
    assert not np.array_equal(seen[0], plain[0])


def test_the_default_converts_where_the_gpu_has_no_bf16(
    bf16: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By compute capability: 7.5 converts, 8.0 and higher do not."""
    capability = device.survey().gpus[0]["compute_capability"]
    with caplog.at_level(logging.INFO, "llcuda"), Model(bf16, **ON_GPU):
        converted = any("BF16 tensors are F16" in r.getMessage() for r in caplog.records)
    assert converted == (capability == "7.5")
