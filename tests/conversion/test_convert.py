"""What of a checkpoint is refused, and how, before torch is asked; tests/oracles has the rest."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llcuda import convert
from llcuda.conversion.checkpoint import ITEM_BYTES, Checkpoint, read_checkpoint, read_header
from llcuda.conversion.convert import file_digest, source_digest
from llcuda.conversion.lora import lora_scale, read_adapter
from llcuda.conversion.runner import (
    Source,
    architectures,
    converter_folder,
    run_converter,
    stage_model,
)
from llcuda.errors import ArgumentError, LlcudaError, ModelError, ModelNotFoundError
from tests.support import programs
from tests.support.hub_server import Hub

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4}
INDEX = "model.safetensors.index.json"
Shapes = dict[str, tuple[str, tuple[int, ...]]]
WEIGHTS: Shapes = {
    "model.embed_tokens.weight": ("F16", (8, 4)),
    "model.layers.0.self_attn.q_proj.weight": ("F16", (6, 4)),
}
LORA: Shapes = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 4)),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": ("F32", (6, 2)),
}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def safetensors(shapes: Shapes) -> bytes:
    """Return a file with tensors of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, size = end, ITEM_BYTES[dtype]
        for number in shape:
            size *= number
        end += size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that nothing is wrong with, as far as can be seen without torch."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors(WEIGHTS))
    return path


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> Path:
    """A LoRA adapter of that checkpoint."""
    path = tmp_path / "adapter"
    path.mkdir()
    config = {**ADAPTER, "base_model_name_or_path": str(folder)}
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(safetensors(LORA))
    return path


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(folder, architectures())


def config(**changes: Any) -> Callable[[Path], Any]:
    """Return what writes a changed configuration; None removes a key."""
    content = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    return lambda folder: (folder / "config.json").write_text(json.dumps(content))


def weights(shapes: Shapes) -> Callable[[Path], Any]:
    """Return what writes other weights."""
    return lambda folder: (folder / "model.safetensors").write_bytes(safetensors(shapes))


