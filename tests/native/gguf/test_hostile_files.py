"""Files that are no model, or lie about one. Each is an error; a process of its own shows a crash.

The corpus holds what was found to end the process, or might; `test_random_damage` makes more of it.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from tests.support import models

# Loads each file named in argv, uses it as far as it goes, prints a JSON line for each.
WORKER = """
import json, re, sys
from pathlib import Path
import llcuda
from llcuda.errors import LlcudaError
for path in sys.argv[1:]:
    print(json.dumps(["begin", path]), flush=True)
    stage = "load"
    try:
        with llcuda.Model(path) as model:
            dict(model.metadata), model.chat_template
            tokens = [t for t in model.tokenize("the <|bos|> cat") if t < model.vocab_size]
            model.detokenize(tokens, special=True)
            stage = "context"
            with llcuda.Context(model, threads=2, ctx_size=64) as context:
                stage = "decode"
                context.decode(tokens or [0])
                if model.has_decoder:
                    context.decode([llcuda.Sampler(seed=1).sample(context)])
        stage = "fine"
    except LlcudaError as error:
        stage += ": " + type(error).__name__ + ": " + str(error)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024
    print(json.dumps(["end", path, stage, peak]), flush=True)
"""


def verdicts(paths: list[Path]) -> dict[str, str]:
    """Return what became of each file: a stage and an error, "fine", or what ended it."""
    errors: dict[str, str] = {}
    todo = [str(path) for path in paths]
    while todo:
        run = subprocess.run(
            [sys.executable, "-c", WORKER, *todo],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
        for line in map(json.loads, run.stdout.splitlines()):
            path = line[1]
            errors[path] = f"ended the process, code {run.returncode}: {run.stderr[-400:]}"
            if line[0] == "end":
                errors[path] = line[2] if line[3] < 1500 else f"took {line[3]} MiB"
        todo = [path for path in todo if path not in errors]
        assert run.stdout or not todo, run.stderr
    return errors


REFUSED = ("load: ModelError", "load: GGUFError")
Metadata = dict[str, Any]
Change = Callable[[Metadata, models.Tensors], None]


def put(key: str, value: Any, kind: GGUFValueType | None = None) -> Change:
    """Return a change that sets a key."""
    return lambda metadata, tensors: metadata.update({key: (value, kind) if kind else value})


def drop(key: str) -> Change:
    """Return a change that removes a key or a tensor."""

    def change(metadata: Metadata, tensors: models.Tensors) -> None:
        metadata.pop(key, None)
        tensors.pop(key, None)

    return change


def cast(name: str, kind: Any) -> Change:
    """Return a change of a tensor's type."""
    return lambda metadata, tensors: tensors.update({name: tensors[name].astype(kind)})


TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
TYPES, BOS = "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id"
EPSILON = "llama.attention.layer_norm_rms_epsilon"
CHANGED: dict[str, tuple[str, Change]] = {
    "no architecture key known": ("llama", put("general.architecture", "llamma")),
    "an architecture without its tensors": ("llama", put("general.architecture", "phimoe")),
    "zero heads of olmo2 (SIGFPE)": ("mamba", put("general.architecture", "olmo2")),
    "blocks: 10**9": ("llama", put("llama.block_count", 10**9)),
    "blocks: 0": ("llama", put("llama.block_count", 0)),
    "blocks: 1 of 2": ("llama", put("llama.block_count", 1)),
    "blocks as text": ("llama", put("llama.block_count", "two")),
    "blocks as array": ("llama", put("llama.block_count", [2, 2])),
    "blocks negative": ("llama", put("llama.block_count", -1, GGUFValueType.INT32)),
    "heads: 0": ("llama", put("llama.attention.head_count", 0)),
    "heads: too many": ("llama", put("llama.attention.head_count", 2**32 - 1)),
    "heads: 3": ("llama", put("llama.attention.head_count", 3)),
    "heads as array": ("llama", put("llama.attention.head_count", [4, 0])),
    "heads as long array": ("llama", put("llama.attention.head_count", [4] * 1000)),
    "KV heads: 0": ("llama", put("llama.attention.head_count_kv", 0)),
    "KV heads: 3": ("llama", put("llama.attention.head_count_kv", 3)),
    "KV heads: many": ("llama", put("llama.attention.head_count_kv", 65536)),
    "embedding: 0": ("llama", put("llama.embedding_length", 0)),
    "embedding: 2**31": ("llama", put("llama.embedding_length", 2**31)),
    "no embedding length": ("llama", drop("llama.embedding_length")),
    "no blocks": ("llama", drop("llama.block_count")),
    "feed-forward: 0": ("llama", put("llama.feed_forward_length", 0)),
    "context: 0": ("llama", put("llama.context_length", 0)),
    "context: 2**32 - 1": ("llama", put("llama.context_length", 2**32 - 1)),
    "experts: 2**20": ("llama", put("llama.expert_count", 2**20)),
    "experts without use": ("llama", put("llama.expert_count", 4)),
    "epsilon NaN": ("llama", put(EPSILON, float("nan"))),
    "epsilon negative": ("llama", put(EPSILON, -1.0)),
    "rope dimensions: 7": ("llama", put("llama.rope.dimension_count", 7)),
    "rope dimensions: 0": ("llama", put("llama.rope.dimension_count", 0)),
    "rope dimensions beyond the head": ("gemma3", put("gemma3.rope.dimension_count", 2**24)),
    "rope base NaN": ("llama", put("llama.rope.freq_base", float("nan"))),
    "rope base: 0": ("llama", put("llama.rope.freq_base", 0.0)),
    "rope scaling unknown": ("llama", put("llama.rope.scaling.type", "cubic")),
    "window: 0": ("gemma3", put("gemma3.attention.sliding_window", 0)),
    "window: 2**32 - 1": ("gemma3", put("gemma3.attention.sliding_window", 2**32 - 1)),
    "window pattern: 0": ("gemma3", put("gemma3.attention.sliding_window_pattern", 0)),
    "key length: 0": ("gemma3", put("gemma3.attention.key_length", 0)),
    "key length: 15": ("gemma3", put("gemma3.attention.key_length", 15)),
    "SSM convolution: 0": ("mamba", put("mamba.ssm.conv_kernel", 0)),
    "SSM state: 0": ("mamba", put("mamba.ssm.state_size", 0)),
    "SSM rank: 0": ("mamba", put("mamba.ssm.time_step_rank", 0)),
    "pooling unknown": ("bert", put("bert.pooling_type", 77)),
    "token types: 0": ("bert", put("tokenizer.ggml.token_type_count", 0)),
    "tokens as numbers": ("llama", put(TOKENS, [1, 2, 3])),
    "tokens as text": ("llama", put(TOKENS, "abc")),
    "no tokens": ("llama", drop(TOKENS)),
    "one token": ("llama", put(TOKENS, ["a"])),
    "equal tokens": ("llama", put(TOKENS, ["a"] * models.VOCABULARY)),
    "empty tokens": ("llama", put(TOKENS, [""] * models.VOCABULARY)),
    "long tokens": ("llama", put(TOKENS, ["x" * 100_000] * models.VOCABULARY)),
    "no merges": ("llama", drop(MERGES)),
    "empty merges": ("llama", put(MERGES, ["", " ", "a", "a b c"])),
    "merges as numbers": ("llama", put(MERGES, [1, 2])),
    "types too few": ("llama", put(TYPES, [1])),
    "types unknown": ("llama", put(TYPES, [99] * models.VOCABULARY)),
    "types as text": ("llama", put(TYPES, ["a"] * models.VOCABULARY)),
    "BOS out of range": ("llama", put(BOS, 10**9)),
    "BOS -1": ("llama", put(BOS, -1, GGUFValueType.INT32)),
    "EOS out of range": ("llama", put("tokenizer.ggml.eos_token_id", 2**32 - 1)),
    "BOS as text": ("llama", put(BOS, "a")),
    "tokenizer unknown": ("llama", put("tokenizer.ggml.model", "telepathy")),
    "tokenizer empty": ("llama", put("tokenizer.ggml.model", "")),
    "tokenizer: SentencePiece without scores": ("llama", put("tokenizer.ggml.model", "llama")),
    "tokenizer: unigram without map": ("llama", put("tokenizer.ggml.model", "t5")),
    "tokenizer: WordPiece": ("llama", put("tokenizer.ggml.model", "bert")),
    "tokenizer: RWKV": ("llama", put("tokenizer.ggml.model", "rwkv")),
    "tokenizer: PLaMo 2": ("llama", put("tokenizer.ggml.model", "plamo2")),
    "tokenizer: none": ("llama", put("tokenizer.ggml.model", "no_vocab")),
    "split unknown": ("llama", put("tokenizer.ggml.pre", "telepathy")),
    "template with NUL": ("llama", put("tokenizer.chat_template", "a\0b")),
    "parts: 3 of one": ("llama", put("split.count", 3, GGUFValueType.UINT16)),
    "alignment: 0": ("llama", put("general.alignment", 0)),
    "alignment: 2**31": ("llama", put("general.alignment", 2**31)),
    "no output norm": ("llama", drop("output_norm.weight")),
    "no embedding": ("llama", drop("token_embd.weight")),
    "norm in f16 (abort in a worker)": ("llama", cast("output_norm.weight", np.float16)),
    "matrix of int8 (SIGSEGV)": ("llama", cast("blk.0.attn_q.weight", np.int8)),
    "matrix of int32": ("llama", cast("blk.1.ffn_up.weight", np.int32)),
    "matrix of f64": ("llama", cast("output.weight", np.float64)),
    "convolution in f16": ("mamba", cast("blk.0.ssm_conv1d.weight", np.float16)),
    "transposed": ("llama", lambda m, t: t.update({"output.weight": t["output.weight"].T})),
    "an adapter": ("lora", lambda metadata, tensors: None),
}


