"""llcuda.gguf_parser: the contract's lines, every type, damaged and hostile files; the writer."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llcuda import demo_model, gguf_parser
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    GGUFError,
    LlcudaError,
    MissingTensorError,
    ModelError,
    UnsupportedError,
)
from llcuda.gguf_parser import (
    GGML_BLOCK_SIZE,
    GGML_TYPE_SIZE,
    GGMLType,
    GGUFReader,
    GGUFTensorInfo,
    GGUFValueType,
    inspect_gguf,
)
from llcuda.gguf_writer import RawTensor, write_gguf
from llcuda.native import library
from tests.conftest import VENDOR_MODELS

# The gguf package takes a block of Q8_1 for 40 bytes; ggml has 36.
TYPES = [kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"]
WHOLE = {"I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8", "F64": "f8"}
PAGE = 4096
GIB = 2**30


VALUES: Mapping[str, tuple[Any, GGUFValueType]] = {
    "text": ("ä", GGUFValueType.STRING),
    "empty text": ("", GGUFValueType.STRING),
    "truth": (True, GGUFValueType.BOOL),
    "small": (1, GGUFValueType.UINT32),
    "negative": (-1, GGUFValueType.INT32),
    "large": (2**63, GGUFValueType.UINT64),
    "large and negative": (-(2**40), GGUFValueType.INT64),
    "real": (0.5, GGUFValueType.FLOAT32),
    "numpy's": (np.float64(0.1), GGUFValueType.FLOAT64),
    "array": (np.arange(3, dtype=np.int8), GGUFValueType.INT8),
    "truths": ([True, False], GGUFValueType.BOOL),
    "mixed signs": ([-1, 2**31], GGUFValueType.INT64),
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tensor of random bytes of every type that the gguf package knows."""
    path = tmp_path_factory.mktemp("types") / "typed.gguf"
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "typed")
    for kind in TYPES:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, (3, size * (512 // block)), np.uint8)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- what users write ---


def test_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines run as written; a view survives close(), which may be called twice."""
    with GGUFReader(str(demo_model())) as reader:
        assert reader.metadata.get("general.name", "unknown") == "llcuda demo"
        assert reader.metadata.get("no.such.key", "unknown") == "unknown"
        for name, info in list(reader.tensors.items())[:5]:
            print(name, info.shape, info.ggml_type.name)
        assert "blk.0.attn_k.weight [128, 256] Q8_0" == capsys.readouterr().out.splitlines()[0]
        info = reader.tensors["blk.0.attn_k.weight"]
        assert (2, 128 * 256, 128 * 256 // 32 * 34) == (info.n_dims, info.numel, info.nbytes)
        assert reader.file is not None and reader.mmap is not None
        view = reader.get_tensor_data("output_norm.weight")
        values = reader.numpy("output_norm.weight")
    assert (None, None) == (reader.file, reader.mmap)
    assert view.readonly and np.array_equal(np.frombuffer(view, np.float32), values)
    reader.close()


def test_a_description_of_a_tensor() -> None:
    """It can be made without a file: five values in this order, by name too."""
    info = GGUFTensorInfo("model.embed", 2, [4096, 512], GGMLType.F16, 1024)
    assert info == GGUFTensorInfo(
        name="model.embed", n_dims=2, shape=[4096, 512], ggml_type=GGMLType.F16, offset=1024
    )
    assert (4096 * 512, 4096 * 512 * 2, None) == (info.numel, info.nbytes, info.path)
    assert "GGUFTensorInfo('model.embed', 4096x512, F16)" == repr(info)
    quantized = GGUFTensorInfo("q", 2, [1024, 1024], GGMLType.Q4_0, 0)
    assert 1024 * 1024 // 32 * 18 == quantized.nbytes


def test_sizes_of_types() -> None:
    """Mappings with all types; values and bytes of a block."""
    assert (1, 4, 32, 18, 256, 144) == (
        GGML_BLOCK_SIZE[GGMLType.F32],
        GGML_TYPE_SIZE[GGMLType.F32],
        GGML_BLOCK_SIZE[GGMLType.Q4_0],
        GGML_TYPE_SIZE[GGMLType.Q4_0],
        GGML_BLOCK_SIZE[GGMLType.Q4_K],
        GGML_TYPE_SIZE[GGMLType.Q4_K],
    )
    for sizes in (GGML_BLOCK_SIZE, GGML_TYPE_SIZE):
        assert [*sizes] == [*GGMLType] and GGMLType.BF16 in sizes
        assert (None, 5) == (sizes.get(4), sizes.get("F32", 5))  # type: ignore[call-overload]
        with pytest.raises(KeyError):
            sizes[99]  # type: ignore[index]


def test_a_reader_and_its_methods() -> None:
    """Names of tensors as a list, values with a default, and a repr that says what the file is."""
    with GGUFReader(demo_model()) as reader:
        assert [*reader.tensors] == reader.list_tensors()
        assert "llcuda demo" == reader.get_metadata_value("general.name")
        assert (None, 7) == (
            reader.get_metadata_value("no.such.key"),
            reader.get_metadata_value("no.such.key", 7),
        )
        info = reader.tensors["output_norm.weight"]
        assert demo_model() == info.path
    expected = "GGUFReader('demo.gguf', name='llcuda demo', architecture='llama', tensors=74)"
    assert expected == repr(reader)


def test_inspect_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what a file is; what a file says cannot drive the terminal."""
    inspect_gguf(str(demo_model()))
    lines = capsys.readouterr().out.splitlines()
    assert f"{demo_model()}: GGUF version 3, 1 file(s)" == lines[0]
    assert "  general.name: llcuda demo" in lines
    assert any(line.startswith("  tokenizer.ggml.tokens: array of ") for line in lines)
    assert any(line.startswith("Tensors: 74 (") for line in lines)
    assert "  blk.0.attn_k.weight: [128, 256] Q8_0" in lines
    assert "  ... and 64 more" == lines[-1]
    metadata = {"general.architecture": "x", "bell\a": "\x1b[2J" + "y" * 100}
    inspect_gguf(write_gguf(tmp_path / "odd.gguf", metadata, {}))
    printed = capsys.readouterr().out
    assert r"bell\x07: \x1b[2Jyyy" in printed and "yyy..." in printed and "\x1b" not in printed
    assert printed.endswith("Tensors: 0\n")
    with pytest.raises(FileNotFoundError, match="GGUF file not found"):
        inspect_gguf(tmp_path / "missing.gguf")


def test_old_names() -> None:
    """They go on working for one release, with a warning."""
    with pytest.warns(DeprecationWarning, match="use llcuda.gguf_parser.GGUFTensorInfo"):
        assert getattr(gguf_parser, "TensorInfo") is GGUFTensorInfo  # noqa: B009
    assert not hasattr(gguf_parser, "no_such_name")


def test_the_demo_model_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """The name "demo" is that of the demo model, as everywhere."""
    with GGUFReader("demo") as reader:
        assert reader.path == demo_model()
    inspect_gguf("demo")
    assert capsys.readouterr().out.startswith(f"{demo_model()}: GGUF version 3")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("token_embd.weigh", "did you mean 'token_embd.weight'?"),
        ("nope", "list_tensors() names them"),
    ],
)
def test_a_tensor_that_is_missing(name: str, remedy: str) -> None:
    """It is a KeyError whose message is plain text, with the name that was meant."""
    with GGUFReader("demo") as reader:
        for read in (reader.numpy, reader.get_tensor_data):
            with pytest.raises(MissingTensorError) as caught:
                read(name)
            assert isinstance(caught.value, KeyError)
            assert caught.value.parameter == "name"
            problem = f"name={name!r}: demo.gguf has no such tensor"
            assert str(caught.value) == f"{problem}; {remedy}"


