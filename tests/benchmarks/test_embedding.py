"""Texts in full batches against one after the other: `make bench`; `make test` runs each once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Embedder, Model
from tests.conftest import VENDOR_MODELS
from tests.support import models

WORDS = ("the", "little", "fox", "who", "lived", "in", "forest", "ran", "home", "late", "and")


def texts(count: int) -> list[str]:
    """Return texts of 5 to 40 words."""
    numbers = np.random.default_rng(1)
    return [" ".join(numbers.choice(WORDS, numbers.integers(5, 41))) for _ in range(count)]


def small(folder: Path) -> Path:
    """Return a model with the sizes of BGE small (12 layers of 384), and random weights."""
    import gguf

    reader = gguf.GGUFReader(VENDOR_MODELS / "ggml-vocab-bert-bge.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if "tokenizer" in key}
    size, layers, names = 384, 12, gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 12)
    assert names
    metadata = {
        **fields,
        "general.architecture": "bert",
        "bert.context_length": 512,
        "bert.embedding_length": size,
        "bert.feed_forward_length": 4 * size,
        "bert.block_count": layers,
        "bert.attention.head_count": 12,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 2,
    }
    weights = models.Weights(1)
    for name, rows in (("token_embd", 30522), ("token_types", 2), ("position_embd", 512)):
        weights.matrix(f"{name}.weight", rows, size, scale=0.05)
    blocks = [f"blk.{i}." for i in range(layers)]
    for block in blocks:
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.matrix(f"{block}{name}.weight", size, size)
            weights.zeros(f"{block}{name}.bias", size=size)
        weights.matrix(f"{block}ffn_up.weight", 4 * size, size)
        weights.zeros(f"{block}ffn_up.bias", size=4 * size)
        weights.matrix(f"{block}ffn_down.weight", size, 4 * size)
        weights.zeros(f"{block}ffn_down.bias", size=size)
    for norm in (
        "token_embd_norm",
        *(f"{b}{n}_output_norm" for b in blocks for n in ("attn", "layer")),
    ):
        weights.ones(f"{norm}.weight", size=size)
        weights.zeros(f"{norm}.bias", size=size)
    halves = {
        name: values.astype(np.float16) if values.ndim > 1 and "blk" in name else values
        for name, values in weights.tensors.items()
    }
    return models.write(folder / "small.gguf", metadata, halves)


@pytest.fixture(
    params=["demo", pytest.param("small", marks=pytest.mark.slow)],
    ids=["demo", "BGE small's shapes"],
    scope="module",
)
def embedder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedder]:
    """An embedder on the demo model, a decoder, or on an encoder."""
    name: Any = request.param
    path = small(tmp_path_factory.mktemp("embedding")) if name == "small" else name
    pooling = None if name == "small" else "last"
    with Model(path, gpu_layers=0) as model, Embedder(model, pooling=pooling) as opened:
        yield opened


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one by one"])
def test_embed(benchmark: Any, embedder: Embedder, packed: bool) -> None:
    """128 texts of some 23 tokens each; a few of them where nothing is measured."""
    count = 128 if benchmark.enabled else 4
    given = texts(count)

    def run() -> Any:
        if packed:
            return embedder.embed(given)
        return np.concatenate([embedder.embed([text]) for text in given])

    assert (count, embedder.size) == benchmark(run).shape
    if benchmark.stats:
        print(f" {count / benchmark.stats.stats.min:,.0f} texts a second at best")
