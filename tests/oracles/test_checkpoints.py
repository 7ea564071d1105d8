"""What transformers, peft and bitsandbytes compute, llcuda computes from the converted file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

import gguf  # noqa: E402
import psutil  # noqa: E402

from llcuda import Adapter, Context, Model, Sampler, convert  # noqa: E402
from llcuda.conversion.checkpoint import read_checkpoint  # noqa: E402
from llcuda.conversion.runner import (  # noqa: E402
    Source,
    architectures,
    converter_folder,
    run_converter,
)
from llcuda.errors import ArgumentError, LoadCancelledError, ModelError  # noqa: E402
from llcuda.gguf_parser import GGUFReader  # noqa: E402
from llcuda.unsloth import attach, save_pretrained_llcuda  # noqa: E402
from tests.support import checkpoints as material  # noqa: E402
from tests.support.hub_server import Hub  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = list(material.KINDS)
EXACT = 1e-3  # of the largest logit; Gemma's GELU is a table of F16 in ggml
GENERATED = 16  # tokens

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a kind's checkpoint, made once."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = material.save(tmp_path_factory.mktemp("checkpoints") / kind, kind)
        return folders[kind]

    return make


@pytest.fixture(scope="session")
def plain(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a kind's checkpoint as a GGUF file in F32, made once."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = convert(checkpoint(kind), tmp_path_factory.mktemp("gguf"), "F32")
        return folders[kind]

    return make


def oracle(folder: Path) -> Any:
    """Return transformers' model of a folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def expected(model: Any, tokens: list[int]) -> Any:
    """Return the logits of each token, as transformers computes them."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def opened(path: Path) -> tuple[Model, Context]:
    """Return a model and a context that computes with float32 cells."""
    model = Model(path, gpu_layers=0)
    cells = {"type_k": "f32", "type_v": "f32", "flash_attention": False}
    return model, Context(model, ctx_size=256, threads=2, **cells)


def computed(context: Context, tokens: list[int]) -> Any:
    """Return the logits of each token, as llcuda computes them."""
    context.memory.clear()
    context.decode(tokens, logits="all")
    return np.stack([context.logits(i).copy() for i in range(len(tokens))])


def error(actual: Any, right: Any) -> float:
    """Return the largest difference, over the largest logit."""
    return float(np.abs(actual - right).max() / np.abs(right).max())


def greedy(model: Any, tokens: list[int]) -> list[int]:
    """Return the tokens that transformers adds."""
    row = list(tokens)
    for _ in range(GENERATED):
        row.append(int(expected(model, row)[-1].argmax()))
    return row[len(tokens) :]


def generated(context: Context, tokens: list[int]) -> list[int]:
    """Return the tokens that llcuda adds."""
    context.memory.clear()
    context.decode(tokens)
    sampler, chosen = Sampler(temperature=0), []
    for _ in range(GENERATED):
        chosen.append(sampler.sample(context))
        context.decode(chosen[-1:])
    return chosen


@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_transformers_computes(kind: str, checkpoint: Make, plain: Make) -> None:
    """The same tokens of a text, the same logits in F32, the same greedy tokens."""
    right = oracle(checkpoint(kind))
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint(kind)).encode(material.TEXT)
    model, context = opened(plain(kind))
    with model, context:
        assert model.tokenize(material.TEXT) == tokens
        difference = error(computed(context, tokens), expected(right, tokens))
        print(f"{kind}: F32 {difference:.1e}")
        assert difference < EXACT
        assert generated(context, tokens) == greedy(right, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_q8_0_adds_its_own_error_only(kind: str, checkpoint: Make, tmp_path: Path) -> None:
    """Q8_0 is as far from F32 as transformers is with weights that went through Q8_0.

    Up to twice, since llama.cpp rounds what the weights are multiplied by to 8 bits, too.
    """
    right, rounded = oracle(checkpoint(kind)), oracle(checkpoint(kind))
    kinds = gguf.GGMLQuantizationType
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.ndim > 1:
                blocks = gguf.quants.quantize(weight.numpy(), kinds.Q8_0)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kinds.Q8_0)))
    model, context = opened(convert(checkpoint(kind), tmp_path, "q8_0"))
    with model, context:
        tokens = model.tokenize(material.TEXT)
        exact = expected(right, tokens)
        measured = error(expected(rounded, tokens), exact)
        difference = error(computed(context, tokens), exact)
    print(f"{kind}: Q8_0 {difference:.4f}, its weights alone {measured:.4f}")
    assert 0 < difference < 2 * measured


def adapted(model: Any, folder: Path, **settings: Any) -> Any:
    """Put a LoRA adapter with random numbers on a model, save it and return the changed model."""
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **settings}
    )
    torch.manual_seed(2)
    changed = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    changed.save_pretrained(folder)
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_adapter(kind: str, checkpoint: Make, plain: Make, tmp_path: Path) -> None:
    """An adapter's logits are peft's, at its own scale, at another, and swapped at run time."""
    tokens = list(range(5, 45))
    right = adapted(oracle(checkpoint(kind)), tmp_path / "lora")
    file = convert(tmp_path / "lora", tmp_path / "lora.gguf")
    model, context = opened(plain(kind))
    with model, context:
        adapter = Adapter(model, file)
        with right.disable_adapter():
            without = expected(right, tokens)
        whole = expected(right, tokens)
        for module in right.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(0.5)
        half = expected(right, tokens)
        assert error(without, whole) > 0.1
        for scale, logits in ((1.0, whole), (0.5, half), (None, without)):
            context.set_adapters({adapter: scale} if scale else {})
            assert error(computed(context, tokens), logits) < EXACT


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"up_proj": 3, "layers.0.*.k_proj": 2}},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["rslora", "patterns", "embedding"],
)
def test_merged_adapter(
    settings: dict[str, Any], checkpoint: Make, plain: Make, tmp_path: Path
) -> None:
    """Merging makes of base and adapter what peft computes, whatever scales the pairs have."""
    right = adapted(oracle(checkpoint("llama")), tmp_path / "lora", **settings)
    tokens = list(range(5, 45))
    model, context = opened(convert(tmp_path / "lora", tmp_path, "F32", merge=True))
    with model, context:
        assert error(computed(context, tokens), expected(right, tokens)) < EXACT
    if "modules_to_save" in settings:
        return
    model, context = opened(plain("llama"))
    with model, context:
        adapter = Adapter(model, convert(tmp_path / "lora", tmp_path / "lora.gguf"))
        context.set_adapters({adapter: 1.0})
        assert error(computed(context, tokens), expected(right, tokens)) < EXACT


def packed(folder: Path, dtype: Any = torch.float32, **settings: Any) -> Any:
    """Return transformers' model of a folder, its layers' weights quantized to 4 bits.

    It stays in training mode: otherwise bitsandbytes rounds the scales once more on some CPUs.
    """
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **settings
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype
    ).train()


def unpacked(model: Any, folder: Path) -> Any:
    """Return transformers' model of a folder with a packed one's weights, dequantized."""
    plain = oracle(folder)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            weight = model.get_parameter(name)
            if isinstance(weight, bitsandbytes.nn.Params4bit):
                weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            parameter.copy_(weight)
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_nf4(kind: str, checkpoint: Make, tmp_path: Path) -> None:
    """A checkpoint in NF4 with double quantization computes what bitsandbytes dequantizes."""
    four_bits = packed(checkpoint(kind), bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    folder = copied_tokenizer(checkpoint(kind), tmp_path / "nf4")
    four_bits.save_pretrained(folder)
    right = unpacked(four_bits, checkpoint(kind))
    model, context = opened(convert(folder, tmp_path, "F32"))
    with model, context:
        tokens = model.tokenize(material.TEXT)
        logits = expected(right, tokens)
        assert error(logits, expected(four_bits, tokens)) < EXACT
        assert error(computed(context, tokens), logits) < EXACT
        assert generated(context, tokens) == greedy(right, tokens)


def test_fp4_in_half_precision(checkpoint: Make, tmp_path: Path) -> None:
    """FP4 without double quantization; weights that were float16 are so again."""
    four_bits = packed(checkpoint("llama"), torch.float16, bnb_4bit_quant_type="fp4")
    folder = copied_tokenizer(checkpoint("llama"), tmp_path / "fp4")
    four_bits.save_pretrained(folder)
    right = unpacked(four_bits, checkpoint("llama"))
    model, context = opened(convert(folder, tmp_path, "F32"))
    with model, context:
        tokens = list(range(5, 45))
        assert error(computed(context, tokens), expected(right, tokens)) < EXACT


def copied_tokenizer(source: Path, folder: Path) -> Path:
    """Make a folder with another one's tokenizer and return it."""
    folder.mkdir()
    for path in source.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("kind", ["gemma3", "llama", "phi3"])
