"""Tiny models with random weights, written with the gguf package: one for each kind of memory.

All share a byte-level BPE vocabulary of 288 tokens, so any text survives tokenizing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants

Tensors = dict[str, np.ndarray]

EMBEDDING, HEADS, KV_HEADS, HEAD_SIZE, FEED_FORWARD, LAYERS, TRAIN_CTX = 64, 4, 2, 16, 96, 2, 512
CONTROL = ("<|bos|>", "<|endoftext|>", "<|user|>", "<|assistant|>")
MERGES = (
    ("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("Ġ", "a"),
    ("i", "n"), ("in", "g"), ("Ġ", "s"), ("o", "n"), ("Ġ", "w"), ("e", "r"), ("o", "u"),
    ("Ġ", "t"), ("r", "e"), ("Ġ", "c"), ("l", "l"), ("e", "d"), ("Ġ", "b"), ("h", "e"),
    ("o", "r"), ("e", "n"), ("Ġ", "f"), ("i", "s"), ("a", "t"), ("e", "s"), ("Ġ", "i"),
)  # fmt: skip
VOCABULARY = 256 + len(MERGES) + len(CONTROL)
BOS, EOS = 256 + len(MERGES), 257 + len(MERGES)
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte in byte-level BPE vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in printable else extra))
        extra += byte not in printable
    return letters


def vocabulary() -> dict[str, Any]:
    """Return the tokenizer's metadata."""
    tokens = [*byte_letters(), *("".join(pair) for pair in MERGES), *CONTROL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (256 + len(MERGES)) + [3] * len(CONTROL),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Tensors,
    matrix_type: GGMLQuantizationType | None = None,
) -> Path:
    """Write a GGUF file.

    Args:
        path: The file.
        metadata: Its metadata; a tuple (value, GGUFValueType) forces a type.
        tensors: Its tensors.
        matrix_type: The type of those with rows; None leaves all as they are.
    """
    writer = GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, tuple):
            writer.add_key_value(key, *value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_key_value(key, value, GGUFValueType.STRING)  # add_string drops an empty one
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        if matrix_type is not None and values.ndim > 1:
            packed = quants.quantize(values, matrix_type)
            writer.add_tensor(name, packed, raw_dtype=matrix_type)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Weights:
    """Collects random tensors; shapes are numpy's, the rows first."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.tensors: Tensors = {}

    def matrix(self, name: str, *shape: int, scale: float | None = None) -> None:
        """Add a matrix of normal numbers, by default with the spread that keeps activations."""
        spread = shape[-1] ** -0.5 if scale is None else scale
        self.tensors[name] = self._random.normal(0, spread, shape).astype(np.float32)

    def ones(self, *names: str, size: int = EMBEDDING) -> None:
        """Add norm weights near 1."""
        for name in names:
            self.tensors[name] = self._random.normal(1, 0.05, size).astype(np.float32)

    def zeros(self, *names: str, size: int = EMBEDDING) -> None:
        """Add biases near 0."""
        for name in names:
            self.tensors[name] = self._random.normal(0, 0.05, size).astype(np.float32)

    def attention(self, block: str, kv_heads: int = KV_HEADS, head_size: int = HEAD_SIZE) -> None:
        """Add the four matrices of an attention."""
        self.matrix(f"{block}.attn_q.weight", HEADS * head_size, EMBEDDING)
        self.matrix(f"{block}.attn_k.weight", kv_heads * head_size, EMBEDDING)
        self.matrix(f"{block}.attn_v.weight", kv_heads * head_size, EMBEDDING)
        self.matrix(f"{block}.attn_output.weight", EMBEDDING, HEADS * head_size)

    def gated_feed_forward(self, block: str) -> None:
        """Add the three matrices of a gated feed-forward layer."""
        self.matrix(f"{block}.ffn_gate.weight", FEED_FORWARD, EMBEDDING)
        self.matrix(f"{block}.ffn_up.weight", FEED_FORWARD, EMBEDDING)
        self.matrix(f"{block}.ffn_down.weight", EMBEDDING, FEED_FORWARD)


def _shape(arch: str, layers: int = LAYERS, **more: Any) -> dict[str, Any]:
    """Return the metadata that every architecture needs."""
    return {
        "general.architecture": arch,
        "general.name": f"tiny {arch}",
        f"{arch}.context_length": TRAIN_CTX,
        f"{arch}.embedding_length": EMBEDDING,
        f"{arch}.block_count": layers,
        f"{arch}.feed_forward_length": FEED_FORWARD,
        f"{arch}.attention.head_count": HEADS,
        **{f"{arch}.{key.replace('__', '.')}": value for key, value in more.items()},
        **vocabulary(),
    }


def _plain_decoder(seed: int, head_size: int = HEAD_SIZE) -> Tensors:
    """Return the tensors of a decoder as llama's."""
    weights = Weights(seed)
    weights.matrix("token_embd.weight", VOCABULARY, EMBEDDING, scale=1.0)
    weights.matrix("output.weight", VOCABULARY, EMBEDDING, scale=0.4)
    weights.ones("output_norm.weight")
    for i in range(LAYERS):
        weights.ones(f"blk.{i}.attn_norm.weight", f"blk.{i}.ffn_norm.weight")
        weights.attention(f"blk.{i}", head_size=head_size)
        weights.gated_feed_forward(f"blk.{i}")
    return weights.tensors


def llama(seed: int = 1, head_size: int = HEAD_SIZE) -> tuple[dict[str, Any], Tensors]:
    """Return metadata and tensors of a plain llama with grouped-query attention."""
    metadata = _shape(
        "llama",
        attention__head_count_kv=KV_HEADS,
        attention__layer_norm_rms_epsilon=1e-5,
        attention__key_length=head_size,
        attention__value_length=head_size,
        rope__dimension_count=head_size,
        rope__freq_base=10000.0,
    )
    return metadata, _plain_decoder(seed, head_size)


def qwen2vl(seed: int = 9) -> tuple[dict[str, Any], Tensors]:
    """Return a decoder whose positions have several parts (M-RoPE), so that no cell can move."""
    metadata = _shape(
        "qwen2vl",
        attention__head_count_kv=KV_HEADS,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__dimension_sections=[2, 3, 3, 0],
    )
    return metadata, _plain_decoder(seed)


def gemma3(seed: int = 2) -> tuple[dict[str, Any], Tensors]:
    """Return a model whose layers look back 16 tokens only, but for every sixth."""
    layers = 6
    metadata = _shape(
        "gemma3",
        layers,
        attention__head_count_kv=KV_HEADS,
        attention__key_length=HEAD_SIZE,
        attention__value_length=HEAD_SIZE,
        attention__sliding_window=16,
        attention__layer_norm_rms_epsilon=1e-5,
    )
    weights = Weights(seed)
    weights.matrix("token_embd.weight", VOCABULARY, EMBEDDING, scale=0.1)
    weights.ones("output_norm.weight")
    for i in range(layers):
        block = f"blk.{i}"
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            weights.ones(f"{block}.{norm}.weight")
        weights.ones(f"{block}.attn_q_norm.weight", f"{block}.attn_k_norm.weight", size=HEAD_SIZE)
        weights.attention(block)
        weights.gated_feed_forward(block)
    return metadata, weights.tensors


def mamba(seed: int = 3) -> tuple[dict[str, Any], Tensors]:
    """Return a recurrent model: one state for each sequence instead of cells."""
    inner, state, rank, kernel = 2 * EMBEDDING, 8, 4, 4
    metadata = _shape(
        "mamba",
        ssm__conv_kernel=kernel,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=rank,
        attention__layer_norm_rms_epsilon=1e-5,
    )
    metadata["mamba.attention.head_count"] = metadata["mamba.feed_forward_length"] = 0
    weights = Weights(seed)
    weights.matrix("token_embd.weight", VOCABULARY, EMBEDDING, scale=0.2)
    weights.ones("output_norm.weight")
    for i in range(LAYERS):
        block = f"blk.{i}"
        weights.ones(f"{block}.attn_norm.weight")
        weights.matrix(f"{block}.ssm_in.weight", 2 * inner, EMBEDDING)
        weights.matrix(f"{block}.ssm_conv1d.weight", inner, kernel)
        weights.zeros(f"{block}.ssm_conv1d.bias", f"{block}.ssm_dt.bias", size=inner)
        weights.matrix(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        weights.matrix(f"{block}.ssm_dt.weight", inner, rank)
        weights.tensors[f"{block}.ssm_a"] = -np.ones((inner, state), dtype=np.float32)
        weights.ones(f"{block}.ssm_d", size=inner)
        weights.matrix(f"{block}.ssm_out.weight", EMBEDDING, inner)
    return metadata, weights.tensors


def lfm2(seed: int = 10, window: int = 16) -> tuple[dict[str, Any], Tensors]:
    """Return a hybrid model: a convolution's state in one layer, a sliding window in the other."""
    kernel = 3
    metadata = _shape(
        "lfm2",
        attention__head_count_kv=[0, KV_HEADS],
        attention__layer_norm_rms_epsilon=1e-5,
        attention__sliding_window=window,
        shortconv__l_cache=kernel,
        rope__dimension_count=HEAD_SIZE,
        vocab_size=VOCABULARY,
    )
    weights = Weights(seed)
    weights.matrix("token_embd.weight", VOCABULARY, EMBEDDING, scale=0.2)
    weights.ones("token_embd_norm.weight")
    for i in range(LAYERS):
        block = f"blk.{i}"
        weights.ones(f"{block}.attn_norm.weight", f"{block}.ffn_norm.weight")
        weights.gated_feed_forward(block)
    weights.matrix("blk.0.shortconv.conv.weight", EMBEDDING, kernel)
    weights.matrix("blk.0.shortconv.in_proj.weight", 3 * EMBEDDING, EMBEDDING)
    weights.matrix("blk.0.shortconv.out_proj.weight", EMBEDDING, EMBEDDING)
    weights.ones("blk.1.attn_q_norm.weight", "blk.1.attn_k_norm.weight", size=HEAD_SIZE)
    weights.attention("blk.1")
    return metadata, weights.tensors


def bert(seed: int = 4) -> tuple[dict[str, Any], Tensors]:
    """Return an encoder for embeddings, with mean pooling."""
    metadata = _shape("bert", attention__layer_norm_epsilon=1e-5)
    metadata |= {
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.token_type_count": 2,
    }
    weights = Weights(seed)
    weights.matrix("token_embd.weight", VOCABULARY, EMBEDDING, scale=1.0)
    weights.matrix("token_types.weight", 2, EMBEDDING, scale=0.1)
    weights.matrix("position_embd.weight", TRAIN_CTX, EMBEDDING, scale=0.1)
    weights.ones("token_embd_norm.weight")
    weights.zeros("token_embd_norm.bias")
    for i in range(LAYERS):
        block = f"blk.{i}"
        weights.attention(block, HEADS)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down"):
            weights.zeros(f"{block}.{name}.bias")
        weights.matrix(f"{block}.ffn_up.weight", FEED_FORWARD, EMBEDDING)
        weights.zeros(f"{block}.ffn_up.bias", size=FEED_FORWARD)
        weights.matrix(f"{block}.ffn_down.weight", EMBEDDING, FEED_FORWARD)
        for norm in ("attn_output_norm", "layer_output_norm"):
            weights.ones(f"{block}.{norm}.weight")
            weights.zeros(f"{block}.{norm}.bias")
    return metadata, weights.tensors


WORDS = ("the", "cat", "hat", "fox", "sea", "on", "##s", "##ing", "and", "a", "?", ".")
WORDPIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)


def wordpieces() -> dict[str, Any]:
    """Return the metadata of a tokenizer as BERT's, with few words."""
    phantom = [word[2:] if word.startswith("##") else f"\u2581{word}" for word in WORDS]
    special = ("padding", "unknown", "bos", "seperator", "mask")
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "bert-bge",
        "tokenizer.ggml.tokens": [*WORDPIECES[:5], *phantom],
        "tokenizer.ggml.token_type": [3] * 5 + [1] * len(WORDS),
        "tokenizer.ggml.token_type_count": 2,
        **{f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(special)},
    }


