"""Vectors and scores are those of transformers, from checkpoints that were converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
safetensors_torch = pytest.importorskip("safetensors.torch")

from llcuda import Embedder, Model, convert  # noqa: E402
from tests.support import checkpoints as material  # noqa: E402
from tests.support import models  # noqa: E402
from tests.support.hub_server import Hub  # noqa: E402

CLOSE = 1e-3  # of a vector of length 1, and of a score
TEXTS = [
    "The fox ran home.", "", "Who's there? 'Nobody', said the wind.", "23 stars", "fox",
    "It was late, and the sea was quiet. " * 6,
]  # fmt: skip


def bert_tokenizer() -> Any:
    """Return BERT's tokenizer, with the vocabulary beside llama.cpp's source."""
    reader = gguf.GGUFReader(material.ROOT / "vendor/llama.cpp/models/ggml-vocab-bert-bge.gguf")
    tokens, kinds = (
        reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type")
    )
    words = [
        token if kind == 3 else token[1:] if token.startswith("\u2581") else f"##{token}"
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    return transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})


def bert(name: str = "BertModel", **settings: Any) -> Any:
    """Return an encoder with random weights; also norms and biases are not what they begin as."""
    config = transformers.BertConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.15,
        **settings,
    )
    torch.manual_seed(3)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def pooled_by(folder: Path, pooling: str) -> None:
    """Say beside a checkpoint how its vectors are pooled, as sentence-transformers does."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def hidden(model: Any, tokens: list[int]) -> Any:
    """Return the last layer's vector of each token."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).last_hidden_state[0].numpy()


def exact(model: Model) -> Embedder:
    """Return an embedder that computes with float32 cells."""
    return Embedder(model, type_k="f32", type_v="f32", flash_attention=False)


def unit(vectors: list[Any]) -> Any:
    """Return the vectors with length 1."""
    stacked = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


Pool = Callable[[Any], Any]
POOLS: dict[str, Pool] = {
    "mean_tokens": lambda rows: rows.mean(0),
    "cls_token": lambda rows: rows[0],
    "lasttoken": lambda rows: rows[-1],
}


def test_a_published_repository(tmp_path: Path) -> None:
    """From the hub, as all-MiniLM-L6-v2 lies there: files of other programs change nothing."""
    model, tokenizer = bert(), bert_tokenizer()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    pooled_by(tmp_path / "m", "mean_tokens")
    rows = [tokenizer.encode(text) for text in TEXTS]
    expected = unit([POOLS["mean_tokens"](hidden(model, tokens)) for tokens in rows])
    paths = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "m").as_posix(): path.read_bytes() for path in paths}
    junk = dict.fromkeys(("onnx/model.onnx", "sentence_bert_config.json"), b"\xff[")
    junk |= {"data_config.json": b"[1]", "README.md": b"---\ntags: [\xff\n---\n"}
    with Hub({"me/m": {**files, **junk}}) as hub:
        program = "import sys; from llcuda import convert; convert('me/m', sys.argv[1], 'F32')"
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        target = tmp_path / "m.gguf"
        subprocess.run([sys.executable, "-c", program, target], check=True, env=environment)
    with Model(target) as loaded, exact(loaded) as to:
        vectors = to.embed(TEXTS)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_bert(pooling: str, tmp_path: Path) -> None:
    """The same tokens, the same pooling, the same vectors, all texts in one batch."""
    model, tokenizer = bert(), bert_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pooled_by(tmp_path, pooling)
    rows = [tokenizer.encode(text) for text in TEXTS]
    expected = unit([POOLS[pooling](hidden(model, tokens)) for tokens in rows])
    with Model(convert(tmp_path, tmp_path / "bert.gguf", "F32")) as loaded, exact(loaded) as to:
        assert rows == [loaded.tokenize(text) for text in TEXTS]
        vectors = to.embed(TEXTS)
    print(f"{pooling}: {np.abs(vectors - expected).max():.1e}")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=CLOSE)


def test_a_decoder(tmp_path: Path) -> None:
    """A causal model's last token."""
    model = material.model("qwen3")
    folder = tmp_path / "qwen3"
    material.save(folder, "qwen3")
    pooled_by(folder, "lasttoken")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text for text in TEXTS if text]
    expected = unit([hidden(model.model, tokenizer.encode(text))[-1] for text in texts])
    with Model(convert(folder, tmp_path / "q.gguf", "F32")) as loaded, exact(loaded) as to:
        vectors = to.embed(texts)
    print(f"last token: {np.abs(vectors - expected).max():.1e}")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=CLOSE)


