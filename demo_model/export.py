"""Writes a trained checkpoint as GGUF: matrices in Q8_0, norms in F32, embeddings tied.

    python -m demo_model.export --checkpoint checkpoint --out llcuda/data/demo.gguf

`--type F32` keeps every weight, which is what the comparison with PyTorch needs.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from demo_model.data import BOS, IM_END, PAD, SPECIAL_TOKENS
from demo_model.model import Shape

SIZE_LIMIT = 6_000_000
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
DESCRIPTION = (
    "A very small model that tells short stories and answers simple questions about them. It is a"
    " demonstration and a test fixture of llcuda."
)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, dict[str, object]]) -> None:
    """Vocabulary, merges and special tokens, from the parsed `tokenizer.json`."""
    model = tokenizer["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise TypeError("tokenizer.json holds no BPE model")
    tokens = sorted(vocabulary, key=lambda token: int(vocabulary[token]))
    special = set(SPECIAL_TOKENS)
    types = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(IM_END)
    writer.add_eot_token_id(IM_END)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE.read_text().replace("\n", ""))


def add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """General metadata and the sizes that llama.cpp reads."""
    writer.add_name("llcuda demo")
    writer.add_author("llcuda")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab_size)


def export(checkpoint: Path, out: Path, matrix_type: gguf.GGMLQuantizationType) -> None:
    """Writes `out` from the files that training left in `checkpoint`."""
    shape = Shape(**json.loads((checkpoint / "shape.json").read_text()))
    writer = gguf.GGUFWriter(out, "llama")
    add_shape(writer, shape)
    file_types = {
        gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
        gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
    }
    writer.add_file_type(file_types[matrix_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text()))
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        values = weight.astype(np.float32)
        if values.ndim == 1 or matrix_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            quantized = gguf.quants.quantize(values, matrix_type)
            writer.add_tensor(name, quantized, raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Exports, and checks the size of what is shipped."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", choices=("Q8_0", "F32"), default="Q8_0")
    arguments = parser.parse_args()
    matrix_type = gguf.GGMLQuantizationType[arguments.type]
    export(arguments.checkpoint, arguments.out, matrix_type)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size} bytes")
    if matrix_type == gguf.GGMLQuantizationType.Q8_0 and size > SIZE_LIMIT:
        raise SystemExit(f"the file is larger than {SIZE_LIMIT} bytes")


if __name__ == "__main__":
    main()
