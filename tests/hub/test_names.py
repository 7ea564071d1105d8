"""llcuda.hub.names, formats and ollama: what a name means, and what a file is that is no model."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import llcuda
from llcuda import Engine, InferenceEngine, Model, hub, memory_needed, quantize_plan
from llcuda.demo import demo_model
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.gguf_parser import GGUFReader
from llcuda.hub.names import HubName, parse_hub_name, part_names, served_name
from llcuda.hub.resolver import choose_file, quantizations
from llcuda.server import ModelSpec, create_app
from tests.support.hub_cache import add_ollama_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with nothing in it, which is the working folder too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- names of the hub ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubName("a/b")),
        ("a/b:Q4_K_M", HubName("a/b", "Q4_K_M")),
        ("a/b:c d.gguf", HubName("a/b", "c d.gguf")),
        ("a/b:dir/c.gguf", HubName("a/b", "dir/c.gguf")),
        ("a/b:latest", HubName("a/b")),
        ("a/b@v1", HubName("a/b", None, "v1")),
        ("a/b@refs/pr/3:Q8_0", HubName("a/b", "Q8_0", "refs/pr/3")),
        (f"hf://a/b@{COMMIT}/c.gguf", HubName("a/b", "c.gguf", COMMIT)),
        ("hf:a/b", HubName("a/b")),
        ("HF://a/b/dir/c.gguf", HubName("a/b", "dir/c.gguf")),
        ("hf.co/a/b:Q4_0", HubName("a/b", "Q4_0")),
        ("HuggingFace.co/a/b", HubName("a/b")),
        ("https://www.huggingface.co/a/b/", HubName("a/b")),
        ("http://hf.co/a/b:Q4_0", HubName("a/b", "Q4_0")),
        ("https://huggingface.co/a/b/tree/main", HubName("a/b")),
        ("https://huggingface.co/a/b/tree/main/Q4_K_M", HubName("a/b", "Q4_K_M")),
        ("https://huggingface.co/a/b/tree/v1", HubName("a/b", None, "v1")),
        ("https://huggingface.co/a/b/blob/main/c.gguf", HubName("a/b", "c.gguf")),
        (
            f"https://huggingface.co/a/b/resolve/{COMMIT}/c%20d.gguf?download=true#x",
            HubName("a/b", "c d.gguf", COMMIT),
        ),
        ("https://huggingface.co/a/b?show_file_info=c.gguf", HubName("a/b", "c.gguf")),
        ("https://huggingface.co/a/b?local-app=llama.cpp", HubName("a/b")),
        (
            "https://huggingface.co/a/b/resolve/refs%2Fpr%2F3/c.gguf",
            HubName("a/b", "c.gguf", "refs/pr/3"),
        ),
        ("a/b/c.gguf", None),
        ("a/c.gguf", None),
        ("./a/b", None),
        ("/a/b", None),
        ("a", None),
        ("a:b", None),
        ("file:///a/b", None),
    ],
)
def test_names_of_the_hub(text: str, expected: HubName | None) -> None:
    """The repository, the file or quantization, and the version; each name reads back as itself."""
    assert parse_hub_name(text) == expected
    if expected is not None:
        assert parse_hub_name(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", "demo"),
        ("models/a.gguf", "a"),
        ("./folder", "./folder"),
        ("file:///models/a.gguf", "a"),
        ("a/b", "a/b"),
        ("hf.co/a/b:Q8_0", "a/b:Q8_0"),
        ("a/b:dir/c.gguf", "c"),
        ("https://huggingface.co/a/b/resolve/main/c.gguf?download=true", "c"),
        ("ollama://qwen2.5:1.5b", "qwen2.5:1.5b"),
    ],
)
def test_what_a_server_calls_a_model(text: str, expected: str) -> None:
    """Without scheme, host and folder."""
    assert served_name(text) == expected


def test_another_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of HF_ENDPOINT are addresses of the hub."""
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub/")
    address = "https://mirror.example/hub/a/b/resolve/main/c.gguf"
    assert parse_hub_name(address) == HubName("a/b", "c.gguf")
    with pytest.raises(ArgumentError, match="HF_ENDPOINT names another hub"):
        hub.resolve("https://mirror.example/other/a/b")


def test_an_address_of_the_hub_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "")
    with pytest.raises(ModelError, match="HF_ENDPOINT is empty; unset it"):
        hub.pull("some/repository")


@pytest.mark.parametrize(
    ("files", "wanted", "expected"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf"], None, "m-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-UD-Q4_K_M.gguf"], None, "m-UD-Q4_K_M.gguf"),
        (["m-f16.gguf", "m-mxfp4.gguf"], None, "m-mxfp4.gguf"),
        (["m-bf16.gguf", "m-q8_0.gguf"], None, "m-q8_0.gguf"),
        (["m.gguf", "mmproj-m-f16.gguf"], None, "m.gguf"),
        (["Q8_0/m-00001-of-00002.gguf"], "q8_0", "Q8_0/m-00001-of-00002.gguf"),
        (["m-Q4_K_M.gguf", "m-Q4_K_S.gguf"], "m-Q4_K_S", "m-Q4_K_S.gguf"),
        (["m.Q2_K.gguf", "mmproj-m.gguf"], "mmproj-m.gguf", "mmproj-m.gguf"),
    ],
)
def test_the_file_of_a_repository(files: list[str], wanted: str | None, expected: str) -> None:
    """Without a quantization it is Q4_K_M, or the next in a fixed order."""
    assert choose_file("a/b", files, wanted) == expected