def test_tokenizer_without_its_sentencepiece_model(
    kind: str, checkpoint: Make, plain: Make, tmp_path: Path
) -> None:
    """What is made of tokenizer.json alone, as transformers 5 saves it, gives the same tokens."""
    folder = shutil.copytree(checkpoint(kind), tmp_path / kind)
    (folder / "tokenizer.model").unlink()
    text = f"{material.TEXT}Ünïcode 🦊\n\n  two  spaces\ttab <|end|> <end_of_turn>1234567"
    target = convert(folder, tmp_path, "F16")
    with Model(plain(kind), gpu_layers=0) as right, Model(target, gpu_layers=0) as model:
        for special in (False, True):
            tokens = model.tokenize(text, parse_special=special)
            assert right.tokenize(text, parse_special=special) == tokens
        assert right.detokenize(tokens) == model.detokenize(tokens)


def state(model: Any) -> dict[str, bytes]:
    """Return a model's tensors, to see whether anything changed."""
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["gemma3", "phi3"])
def test_export_of_a_live_model(kind: str, checkpoint: Make, tmp_path: Path) -> None:
    """One call writes a live model, which stays as it was; so does the method of the same name."""
    right = oracle(checkpoint(kind))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(kind))
    before = state(right)
    file = save_pretrained_llcuda(right, tokenizer, tmp_path / "live.gguf", quantization="f32")
    assert before == state(right)
    tokens = tokenizer.encode(material.TEXT)
    model, context = opened(file)
    with model, context:
        assert model.tokenize(material.TEXT) == tokens
        assert error(computed(context, tokens), expected(right, tokens)) < EXACT
    small = attach(right).save_pretrained_llcuda(tmp_path / "out", tokenizer)
    assert tmp_path / "out" / "model-Q4_K_M.gguf" == small
    assert [small] == list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("key", "number"), [("num_hidden_layers", 3), ("intermediate_size", 256)])