def written(name: str, content: str | bytes) -> Callable[[Path], Any]:
    """Return what writes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def removed(name: str) -> Callable[[Path], Any]:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()


def indexed(*files: Any) -> Callable[[Path], Any]:
    """Return what writes an index in which each weight is in one of these files."""
    names = dict(zip(WEIGHTS, [*files, *files], strict=False))
    return written(INDEX, json.dumps({"weight_map": names}))


def quantized(**settings: Any) -> Callable[[Path], Any]:
    return config(quantization_config=settings)


PACKED: Shapes = {
    "a.weight": ("U8", (32, 1)),
    "a.weight.absmax": ("F32", (1,)),
    "a.weight.quant_map": ("F32", (16,)),
    "a.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
}
NEARLY_2_63 = 2**63 - 1
BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no config": (removed("config.json"), ModelNotFoundError, "has no config.json"),
    "config no JSON": (written("config.json", "{"), ModelError, "is not JSON"),
    "config a list": (written("config.json", "[]"), ModelError, "not a JSON object"),
    "config too deep": (written("config.json", "[" * 100_000), ModelError, "is not JSON"),
    "config no UTF-8": (written("config.json", b"\xff{}"), ModelError, "is not JSON"),
    "no architecture": (config(architectures=None), ModelError, "names no architecture"),
    "unknown architecture": (
        config(architectures=["BarForCausalLM"]), ModelError, "BarForCausalLM is not a model that",
    ),
    "unknown quantization": (
        quantized(quant_method="foo"), ModelError, "quantized by 'foo'; expected one of bitsand",
    ),
    "8 bits": (
        quantized(quant_method="bitsandbytes", load_in_8bit=True), ModelError, "to 8 bits",
    ),
    "8 bits unsaid": (
        weights({**WEIGHTS, "a.SCB": ("F32", (4,))}), ModelError, "to 8 bits",
    ),
    "no tokenizer": (removed("tokenizer.json"), ModelNotFoundError, "tokenizer.save_pretrained"),
    "no weights": (removed("model.safetensors"), ModelNotFoundError, "has no model.safetensors"),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ModelNotFoundError, "pytorch_model.bin is a pickle",
    ),
    "a part is missing": (
        indexed("model.safetensors", "model-2.safetensors"), ModelNotFoundError,
        "lacks model-2.safetensors",
    ),
    "parts are missing": (
        lambda folder: (folder / "model.safetensors").rename(
            folder / "model-00002-of-00004.safetensors"
        ),
        ModelNotFoundError, "lacks model-00001-of-00004.safetensors and 2 more of 4",
    ),
    "twice": (
        lambda folder: (folder / "model-1.safetensors").write_bytes(safetensors(WEIGHTS)),
        ModelError, "is in two files",
    ),
    "index without a map": (written(INDEX, "{}"), ModelError, "has no weight_map"),
    "index of other tensors": (
        written(INDEX, json.dumps({"weight_map": {"b": "model.safetensors"}})), ModelError,
        "differ",
    ),
    "out of the folder": (indexed("../other.safetensors"), ModelError, "not a file in its folder"),
    "anywhere": (indexed("/etc/passwd"), ModelError, "names '/etc/passwd', which is not a file in"),
    "the folder above": (indexed(".."), ModelError, "not a file in its folder"),
    "not a name": (indexed(7), ModelError, "names 7, which is not a file in its folder"),
    "a list": (indexed(["a"]), ModelError, r"names \['a'\], which is not a file in its folder"),
    "too long": (indexed("é" * 128), ModelError, "not a file in its folder"),
    "a null": (indexed("a\0b"), ModelError, "not a file in its folder"),
    "modules elsewhere": (
        written("modules.json", '[{"path": "../../x", "type": "a.Pooling"}]'),
        ModelError, "names '../../x'",
    ),
    "LFS": (
        written("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid 1"),
        ModelError, "pointer of Git LFS",
    ),
    "empty": (written("model.safetensors", b""), ModelError, "not a safetensors file"),
    "a length of 2^63": (
        written("model.safetensors", struct.pack("<Q", 2**63) + b"{}"), ModelError, "truncated",
    ),
    "no tensors": (weights({}), ModelError, "has no tensors"),
    "unpacked": (
        weights({name: PACKED[name] for name in list(PACKED)[:3]}), ModelError,
        "quantization state is missing",
    ),
    "without scales": (weights({"a.weight": PACKED["a.weight"]}), ModelError, "scales are missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint(name: str, folder: Path, tmp_path: Path) -> None:
    """What is wrong with a checkpoint is said in one sentence, and nothing is written."""
    change, kind, message = BAD[name]
    change(folder)
    with pytest.raises(kind, match=message.replace("(", "\\(")) as caught:
        if name == "modules elsewhere":
            run_converter(source(folder), tmp_path / "out.gguf", "F16", 1, lambda share: None)
        convert(folder, tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def source(folder: Path, change: Path | None = None) -> Source:
    """Return what is converted, for a function that takes this."""
    checkpoint, merged = read(folder), read_adapter(change) if change else None
    return Source(folder.name, folder, checkpoint.config, checkpoint, merged)


def test_counts_weights(folder: Path) -> None:
    """A byte that bitsandbytes packed is two weights; matrices in float32 are noticed."""
    assert read(folder).weight_count == 8 * 4 + 6 * 4
    assert not read(folder).full_precision
    weights(PACKED)(folder)
    assert read(folder).weight_count == 2 * 32 + 1 + 16 + 80
    weights({"a": ("F32", (2, 2)), "b": ("F16", (2,))})(folder)
    assert read(folder).full_precision


HEADERS: dict[str, dict[str, Any]] = {
    "unknown type": {"dtype": "X4"},
    "negative": {"shape": [-6, -4]},
    "huge": {"shape": [NEARLY_2_63, NEARLY_2_63]},
    "long": {"shape": [1] * 1000 + [24]},
    "no integers": {"shape": ["6", 4]},
    "truths": {"shape": [True, 24]},
    "other size": {"shape": [6, 5]},
    "backwards": {"data_offsets": [112, 64]},
    "beyond the end": {"data_offsets": [2**62, 2**62 + 48]},
    "overlapping": {"data_offsets": [16, 64]},
    "half a pair": {"data_offsets": [64]},
}


@pytest.mark.parametrize("facts", HEADERS.values(), ids=HEADERS)
def test_bad_header(facts: dict[str, Any], tmp_path: Path) -> None:
    """A header that lies about a tensor is refused."""
    content = safetensors(WEIGHTS)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["model.layers.0.self_attn.q_proj.weight"] |= facts
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(ModelError, match="q_proj"):
        read_header(path)


def test_damaged_files(tmp_path: Path) -> None:
    """Cut anywhere or changed anywhere, a file is read or refused; nothing else is raised."""
    content, path, chance = safetensors(WEIGHTS), tmp_path / "a.safetensors", random.Random(5)
    refused = 0
    for number in range(600):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(content[: number % len(content)] if number % 2 else damaged)
        try:
            read_header(path)
        except ModelError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"peft_type": "IA3"}, ModelError, "of type IA3; expected LORA"),
        ({"use_dora": True}, ModelError, "LoRA with use_dora"),
        ({"lora_alpha": "x"}, ModelError, "lora_alpha is 'x'"),
        ({"lora_alpha": float("nan")}, ModelError, "lora_alpha is nan"),
        ({"base_model_name_or_path": None}, ArgumentError, "name it with base="),
        ({"base_model_name_or_path": "/no/such"}, ModelNotFoundError, "no such folder"),
    ],
)
def test_bad_adapter(
    change: dict[str, Any], kind: type[Exception], message: str, adapter: Path
) -> None:
    """An adapter that is none, or that only PEFT can apply, is refused."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(kind, match=message):
        convert(adapter)


