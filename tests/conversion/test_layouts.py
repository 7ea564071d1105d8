"""Repositories as they are published: what is none of a model's own neither stops nor enters it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llcuda.conversion.checkpoint import read_checkpoint
from llcuda.conversion.convert import convert, source_digest
from llcuda.conversion.runner import Source, architectures, stage_model
from llcuda.errors import ArgumentError, ModelError
from tests.support.hub_server import Hub

JUNK = b"\xff[1, 2, NaN"  # no JSON, no text
Files = dict[str, bytes]


def document(value: Any) -> bytes:
    return json.dumps(value).encode()


def weights(*names: str) -> bytes:
    """Return a safetensors file with 2 x 2 tensors of F16 zeros."""
    header = {
        name: {"dtype": "F16", "shape": [2, 2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, name in enumerate(names)
    }
    text = document(header)
    return struct.pack("<Q", len(text)) + text + bytes(8 * len(names))


def index(**files: str) -> bytes:
    """Return an index of the tensors in the files."""
    return document({"metadata": {}, "weight_map": files})


def model(architecture: str, **files: bytes) -> Files:
    """Return the files that every repository has, and these."""
    return {
        "config.json": document({"architectures": [architecture]}),
        "tokenizer_config.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n# A model\n",
        ".gitattributes": b"*.safetensors filter=lfs\n",
        **files,
    }


ONE = {"model.safetensors": weights("a", "b")}
TWO = {
    "model-00001-of-00002.safetensors": weights("a"),
    "model-00002-of-00002.safetensors": weights("b"),
}
INDEX = {"model.safetensors.index.json": index(**dict(zip("ab", TWO, strict=True)))}
LONG = {
    "model-00001-of-000002.safetensors": weights("a"),
    "model-00002-of-000002.safetensors": weights("b"),
}
LONG_INDEX = {"model.safetensors.index.json": index(**dict(zip("ab", LONG, strict=True)))}
TOKENIZER = {"tokenizer.json": b"{}", "special_tokens_map.json": b"{}"}
BPE = {**TOKENIZER, "vocab.json": b"{}", "merges.txt": b""}
POOLED = {
    "modules.json": document([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.Normalize"},
    ]),
    "1_Pooling/config.json": document({"pooling_mode_mean_tokens": True}),
}  # fmt: skip
DENSE = {
    "modules.json": document([
        *json.loads(POOLED["modules.json"])[:2],
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 4, "name": "4", "path": "4_Normalize", "type": "sentence_transformers.Normalize"},
    ]),
    "1_Pooling/config.json": POOLED["1_Pooling/config.json"],
    "2_Dense/config.json": document({
        "in_features": 2, "out_features": 4, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }),
    "2_Dense/model.safetensors": weights("linear.weight"),
    "3_Dense/config.json": document({
        "in_features": 4, "out_features": 2, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }),
    "3_Dense/model.safetensors": weights("linear.weight"),
}  # fmt: skip
PICKLES = {"pytorch_model.bin": JUNK, "tf_model.h5": JUNK, "flax_model.msgpack": JUNK}
ONNX = {"onnx/model.onnx": JUNK, "onnx/config.json": JUNK, "onnx/model_O4.onnx": JUNK}
TRAINER = {
    "optimizer.pt": JUNK, "scheduler.pt": JUNK, "rng_state.pth": JUNK, "training_args.bin": JUNK,
    "optimizer.safetensors": JUNK, "checkpoint-500/model.safetensors": JUNK,
    "checkpoint-500/config.json": JUNK, "trainer_state.json": JUNK,
    "all_results.json": JUNK, "runs/events.out.tfevents": JUNK,
}  # fmt: skip

# name: the files that the converter reads, and the files that it does not
LAYOUTS: dict[str, tuple[Files, Files]] = {
    "all-MiniLM-L6-v2": (
        {**model("BertModel"), **ONE, **TOKENIZER, **POOLED, "vocab.txt": b"[PAD]"},
        {**PICKLES, **ONNX, "data_config.json": document([{"name": "a.jsonl.gz", "lines": 1}]),
         "config_sentence_transformers.json": b"{}", "sentence_bert_config.json": b"[]",
         "openvino/openvino_model.xml": JUNK, "openvino/openvino_model.bin": JUNK,
         "rust_model.ot": JUNK, "train_script.py": b"raise SystemExit"},
    ),
    "bert-base-uncased": (
        {**model("BertForMaskedLM"), **ONE, "vocab.txt": b"[PAD]", "tokenizer.json": b"{}"},
        {**PICKLES, "model.onnx": JUNK, "LICENSE": JUNK, "coreml/float32_model.mlpackage": JUNK},
    ),
    "multilingual-e5": (
        {**model("XLMRobertaModel"), **ONE, **POOLED, "sentencepiece.bpe.model": b""},
        {**PICKLES, **ONNX, "sentence_bert_config.json": JUNK},
    ),
    "embeddinggemma-300m": (
        {**model("Gemma3TextModel"), **ONE, **DENSE, **TOKENIZER, "tokenizer.model": b"",
         "added_tokens.json": b"{}", "generation_config.json": b"{}"},
        {"config_sentence_transformers.json": b"{}", "sentence_bert_config.json": b"[]"},
    ),
    "gpt2": (
        {**model("GPT2LMHeadModel"), **ONE, **BPE, "generation_config.json": b"{}"},
        {**PICKLES, **ONNX, "64.tflite": JUNK, "64-fp16.tflite": JUNK},
    ),
    "t5-small": ({**model("T5ForConditionalGeneration"), **ONE, "spiece.model": b""}, {**PICKLES}),
    "Llama-3.1-8B": (
        {**model("LlamaForCausalLM"), **TWO, **INDEX, **TOKENIZER, "generation_config.json": b"{}"},
        {"original/consolidated.00.pth": JUNK, "original/params.json": JUNK,
         "original/tokenizer.model": JUNK, "USE_POLICY.md": JUNK, "LICENSE": JUNK},
    ),
    "Mistral-7B-v0.3": (
        {**model("MistralForCausalLM"), **TWO, **INDEX, "tokenizer.model": b"", **TOKENIZER},
        {"consolidated.safetensors": JUNK, "tokenizer.model.v3": JUNK},
    ),
    "Mistral-Small": (
        {**model("MistralForCausalLM"), **TWO, **INDEX, "tekken.json": b"{}",
         "chat_template.jinja": b"{{ messages }}"},
        {"consolidated.safetensors": JUNK},
    ),
    "gpt-oss-20b": (
        {**model("GptOssForCausalLM"), **TWO, **INDEX, **TOKENIZER, "chat_template.jinja": b""},
        {"original/config.json": JUNK, "original/model.safetensors": JUNK, "metal/model.bin": JUNK},
    ),
    "Qwen3-Embedding": (
        {**model("Qwen3ForCausalLM"), **ONE, **BPE, **POOLED},
        {"config_sentence_transformers.json": b"{}"},
    ),
    "Qwen2.5-VL": (
        {**model("Qwen2ForCausalLM"), **LONG, **BPE, "chat_template.json": b"{}", **LONG_INDEX},
        {"preprocessor_config.json": JUNK, "video_preprocessor_config.json": JUNK},
    ),
    "gemma-3-1b": (
        {**model("Gemma3ForCausalLM"), **ONE, **TOKENIZER, "tokenizer.model": b"",
         "added_tokens.json": b"{}"},
        {"preprocessor_config.json": JUNK, "processor_config.json": JUNK},
    ),
    "command-r": (
        {**model("CohereForCausalLM"), **ONE, **TOKENIZER, "chat_template.jinja": b"",
         "additional_chat_templates/tool_use.jinja": b"",
         "additional_chat_templates/rag.jinja": b""},
        {"additional_chat_templates/notes.md": JUNK},
    ),
    "DeepSeek-V3": (
        {**model("DeepseekV3ForCausalLM"), **LONG, **TOKENIZER, **LONG_INDEX},
        {"modeling_deepseek.py": b"raise SystemExit", "figures/benchmark.png": JUNK,
         "inference/configs/config_671B.json": JUNK},
    ),
    "a trainer's output": (
        {**model("LlamaForCausalLM"), **ONE, **TOKENIZER}, {**TRAINER, **PICKLES},
    ),
    "a folder with other precisions": (
        {**model("LlamaForCausalLM"), **ONE, **TOKENIZER},
        {"model.fp16.safetensors": weights("a", "b"), "model.bf16-00001-of-00002.safetensors": JUNK,
         "pytorch_model.bin.index.json.bak": JUNK},
    ),
    "parts in another precision": (
        {**model("LlamaForCausalLM"), **TWO, **TOKENIZER},
        {"model.fp16-00001-of-00001.safetensors": JUNK, "model.fp16.safetensors": JUNK},
    ),
    "whole and in parts": (
        {**model("LlamaForCausalLM"), **ONE, **TOKENIZER}, {**TWO},
    ),
    "a model that was saved over another": (
        {**model("LlamaForCausalLM"), **ONE, **TOKENIZER},
        {"model-00002-of-00002.safetensors": JUNK},
    ),
    "only another precision": (
        {**model("LlamaForCausalLM"), "model.fp16.safetensors": weights("a", "b"), **TOKENIZER}, {},
    ),
    "a quantization's notes": (
        {**model("LlamaForCausalLM"), **ONE, **TOKENIZER, "hf_quant_config.json": b"{}"},
        {"quantize_config.json": JUNK, "imatrix_config.json": JUNK},
    ),
}  # fmt: skip


def written(folder: Path, *parts: Files) -> Path:
    """Write files into a folder and return it."""
    for files in parts:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def source(folder: Path) -> Source:
    """Return what the converter is given."""
    checkpoint = read_checkpoint(folder, architectures())
    return Source("m", folder, checkpoint.config, checkpoint, None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_what_the_converter_reads_is_judged(name: str, tmp_path: Path) -> None:
    """The converter sees each file of the model, and no other, and the key is of these files."""
    own, foreign = LAYOUTS[name]
    folder = written(tmp_path / "repository", own, foreign)
    checkpoint = source(folder)
    stage = stage_model(checkpoint, tmp_path / "stage")
    staged = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert staged == set(own) - {".gitattributes"}
    assert {"a", "b"} == set(read_checkpoint(folder, architectures()).tensors)
    pure = written(tmp_path / "pure", own)
    assert source_digest(source(pure), "Q8_0") == source_digest(checkpoint, "Q8_0")
    for path in folder.rglob("*"):  # nothing is written through a link
        if path.is_file():
            assert path.read_bytes() == {**own, **foreign}[path.relative_to(folder).as_posix()]


def test_an_index_that_an_older_model_left(tmp_path: Path) -> None:
    """An index of parts that are gone is ignored beside a whole file, and only there."""
    folder = written(tmp_path / "repository", model("LlamaForCausalLM"), ONE, TOKENIZER, INDEX)
    stage = stage_model(source(folder), tmp_path / "stage")
    assert ["model.safetensors"] == [path.name for path in stage.glob("*.safetensors*")]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00001-of-00002\.safetensors and 1 more"):
        source(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "modules.json"])
def test_what_the_converter_reads_is_judged(name: str, tmp_path: Path) -> None:
    """A configuration of the model's own that is broken is refused by its name."""
    own, _ = LAYOUTS["all-MiniLM-L6-v2"]
    folder = written(tmp_path / "repository", own, {name: JUNK})
    with pytest.raises(ModelError, match=name):
        stage_model(source(folder), tmp_path / "stage")