def test_quantizations_in_names() -> None:
    """Each once, as they are written in upper case."""
    files = ["a-q4_k_m.gguf", "UD-IQ2_XXS/a-UD-IQ2_XXS-00001-of-00002.gguf", "a.BF16.gguf"]
    more = ["q2-model-Q4_0.gguf", "a-mxfp4.gguf", "a-MXFP4_MOE.gguf", "plain.gguf", "a-Q4_K_M.gguf"]
    expected = ["Q4_K_M", "UD-IQ2_XXS", "BF16", "Q2", "MXFP4", "MXFP4_MOE"]
    assert quantizations([*files, *more]) == expected


def test_parts_of_a_split_model() -> None:
    """Numbers that cannot be a part's are those of another file."""
    assert part_names("a-00002-of-00003.gguf")[::2] == [
        "a-00001-of-00003.gguf",
        "a-00003-of-00003.gguf",
    ]
    assert part_names("a-00004-of-00003.gguf") == ["a-00004-of-00003.gguf"]


# --- names of files, folders and ollama's models ---


def test_one_name_in_every_way_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model, an engine, a plan, a reader and the server take the same names."""
    (home / "folder").mkdir()
    (home / "folder" / "only.gguf").symlink_to(demo_model())
    blob = add_ollama_model(
        home / "ollama", "registry.ollama.ai/library/t/1b", demo_model().read_bytes()
    )
    forms = {
        "demo": demo_model(),
        str(demo_model()): demo_model(),
        demo_model().as_uri(): demo_model(),
        "folder": Path("folder/only.gguf"),
        "./folder/only.gguf": Path("folder/only.gguf"),
        f"file://localhost{home}/folder": home / "folder/only.gguf",
        "ollama://t:1b": blob,
        "t:1b": blob,
    }
    for name, path in forms.items():
        assert hub.resolve(name) == path
        with Model(name, vocab_only=True) as model:
            assert model.path == path
        with GGUFReader(name) as reader:
            assert reader.path == path
        assert memory_needed(name, ctx_size=32)
        assert quantize_plan(name, "Q8_0").tensors
    for name in ("folder", "t:1b", demo_model().as_uri()):
        with InferenceEngine() as engine:
            assert engine.load_model(name, ctx_size=64, silent=True)
            assert engine.model.path == forms[name]
        with InferenceEngine(name, ctx_size=64, silent=True) as engine:
            assert engine.model.path == forms[name]
        with Engine(name, ctx_size=64) as own:
            assert own.model.path == forms[name]
        app = create_app([ModelSpec("m", name, parameters={"ctx_size": 64})], preload=False)
        assert app.state.service.models.paths == {"m": forms[name]}


@pytest.mark.parametrize(
    "way",
    [
        Model,
        GGUFReader,
        memory_needed,
        lambda name: quantize_plan(name, "Q8_0"),
        lambda name: InferenceEngine().load_model(name, silent=True),
        lambda name: InferenceEngine(name, silent=True),
        Engine,
        lambda name: llcuda.chat(name, "hi"),
        lambda name: create_app([ModelSpec("m", name)]),
        hub.resolve,
        hub.find,
    ],
)
def test_one_error_in_every_way_in(way: Callable[[str], object]) -> None:
    """Near names, and an address that is not the hub's."""
    with pytest.raises(ModelNotFoundError, match=r"did you mean qwen2\.5-1\.5b"):
        way("qwen2.5-1.5")
    with pytest.raises(ArgumentError, match="unknown scheme 's3'"):
        way("s3://bucket/model.gguf")


def test_a_folder_with_several_models(home: Path) -> None:
    """The default quantization is taken; without one the message has an example that works."""
    (home / "many").mkdir()
    for name in ("m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-m.gguf"):
        (home / "many" / name).write_bytes(b"GGUF")
    assert hub.resolve("many") == Path("many/m-Q4_K_M.gguf")
    assert hub.resolve("many", "q8_0") == Path("many/m-Q8_0.gguf")
    (home / "two" / "deep").mkdir(parents=True)
    for name in ("a.gguf", "b.gguf"):
        (home / "two" / "deep" / name).write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"name one, such as two/deep/a\.gguf"):
        hub.resolve("two")