def bert_of_words(seed: int = 6) -> tuple[dict[str, Any], Tensors]:
    """Return an encoder with BERT's tokenizer, whose first token stands for a text."""
    metadata, tensors = bert(seed)
    metadata = {k: v for k, v in metadata.items() if not k.startswith("tokenizer.")}
    tensors["token_embd.weight"] = tensors["token_embd.weight"][: len(WORDPIECES)]
    return {**metadata, **wordpieces(), "bert.pooling_type": 2}, tensors


def reranker(seed: int = 7, labels: int = 1) -> tuple[dict[str, Any], Tensors]:
    """Return an encoder with a classifier of two layers, and names for more than one class."""
    metadata, tensors = bert_of_words(seed)
    metadata["bert.pooling_type"] = 4
    if labels > 1:
        metadata["bert.classifier.output_labels"] = [f"label {i}" for i in range(labels)]
    weights = Weights(seed)
    weights.matrix("cls.weight", EMBEDDING, EMBEDDING)
    weights.zeros("cls.bias")
    weights.matrix("cls.output.weight", labels, EMBEDDING)
    weights.zeros("cls.output.bias", size=labels)
    return metadata, {**tensors, **weights.tensors}


RERANK_TEMPLATE = "<|user|>yes or no: {query}\n{document}<|endoftext|><|assistant|>"


