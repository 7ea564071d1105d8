"""Model files with the shapes of known models and random weights: speed needs no real ones.

Nothing is downloaded. The values come from one block of normal numbers, written again and again
from random offsets; the vocabulary has the right size, but its words are made up.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llcuda.errors import ArgumentError, LlcudaError, ModelError
from llcuda.files import cache_folder, check_room, sweep
from llcuda.native.quantization.file_types import check_file_type
from llcuda.native.quantization.quantize import quantize

BLOCK = 16_777_213  # numbers; a prime, so that no two rows of a matrix are equal
NOISE = 0.02  # standard deviation of the weights
ALIGNMENT = 32  # bytes, GGUF's default
QUANTISED = 8.5 / 16  # of the F16 file's size: what Q8_0, the largest quantised type, takes
ADVICE = "set XDG_CACHE_HOME to a folder on another disk"
BYTE_TOKENS = 3  # the first of 256, after <unk>, <s> and </s>

Tensors = list[tuple[str, tuple[int, ...]]]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model.

    window: tokens of its sliding-window layers, 0 = none. tied: the embedding is the output matrix
    too. biases: of the queries, keys and values. rope_factors: a table of them. rope_scale: divides
    the positions.
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
        found: Tensors = [("token_embd.weight", (self.vocabulary, self.width))]
        if not self.tied:
            found.append(("output.weight", (self.vocabulary, self.width)))
        if self.rope_factors:
            found.append(("rope_freqs.weight", (self.head // 2,)))
        found.append(("output_norm.weight", (self.width,)))
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
            found += [(f"blk.{layer}.{name}.weight", (size,)) for name, size in norms.items()]
            found += [(f"blk.{layer}.{name}.weight", size) for name, size in matrices.items()]
            if self.biases:
                for name in ("attn_q", "attn_k", "attn_v"):
                    found.append((f"blk.{layer}.{name}.bias", matrices[name][:1]))
        return found


_LLAMA: dict[str, Any] = {"architecture": "llama", "rope_base": 5e5, "epsilon": 1e-5}
_LLAMA |= {"vocabulary": 128_256, "context": 131_072, "rope_factors": True}
_GEMMA: dict[str, Any] = {"architecture": "gemma3", "rope_base": 1e6, "epsilon": 1e-6, "head": 256}
SHAPES = {
    "gemma-3-1b": Shape(
        layers=26, width=1152, heads=4, kv_heads=1, feed_forward=6912, vocabulary=262_144,
        context=32_768, window=512, **_GEMMA,
    ),
    "gemma-3-4b": Shape(
        layers=34, width=2560, heads=8, kv_heads=4, feed_forward=10_240, vocabulary=262_208,
        context=131_072, window=1024, rope_scale=8.0, **_GEMMA,
    ),
    "llama-3.2-1b": Shape(
        layers=16, width=2048, heads=32, kv_heads=8, head=64, feed_forward=8192, **_LLAMA
    ),
    "llama-3.2-3b": Shape(
        layers=28, width=3072, heads=24, kv_heads=8, head=128, feed_forward=8192, **_LLAMA
    ),
    "qwen-2.5-7b": Shape(
        "qwen2", layers=28, width=3584, heads=28, kv_heads=4, head=128, feed_forward=18_944,
        vocabulary=152_064, context=32_768, rope_base=1e6, epsilon=1e-6, tied=False, biases=True,
    ),
    "llama-3.1-8b": Shape(
        layers=32, width=4096, heads=32, kv_heads=8, head=128, feed_forward=14_336, tied=False,
        **_LLAMA,
    ),
    "tiny": Shape(
        "llama", layers=2, width=256, heads=4, kv_heads=2, head=64, feed_forward=512,
        vocabulary=1024, context=4096, rope_base=1e4, epsilon=1e-5,
    ),
}  # fmt: skip


def find_shape(name: str, file_type: str) -> tuple[str, str]:
    """Return both names as SHAPES and FILE_TYPES have them; ArgumentError for others."""
    if name.lower() not in SHAPES:
        raise ArgumentError(f"shape {name!r}: expected one of {', '.join(SHAPES)}")
    return name.lower(), check_file_type(file_type)


def make(name: str, file_type: str = "Q4_K_M", *, progress: Progress | None = None) -> Path:
    """Return the file of a shape with weights of a type, writing it into the cache if need be.

    name: one of SHAPES. file_type: one of llcuda.native.file_types.FILE_TYPES.
    progress: called with what is being done, and how far it is, 0.0 to 1.0.
    The cache is $XDG_CACHE_HOME/llcuda/shapes, by default ~/.cache/llcuda/shapes. Besides the file
    itself its F16 form is written, and deleted afterwards.

    Raises ArgumentError for an unknown name, ModelError where the disk has too little room,
    LlcudaError without the gguf package.
    """
    name, file_type = find_shape(name, file_type)
    folder = cache_folder("shapes")
    path = folder / f"{name}-{file_type}.gguf"
    if path.is_file():
        return path
    shape, plain = SHAPES[name], folder / f"{name}-F16.gguf"
    report = progress or (lambda what, share: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if file_type == "F16":
            check_room(folder, _size(shape), ADVICE)
            _write_whole(shape, path, report)
            return path
        check_room(folder, _bytes_to_come(shape, file_type, plain.is_file()), ADVICE)
        source = plain
        if not plain.is_file():
            source = folder / f".{plain.name}.{os.getpid()}.source.part"
            _write_whole(shape, source, report)
        try:
            return quantize(
                source, path, file_type, progress=lambda share: report(f"making {path.name}", share)
            )
        finally:
            if source != plain:
                source.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from None


def _size(shape: Shape) -> int:
    """Bytes of the F16 file, all but the vocabulary's words."""
    return sum(_bytes(name, size) + ALIGNMENT for name, size in shape.tensors())