def test_closed_readers_say_so() -> None:
    """What was read remains; what was not is a ClosedError, an unknown name a KeyError."""
    with GGUFReader(demo_model()) as reader:
        tokens = reader.metadata["tokenizer.ggml.tokens"]
        with pytest.raises(KeyError):
            reader.get_tensor_data("no such tensor")
    assert tokens[1] == "<|bos|>" and len(reader.tensors) == 74
    for read in (
        lambda: reader.metadata["tokenizer.ggml.merges"],
        lambda: reader.get_tensor_data("output_norm.weight"),
        lambda: reader.numpy("output_norm.weight"),
    ):
        with pytest.raises(ClosedError):
            read()


@pytest.mark.parametrize("name", ["bert-bge", "llama-spm", "refact"])
def test_metadata_is_what_the_gguf_package_reads(name: str) -> None:
    """Every key, value, type and order of real files."""
    path = VENDOR_MODELS / f"ggml-vocab-{name}.gguf"
    theirs = gguf.GGUFReader(path)
    with GGUFReader(path) as reader:
        keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
        assert [*reader.metadata] == keys
        for key in keys:
            expected, value = theirs.fields[key].contents(), reader.metadata[key]
            is_array = theirs.fields[key].types[0] == gguf.GGUFValueType.ARRAY
            assert (len(expected) if is_array else None) == reader.metadata.count(key)
            assert expected == (list(value) if is_array else value)
            assert theirs.fields[key].types[-1] == reader.metadata.type(key)


