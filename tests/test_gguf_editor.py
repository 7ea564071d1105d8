"""llcuda.gguf_editor: metadata, splitting and merging, on the demo model and on small files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Engine, Model, demo_model
from llcuda.errors import ArgumentError, GGUFError, LoadCancelledError, ModelError
from llcuda.gguf_editor import merge_gguf, set_metadata, split_gguf
from llcuda.gguf_parser import GGUFReader, GGUFValueType
from llcuda.gguf_writer import write_gguf
from tests.support.waiting import PATIENCE

METADATA: dict[str, Any] = {
    "general.architecture": "x", "general.name": "before", "a.whole": np.uint64(5), "a.real": 0.5,
    "a.truth": True, "a.numbers": np.arange(4, dtype=np.int16), "a.texts": ["one", "two", "ä"],
    "a.bytes": ["\udcff"],
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file with a value of each kind, and tensors of odd sizes."""
    tensors = {f"t{i}": np.full((i + 1, 3), i, np.float32) for i in range(5)}
    return write_gguf(tmp_path / "small.gguf", METADATA, tensors)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo model."""
    path = tmp_path / "model.gguf"
    path.write_bytes(demo_model().read_bytes())
    return path


def entries(path: Path) -> set[str]:
    """Return the names in the folder of a file."""
    return {entry.name for entry in path.parent.iterdir()}


# --- metadata ---


def test_a_value_is_replaced_and_all_else_stays(small: Path) -> None:
    """The other values with their types and places, and each tensor."""
    small.chmod(0o640)
    with GGUFReader(small) as before:
        assert set_metadata(small, {"general.name": "after", "a.whole": 6}) == small
        with GGUFReader(small) as after:
            assert list(after.metadata) == list(before.metadata)
            assert after.metadata["general.name"] == "after"
            assert after.metadata["a.whole"] == 6
            for key in METADATA:
                assert after.metadata.type(key) == before.metadata.type(key)
            assert list(after.metadata["a.texts"]) == METADATA["a.texts"]
            assert list(after.metadata["a.bytes"]) == METADATA["a.bytes"]
            for name in before.tensors:
                assert after.get_tensor_data(name) == before.get_tensor_data(name)
    assert stat.S_IMODE(small.stat().st_mode) == 0o640
    assert entries(small) == {"small.gguf"}


def test_values_have_types(small: Path, tmp_path: Path) -> None:
    """A new key gets the type that write_gguf gives it; numpy's types change an old one."""
    changes: dict[str, Any] = {
        "new.text": "ä", "new.int": 3, "new.real": 0.25, "new.list": [1, 2], "new.truth": False,
        "a.whole": np.uint16(7), "a.numbers": [-1, 300], "a.texts": [], "new.double": np.float64(1),
    }  # fmt: skip
    target = set_metadata(small, changes, remove=["a.bytes"], target=tmp_path / "new.gguf")
    kinds = {
        "new.text": "STRING", "new.int": "UINT32", "new.real": "FLOAT32", "new.list": "UINT32",
        "new.truth": "BOOL", "a.whole": "UINT16", "a.numbers": "INT16", "a.texts": "STRING",
        "new.double": "FLOAT64",
    }  # fmt: skip
    with GGUFReader(target) as reader, GGUFReader(small) as before:
        for key, kind in kinds.items():
            assert reader.metadata.type(key) == GGUFValueType[kind], key
        assert reader.metadata["a.numbers"].tolist() == [-1, 300]
        assert len(reader.metadata["a.texts"]) == 0
        assert "a.bytes" not in reader.metadata
        assert before.metadata["a.whole"] == 5


