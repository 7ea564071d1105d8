"""Synthetic models: files with the shapes of known models and random weights.

Speed does not depend on the weights, so nothing is downloaded. The values come from one block of
normally distributed numbers, which is written repeatedly from random offsets. The vocabulary has
the right size, but its words are invented.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llcuda.errors import LlcudaError, ModelError
from llcuda.files import (
    atomic_write,
    cache_folder,
    check_free_space,
    remove_abandoned,
    temporary_file,
)
from llcuda.native.quantization.file_types import check_file_type
from llcuda.native.quantization.quantize import quantize
from llcuda.params import wrong_value

BLOCK_SIZE = 16_777_213  # numbers; a prime, so that no two rows of a matrix are equal
STANDARD_DEVIATION = 0.02  # of the weights
ALIGNMENT = 32  # bytes, GGUF's default
QUANTIZED_SHARE = 8.5 / 16  # of the F16 file's size, for Q8_0, the largest quantized type
REMEDY = "set XDG_CACHE_HOME to a folder on another disk"
SPECIAL_TOKENS = 3  # <unk>, <s> and </s>

Tensors = list[tuple[str, tuple[int, ...]]]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        layers: The number of transformer layers.
        width: The size of the embedding.
        heads: The number of query heads.
        kv_heads: The number of key and value heads.
        head: The size of a head.
        feed_forward: The size of the feed-forward layer.
        vocabulary: The number of tokens.
        context: The tokens of context that the model was trained with.
        rope_base: The base of the rotary frequencies.
        epsilon: The epsilon of the RMS norms.
        tied: Whether the embedding is also the output matrix.
        window: Tokens of the sliding-window layers; 0 is no such layers.
        biases: Whether queries, keys and values have biases.
        rope_factors: Whether there is a table of rotary factors.
        rope_scale: The divisor of the positions.
    """

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    vocabulary: int
    context: int
    rope_base: float
    epsilon: float
    tied: bool = True
    window: int = 0
    biases: bool = False
    rope_factors: bool = False
    rope_scale: float = 1.0

    def tensors(self) -> Tensors:
        """Return the name and the dimensions, outermost first, of each tensor."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        tensors: Tensors = [("token_embd.weight", (self.vocabulary, self.width))]
        if not self.tied:
            tensors.append(("output.weight", (self.vocabulary, self.width)))
        if self.rope_factors:
            tensors.append(("rope_freqs.weight", (self.head // 2,)))
        tensors.append(("output_norm.weight", (self.width,)))
        norms = {"attn_norm": self.width, "ffn_norm": self.width}
        if self.architecture == "gemma3":
            norms |= {"post_attention_norm": self.width, "post_ffw_norm": self.width}
            norms |= {"attn_q_norm": self.head, "attn_k_norm": self.head}
        matrices = {
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate": (self.feed_forward, self.width),
            "ffn_up": (self.feed_forward, self.width),
            "ffn_down": (self.width, self.feed_forward),
        }
        for layer in range(self.layers):
            tensors += [(f"blk.{layer}.{name}.weight", (size,)) for name, size in norms.items()]
            tensors += [(f"blk.{layer}.{name}.weight", size) for name, size in matrices.items()]
            if self.biases:
                for name in ("attn_q", "attn_k", "attn_v"):
                    tensors.append((f"blk.{layer}.{name}.bias", matrices[name][:1]))
        return tensors


_LLAMA: dict[str, Any] = {"architecture": "llama", "rope_base": 5e5, "epsilon": 1e-5}
_LLAMA |= {"vocabulary": 128_256, "context": 131_072, "rope_factors": True}
_GEMMA: dict[str, Any] = {"architecture": "gemma3", "rope_base": 1e6, "epsilon": 1e-6, "head": 256}
SHAPES = {
    "gemma-3-1b": ModelShape(
        layers=26, width=1152, heads=4, kv_heads=1, feed_forward=6912, vocabulary=262_144,
        context=32_768, window=512, **_GEMMA,
    ),
    "gemma-3-4b": ModelShape(
        layers=34, width=2560, heads=8, kv_heads=4, feed_forward=10_240, vocabulary=262_208,
        context=131_072, window=1024, rope_scale=8.0, **_GEMMA,
    ),
    "llama-3.2-1b": ModelShape(
        layers=16, width=2048, heads=32, kv_heads=8, head=64, feed_forward=8192, **_LLAMA
    ),
    "llama-3.2-3b": ModelShape(
        layers=28, width=3072, heads=24, kv_heads=8, head=128, feed_forward=8192, **_LLAMA
    ),
    "qwen-2.5-7b": ModelShape(
        "qwen2", layers=28, width=3584, heads=28, kv_heads=4, head=128, feed_forward=18_944,
        vocabulary=152_064, context=32_768, rope_base=1e6, epsilon=1e-6, tied=False, biases=True,
    ),
    "llama-3.1-8b": ModelShape(
        layers=32, width=4096, heads=32, kv_heads=8, head=128, feed_forward=14_336, tied=False,
        **_LLAMA,
    ),
    "tiny": ModelShape(
        "llama", layers=2, width=256, heads=4, kv_heads=2, head=64, feed_forward=512,
        vocabulary=1024, context=4096, rope_base=1e4, epsilon=1e-5,
    ),
}  # fmt: skip


def make_synthetic_model(
    shape_name: str, file_type: str = "Q4_K_M", *, progress: Progress | None = None
) -> Path:
    """Return the file of a synthetic model, writing it into the cache if it is not there.

    The cache is $XDG_CACHE_HOME/llcuda/shapes, by default ~/.cache/llcuda/shapes. A quantized file
    is made from an F16 file, which is deleted afterwards.

    Args:
        shape_name: One of SHAPES, in any case.
        file_type: The type of the weights; see `llcuda.quantize`.
        progress: Called with the activity and the share of it that is done, 0.0 to 1.0.

    Raises:
        ArgumentError: The name or the type is unknown.
        ModelError: The file cannot be written, or the disk is too small.
        LlcudaError: The package gguf is missing.
    """
    name, file_type = shape_name.lower(), check_file_type(file_type)
    if name not in SHAPES:
        raise wrong_value("shape", shape_name, f"expected one of {', '.join(SHAPES)}")
    folder = cache_folder("shapes")
    path = folder / f"{name}-{file_type}.gguf"
    if path.is_file():
        return path
    shape, f16_path = SHAPES[name], folder / f"{name}-F16.gguf"
    report = progress or (lambda activity, share: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        if file_type == "F16":
            check_free_space(folder, file_size(shape), REMEDY)
            with atomic_write(path) as partial:
                _write_f16(shape, partial, report)
            return path
        check_free_space(folder, _bytes_to_write(shape, file_type, f16_path.is_file()), REMEDY)
        with contextlib.ExitStack() as stack:
            source = f16_path
            if not f16_path.is_file():
                source = stack.enter_context(temporary_file(folder))
                _write_f16(shape, source, report)
            return quantize(
                source, path, file_type, progress=lambda share: report(f"making {path.name}", share)
            )
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from None


def file_size(shape: ModelShape) -> int:
    """Return the bytes of the F16 file without the words of the vocabulary."""
    return sum(_bytes(name, size) + ALIGNMENT for name, size in shape.tensors())


def _bytes(name: str, size: Sequence[int]) -> int:
    return int(np.prod(size)) * _number_type(size).itemsize


def _number_type(size: Sequence[int]) -> np.dtype[Any]:
    """Return F16 for a matrix and F32 for a vector, as llama.cpp's converter does."""
    return np.dtype(np.float16 if len(size) > 1 else np.float32)