def test_pooling_is_part_of_the_key(tmp_path: Path) -> None:
    """Another pooling is another model."""
    own, _ = LAYOUTS["all-MiniLM-L6-v2"]
    folder = written(tmp_path, own)
    before = source_digest(source(folder), "Q8_0")
    written(folder, {"1_Pooling/config.json": document({"pooling_mode_cls_token": True})})
    assert before != source_digest(source(folder), "Q8_0")


GEMMA = document({"architectures": ["Gemma3TextModel"], "hidden_size": 2})


def changed(name: str, **settings: Any) -> Files:
    """Return the configuration of one module with other settings."""
    return {name: document({**json.loads(DENSE[name]), **settings})}


def kind(name: str, path: str = "5_Last") -> Files:
    """Return the list of modules with one more."""
    modules = json.loads(DENSE["modules.json"])
    return {"modules.json": document([*modules, {"path": path, "type": f"a.{name}"}])}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (kind("LayerNorm"), r"'5_Last' \(LayerNorm\)"),
        (kind("CNN"), r"'5_Last' \(CNN\)"),
        (kind("Dense", "4_Dense"), r"'2_Dense' \(Dense\)"),
        (changed("2_Dense/config.json", bias=True), "bias or an activation"),
        (changed("3_Dense/config.json", activation_function="torch.nn.Tanh"), "an activation"),
        (changed("3_Dense/config.json", in_features=7), "Dense of 7 inputs"),
        (changed("3_Dense/config.json", out_features=7), "Dense of 7 outputs"),
        (changed("1_Pooling/config.json", pooling_mode_cls_token=True), "computes one pooling"),
        ({"modules.json": b"[3]"}, "not a list of modules"),
        ({"config.json": document({"architectures": ["BertModel"]})}, r"'2_Dense' \(Dense\)"),
    ],
)
def test_modules_that_cannot_be_converted(files: Files, reason: str, tmp_path: Path) -> None:
    """A module is never left out without a word: the vectors would be others."""
    own, _ = LAYOUTS["embeddinggemma-300m"]
    folder = written(tmp_path, own, {"config.json": GEMMA}, files)
    with pytest.raises(ModelError, match=reason):
        convert(folder, tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "3_Dense/model.safetensors"])