def test_arrays_of_texts_are_sequences(tmp_path: Path) -> None:
    """Empty texts, accents, bytes that are not UTF-8; negative indices, slices, iteration."""
    texts = ["", "é", b"\xff\xfe".decode(errors="surrogateescape"), "z"]
    path = write_gguf(tmp_path / "texts.gguf", {"general.architecture": "x", "texts": texts}, {})
    with GGUFReader(path) as reader:
        array = reader.metadata["texts"]
    assert texts == list(array) == array[:]
    assert ("z", ["", "é"], [*reversed(texts)]) == (array[-1], array[:2], array[::-1])
    assert ("é" in array, array.index("z"), len(array)) == (True, 3, 4)
    with pytest.raises(IndexError):
        array[4]


# --- types ---


def test_types_are_those_of_ggml() -> None:
    """Names and numbers: of tensors ggml's, of values the gguf package's."""
    ffi, lib = library.load()
    names = {number: lib.ggml_type_name(number) for number in range(lib.GGML_TYPE_COUNT)}
    known = {number: ffi.string(name).decode().upper() for number, name in names.items() if name}
    known = {n: name for n, name in known.items() if not name.startswith(("DEPRECATED", "TYPE_"))}
    assert known == {kind.value: kind.name for kind in GGMLType}
    assert {kind.name: kind.value for kind in gguf.GGUFValueType} == {
        kind.name: kind.value for kind in GGUFValueType
    }


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type(kind: Any, typed: Path) -> None:
    """Sizes, place and bytes are the gguf package's; values too, bit by bit, where it has them."""
    theirs = next(t for t in gguf.GGUFReader(typed).tensors if t.name == kind.name)
    with GGUFReader(typed) as reader:
        info = reader.tensors[kind.name]
        assert (kind.name, [3, 512], 2, 1536) == (
            info.ggml_type.name,
            info.shape,
            info.n_dims,
            info.numel,
        )
        assert (theirs.n_bytes, theirs.data_offset) == (
            info.nbytes,
            reader.data_offset + info.offset,
        )
        assert theirs.data.tobytes() == reader.get_tensor_data(kind.name)
        if kind.name == "Q8_K":
            with pytest.raises(UnsupportedError):
                reader.numpy(kind.name)
            return
        values = reader.numpy(kind.name)
    assert (WHOLE.get(kind.name, "f4"), (3, 512)) == (values.dtype.str[1:], values.shape)
    if kind.name in WHOLE:
        expected = theirs.data.reshape(3, 512)
    elif kind.name == "Q1_0":  # which the package does not compute
        assert len(np.unique(np.abs(values[:, :128]))) <= 3
        return
    else:
        with np.errstate(all="ignore"):  # random bytes hold infinity
            expected = gguf.dequantize(theirs.data, theirs.tensor_type).astype(np.float32)
    assert np.array_equal(expected.reshape(3, 512), values, equal_nan=True)


# --- split models ---


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo model's first tensors in three files."""
    folder = tmp_path_factory.mktemp("split")
    with GGUFReader(demo_model()) as reader:
        raw = [
            (name, RawTensor(info.shape, info.ggml_type, reader.get_tensor_data(name)))
            for name, info in list(reader.tensors.items())[:6]
        ]
        paths = []
        for number in range(3):
            own = {"general.architecture": "llama", "general.name": "split"} if not number else {}
            parts = {
                "split.no": np.uint16(number),
                "split.count": np.uint16(3),
                "split.tensors.count": np.int32(6),
            }
            path = folder / f"model-0000{number + 1}-of-00003.gguf"
            tensors = dict(raw[2 * number : 2 * number + 2])
            paths.append(write_gguf(path, {**own, **parts}, tensors))
    return paths


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_split_model_is_one(part: int, split: list[Path]) -> None:
    """Any of its files opens all: tensors of each, metadata of the first."""
    with GGUFReader(split[part]) as reader, GGUFReader(demo_model()) as whole:
        assert (6, "split", 3) == (
            len(reader.tensors),
            reader.metadata["general.name"],
            reader.summary().files,
        )
        for name in reader.tensors:
            assert whole.get_tensor_data(name) == reader.get_tensor_data(name)
        assert [] == reader.validate()
    with GGUFReader(split[part], split=False) as reader:
        assert 2 == len(reader.tensors)