Q_PROJ = next(iter(LORA)).rpartition(".lora_A")[0]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "no LoRA tensors"),
        ({f"{Q_PROJ}.lora_A.weight": ("F32", (2, 4))}, "half a pair"),
        ({**LORA, f"{Q_PROJ}.lora_A.weight": ("F32", (2, 5))}, "is not an adapter of .*mine"),
        ({**LORA, f"{Q_PROJ}.lora_B.weight": ("F32", (6, 3))}, "is not an adapter of .*mine"),
        ({name.replace("0", "7"): facts for name, facts in LORA.items()}, "layers.7"),
        ({**LORA, "base_model.model.lm_head.weight": ("F32", (8, 4))}, "see merge="),
    ],
)
def test_adapter_of_another_model(shapes: Shapes, message: str, adapter: Path) -> None:
    """An adapter's names and shapes must be the base model's."""
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(shapes))
    with pytest.raises(ModelError, match=message):
        convert(adapter)


def test_scale_of_a_pair() -> None:
    """The scale is PEFT's, with rsLoRA and with other values for some layers."""
    settings = {"lora_alpha": 6, "alpha_pattern": {"k_proj": 2, "layers.1.*": 3}}
    assert 6 / 4 == lora_scale(settings, "model.layers.0.q_proj.weight", 4)
    assert 2 / 4 == lora_scale(settings, "model.layers.0.k_proj.weight", 4)
    assert 3 / 2 == lora_scale({**settings, "use_rslora": True}, "layers.1.q_proj.weight", 4)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"(": 2}, r"alpha_pattern '\(' is not a regular expression: missing \)"),
        ({"a{99999999999}": 2}, "is not a regular expression"),
        ({"(?:" * 9999: 2}, "is not a regular expression"),
        ({"q_proj": "x"}, "alpha_pattern of 'q_proj' is 'x'"),
        ({"q_proj": float("nan")}, "is nan"),
        (["q_proj"], "expected an object"),
    ],
    ids=range(6),
)
def test_patterns_of_an_adapter_are_checked(patterns: Any, message: str, adapter: Path) -> None:
    """Regular expressions with a number each, before anything is converted."""
    config = json.dumps({**ADAPTER, "alpha_pattern": patterns})
    (adapter / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        read_adapter(adapter)


def test_a_pattern_that_takes_exponential_time_is_stopped() -> None:
    """The process that converts interrupts it; here after a tenth of a second."""
    program = """
from llcuda.conversion import child
from llcuda.errors import ModelError
child.PATTERN_SECONDS = 0.1
config = {"lora_alpha": 3, "alpha_pattern": {"b": 1}}
assert {"a.weight": 1.5} == child.lora_scales(config, {"a.weight": 2})
config["alpha_pattern"] = {"(a+)+b": 1}
try:
    child.lora_scales(config, {"a" * 99 + ".weight": 2})
except ModelError as error:
    print(error)
"""
    ended = programs.run(program)
    expected = "the regular expressions of alpha_pattern take longer than 0.1 s\n"
    assert (expected, "") == (ended.stdout, ended.stderr)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (["/no/such"], {}, ModelNotFoundError, "no such folder: '/no/such'"),
        ([""], {}, ModelNotFoundError, "no such folder"),
        ([__file__], {}, ModelNotFoundError, r"is a file, .*; Model\(path\) loads a GGUF file"),
        (["FOLDER", "/no/such/out.gguf"], {}, ArgumentError, "the folder /no/such does not exist"),
        (["FOLDER", "FOLDER/model.safetensors"], {}, ArgumentError, "is the source itself"),
        (["ADAPTER", "ADAPTER/adapter_config.json"], {}, ArgumentError, "is the source itself"),
        (["ADAPTER", "FOLDER/config.json"], {"base": "FOLDER"}, ArgumentError, "is the source"),
        (["FOLDER", None, "q9"], {}, ArgumentError, "type='q9': expected one of F32"),
        (["FOLDER"], {"merge": True}, ArgumentError, "goes with an adapter"),
        (["FOLDER"], {"base": "x"}, ArgumentError, "goes with an adapter"),
        (["ADAPTER", None, "q4_k_m"], {}, ArgumentError, "type='q4_k_m': expected one of F32"),
    ],
)
def test_bad_arguments(
    arguments: list[str | None],
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
    folder: Path,
    adapter: Path,
) -> None:
    """What was asked wrongly is said before anything is computed."""

    def place(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        return text.replace("FOLDER", str(folder)).replace("ADAPTER", str(adapter))

    source, *rest = map(place, arguments)
    with pytest.raises(kind, match=message):
        convert(source, *rest, **{name: place(value) for name, value in options.items()})
    assert json.loads((folder / "config.json").read_bytes()) == CONFIG


def test_says_which_package_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the error names the extra that brings it."""
    monkeypatch.setattr("llcuda.conversion.runner.MODULES", ("json", "no_such_package"))
    with pytest.raises(LlcudaError, match=r"no_such_package: pip install 'llcuda\[convert\]'"):
        convert(folder)


def test_key_changes_with_content(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's key is of the content: a copy has the same, a changed byte another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("llcuda.conversion.convert.LARGE_FILE", 100)
    (tmp_path / "llcuda" / "checkpoints").mkdir(parents=True)
    key = source_digest(source(folder), "Q8_0")
    assert key == source_digest(source(folder), "Q8_0")
    assert key != source_digest(source(folder), "Q4_K_M")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert key == source_digest(source(copy), "Q8_0")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert key != source_digest(source(copy), "Q8_0")


def test_key_of_a_downloaded_file(tmp_path: Path) -> None:
    """In the Hugging Face cache a file is named by its SHA-256, which is not computed again."""
    digest = hashlib.sha256(b"x").hexdigest()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.write_bytes(b"y")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert digest == file_digest(tmp_path / "model.safetensors")


def test_code_does_not_reach_the_converter(folder: Path, adapter: Path, tmp_path: Path) -> None:
    """What the converter sees has no Python, no pickle, and no configuration that names code."""
    remote = {"auto_map": {"AutoConfig": "other/repo--code.Config"}}
    config(**remote, text_config=remote, layers=[remote])(folder)
    for name in ("code.py", "extra.bin", "other.safetensors"):
        (folder / name).write_text("raise SystemExit")
    (folder / "tokenizer_config.json").write_text(json.dumps(remote))
    stage = stage_model(source(folder), tmp_path / "stage")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} == {
        path.name for path in stage.iterdir()
    }
    for path in stage.glob("*config.json"):
        assert "auto_map" not in path.read_text()


def test_packed_checkpoint_loses_its_quantization(folder: Path, tmp_path: Path) -> None:
    """The converter, which does not know bitsandbytes, is not told of it."""
    quantized(quant_method="bitsandbytes", load_in_4bit=True)(folder)
    stage = stage_model(source(folder), tmp_path / "stage")
    assert "quantization_config" not in json.loads((stage / "config.json").read_text())


def test_merging_takes_the_adapters_tokenizer(folder: Path, adapter: Path, tmp_path: Path) -> None:
    """Tokens that were added in training are in the adapter's folder, with the rows for them."""
    (adapter / "tokenizer.json").write_text('{"added": 1}')
    (folder / "chat_template.jinja").write_text("of the base")
    shapes: Shapes = {**LORA, "base_model.model.model.embed_tokens.weight": ("F16", (9, 4))}
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(shapes))
    stage = stage_model(source(folder, adapter), tmp_path / "stage")
    assert '{"added": 1}' == (stage / "tokenizer.json").read_text()
    assert not (stage / "chat_template.jinja").exists()
    assert 9 == json.loads((stage / "config.json").read_text())["vocab_size"]


