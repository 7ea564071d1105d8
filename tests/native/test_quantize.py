"""Model files with other types of weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llcuda import Context, Model, demo_model
from llcuda.errors import ArgumentError, LoadCancelledError, ModelError, ModelNotFoundError
from llcuda.native.quantize import FILE_TYPES, quantize, tensor_size

WEIGHTS = "blk.0.ffn_up.weight"


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
        ({"file_type": "IQ1_S"}, ArgumentError, "expected one of F32"),
        ({"file_type": None}, ArgumentError, "expected one of F32"),
        ({"source": "none.gguf"}, ModelNotFoundError, "none.gguf"),
        ({"source": __file__}, ModelError, "no GGUF file"),
        ({"target": "nowhere/m.gguf"}, ArgumentError, "folder that exists"),
        ({"target": "."}, ArgumentError, "folder that exists"),
        ({"threads": 0}, ArgumentError, "threads=0"),
        ({"requantize": False}, ModelError, "quantised already"),
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