def test_a_split_model_that_lacks_a_file(split: list[Path], tmp_path: Path) -> None:
    """The missing file is named; so is a name that does not say which file it is."""
    alone = tmp_path / split[1].name
    alone.write_bytes(split[1].read_bytes())
    with pytest.raises(FileNotFoundError, match=r"GGUF file not found: .*00001-of-00003"):
        GGUFReader(alone)
    renamed = alone.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ValueError, match=r"one of 3 files.*split=False"):
        GGUFReader(renamed)


# --- what is wrong with a file ---


def test_validate_finds_what_is_wrong(tmp_path: Path) -> None:
    """Values that are no numbers, types that no kernel takes, lists of unequal length."""
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": np.zeros(3, np.float32),
    }
    tensors = {
        "blk.0.attn_q.weight": np.ones((4, 4), np.int32),
        "output_norm.weight": np.array([1, np.nan], np.float32),
        "fine.weight": np.ones((4, 4), np.float16),
    }
    with GGUFReader(write_gguf(tmp_path / "wrong.gguf", metadata, tensors)) as reader:
        problems = reader.validate()
    assert 3 == len(problems)
    for problem, expected in zip(
        problems, ("scores has 3 elements for 2", "i32", "'output_norm.weight'"), strict=True
    ):
        assert expected in problem


