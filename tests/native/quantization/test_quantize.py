"""Model files with other types of weights."""

import math
import re
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llcuda import (
    FILE_TYPES,
    MATRIX_TYPES,
    Context,
    ImportanceMatrix,
    Model,
    demo_model,
    importance_matrix,
    quantize_plan,
)
from llcuda.errors import ArgumentError, LoadCancelledError, ModelError, ModelNotFoundError
from llcuda.gguf_parser import GGUFReader
from llcuda.native.quantization import quantize as native
from llcuda.native.quantization.quantize import quantize, tensor_size

WEIGHTS = "blk.0.ffn_up.weight"
TEXT = "Once upon a time there was a little fox. The fox had a friend, and they were happy. " * 8


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with weights that are not quantized."""
    folder = tmp_path_factory.mktemp("f32")
    return quantize("demo", folder / "demo.gguf", "F32", requantize=True)


@pytest.fixture(scope="module")
def matrix(f32: Path) -> ImportanceMatrix:
    """Its importance matrix on a short text."""
    return importance_matrix(f32, TEXT, chunk=64, chunks=2, dataset="tests")


def test_every_type_computes(model_files: dict[str, Path], tmp_path: Path) -> None:
    """Each type that is offered needs no importance matrix, and gives a model that decodes."""
    for name in FILE_TYPES:
        with (
            Model(quantize(model_files["llama"], tmp_path / "m.gguf", name)) as model,
            Context(model, ctx_size=32) as context,
        ):
            context.decode(model.tokenize("Once"))
            assert 0 <= context.logits().argmax() < model.vocab_size
    assert ["m.gguf"] == [path.name for path in tmp_path.iterdir()]


def test_types_have_their_sizes(tmp_path: Path) -> None:
    """The same weights take 4 bytes each as F32, 2 as F16; names may be in any case."""
    sizes = [
        tensor_size(quantize("demo", tmp_path / f"{name}.gguf", name, requantize=True), WEIGHTS)
        for name in ("f32", "F16")
    ]
    assert sizes[0] == 2 * sizes[1]


def test_tensor_size() -> None:
    """A tensor that a model does not have has no bytes; a file that is no model is an error."""
    assert tensor_size("demo", WEIGHTS) > 0
    assert tensor_size("demo", "no.such.tensor") == 0
    with pytest.raises(ModelError):
        tensor_size(__file__, WEIGHTS)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"file_type": "Q9"}, ArgumentError, "expected one of F32"),
        (
            {"file_type": "IQ1_S"},
            ArgumentError,
            "47 tensors would be garbage, for example blk.0.attn_k.weight",
        ),
        ({"file_type": None}, ArgumentError, "expected one of F32"),
        ({"source": "none.gguf"}, ModelNotFoundError, "none.gguf"),
        ({"source": __file__}, ModelError, "not a GGUF file"),
        ({"target": "nowhere/m.gguf"}, ArgumentError, "does not exist; make it first"),
        ({"target": "."}, ArgumentError, "is a folder; expected the name of a file"),
        ({"target": "/dev/null"}, ArgumentError, "device"),
        ({"threads": 0}, ArgumentError, "threads=0"),
        ({"requantize": False}, ModelError, "quantized already"),
        ({"imatrix": "none.gguf"}, ModelNotFoundError, "none.gguf"),
        ({"imatrix": __file__}, ModelError, "not an importance matrix"),
        ({"tensor_types": "ffn_up=Q8_0"}, ArgumentError, "expected a mapping of name to type"),
        ({"tensor_types": {"ffn_up": "Q9"}}, ArgumentError, "expected one of F32"),
        ({"tensor_types": {"(ffn_up": "Q8_0"}}, ArgumentError, "not a regular expression"),
        ({"tensor_types": {"blk.0.ffn_upp.weight": "Q8_0"}}, ArgumentError, "blk.0.ffn_up.weight"),
        ({"tensor_types": {"_norm": "Q8_0"}}, ArgumentError, "never quantized"),
        ({"tensor_types": {"ffn": "Q8_0", "ffn_up": "Q6_K"}}, ArgumentError, "before it"),
        ({"tensor_types": {"ffn": "Q8_0"}, "file_type": "F16"}, ArgumentError, "one type for all"),
        ({"tensor_types": {"token_embd": "IQ2_XS"}}, ArgumentError, "needs an importance matrix"),
    ],
)
def test_bad_input(
    change: dict[str, object], error: type[Exception], says: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What cannot be done is said, and no file is left behind."""
    monkeypatch.chdir(tmp_path)
    asked = {"source": "demo", "target": "m.gguf", "file_type": "Q4_0", "requantize": True}
    with pytest.raises(error, match=says):
        quantize(**{**asked, **change})  # type: ignore[arg-type]
    assert [] == list(tmp_path.iterdir())


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    """A target that is the source, by whatever name, is refused."""
    path, link = tmp_path / "m.gguf", tmp_path / "link.gguf"
    shutil.copy(demo_model(), path)
    link.symlink_to(path)
    with pytest.raises(ArgumentError, match="the source itself"):
        quantize(path, link, requantize=True)
    assert path.stat().st_size == demo_model().stat().st_size


