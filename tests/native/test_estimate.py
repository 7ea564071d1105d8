"""What a model would take of each device, against what llama.cpp reports as it takes it."""

from __future__ import annotations

import logging
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from llcuda import Context, ContextParams, Model, ModelParams
from llcuda.errors import (
    ArgumentError,
    ContextError,
    LlcudaError,
    ModelError,
    ModelNotFoundError,
    UnsupportedError,
)
from llcuda.native import estimate
from llcuda.native.estimate import FileFacts, memory_needed, read_facts
from tests.support import models

MIB = 2**20
ROUNDING = 0.02 * MIB  # llama.cpp reports two decimals, and up to four buffers
SETTINGS: dict[str, dict[str, Any]] = {
    "one text": {"ctx_size": 256},
    "four texts": {"ctx_size": 512, "sequences": 4, "unified_kv": False},
    "small window": {"ctx_size": 400, "sequences": 3, "swa_full": False, "ubatch_size": 64},
    "no flash attention": {"ctx_size": 512, "flash_attention": False},
}


def reported(lines: list[str], kind: str) -> float:
    """Return the bytes of all buffers of a kind, of the last context only."""
    begin = max(i for i, line in enumerate(lines) if "constructing llama_context" in line)
    text = "\n".join(lines if kind == "model" else lines[begin:])
    return MIB * sum(map(float, re.findall(rf" {kind} buffer size = +([\d.]+) MiB", text)))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["demo", *models.BUILDERS])
def test_equals_what_loading_takes(
    kind: str, settings: str, model_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, KV cells or states, and buffers, for each kind of memory and context."""
    path = "demo" if kind == "demo" else model_files[kind]
    needed = memory_needed(path, **SETTINGS[settings])[-1]
    caplog.set_level(logging.DEBUG, "llcuda.native")
    with Model(path, mmap=False) as model, Context(model, threads=1, **SETTINGS[settings]):
        lines = caplog.messages
    assert needed.model == pytest.approx(reported(lines, "model"), abs=ROUNDING)
    states = reported(lines, "KV") + reported(lines, "RS")
    assert needed.kv == pytest.approx(states, abs=ROUNDING)
    assert needed.compute == pytest.approx(reported(lines, "compute"), abs=ROUNDING)


def test_known_sizes(demo: Model) -> None:
    """The demo model's weights to the byte but for padding, its cells to the byte."""
    needed = memory_needed("demo", ctx_size=1024, sequences=2)[-1]
    assert (needed.name, needed.kind) == ("CPU", "cpu")
    assert 0 <= needed.model - demo.size < 0.001 * demo.size
    heads, kv_heads = (
        int(demo.metadata[f"llama.attention.head_count{suffix}"]) for suffix in ("", "_kv")
    )
    numbers = 2 * kv_heads * demo.embedding_size // heads  # a key and a value in F16
    assert needed.kv == 2048 * demo.layer_count * numbers * 2
    assert needed.needed == needed.model + needed.kv + needed.compute
    assert 0 < needed.free <= needed.total


def test_nothing_is_taken() -> None:
    """Asking for a gigabyte of cells does not take it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    needed = memory_needed("demo", ctx_size=1024, sequences=256)[-1]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert needed.kv == 2**30
    assert grown * 1024 < 2**28


def test_objects_and_keywords_mean_the_same() -> None:
    """Parameters travel as two objects, or as their fields."""
    objects = memory_needed("demo", model=ModelParams(), context=ContextParams(ctx_size=512))
    assert [d.needed for d in objects] == [d.needed for d in memory_needed("demo", ctx_size=512)]


def test_facts_of_the_header(demo: Model, tmp_path: Path) -> None:
    """What the file says; where it says nothing, 0."""
    assert read_facts("demo") == FileFacts(
        "llama", demo.vocab_size, demo.layer_count, demo.train_ctx_size
    )
    bare = models.write(tmp_path / "bare.gguf", {"general.architecture": "none"}, {})
    assert read_facts(bare) == FileFacts("none", 0, 0, 0)


def test_overrides_count(model_files: dict[str, Path]) -> None:
    """The caller's overrides reach the simulation; those that are ill-typed are named."""
    path = model_files["llama"]
    with pytest.raises(ModelError):
        memory_needed(path, overrides={"llama.block_count": 7})
    with pytest.raises(ArgumentError, match="block_count"):
        memory_needed(path, overrides={"llama.block_count": "7"})


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"tensor_split": [1.0] * 1000}, ArgumentError),
        ({"devices": ["nonsense"]}, ArgumentError),
        ({"ctx_size": 0}, ArgumentError),
        ({"vocab_only": True}, ContextError),
        ({"split_mode": "tensor"}, UnsupportedError),
        ({"nonsense": 1}, TypeError),
        ({"model": ModelParams(), "gpu_layers": 1}, ArgumentError),
    ],
)
def test_impossible_parameters(parameters: dict[str, Any], error: type[Exception]) -> None:
    """The errors of Model and Context, before anything is taken."""
    with pytest.raises(error):
        memory_needed("demo", **parameters)


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, ModelNotFoundError), (b"", ModelError), (b"GGUF" + b"\xff" * 64, ModelError)],
)
def test_broken_files(content: bytes | None, error: type[LlcudaError], tmp_path: Path) -> None:
    """A missing file and damage raise as Model does."""
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error):
        memory_needed(path)


def test_a_truncated_file(model_files: dict[str, Path], tmp_path: Path) -> None:
    """A download that broke off is an error, though no weight is read."""
    path = tmp_path / "short.gguf"
    path.write_bytes(model_files["llama"].read_bytes()[:-1000])
    with pytest.raises(ModelError):
        memory_needed(path)


@pytest.mark.parametrize("settings", [key for key in SETTINGS if key != "one text"])
@pytest.mark.parametrize("kind", ["demo", *models.BUILDERS])
def test_a_large_context_is_told_from_smaller_ones(
    kind: str, settings: str, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells to the byte, buffers within a hundredth, beyond a limit that is lower here."""
    path: Path | str = "demo" if kind == "demo" else model_files[kind]
    given: dict[str, Any] = {**SETTINGS[settings], "ctx_size": 2**17}
    whole = memory_needed(path, **given)[-1]
    monkeypatch.setattr(estimate, "MAX_CELLS", 2**17)
    told = memory_needed(path, **given)[-1]
    assert (whole.model, whole.kv) == (told.model, told.kv)
    assert whole.compute == pytest.approx(told.compute, rel=0.01)


def test_a_huge_context_is_told_at_once() -> None:
    """2 billion cells, which nobody counts one by one."""
    (needed,) = memory_needed("demo", ctx_size=2**23 - 256, sequences=256, unified_kv=False)
    assert needed.kv == (2**23 - 256) * 256 * 4096


def test_warnings_come_once(caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp warns as the model is loaded, not for each estimate before it."""
    memory_needed("demo", ctx_size=4096)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    with Model("demo") as model, Context(model, ctx_size=4096, threads=1):
        assert any("training context" in message for message in caplog.messages)