def header(tensors: int = 0, pairs: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    """Return a GGUF file of these counts and bytes."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    """Return one key and value."""
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (8, 8), kind: int = 0, offset: int = 0
) -> bytes:
    """Return the description of one tensor."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


DATA = b"\0" * 4096
NAME = pair(b"a", 4, struct.pack("<I", 1))
HOSTILE = {
    "empty": b"",
    "one byte": b"G",
    "the magic alone": b"GGUF",
    "another magic": b"PK\3\4" + DATA,
    "zeros after the magic": b"GGUF" + DATA,
    "version 1": header(version=1),
    "version 4": header(version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2**63 tensors": header(2**63, rest=DATA),
    "2**64 - 1 tensors": header(2**64 - 1, rest=DATA),
    "2**63 pairs": header(0, 2**63, rest=DATA),
    "2**64 - 1 pairs": header(0, 2**64 - 1, rest=DATA),
    "key of 2**63 bytes": header(0, 1, rest=struct.pack("<Q", 2**63) + DATA),
    "key of 2**64 - 1 bytes": header(0, 1, rest=struct.pack("<Q", 2**64 - 1) + DATA),
    "empty key": header(0, 1, rest=pair(b"", 4, DATA)),
    "key that is not UTF-8": header(0, 1, rest=pair(b"\xff\xfe", 4, b"\0" * 4)),
    "key twice": header(0, 2, rest=NAME + NAME),
    "text of 2**63 bytes": header(0, 1, rest=pair(b"a", 8, struct.pack("<Q", 2**63) + DATA)),
    "array of 2**63": header(0, 1, rest=pair(b"a", 9, struct.pack("<IQ", 4, 2**63) + DATA)),
    "array of 2**62 doubles": header(0, 1, rest=pair(b"a", 9, struct.pack("<IQ", 12, 2**62))),
    "array of 2**61 texts": header(0, 1, rest=pair(b"a", 9, struct.pack("<IQ", 8, 2**61))),
    "array of arrays": header(0, 1, rest=pair(b"a", 9, struct.pack("<IQ", 9, 1) * 9)),
    "type 13": header(0, 1, rest=pair(b"a", 13, DATA)),
    "alignment 0": header(1, 1, rest=pair(b"general.alignment", 4, b"\0" * 4) + tensor() + DATA),
    "alignment 3": header(1, 1, rest=pair(b"general.alignment", 4, b"\3\0\0\0") + tensor() + DATA),
    "alignment 2**31": header(1, 1, rest=pair(b"general.alignment", 4, b"\0\0\0\x80") + tensor()),
    "alignment as text": header(
        1, 1, rest=pair(b"general.alignment", 8, struct.pack("<Q", 2) + b"32") + tensor() + DATA
    ),
    "tensor that is not there": header(1, rest=tensor()),
    "tensor beyond the end": header(1, rest=tensor(shape=(64, 64)) + DATA),
    "tensor of 2**63 - 1 offset": header(1, rest=tensor(offset=2**63 - 1) + DATA),
    "tensor at an odd offset": header(1, rest=tensor(offset=7) + DATA),
    "tensors that overlap": header(2, rest=tensor() + tensor(b"u") + DATA),
    "tensors with a gap": header(2, rest=tensor() + tensor(b"u", offset=512) + DATA),
    "tensor twice": header(2, rest=tensor() + tensor(offset=256) + DATA),
    "tensor of 2**40 x 2**40": header(1, rest=tensor(shape=(2**40, 2**40)) + DATA),
    "tensor of 2**62 rows of nothing": header(1, rest=tensor(shape=(0, 2**62)) + DATA),
    "tensor of 2**63 rows": header(1, rest=tensor(shape=(1, 2**63)) + DATA),
    "tensor of five dimensions": header(1, rest=tensor(shape=(1, 1, 1, 1, 1)) + DATA),
    "tensor of 2**32 - 1 dimensions": header(
        1, rest=struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**32 - 1) + DATA
    ),
    "tensor of no type": header(1, rest=tensor(kind=99) + DATA),
    "tensor of a negative type": header(1, rest=tensor(kind=2**32 - 1) + DATA),
    "tensor of a removed type": header(1, rest=tensor(kind=4) + DATA),
    "tensor with half a block": header(1, rest=tensor(shape=(8, 8), kind=8) + DATA),
    "tensor's name of 64 bytes": header(1, rest=tensor(b"t" * 64) + DATA),
    "tensor's name that is not UTF-8": header(1, rest=tensor(b"\xff") + DATA),
    "names of tensors that differ after NUL": header(
        2, rest=tensor(b"t\0a") + tensor(b"t\0b", offset=256) + DATA
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file(name: str, tmp_path: Path) -> None:
    """A ValueError that is a ModelError too, and names the file."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"hostile\.gguf") as error:
        GGUFReader(path)
    assert isinstance(error.value, ModelError)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A missing one is a FileNotFoundError; a folder and a pipe are named, not waited for."""
    with pytest.raises(FileNotFoundError, match="GGUF file not found"):
        GGUFReader(tmp_path / "missing.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(ModelError, match="not a regular file"):
            GGUFReader(path)


def test_truncated_at_every_page(tmp_path: Path) -> None:
    """A download that broke off is a GGUFError, wherever it ends."""
    whole = demo_model().read_bytes()
    path = tmp_path / "part.gguf"
    path.write_bytes(whole)
    for size in reversed(range(0, len(whole), PAGE)):
        os.truncate(path, size)
        with pytest.raises(GGUFError):
            GGUFReader(path)


def test_a_file_that_becomes_shorter_while_it_is_open(tmp_path: Path) -> None:
    """Reading its arrays and values is an error then, not the end of the process."""
    path = tmp_path / "shrinks.gguf"
    path.write_bytes(demo_model().read_bytes())
    with GGUFReader(path) as reader:
        os.truncate(path, PAGE)
        for read in (
            lambda: reader.metadata["tokenizer.ggml.merges"],
            lambda: reader.numpy("output_norm.weight"),
        ):
            with pytest.raises(GGUFError, match="became shorter"):
                read()
        assert any("output_norm.weight" in problem for problem in reader.validate())


DAMAGE = """
import json, os, re, struct, sys
import numpy as np
from llcuda.errors import GGUFError
from llcuda.gguf_parser import GGUFReader
from llcuda.native import library

_, lib = library.load()
whole = open(sys.argv[1], "rb").read()
with GGUFReader(sys.argv[1]) as reader:
    head = reader.data_offset
count, path = int(sys.argv[2]), f"/proc/self/fd/{os.memfd_create('damaged')}"
numbers = [0, 1, 2, 8, 9, 12, 13, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63]
random = np.random.default_rng(count)
read = refused = 0
wrong = []
for number in range(count):
    content = bytearray(whole)
    for _ in range(int(random.choice([1, 1, 2, 4, 16]))):
        at = int(random.integers(random.choice([24, head])))
        size = int(random.choice([1, 4, 8]))
        kind = int(random.integers(4))
        if kind == 0:
            content[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            value = numbers[int(random.integers(len(numbers)))]
            content[at : at + size] = struct.pack("<Q", value)[:size]
        elif kind == 2:
            del content[at : at + int(random.integers(1, 64))]
        else:
            content[at:at] = content[at - int(random.integers(64)) : at]
    if random.random() < 0.1:
        del content[int(random.integers(len(content))) :]
    with open(path, "wb") as file:
        file.write(content)
    judged = lib.llcuda_tensor_size(os.fsencode(path), b"") >= 0
    try:
        with GGUFReader(path) as reader:
            for value in reader.metadata.values():
                isinstance(value, (str, int, float)) or list(value)
            for name, info in reader.tensors.items():
                assert info.nbytes == len(reader.get_tensor_data(name))
                reader.numpy(name)
        read += 1
        wrong += [] if judged else [number]
    except GGUFError:
        refused += 1
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"read": read, "refused": refused, "wrong": wrong, "peak": peak}))
"""


def test_4_000_damaged_files(tmp_path: Path) -> None:
    """Each is read or is a GGUFError; none takes a gigabyte, none passes that ggml refuses."""
    metadata = {"general.architecture": "x", **{key: value for key, (value, _) in VALUES.items()}}
    tensors: dict[str, Any] = {
        f"tensor.{kind}": np.ones((2, 32), kind) for kind in ("f4", "f2", "i4", "f8")
    }
    tensors["tensor.q8_0"] = RawTensor((2, 64), GGMLType.Q8_0, bytes(4 * 34))
    path = write_gguf(tmp_path / "damaged.gguf", metadata, tensors)
    run = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(path), "4000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = json.loads(run.stdout)
    assert [] == outcomes["wrong"]
    assert (4_000, True) == (outcomes["read"] + outcomes["refused"], outcomes["peak"] < GIB)
    assert min(outcomes["read"], outcomes["refused"]) > 200


# --- writing ---


def test_a_copy_is_equal(tmp_path: Path) -> None:
    """Metadata keeps its types and tensors their bytes: the demo model's copy is its file."""
    with GGUFReader(demo_model()) as reader:
        tensors = {
            name: RawTensor(info.shape, info.ggml_type, reader.get_tensor_data(name))
            for name, info in reader.tensors.items()
        }
        copy = write_gguf(tmp_path / "copy.gguf", reader.metadata, tensors)
    assert demo_model().read_bytes() == copy.read_bytes()


def test_types_of_new_values(tmp_path: Path) -> None:
    """Python's values get the smallest common type, numpy's keep theirs; dtypes of tensors too."""
    metadata = {"general.architecture": "x", **{key: value for key, (value, _) in VALUES.items()}}
    tensors = {
        kind: np.arange(6).astype(kind).reshape(2, 3) for kind in ("f2", "f4", "f8", "i1", "i8")
    }
    with GGUFReader(write_gguf(tmp_path / "new.gguf", metadata, tensors)) as reader:
        for key, (value, kind) in VALUES.items():
            assert kind == reader.metadata.type(key), key
            assert np.array_equal(value, reader.metadata[key]), key
        for name, values in tensors.items():
            assert np.array_equal(values, reader.numpy(name))


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({"a": []}, {}),
        ({"a": [1, "b"]}, {}),
        ({"a": None}, {}),
        ({"a": 2**64}, {}),
        ({"": 1}, {}),
        ({}, {"t": np.zeros((1, 1, 1, 1, 1), np.float32)}),
        ({}, {"t": np.zeros(2, np.complex64)}),
        ({}, {"t": np.zeros(2, ">f4")}),
        ({}, {"t" * 64: np.zeros(2, np.float32)}),
        ({}, {"a\0b": np.zeros(2, np.float32)}),
        ({"general.alignment": 7}, {}),
    ],
    ids=str,
)
def test_what_cannot_be_written(
    metadata: dict[str, Any], tensors: dict[str, Any], tmp_path: Path
) -> None:
    """An ArgumentError, and no file, nor a part of one."""
    with pytest.raises(ArgumentError):
        write_gguf(tmp_path / "new.gguf", {"general.architecture": "x", **metadata}, tensors)
    assert [] == list(tmp_path.iterdir())


def test_writing_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that says what to install."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LlcudaError, match="pip install"):
        write_gguf(tmp_path / "new.gguf", {}, {})


def test_writing_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A ModelError with the reason."""
    with pytest.raises(ModelError, match="cannot write"):
        write_gguf(tmp_path / "missing" / "new.gguf", {"general.architecture": "x"}, {})