def test_weights_that_config_json_does_not_describe(
    key: str, number: int, checkpoint: Make, tmp_path: Path
) -> None:
    """A checkpoint whose file could not be loaded is no success, and leaves no file."""
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: number}))
    with pytest.raises(
        ModelError, match=r"mine: config\.json and the weights do not fit: check_tensor"
    ):
        convert(folder, tmp_path / "out.gguf", "q8_0")
    assert [folder] == list(tmp_path.iterdir())


def test_export_of_a_model_loaded_in_4_bits(checkpoint: Make, tmp_path: Path) -> None:
    """Weights that come from a checkpoint of 4 bits, as Unsloth's do, are written from memory."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("llama"))
    packed(checkpoint("llama"), bnb_4bit_quant_type="nf4").save_pretrained(tmp_path / "nf4")
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "nf4").train()
    before, conversions = state(live), live._weight_conversions
    file = save_pretrained_llcuda(live, tokenizer, tmp_path / "live.gguf", quantization="f32")
    assert before == state(live)
    assert conversions is live._weight_conversions
    tokens = list(range(5, 45))
    model, context = opened(file)
    with model, context:
        assert error(computed(context, tokens), expected(live, tokens)) < EXACT


def test_export_refuses_what_it_would_write_without_its_adapter(
    checkpoint: Make, tmp_path: Path
) -> None:
    """A LoRA that is switched off, or in a model out of PEFT's hands, is not lost in silence."""
    folder = checkpoint("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    live = adapted(oracle(folder), tmp_path / "lora")
    with live.disable_adapter(), pytest.raises(ModelError, match="the adapter is disabled"):
        save_pretrained_llcuda(live, tokenizer, tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"adapters without peft\.PeftModel"):
        save_pretrained_llcuda(live.get_base_model(), tokenizer, tmp_path / "x.gguf")
    with pytest.raises(ArgumentError, match="NoneType: expected a tokenizer"):
        save_pretrained_llcuda(live, None, tmp_path / "x.gguf")
    with pytest.raises(ArgumentError, match="str: expected a model"):
        attach("model")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("bits", [32, 4])
def test_export_merges_a_live_adapter(bits: int, checkpoint: Make, tmp_path: Path) -> None:
    """A model with a LoRA adapter, also on weights of 4 bits, is written merged and not changed."""
    folder = checkpoint("llama")
    base = oracle(folder) if bits == 32 else packed(folder, bnb_4bit_quant_type="nf4")
    live = adapted(base, tmp_path / "lora")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    before, tokens = state(live), list(range(5, 45))
    logits = expected(live, tokens)
    file = save_pretrained_llcuda(live, tokenizer, tmp_path / "merged.gguf", quantization="f32")
    assert before == state(live)
    model, context = opened(file)
    with model, context:
        assert error(computed(context, tokens), logits) < EXACT


def test_from_pretrained_converts_what_changed(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is converted once, and again when a file of it has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "mine")
    with Model.from_pretrained(folder, quantization="q8_0", gpu_layers=0) as model:
        first = model.path
    written_at = first.stat().st_mtime_ns
    with Model.from_pretrained(folder, quantization="q8_0", gpu_layers=0) as model:
        assert (first, written_at) == (model.path, model.path.stat().st_mtime_ns)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 2e4}))
    with Model.from_pretrained(folder, quantization="q8_0", gpu_layers=0) as model:
        assert first != model.path