def header(tensors: int = 0, pairs: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    """Return a GGUF file of these counts and bytes."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    """Return one key and value."""
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def tensors(count: int, shape: tuple[int, int], kind: int = 0, offset: int = 0) -> bytes:
    """Return a file of `count` tensors of the same name."""
    name = struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2)
    info = name + struct.pack("<qqIQ", *shape, kind, offset)
    return header(count, 1, rest=ARCH + info * count)


ARCH = pair(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama")
RAW = {
    "empty": b"",
    "one byte": b"G",
    "the magic alone": b"GGUF",
    "no GGUF": b"PK\3\4" + b"\0" * 100,
    "zeros after the magic": b"GGUF" + b"\0" * 100,
    "an empty model": header(),
    "version 0": header(version=0),
    "version 1": header(version=1),
    "version 4": header(version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors: 2**63 - 1": header(tensors=2**63 - 1),
    "tensors: 2**64 - 1": header(tensors=2**64 - 1),
    "pairs: 2**63 - 1": header(pairs=2**63 - 1),
    "pairs: 2**64 - 1": header(pairs=2**64 - 1),
    "key of 2**64 - 1 bytes": header(pairs=1, rest=struct.pack("<Q", 2**64 - 1)),
    "key of 2**30 bytes": header(pairs=1, rest=struct.pack("<Q", 2**30)),
    "array of 2**62": header(pairs=1, rest=pair(b"a", 9, struct.pack("<IQ", 4, 2**62))),
    "array of 2**61 texts": header(pairs=1, rest=pair(b"a", 9, struct.pack("<IQ", 8, 2**61))),
    "array of arrays": header(pairs=1, rest=pair(b"a", 9, struct.pack("<IQ", 9, 2) * 5)),
    "unknown type": header(pairs=1, rest=pair(b"a", 77, b"\0" * 8)),
    "the same key twice": header(pairs=2, rest=ARCH + ARCH),
    "architecture alone": header(pairs=1, rest=ARCH),
    "tensor of 2**40 x 2**40": tensors(1, (2**40, 2**40)),
    "tensor of negative size": tensors(1, (-1, 4)),
    "tensor of no size": tensors(1, (0, 0)),
    "tensor of unknown type": tensors(1, (4, 4), 99),
    "tensor of a removed type": tensors(1, (4, 4), 4),
    "tensor beyond the end": tensors(1, (4, 4), 0, 2**40),
    "the same tensor twice": tensors(2, (4, 4)),
    "tensor of 77 dimensions": header(1, 1, rest=ARCH + b"\1" + b"\0" * 7 + b"t\x4d\0\0\0"),
}  # fmt: skip
MAY_LOAD = {
    "blocks: 1 of 2", "heads as array", "context: 2**32 - 1", "rope base NaN", "rope base: 0",
    "window: 0", "window: 2**32 - 1", "window pattern: 0", "one token", "equal tokens",
    "empty tokens", "long tokens", "no merges", "empty merges", "types unknown", "BOS out of range",
    "BOS -1", "EOS out of range", "tokenizer: SentencePiece without scores", "split unknown",
    "tokenizer: unigram without map", "tokenizer: WordPiece", "tokenizer: RWKV", "pooling unknown",
    "tokenizer: PLaMo 2", "tokenizer: none", "template with NUL", "context: 0", "KV heads: 0",
    "blocks negative",
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each file of the corpus, by its name there."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for number, (name, content) in enumerate([*RAW.items(), *CHANGED.items()]):
        paths[name] = folder / f"{number}.gguf"
        if isinstance(content, bytes):
            paths[name].write_bytes(content)
            continue
        kind, change = content
        metadata, tensors = {**models.BUILDERS, "lora": models.lora}[kind]()
        change(metadata, tensors)
        models.write(paths[name], metadata, tensors)
    by_path = verdicts(list(paths.values()))
    return {name: by_path[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("name", [*RAW, *CHANGED])
def test_a_file_that_is_no_model(name: str, found: dict[str, str]) -> None:
    """A ModelError, or one of ours later where llama.cpp reads over the damage."""
    verdict = found[name]
    assert "ended the process" not in verdict
    assert "took" not in verdict.split(":")[0]
    if name not in MAY_LOAD:
        assert verdict.startswith((*REFUSED, "context: ContextError")), verdict


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tensor of unknown type", "has type 99, which ggml does not have"),
        ("unknown type", "has a type that GGUF does not have"),
    ],
)
def test_numbers_of_types_are_checked_first(
    name: str, expected: str, found: dict[str, str]
) -> None:
    """Before ggml's reader takes them for types, which is undefined behaviour."""
    assert expected in found[name]


def test_truncated_anywhere(model_files: dict[str, Path], tmp_path: Path) -> None:
    """A download that broke off is a ModelError wherever it ends."""
    whole = model_files["llama"].read_bytes()
    sizes = [*range(64), *range(64, len(whole), len(whole) // 100)]
    paths = []
    for size in sizes:
        paths.append(tmp_path / f"{size}.gguf")
        paths[-1].write_bytes(whole[:size])
    for path, verdict in verdicts(paths).items():
        assert verdict.startswith(REFUSED), f"{path}: {verdict}"


@pytest.mark.parametrize("kind", models.BUILDERS)
def test_random_damage(kind: str, model_files: dict[str, Path], tmp_path: Path) -> None:
    """Bytes of the header changed at random: an error of ours, or a model that still loads."""
    whole = model_files[kind].read_bytes()
    random = np.random.default_rng(len(whole))
    paths = []
    for number in range(60):
        content = bytearray(whole)
        for _ in range(int(random.choice([1, 2, 8]))):
            at = int(
                random.choice([random.integers(24), random.integers(1200), random.integers(9000)])
            )
            size = int(random.choice([1, 8]))
            value = int(random.choice([0, 1, 255, 2**31, 2**62, random.integers(256)]))
            content[at : at + size] = struct.pack("<Q", value)[:size]
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(content)
    for path, verdict in verdicts(paths).items():
        assert verdict.startswith(("load: ", "context: ", "decode: ", "fine")), f"{path}: {verdict}"
