"""How far activations that are quantized too move a model from its own weights in F32."""

from __future__ import annotations

from pathlib import Path

import pytest

import llcuda
from llcuda.native import library
from tests.real.conftest import GEMMA, QWEN, file

TEXT = Path(__file__).parents[2] / "docs" / "engine.md"


@pytest.mark.parametrize("gpu_layers", [0, pytest.param(99, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("name", "nats"), [(GEMMA, 0.02), (QWEN, 0.005)])
def test_quantized_weights_compute_nearly_what_their_values_do(
    name: str, nats: float, gpu_layers: int, tmp_path: Path
) -> None:
    """The divergence from the dequantized weights, on the CPU, is about a third of the bound."""
    if gpu_layers and not any(device.kind == "gpu" for device in library.devices()):
        pytest.skip("needs a GPU")
    quantized, floats = file(name), tmp_path / "f32.gguf"
    llcuda.quantize(quantized, floats, "F32", requantize=True)
    with (
        llcuda.Model(quantized, gpu_layers=gpu_layers) as model,
        llcuda.Model(floats, gpu_layers=0, devices=()) as reference,
    ):
        found = llcuda.divergence(model, reference, TEXT.read_text(), chunk=64, chunks=2)
    floats.unlink()
    assert 0 < found.mean < nats