def test_checkpoint_in_parts(checkpoint: Make, plain: Make, tmp_path: Path) -> None:
    """Weights in several files with an index make the same file as weights in one."""
    folder = copied_tokenizer(checkpoint("llama"), tmp_path / "llama")
    oracle(checkpoint("llama")).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    tokens = list(range(5, 45))
    model, context = opened(convert(folder, tmp_path, "F32"))
    with model, context:
        actual = computed(context, tokens)
    model, context = opened(plain("llama"))
    with model, context:
        assert np.array_equal(computed(context, tokens), actual)


def test_converts_from_the_hub(checkpoint: Make, tmp_path: Path) -> None:
    """A repository is downloaded, without its code and pickles, and converted."""
    files = {path.name: path.read_bytes() for path in checkpoint("llama").iterdir()}
    files |= {"code.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    with Hub({"me/mine": files}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-m", "llcuda", "convert", "me/mine", "--type", "q8_0"]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )
        assert "mine-Q8_0.gguf\n" == result.stdout, result.stderr
        assert not {"code.py", "pytorch_model.bin"} & set(hub.sent)
    with Model(tmp_path / "mine-Q8_0.gguf", gpu_layers=0) as model:
        assert "mine" == model.metadata["general.name"].lower()


def test_large_embeddings_in_parts(checkpoint: Make, tmp_path: Path) -> None:
    """An embedding that is written in parts is bit for bit the one that is written at once."""
    names = ["--outtype", "q8_0", "--outfile", str(tmp_path / "right.gguf")]
    script = converter_folder() / "convert_hf_to_gguf.py"
    subprocess.run([sys.executable, script, checkpoint("llama3"), *names], check=True)
    run_converter(source(checkpoint("llama3")), tmp_path / "parts.gguf", "Q8_0", 1, lambda _: None)
    right, actual = (GGUFReader(tmp_path / f"{name}.gguf") for name in ("right", "parts"))
    with right, actual:
        for name in right.tensors:
            assert right.get_tensor_data(name) == actual.get_tensor_data(name)


def source(folder: Path) -> Source:
    """Return what is converted, for the converter."""
    read = read_checkpoint(folder, architectures())
    return Source(folder.name, folder, read.config, read, None)


def test_unknown_tokenizer(checkpoint: Make, tmp_path: Path) -> None:
    """A byte-level tokenizer that llama.cpp does not know is an error, not another one's tokens."""
    folder = shutil.copytree(checkpoint("qwen2"), tmp_path / "qwen2")
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["merges"][1000:]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"this llama\.cpp does not know its tokenizer"):
        convert(folder, tmp_path)
    assert [folder] == list(tmp_path.iterdir())


def test_can_be_stopped(checkpoint: Make, tmp_path: Path) -> None:
    """False from progress ends the process, an exception too, and nothing is left of the file."""
    with pytest.raises(LoadCancelledError, match="stopped"):
        convert(checkpoint("llama"), tmp_path, progress=lambda share: False)
    with pytest.raises(ZeroDivisionError):
        convert(checkpoint("llama"), tmp_path, progress=lambda share: bool(1 // 0))
    assert [] == list(tmp_path.iterdir())


def test_a_killed_converter_is_an_error(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system ends for want of memory is said so."""
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return start([command[0], "-c", "import os; os.kill(os.getpid(), 9)"], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(ModelError, match="signal 9; was there too little memory"):
        convert(checkpoint("llama"), tmp_path)


def test_the_converter_ends_with_its_parent(checkpoint: Make, tmp_path: Path) -> None:
    """A process that is killed while it converts leaves no process behind."""
    program = "import sys, llcuda; llcuda.convert(sys.argv[1], sys.argv[2])"
    parent = subprocess.Popen([sys.executable, "-c", program, checkpoint("llama"), tmp_path])
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert (1, 0) == (len(gone), len(alive))