def _bytes(name: str, size: Sequence[int]) -> int:
    return int(np.prod(size)) * _number_type(size).itemsize


def _number_type(size: Sequence[int]) -> np.dtype[Any]:
    """Matrices are F16, vectors F32, as llama.cpp's converter has them."""
    return np.dtype(np.float16 if len(size) > 1 else np.float32)


def _bytes_to_come(shape: Shape, file_type: str, plain: bool) -> int:
    """Bytes to write for the file, and for its F16 form unless that is there."""
    whole = _size(shape)
    share = {"F32": 2.0, "BF16": 1.0}.get(file_type, QUANTISED)
    return int(whole * share) + (0 if plain else whole)


def _write_whole(shape: Shape, path: Path, report: Progress) -> None:
    """Write the F16 file; it appears when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write_header(shape, part)
        _write_weights(shape, part, lambda share: report("writing random weights", share))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_header(shape: Shape, path: Path) -> None:
    try:
        import gguf
    except ImportError as error:
        raise LlcudaError("shapes need the gguf package: pip install 'llcuda[bench]'") from error
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
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[:BYTE_TOKENS] = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types[BYTE_TOKENS : BYTE_TOKENS + 256] = [gguf.TokenType.BYTE] * 256
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
    """Yield the tokens of a SentencePiece vocabulary: every byte, the letters, made-up words."""
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
    yield from itertools.islice(itertools.chain(letters, words), size - 256 - BYTE_TOKENS)


def _write_weights(shape: Shape, path: Path, report: Callable[[float], None]) -> None:
    """Append the numbers of each tensor to a file that has its header."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(BLOCK, dtype=np.float32) * np.float32(NOISE)
    block, tensors = noise.astype(np.float16), shape.tensors()
    total, written = sum(_bytes(*tensor) for tensor in tensors), 0
    with path.open("ab") as file:
        for name, size in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            if len(size) == 1:
                vector = noise[: size[0]] if name.endswith("bias") else np.ones(size, np.float32)
                file.write(vector.data)
            else:
                offset, left = int(random.integers(BLOCK)), int(np.prod(size))
                while left:
                    chunk = block[offset : offset + left]
                    file.write(chunk.data)
                    left, offset = left - len(chunk), 0
            written += _bytes(name, size)
            report(written / total)
        file.write(bytes(-file.tell() % ALIGNMENT))
