"""GGUF files with the shapes of known models and random weights: speed needs no real ones.

`python benchmarks/shapes.py OUT.gguf` writes Gemma 3 1B in F16 (2 GB). The values come from one
normal block, repeated from random offsets: shapes and types decide the speed. The tokenizer is
that of a vocabulary file of llama.cpp with Gemma's 262,144 entries.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "vendor" / "llama.cpp" / "models" / "ggml-vocab-gemma-4.gguf"
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD = 26, 1152, 4, 1, 256, 6912


def write_gemma_3_1b(path: Path) -> None:
    """Write the file, F16 matrices and F32 norms."""
    vocabulary = gguf.GGUFReader(VOCABULARY)
    writer = gguf.GGUFWriter(path, "gemma3")
    copy_tokenizer(vocabulary, writer)
    n_vocab = len(vocabulary.fields["tokenizer.ggml.tokens"].data)
    writer.add_name("gemma-3-1b-random")
    writer.add_context_length(32768)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(512)
    writer.add_vocab_size(n_vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    random = np.random.default_rng(0)
    block = (random.standard_normal(1 << 24, dtype=np.float32) * 0.02).astype(np.float16)

    def matrix(name: str, *shape: int) -> None:
        offset = int(random.integers(0, 1 << 23))
        writer.add_tensor(
            f"{name}.weight", np.resize(block[offset:], int(np.prod(shape))).reshape(shape)
        )

    def norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))

    matrix("token_embd", n_vocab, WIDTH)
    norm("output_norm", WIDTH)
    for layer in range(LAYERS):
        block_name = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            norm(block_name + name, WIDTH)
        norm(block_name + "attn_q_norm", HEAD)
        norm(block_name + "attn_k_norm", HEAD)
        matrix(block_name + "attn_q", HEADS * HEAD, WIDTH)
        matrix(block_name + "attn_k", KV_HEADS * HEAD, WIDTH)
        matrix(block_name + "attn_v", KV_HEADS * HEAD, WIDTH)
        matrix(block_name + "attn_output", WIDTH, HEADS * HEAD)
        matrix(block_name + "ffn_gate", FEED_FORWARD, WIDTH)
        matrix(block_name + "ffn_up", FEED_FORWARD, WIDTH)
        matrix(block_name + "ffn_down", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_tokenizer(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Copy every tokenizer.* key."""
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            kind = gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), kind, sub_type=field.types[1])
        else:
            writer.add_key_value(name, field.contents(), field.types[0])


if __name__ == "__main__":
    write_gemma_3_1b(Path(sys.argv[1]))