def test_a_name_that_is_two_things(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A path wins over a repository; a short name wins over a path, and the log says so."""
    (home / "some" / "model").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match=r"is empty; .*is hf://some/model"):
        hub.resolve("some/model")
    (home / "some" / "model" / "a.gguf").write_bytes(b"GGUF")
    assert hub.resolve("some/model") == Path("some/model/a.gguf")
    assert "write 'hf://some/model' for the repository on the hub" in caplog.text
    (home / "demo").write_bytes(b"GGUF")
    assert hub.resolve("demo") == demo_model()
    assert "write './demo' for the file or folder here" in caplog.text
    assert hub.resolve("./demo") == Path("demo")


# --- files that are no models ---


def _archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return buffer.getvalue()


SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
NO_MODELS = {
    "empty.gguf": (b"", "it is empty"),
    "a.safetensors": (SAFETENSORS, "safetensors file; `llcuda convert FOLDER` makes"),
    "a.gguf": (b"<!DOCTYPE html><html>", "is a web page"),
    "b.gguf": (b'<?xml version="1.0"?><Error>', "is a web page"),
    "pointer.gguf": (POINTER, "is a pointer of Git LFS"),
    "a.onnx": (b"\x08\x07\x12\x07pytorch", "is an ONNX file"),
    "a.npz": (_archive("a.npy", b"1"), "file of numpy or MLX"),
    "a.pt": (_archive("a/data.pkl", b"1"), "PyTorch file (pickle in zip)"),
    "a.zip": (_archive("a.gguf", b"1"), "zip archive: unpack it"),
    "pytorch_model.bin": (pickle.dumps({}, 2), "is a pickle file"),
    "ggml-model.bin": (b"tjgg\x03\0\0\0", "is a GGML file of 2023"),
    "a.tflite": (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite file"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "a.gguf.gz": (b"\x1f\x8b\x08\0", "gzip archive: unpack it first"),
    "a.tar": (_tar(), "tar archive: unpack it first"),
    "zeros.gguf": (bytes(4096), "begins with zeros"),
    "config.json": (b'{"model_type": "llama"}', "is a JSON file"),
    "noise.gguf": (b"noise", "it begins with b'nois' instead of b'GGUF'"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_file_that_is_no_model(home: Path, name: str) -> None:
    """The message says what it is."""
    content, expected = NO_MODELS[name]
    (home / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Model(f"./{name}")
    assert f"{name} is not a GGUF file: it " in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("m.gguf.part", None),
        ("m.gguf.crdownload", None),
        ("m.gguf.incomplete", None),
        ("m.gguf", "m.gguf.aria2"),
    ],
)
def test_an_unfinished_download_of_another_program(home: Path, name: str, more: str | None) -> None:
    """Although it begins as a model."""
    for file in filter(None, (name, more)):
        (home / file).write_bytes(demo_model().read_bytes())
    with pytest.raises(ModelError, match="is an unfinished download"):
        Model(f"./{name}")


def test_half_a_model(home: Path) -> None:
    """A file that ends early is an error that says so."""
    (home / "m.gguf").write_bytes(demo_model().read_bytes()[:2_000_000])
    with pytest.raises(ModelError, match=r"(?i)truncated|ends|incomplete|bounds"):
        Model("m.gguf")


MLX_CONFIG = json.dumps({"quantization": {"group_size": 64}}).encode()
FOLDERS = {
    "checkpoint": (
        {"config.json": b"{}", "model.safetensors": b"x"},
        "holds a checkpoint (safetensors) and no GGUF file; `llcuda convert checkpoint` makes one",
    ),
    "adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
        "holds a LoRA adapter (safetensors); `llcuda convert adapter`",
    ),
    "mlx": ({"config.json": MLX_CONFIG, "model.safetensors": b"x"}, "holds MLX weights"),
    "npz": ({"weights.npz": b"x"}, "holds MLX weights (npz)"),
    "onnx": ({"model.onnx": b"x", "config.json": b"{}"}, "holds an ONNX model"),
    "torch": ({"pytorch_model.bin": b"x"}, "holds a PyTorch checkpoint (pickle)"),
    "flax": ({"flax_model.msgpack": b"x"}, "holds a Flax model"),
    "text": ({"README.md": b"x"}, "holds no model file"),
    "nothing": ({}, "is empty"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_a_model(home: Path, name: str) -> None:
    """The message says what it holds, and what makes a GGUF file of it."""
    files, expected = FOLDERS[name]
    (home / name).mkdir()
    for file, content in files.items():
        (home / name / file).write_bytes(content)
    with pytest.raises(ModelNotFoundError) as caught:
        Model(name)
    assert str(caught.value).startswith(f"{name} {expected}")


# --- a user without a home folder ---


def test_no_home_folder(home: Path) -> None:
    """Paths and the demo work; a download says which variable to set."""
    program = (
        "import pathlib\n"
        "def no_home(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = no_home\n"
        "from llcuda import hub\n"
        "from llcuda.errors import LlcudaError\n"
        "print(hub.resolve('demo').name)\n"
        "for name in ('a/b:Q4_K_M', '~/x.gguf', 'zzz'):\n"
        "    try: hub.resolve(name)\n"
        "    except LlcudaError as error: print(error)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=home
    )
    assert result.stderr == ""
    first, *errors = result.stdout.splitlines()
    assert first == "demo.gguf"
    assert "set HF_HOME to a folder" in errors[0]
    assert "set HOME, or give a full path" in errors[1]
    assert "no model is called 'zzz'" in errors[2]