def test_modules_that_lack_a_file(name: str, tmp_path: Path) -> None:
    """The file is named."""
    own, _ = LAYOUTS["embeddinggemma-300m"]
    folder = written(tmp_path, own, {"config.json": GEMMA})
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name.partition('/')[0]} lacks {Path(name).name}"):
        convert(folder, tmp_path / "a.gguf")


def test_a_folder_is_its_own_source(tmp_path: Path) -> None:
    """A target that is a file of a module is refused too."""
    own, _ = LAYOUTS["all-MiniLM-L6-v2"]
    folder = written(tmp_path, own)
    with pytest.raises(ArgumentError, match="the source itself"):
        convert(folder, folder / "1_Pooling" / "config.json")


def test_the_hub_sends_what_the_converter_reads(tmp_path: Path) -> None:
    """Also the files in subfolders, and none of the others."""
    own, foreign = LAYOUTS["all-MiniLM-L6-v2"]
    for name in ("tokenizer.json", "special_tokens_map.json"):  # the same content comes once
        own = {**own, name: document({"name": name})}
    missing = "import sys; sys.modules['torch'] = None; from llcuda.cli.main import main; main()"
    with Hub({"me/mine": {**own, **foreign}}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        program = [sys.executable, "-c", missing, "convert", "me/mine"]
        result = subprocess.run(
            program, check=False, timeout=120, env=environment, capture_output=True
        )
        print(result.stderr.decode())
        sent = set(hub.sent) - {""}
    assert b"needs the Python package torch" in result.stderr
    assert sent == set(own) - {".gitattributes", "model.safetensors"}