def qwen3(seed: int = 8, rerank: bool = False) -> tuple[dict[str, Any], Tensors]:
    """Return a decoder whose last token stands for a text; rerank: with scores for yes and no."""
    metadata = _shape(
        "qwen3",
        attention__head_count_kv=KV_HEADS,
        attention__key_length=HEAD_SIZE,
        attention__value_length=HEAD_SIZE,
        attention__layer_norm_rms_epsilon=1e-5,
        pooling_type=4 if rerank else 3,
    )
    weights = Weights(seed)
    weights.matrix("token_embd.weight", VOCABULARY, EMBEDDING, scale=1.0)
    weights.ones("output_norm.weight")
    for i in range(LAYERS):
        block = f"blk.{i}"
        weights.ones(f"{block}.attn_norm.weight", f"{block}.ffn_norm.weight")
        weights.ones(f"{block}.attn_q_norm.weight", f"{block}.attn_k_norm.weight", size=HEAD_SIZE)
        weights.attention(block)
        weights.gated_feed_forward(block)
    if rerank:
        metadata["qwen3.classifier.output_labels"] = ["yes", "no"]
        metadata["tokenizer.chat_template.rerank"] = RERANK_TEMPLATE
        weights.matrix("cls.output.weight", 2, EMBEDDING)
    return metadata, weights.tensors


