"""A llama's forward pass in tensors of one's own, and Context.decode's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llcuda
from llcuda import Context, Model, core
from llcuda.core import Tensor
from llcuda.gguf_parser import GGUFReader
from tests.support.tensor_tools import on_each_device

TOKENS = [256, 5, 17, 80, 42, 99, 3, 120, 64, 7, 7, 200]


class Llama:
    """A llama of a GGUF file: what is computed is written down here, and nothing else."""

    def __init__(self, path: Path, device: str) -> None:
        with GGUFReader(path) as reader:
            self.about: dict[str, Any] = {
                key.removeprefix("llama."): reader.metadata[key]
                for key in reader.metadata
                if key.startswith("llama.")
            }
        self.weights = core.load_tensors(path, device=device)
        self.device = device

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Return the logits after each token."""
        ids = Tensor.from_numpy(np.array(tokens, np.int32), self.device)
        positions = Tensor.from_numpy(np.arange(len(tokens), dtype=np.int32), self.device)
        future = np.triu(np.full((len(tokens), len(tokens)), -np.inf, np.float32), 1)
        self.mask = Tensor.from_numpy(future, self.device)
        x = core.get_rows(self.weights["token_embd.weight"], ids)
        with core.lazy():
            for layer in range(self.about["block_count"]):
                x = x + self.attention(layer, self.norm(f"blk.{layer}.attn_norm", x), positions)
                x = x + self.feed_forward(layer, self.norm(f"blk.{layer}.ffn_norm", x))
            output = self.weights.get("output.weight", self.weights["token_embd.weight"])
            result = self.norm("output_norm", x) @ output.T
        return result.numpy()

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return the rows of x, normalised and weighted."""
        eps = self.about["attention.layer_norm_rms_epsilon"]
        return core.rms_norm(x, self.weights[f"{name}.weight"], eps)

    def attention(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """Return what each token gathers from those before it."""
        wq, wk, wv, wo = (
            self.weights[f"blk.{layer}.attn_{part}.weight"] for part in ("q", "k", "v", "output")
        )
        heads, kv_heads = self.about["attention.head_count"], self.about["attention.head_count_kv"]
        count, size = len(x), wq.shape[0] // heads
        base = self.about["rope.freq_base"]
        q = core.rope((x @ wq.T).reshape(count, heads, size), positions, base=base)
        k = core.rope((x @ wk.T).reshape(count, kv_heads, size), positions, base=base)
        v = (x @ wv.T).reshape(count, kv_heads, 1, size)
        # Several heads of queries share one of keys and values.
        q = q.reshape(count, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)
        scores = (q @ k.reshape(count, kv_heads, 1, size).transpose(1, 2, 3, 0)) * size**-0.5
        seen = core.softmax(scores + self.mask) @ v.transpose(1, 2, 0, 3)
        return seen.transpose(2, 0, 1, 3).reshape(count, heads * size) @ wo.T

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        """Return the gated feed-forward layer."""
        gate, up, down = (
            self.weights[f"blk.{layer}.ffn_{part}.weight"] for part in ("gate", "up", "down")
        )
        return (core.silu(x @ gate.T) * (x @ up.T)) @ down.T


@on_each_device
@pytest.mark.parametrize("name", ["two layers", "demo"])
def test_equals_decode(device: str, name: str, model_files: dict[str, Path]) -> None:
    """All logits are those of llama.cpp: of two layers in F32, of the demo's eight in Q8_0."""
    path = llcuda.demo_model() if name == "demo" else model_files["llama"]
    with (
        Model(path, gpu_layers=0 if device == "cpu" else 99) as model,
        Context(model, ctx_size=64, flash_attention=False, type_k="f32", type_v="f32") as context,
    ):
        context.decode(TOKENS, logits="all")
        expected = np.stack([context.logits(i) for i in range(len(TOKENS))])
    actual = Llama(path, device).logits(TOKENS)
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    # On a GPU llama.cpp rounds F32 to TF32, and Q8_0's other operand by the number of tokens.
    rounding = 1 if device == "cpu" else 5e-3 / 1e-4
    assert difference < (1e-4 if name == "two layers" else 1e-3) * rounding
    assert (actual.argmax(-1) == expected.argmax(-1)).all()