def test_another_alignment(small: Path) -> None:
    """The tensors move."""
    with GGUFReader(small) as reader:
        before = {name: reader.numpy(name) for name in reader.tensors}
    set_metadata(small, {"general.alignment": 128})
    with GGUFReader(small) as reader:
        assert reader.alignment == 128
        assert all(info.offset % 128 == 0 for info in reader.tensors.values())
        for name, values in before.items():
            assert np.array_equal(reader.numpy(name), values)
    set_metadata(small, {}, remove=["general.alignment"])
    with GGUFReader(small) as reader:
        assert reader.alignment == 32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"a.whole": -1}, "a.whole=-1: expected a whole number from 0"),
        ({"a.whole": 2**64}, "a.whole="),
        ({"a.whole": "six"}, "a.whole='six': expected a whole number"),
        ({"a.whole": True}, "a.whole=True"),
        ({"a.real": 1e39}, r"a.real=1e\+39: expected a number of the type float32"),
        ({"a.real": "x"}, "a.real='x'"),
        ({"a.truth": 1}, "a.truth=1: expected a bool"),
        ({"general.name": 5}, "general.name=5: expected a string"),
        ({"general.name": "\ud800"}, "general.name: .*surrogates"),
        ({"a.numbers": [1, 2**20]}, "a.numbers=1048576: expected"),
        ({"a.numbers": [[1]]}, "a.numbers="),
        ({"new": []}, "new: the array is empty"),
        ({"new": None}, "GGUF has no type for"),
        ({"new": np.ones((2, 2))}, "one dimension"),
        ({"": 1}, "expected keys of 1 to 65,535 bytes"),
        ({5: 1}, "expected keys"),
        ({"\ud800": 1}, "expected keys .* of UTF-8"),
        ({"\udcff": 1}, "expected keys .* of UTF-8"),
        ({"general.alignment": 24}, "general.alignment=24: expected a power of 2"),
        ({"split.count": 2}, "split.count: .*merge or split"),
    ],
    ids=str,
)
def test_wrong_values_change_nothing(small: Path, changes: Any, says: str) -> None:
    """The error names the key; the file is as it was."""
    before = small.read_bytes()
    with pytest.raises(ArgumentError, match=says):
        set_metadata(small, changes)
    assert small.read_bytes() == before
    assert entries(small) == {"small.gguf"}


def test_wrong_calls_change_nothing(small: Path, tmp_path: Path) -> None:
    """Keys that are not there, the shipped model, folders, files of other kinds, no file."""
    with pytest.raises(ArgumentError, match=r"remove='no.such': small.gguf has no such key"):
        set_metadata(small, {}, remove=["no.such"])
    with pytest.raises(ArgumentError, match="among the changes as well"):
        set_metadata(small, {"a.real": 1.0}, remove=["a.real"])
    with pytest.raises(ArgumentError, match=r"remove=.*expected a list"):
        set_metadata(small, {}, remove="a.real")
    with pytest.raises(ArgumentError, match=r"changes=.*expected a mapping"):
        set_metadata(small, ["a"])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"target: demo is the name of a model"):
        set_metadata("demo", {"general.name": "x"})
    with pytest.raises(ArgumentError, match="is a folder"):
        set_metadata(small, {}, target=tmp_path)
    with pytest.raises(ArgumentError, match="does not exist"):
        set_metadata(small, {}, target=tmp_path / "no" / "x.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(GGUFError, match="not a GGUF file"):
        set_metadata(tmp_path / "text.gguf", {"a": 1})
    with pytest.raises(FileNotFoundError):
        set_metadata(tmp_path / "none.gguf", {"a": 1})


def test_a_model_with_other_metadata_generates(demo: Path) -> None:
    """Also in place while it is loaded."""
    with Model(demo) as model, Engine(model, ctx_size=64, threads=1) as engine:
        asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
        text = engine.submit("Once upon a time", **asked).result(PATIENCE).text
        set_metadata(demo, {"general.name": "Renamed"})
        assert engine.submit("Once upon a time", **asked).result(PATIENCE).text == text
    with Model(demo) as model, Engine(model, ctx_size=64, threads=1) as engine:
        assert model.metadata["general.name"] == "Renamed"
        assert engine.submit("Once upon a time", **asked).result(PATIENCE).text == text


# --- several files ---


@pytest.mark.parametrize(
    "limits", [{"max_size": 2**20}, {"max_tensors": 9}, {"max_size": 2**21, "max_tensors": 5}]
)
def test_a_split_model_is_the_model(demo: Path, tmp_path: Path, limits: dict[str, int]) -> None:
    """llama.cpp loads it from its first file; merged, it is the file before, byte for byte."""
    parts = split_gguf(demo, tmp_path / "part.gguf", **limits)
    count = len(parts)
    assert count > 1
    assert [path.name for path in parts] == [
        f"part-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)
    ]
    for path in parts:
        assert path.stat().st_size <= limits.get("max_size", 2**40)
        with GGUFReader(path, split=False) as reader:
            assert len(reader.tensors) <= limits.get("max_tensors", 10**6)
    with Model(demo) as whole, Model(parts[0]) as split:
        texts = []
        for model in (whole, split):
            with Engine(model, ctx_size=64, threads=1) as engine:
                asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
                texts.append(engine.submit("Once upon a time", **asked).result(PATIENCE).text)
    assert texts[0] == texts[1]
    with GGUFReader(parts[-1]) as reader:
        assert reader.validate() == []
    merged = merge_gguf(parts[1], tmp_path / "merged.gguf")
    assert merged.read_bytes() == demo.read_bytes()
    again = split_gguf(parts[0], tmp_path / "again", max_tensors=20)
    assert merge_gguf(again[0], merged).read_bytes() == demo.read_bytes()


def test_parts_keep_the_alignment(small: Path, tmp_path: Path) -> None:
    """One that is not the default stands in each file."""
    set_metadata(small, {"general.alignment": 256})
    parts = split_gguf(small, tmp_path / "part", max_tensors=2)
    for part in parts:
        with GGUFReader(part, split=False) as reader:
            assert reader.alignment == 256
    assert merge_gguf(parts[0], tmp_path / "merged.gguf").read_bytes() == small.read_bytes()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, "max_size: a limit is missing; give max_size or max_tensors"),
        ({"max_size": 0}, "max_size=0: expected a whole number"),
        ({"max_size": "2G"}, "max_size='2G': expected a whole number"),
        ({"max_tensors": 1.5}, "max_tensors=1.5"),
        ({"max_size": 100}, "max_size=100: the metadata alone has .* give a larger one"),
        ({"max_size": 300_000}, "max_size=300000: the tensor '.*' alone makes"),
        ({"max_size": 10**12}, "max_size=.*fits into one file; give a smaller one"),
        ({"max_tensors": 10**6}, "max_tensors=.*fits into one file"),
    ],
    ids=str,
)
def test_limits_that_cannot_be_kept(demo: Path, tmp_path: Path, limits: Any, says: str) -> None:
    """Nothing is written."""
    with pytest.raises(ArgumentError, match=says):
        split_gguf(demo, tmp_path / "part", **limits)
    assert entries(demo) == {"model.gguf"}