def lora(
    seed: int = 5, rank: int = 4, embedding: int = EMBEDDING
) -> tuple[dict[str, Any], Tensors]:
    """Return a LoRA adapter for `llama`'s first queries and last feed-forward layer."""
    metadata = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    weights = Weights(seed)
    weights.matrix("blk.0.attn_q.weight.lora_a", rank, embedding)
    weights.matrix("blk.0.attn_q.weight.lora_b", HEADS * HEAD_SIZE, rank)
    weights.matrix(f"blk.{LAYERS - 1}.ffn_down.weight.lora_a", rank, FEED_FORWARD)
    weights.matrix(f"blk.{LAYERS - 1}.ffn_down.weight.lora_b", embedding, rank)
    return metadata, weights.tensors


def merged(base: Tensors, adapter: Tensors, alpha: float = 8.0) -> Tensors:
    """Return `base` with the adapter's products added: W + alpha / rank * B A."""
    result = dict(base)
    for name, b in adapter.items():
        if name.endswith(".lora_b"):
            a = adapter[name.replace(".lora_b", ".lora_a")]
            target = name.removesuffix(".lora_b")
            result[target] = base[target] + np.float32(alpha / len(a)) * (b @ a)
    return result


BUILDERS = {
    "llama": llama, "gemma3": gemma3, "mamba": mamba, "lfm2": lfm2, "qwen2vl": qwen2vl,
    "bert": bert,
}  # fmt: skip