def test_the_matrix_is_not_overwritten(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    """A target that is the importance matrix is refused."""
    path = matrix.save(tmp_path / "matrix.gguf")
    with pytest.raises(ArgumentError, match="the source itself"):
        quantize("demo", path, imatrix=path, requantize=True)


def test_threads_write_one_target(tmp_path: Path) -> None:
    """The file is whole, that of one of them."""
    types = ("Q4_0", "Q8_0")
    whole = [
        quantize("demo", tmp_path / f"{name}.gguf", name, requantize=True).read_bytes()
        for name in types
    ]
    target = tmp_path / "m.gguf"

    def write(file_type: str) -> None:
        quantize("demo", target, file_type, requantize=True, threads=1)

    with ThreadPoolExecutor() as pool:
        for _ in range(3):
            assert [None, None] == list(pool.map(write, types))
            assert target.read_bytes() in whole


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused before it is begun; what cannot be written is an error."""
    target = tmp_path / "m.gguf"
    free = SimpleNamespace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(native.shutil, "disk_usage", lambda path: free)
        with pytest.raises(ModelError, match="the disk has 10 left"):
            quantize("demo", target, requantize=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(ModelError, match="full, or a limit"):
            quantize("demo", target, requantize=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file_type", "tensor_types"),
    [("Q4_K_M", {}), ("Q2_K", {r"ffn_(up|down)": "q6_k", "token_embd": "F16"}), ("F16", {})],
)
def test_the_plan_is_what_is_written(
    file_type: str, tensor_types: dict[str, str], f32: Path, tmp_path: Path
) -> None:
    """Each tensor has the type, the shape and the bytes that were announced."""
    plan = quantize_plan(f32, file_type, tensor_types=tensor_types)
    path = quantize(f32, tmp_path / "m.gguf", file_type, tensor_types=tensor_types)
    with GGUFReader(path) as reader:
        written = {
            name: (tuple(info.shape), info.ggml_type, info.nbytes)
            for name, info in reader.tensors.items()
        }
    assert written == {t.name: (t.shape, t.new_type, t.nbytes) for t in plan.tensors}
    assert plan.nbytes < plan.old_nbytes == sum(4 * math.prod(t.shape) for t in plan.tensors)
    for name, kind in tensor_types.items():
        assert {written[n][1].name for n in written if re.search(name, n)} == {kind.upper()}


@pytest.mark.parametrize("file_type", [*FILE_TYPES, *MATRIX_TYPES])
def test_which_types_need_a_matrix(
    file_type: str, f32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says of every type what llama.cpp would say; it does so before it writes."""
    needs = bool(quantize_plan(f32, file_type).needs_matrix)
    assert needs == (file_type in MATRIX_TYPES)
    if needs:
        monkeypatch.setattr(native, "check_matrix", lambda job, plan: None)
        with pytest.raises(ModelError, match="requires an imatrix"):
            quantize(f32, tmp_path / "m.gguf", file_type)


def test_a_matrix_makes_small_types_possible(
    f32: Path, matrix: ImportanceMatrix, tmp_path: Path
) -> None:
    """IQ2_XXS computes; the file says with what it was made, as llama.cpp's tool does."""
    source = matrix.save(tmp_path / "matrix.gguf")
    keys = ("file", "dataset", "entries_count", "chunks_count")
    path = quantize(f32, tmp_path / "m.gguf", "IQ2_XXS", imatrix=source)
    with Model(path) as model, Context(model, ctx_size=32) as context:
        context.decode(model.tokenize("Once"))
        assert np.isfinite(context.logits()).all()
        facts = [model.metadata[f"quantize.imatrix.{key}"] for key in keys]
    assert facts == [str(source), "tests", str(len(matrix.entries)), "2"]


def change_columns(entries: dict[str, Any]) -> None:
    entries["blk.0.ffn_up.weight"] = (np.ones((1, 64), "f4"), np.ones(1, "f4"))


def add_layer(entries: dict[str, Any]) -> None:
    entries["blk.99.ffn_up.weight"] = entries["blk.0.ffn_up.weight"]


def keep_none(entries: dict[str, Any]) -> None:
    entries.clear()
    entries["some.weight"] = (np.ones((1, 64), "f4"), np.ones(1, "f4"))


def drop_one(entries: dict[str, Any]) -> None:
    del entries["blk.0.ffn_up.weight"]


def turn_negative(entries: dict[str, Any]) -> None:
    entries["blk.0.ffn_up.weight"] = (np.full((1, 256), -1, "f4"), np.ones(1, "f4"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (turn_negative, "blk.0.ffn_up.weight has values that are not sums of squares"),
        (change_columns, "another model: blk.0.ffn_up.weight has 64 columns there, 256 here"),
        (add_layer, "another model: it has blk.99.ffn_up.weight"),
        (keep_none, "another model: it has no entry for any tensor"),
        (drop_one, "has no entry for blk.0.ffn_up.weight, which needs one as IQ2_XXS"),
    ],
)
def test_a_matrix_of_another_model(
    change: Callable[[dict[str, Any]], None], says: str,
    f32: Path, matrix: ImportanceMatrix, tmp_path: Path,
) -> None:  # fmt: skip
    """A matrix that does not fit is refused before anything is written."""
    other = ImportanceMatrix(dict(matrix.entries))
    change(other.entries)
    with pytest.raises(ArgumentError, match=says):
        quantize(f32, tmp_path / "m.gguf", "IQ2_XXS", imatrix=other)
    assert [] == list(tmp_path.iterdir())


def test_weights_that_no_type_holds(f32: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    """Weights of 1e20, which end the process in llcuda's absence, are an error."""
    source = shutil.copy(f32, tmp_path / "large.gguf")
    with GGUFReader(source) as reader:
        start = reader.data_offset + reader.tensors[WEIGHTS].offset
    np.memmap(source, np.float32, "r+", start, 4)[:] = 1e20
    with pytest.raises(ModelError, match=f"{WEIGHTS} in .* has a weight of 1e\\+20"):
        quantize(source, tmp_path / "m.gguf", "IQ2_XXS", imatrix=matrix)
    with pytest.raises(ModelError, match="found inf"):
        quantize(source, tmp_path / "m.gguf", "Q2_K")
    assert [source] == list(tmp_path.iterdir())


def stop(fraction: float) -> bool:
    return fraction < 0.3


def interrupt(fraction: float) -> None:
    if fraction > 0.3:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("progress", "error"), [(stop, LoadCancelledError), (interrupt, KeyboardInterrupt)]
)
def test_it_can_be_stopped(
    progress: Callable[[float], bool | None], error: type[BaseException], tmp_path: Path
) -> None:
    """False from the callback, and Ctrl-C, end it; what was there before stays."""
    path = tmp_path / "m.gguf"
    path.write_text("before")
    with pytest.raises(error):
        quantize("demo", path, requantize=True, progress=progress)
    assert "before" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_progress_is_reported(tmp_path: Path) -> None:
    """The callback gets growing shares, up to 1."""
    shares: list[float] = []
    quantize("demo", tmp_path / "m.gguf", requantize=True, progress=shares.append)
    assert sorted(shares) == shares
    assert 1.0 == shares[-1]


def test_a_damaged_source_is_refused(tmp_path: Path) -> None:
    """A file that ends early gives an error and no target."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(demo_model().read_bytes()[:-100_000])
    with pytest.raises(ModelError):
        quantize(path, tmp_path / "m.gguf", requantize=True)
    assert [path] == list(tmp_path.iterdir())