def test_llama_cpps_converter_is_in_the_package() -> None:
    """It comes with its licences, and knows the models that Unsloth trains."""
    place = converter_folder()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "LICENSE", "gguf-py/LICENSE"):
        assert (place / name).is_file()
    known = {"Gemma3ForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
    assert known | {"Phi3ForCausalLM", "MistralForCausalLM"} <= architectures()


def test_command_line(folder: Path) -> None:
    """An error of the command is one line on stderr."""
    (folder / "tokenizer.json").unlink()
    command = [sys.executable, "-m", "llcuda", "convert", str(folder), "--type", "q8_0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (1, "") == (result.returncode, result.stdout)
    assert "has no tokenizer" in result.stderr
    assert "Traceback" not in result.stderr


def test_refuses_on_the_hub_before_the_weights_come(tmp_path: Path) -> None:
    """Of a repository that cannot be converted, only the small files are downloaded."""
    files = {"config.json": json.dumps({"architectures": ["BarForCausalLM"]}).encode()}
    files |= {"model.safetensors": safetensors(WEIGHTS), "code.py": b"raise SystemExit"}
    with Hub({"me/mine": files}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-m", "llcuda", "convert", "me/mine"]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env=environment
        )
        assert "BarForCausalLM is not a model" in result.stderr
        assert "config.json" in hub.sent
        assert not {"model.safetensors", "code.py"} & set(hub.sent)