def gemma_encoder(folder: Path) -> Any:
    """Write a Gemma 3 that looks both ways, with mean pooling, into a new folder; return it."""
    folder.mkdir()
    material.tokenizer("gemma3", folder).save_pretrained(folder)
    material.model("gemma3", use_bidirectional_attention=True).model.save_pretrained(folder)
    pooled_by(folder, "mean_tokens")
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def test_gemma_with_two_directions(tmp_path: Path) -> None:
    """An encoder with a sliding window, as EmbeddingGemma is one."""
    folder = tmp_path / "gemma"
    model = gemma_encoder(folder)
    texts = [text for text in TEXTS if text]
    with Model(convert(folder, tmp_path / "g.gguf", "F32")) as loaded, exact(loaded) as to:
        rows = [loaded.tokenize(text) for text in texts]
        vectors = to.embed(texts)
    expected = unit([hidden(model, tokens).mean(0) for tokens in rows])
    print(f"gemma: {np.abs(vectors - expected).max():.1e}")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=CLOSE)


def test_dense_matrices_after_the_pooling(tmp_path: Path) -> None:
    """EmbeddingGemma's two, which sentence-transformers keeps in folders of their own."""
    folder = tmp_path / "gemma"
    model = gemma_encoder(folder)
    size = model.config.hidden_size
    torch.manual_seed(5)
    matrices = [torch.randn(4 * size, size) / 8, torch.randn(size, 4 * size) / 16]
    modules = json.loads((folder / "modules.json").read_text())
    for number, matrix in enumerate(matrices, 2):
        name = f"{number}_Dense"
        (folder / name).mkdir()
        settings = {
            "in_features": matrix.shape[1], "out_features": matrix.shape[0], "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }  # fmt: skip
        (folder / name / "config.json").write_text(json.dumps(settings))
        safetensors_torch.save_file({"linear.weight": matrix}, folder / name / "model.safetensors")
        kind = "sentence_transformers.models.Dense"
        modules.append({"idx": number, "name": str(number), "path": name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    texts = [text for text in TEXTS if text]
    with Model(convert(folder, tmp_path / "g.gguf", "F32")) as loaded, exact(loaded) as to:
        rows = [loaded.tokenize(text) for text in texts]
        vectors = to.embed(texts)
    dense = (matrices[1] @ matrices[0]).numpy()
    expected = unit([dense @ hidden(model, tokens).mean(0) for tokens in rows])
    print(f"dense: {np.abs(vectors - expected).max():.1e}")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=CLOSE)


def test_a_reranker_of_two_layers(tmp_path: Path) -> None:
    """BERT's pooler and classifier; llama.cpp takes both texts for the first kind of text."""
    size, tokenizer = 64, bert_tokenizer()
    model = bert("BertForSequenceClassification", num_labels=1)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 2)
    tensors = {}
    for name, value in state.items():
        stem, _, end = name.removeprefix("bert.").rpartition(".")
        gguf_name = {"pooler.dense": "cls", "classifier": "cls.output"}.get(stem) or names.get_name(
            stem
        )
        if gguf_name:
            tensors[f"{gguf_name}.{end}"] = value
    reader = gguf.GGUFReader(material.ROOT / "vendor/llama.cpp/models/ggml-vocab-bert-bge.gguf")
    words = {
        key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer")
    }
    metadata = {
        **words,
        "general.architecture": "bert",
        "bert.context_length": 512,
        "bert.embedding_length": size,
        "bert.feed_forward_length": 128,
        "bert.block_count": 2,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": model.config.layer_norm_eps,
        "bert.attention.causal": False,
        "bert.pooling_type": 4,
    }
    documents = [text for text in TEXTS if text]
    with torch.no_grad():
        pairs = [tokenizer("who ran?", document, return_tensors="pt") for document in documents]
        expected = [
            float(model(**{**pair, "token_type_ids": 0 * pair["token_type_ids"]}).logits)
            for pair in pairs
        ]
    file = models.write(tmp_path / "reranker.gguf", metadata, tensors)
    with Model(file) as gguf_name, exact(gguf_name) as to:
        counted = to.rerank_counted("who ran?", documents)
    assert tuple(pair["input_ids"].shape[1] for pair in pairs) == counted.token_counts
    print(f"BERT's scores: {np.abs(counted.values - expected).max():.1e}")
    np.testing.assert_allclose(counted.values, expected, rtol=0, atol=CLOSE)


def test_a_decoder_that_says_yes_or_no(tmp_path: Path) -> None:
    """Qwen3-Reranker's prompt, from its file, and its probability of "yes"."""
    folder = tmp_path / "reranker"
    model = material.model("qwen3")
    material.save(folder, "qwen3")
    (folder / "README.md").write_text("# Qwen3-Reranker\n")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    with Model(convert(folder, tmp_path / "r.gguf", "F32")) as loaded, exact(loaded) as to:
        template = loaded.metadata["tokenizer.chat_template.rerank"]
        documents = [text for text in TEXTS if text]
        scores = to.rerank_counted("who ran?", documents)
        assert ["yes", "no"] == to.labels
    expected, lengths = [], []
    for document in documents:
        tokens = tokenizer.encode(template.format(query="who ran?", document=document))
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1, answers]
        expected.append(float(logits.softmax(0)[0]))
        lengths.append(len(tokens))
    assert tuple(lengths) == scores.token_counts
    print(f"yes: {np.abs(scores.values - expected).max():.1e}")
    np.testing.assert_allclose(scores.values, expected, rtol=0, atol=CLOSE)
