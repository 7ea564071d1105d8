"""batch_invariant=True: a token's results are those that it has alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import FILE_TYPES, Context, Embedder, Model, demo_model, quantize
from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.native import library

TOKENS = [5 + 7 * i % 90 for i in range(70)]
SIZES: dict[str, Any] = {"ctx_size": 128, "sequences": 4, "unified_kv": False}


def alone(model: Model, **parameters: Any) -> list[bytes]:
    """Return the logits after each token, decoded one by one."""
    rows = []
    with Context(model, batch_invariant=True, threads=1, **SIZES, **parameters) as context:
        for token in TOKENS:
            context.decode([token])
            rows.append(context.logits().tobytes())
    return rows


def whole(model: Model, **parameters: Any) -> list[bytes]:
    """Return them of one decode."""
    with Context(model, batch_invariant=True, threads=2, **SIZES, **parameters) as context:
        context.decode(TOKENS, logits="all")
        return [context.logits(i).tobytes() for i in range(len(TOKENS))]


def in_company(model: Model, **parameters: Any) -> list[bytes]:
    """Return them beside three other sequences, which begin elsewhere, in chunks of 1 to 8."""
    rows: list[bytes] = []
    with Context(model, batch_invariant=True, threads=1, **SIZES, **parameters) as context:
        for seq in range(1, 4):
            context.decode(TOKENS[: 5 * seq], seq)
        while len(rows) < len(TOKENS):
            chunk = TOKENS[len(rows) :][: 1 + len(rows) % 8]
            context.decode_batch([*chunk, 6, 7, 8], [0] * len(chunk) + [1, 2, 3])
            rows += [context.logits(i).tobytes() for i in range(len(chunk))]
    return rows


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_type(file_type: str, tmp_path: Path) -> None:
    """The matrices of a small model in each type that `quantize` writes."""
    file = tmp_path / "model.gguf"
    quantize(demo_model(), file, file_type, requantize=True)
    with Model(file, devices=()) as model:
        expected = alone(model)
        assert expected == whole(model)
        assert expected == in_company(model)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("llama", {"flash_attention": True}),
        ("llama", {"flash_attention": False}),
        ("llama", {"type_k": "f32", "type_v": "f32"}),
        ("llama", {"ubatch_size": 7}),
        ("gemma3", {}),
        ("gemma3", {"swa_full": False, "ubatch_size": 32}),
        ("qwen2vl", {}),
        ("mamba", {}),
        ("lfm2", {}),
    ],
)
def test_every_kind_of_memory(
    model_files: dict[str, Path], kind: str, parameters: dict[str, Any]
) -> None:
    """Attention, windows, recurrent and hybrid states, and the types of the KV cache."""
    with Model(model_files[kind], devices=()) as model:
        expected = alone(model, **parameters)
        assert expected == whole(model, **parameters)
        assert expected == in_company(model, **parameters)


@pytest.mark.parametrize("parameters", [{"type_k": "q8_0", "type_v": "q4_0"}, {"type_k": "bf16"}])
def test_types_of_the_kv_cache(parameters: dict[str, Any]) -> None:
    """Quantized cells too."""
    with Model("demo", devices=()) as model:
        expected = alone(model, **parameters)
        assert expected == whole(model, **parameters)
        assert expected == in_company(model, **parameters)


def test_embeddings(model_files: dict[str, Path]) -> None:
    """A text's vector does not depend on the texts beside it."""
    texts = ["One day", "Once upon a time there was a fox", "the cat", "on the sea and the cat"]
    with (
        Model(model_files["bert"], devices=()) as model,
        Embedder(model, threads=1, batch_invariant=True) as embedder,
    ):
        together = embedder.embed(texts)
        assert (together == np.concatenate([embedder.embed([text]) for text in texts])).all()


def test_without_it_rows_are_rounded_otherwise(demo: Model) -> None:
    """So the tests above see a difference where there is one."""
    with Context(demo, threads=1, **SIZES) as context:
        context.decode(TOKENS, logits="all")
        rows = [context.logits(i).tobytes() for i in range(len(TOKENS))]
    assert alone(demo) != rows


def test_where_it_cannot_be(
    model_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    make_context: Callable[..., Context],
) -> None:
    """A build without the patch refuses it, as do a GPU and a shared KV buffer."""
    with Model(model_files["llama"], devices=()) as model:
        monkeypatch.setenv("LLCUDA_NO_BATCH_INVARIANT", "1")
        with pytest.raises(UnsupportedError, match="batch_invariant=True: ") as raised:
            make_context(model, batch_invariant=True)
        assert "batch_invariant" == raised.value.parameter
        make_context(model).decode([5])
        monkeypatch.undo()
        make_context(model, batch_invariant=True).decode([5])
        with pytest.raises(ArgumentError, match="batch_invariant='yes': expected True or False"):
            make_context(model, batch_invariant="yes")
        with pytest.raises(ArgumentError, match=r"batch_invariant=True: .*; give unified_kv=False"):
            make_context(model, batch_invariant=True, sequences=2)
    if any(device.kind == "gpu" for device in library.devices()):
        with Model(model_files["llama"]) as model, pytest.raises(UnsupportedError, match="a GPU"):
            make_context(model, batch_invariant=True)


def test_it_survives_a_renewal(model_files: dict[str, Path]) -> None:
    """A context that failed and was made anew computes as before."""
    with Model(model_files["lfm2"], devices=()) as model:
        expected = alone(model)
        with Context(model, batch_invariant=True, threads=1, **SIZES) as context:
            context.decode(TOKENS[:20])
            context.renew()
            context.decode(TOKENS, logits="all")
            assert expected == [context.logits(i).tobytes() for i in range(len(TOKENS))]