def test_files_that_do_not_belong_together(demo: Path, tmp_path: Path) -> None:
    """Missing, exchanged and foreign parts, a part without metadata, a whole model, itself."""
    parts = split_gguf(demo, tmp_path / "part", max_tensors=9)
    target = tmp_path / "merged.gguf"
    with pytest.raises(ArgumentError, match="is a whole model"):
        merge_gguf(demo, target)
    with pytest.raises(ArgumentError, match="is the source itself"):
        merge_gguf(parts[0], parts[0])
    with pytest.raises(ArgumentError, match="is file 2 of a split model"):
        set_metadata(parts[1], {"general.name": "x"})
    set_metadata(parts[0], {"general.name": "x"})
    with GGUFReader(parts[0]) as reader:
        assert reader.metadata["general.name"] == "x"
        assert reader.validate() == []
    with pytest.raises(ArgumentError, match="is the source itself"):
        split_gguf(parts[0], tmp_path / "part", max_tensors=9)
    kept = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match="00002-of"):
        merge_gguf(parts[0], target)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(GGUFError, match=r"another file than its name says"):
        merge_gguf(parts[0], target)
    parts[1].write_bytes(kept)
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(GGUFError, match="rename it as it was"):
        merge_gguf(renamed, target)
    assert not target.exists()


@pytest.mark.parametrize("stop", ["false", "raise"])
def test_progress_cancels_and_leaves_nothing(demo: Path, tmp_path: Path, stop: str) -> None:
    """Shares from 0 to 1; no partial file stays."""
    shares: list[float] = []
    split_gguf(demo, tmp_path / "part", max_tensors=9, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def cancel(share: float) -> bool:
        if stop == "raise" and share > 0.5:
            raise ZeroDivisionError
        return share <= 0.5

    for call in (
        lambda: split_gguf(demo, tmp_path / "part", max_tensors=9, progress=cancel),
        lambda: merge_gguf(next(tmp_path.glob("part-*1-of*")), demo, progress=cancel),
        lambda: set_metadata(demo, {"general.name": "x"}, progress=cancel),
    ):
        with pytest.raises((LoadCancelledError, ZeroDivisionError)):
            call()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(demo: Path, tmp_path: Path) -> None:
    """The error says so."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(ModelError, match="cannot write"):
        split_gguf(demo, folder / "part", max_tensors=9)


def test_a_full_disk_is_found_before(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written."""
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match="to write, 0 MB free"):
        set_metadata(demo, {"general.name": "x"})
    assert entries(demo) == {"model.gguf"}