def _bytes_to_write(shape: ModelShape, file_type: str, has_f16: bool) -> int:
    """Return the bytes to write for the file, and for its F16 source unless it is there."""
    f16_size = file_size(shape)
    share = {"F32": 2.0, "BF16": 1.0}.get(file_type, QUANTIZED_SHARE)
    return int(f16_size * share) + (0 if has_f16 else f16_size)


def _write_f16(shape: ModelShape, path: Path, report: Progress) -> None:
    write_header(shape, path)
    write_weights(shape, path, lambda share: report("writing random weights", share))


def write_header(shape: ModelShape, path: Path) -> None:
    """Write the header of a model's F16 file.

    Raises:
        LlcudaError: The package gguf is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise LlcudaError(
            "synthetic models need the package gguf: pip install 'llcuda[bench]'"
        ) from error
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name("random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.rope_scale != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_scale)
    if shape.window:
        writer.add_sliding_window(shape.window)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = list(vocabulary(shape.vocabulary))
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    types += [kinds.NORMAL] * (len(tokens) - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for name, size in shape.tensors():
        writer.add_tensor_info(name, size, _number_type(size), _bytes(name, size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def vocabulary(size: int) -> Iterator[str]:
    """Yield the tokens of a SentencePiece vocabulary: all bytes, letters, invented words."""
    yield from ("<unk>", "<s>", "</s>")
    yield from (f"<0x{byte:02X}>" for byte in range(256))
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    syllables = [f"{a}{b}" for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
    words = (
        start + "".join(parts)
        for length in itertools.count(1)
        for parts in itertools.product(syllables, repeat=length)
        for start in ("", "▁")
    )
    yield from itertools.islice(itertools.chain(letters, words), size - 256 - SPECIAL_TOKENS)


def write_weights(shape: ModelShape, path: Path, report: Callable[[float], None]) -> None:
    """Append the values of each tensor to a file with its header; report the share from 0 to 1."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(BLOCK_SIZE, dtype=np.float32)
    noise *= np.float32(STANDARD_DEVIATION)
    block, tensors = noise.astype(np.float16), shape.tensors()
    total, written = sum(_bytes(*tensor) for tensor in tensors), 0
    with path.open("ab") as file:
        for name, size in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            if len(size) == 1:
                vector = noise[: size[0]] if name.endswith("bias") else np.ones(size, np.float32)
                file.write(vector.data)
            else:
                offset, left = int(random.integers(BLOCK_SIZE)), int(np.prod(size))
                while left:
                    chunk = block[offset : offset + left]
                    file.write(chunk.data)
                    left, offset = left - len(chunk), 0
            written += _bytes(name, size)
            report(written / total)
        file.write(bytes(-file.tell() % ALIGNMENT))
