"""Hostile inputs of every kind: each is answered or refused, in bounded time and memory.

    python -m tests.stress.hostile_inputs --inputs 30000       # the whole run, in child processes
    python -m tests.stress.hostile_inputs --number 17          # one number, in this process
    python -m tests.stress.hostile_inputs --kinds gguf,http    # some kinds; --number goes with it

A number is 20 inputs of one kind. An input fails when an exception other than llcuda's errors comes
out, when the server answers 500 or does not answer its health check meanwhile, or when it takes too
long or too much memory. The child's death is a failure of the number.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import random
import resource
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from llcuda import Adapter, Context, Engine, Model, Sampler, core
from llcuda.chat.parser import ChatParser
from llcuda.chat.template import ChatTemplate
from llcuda.conversion.checkpoint import read_checkpoint
from llcuda.conversion.lora import read_adapter
from llcuda.conversion.runner import architectures
from llcuda.errors import LlcudaError
from llcuda.gguf_parser import GGUFReader, inspect_gguf
from llcuda.hub import installed, resolver
from llcuda.native.memory import HEADER, checksum
from llcuda.server import ModelSpec
from llcuda.structured import compile as compile_format
from tests.conftest import VENDOR_MODELS
from tests.stress.children import run_in_children
from tests.support import models, schemas
from tests.support.server import demo, served
from tests.support.waiting import PATIENCE

BATCH = 20  # inputs of a number
SECONDS = 10.0  # that one input may compute, in all threads of the process
BYTES = 1 << 30  # that one input may add to the process
ADDRESS_SPACE = 12 << 30  # of the child
GRAMMARS = VENDOR_MODELS.parent / "grammars"
HUGE = (0, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 10**20, -(10**400), 1e308, math.nan, math.inf, "", "a", "\0",
    "²", "\ud800", "é" * 1000, "a" * 100_000, [], {}, [[]], [None], [1, "a"], {"a": {}}, {"": None},
    [0] * 5000, "<|user|>", "{{ 7 * 7 }}", "../../etc/passwd", [[1]] * 500, {"type": "object"},
)  # fmt: skip


# --- changing bytes and values ---


def changed_bytes(dice: random.Random, data: bytes, head: int) -> bytes:
    """Return damaged bytes; head: how many bytes at the beginning are damaged most."""
    damaged = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 5, 30])):
        size = max(1, len(damaged))
        place = dice.randrange(min(size, head) if dice.random() < 0.85 else size)
        match dice.randrange(9):
            case 0 | 1:
                damaged[place : place + 1] = bytes([dice.randrange(256)])
            case 2:
                damaged[place : place + 4] = struct.pack("<I", dice.choice(HUGE) % 2**32)
            case 3:
                damaged[place : place + 8] = struct.pack("<Q", dice.choice(HUGE))
            case 4:
                place -= place % 4
                damaged[place : place + 8] = struct.pack("<Q", dice.choice(HUGE))
            case 5:
                del damaged[place : place + dice.choice([1, 4, 8, 100])]
            case 6:
                damaged[place:place] = dice.randbytes(dice.choice([1, 4, 8, 100]))
            case 7:
                other = dice.randrange(size)
                damaged[place : place + 16] = damaged[other : other + 16]
            case 8:
                damaged[place : place + 8] = dice.choice([b"\xff" * 8, b"\0" * 8, b"general."])
    if dice.random() < 0.15:
        del damaged[dice.randrange(len(damaged) + 1) :]
    if dice.random() < 0.05:
        damaged += dice.randbytes(dice.choice([1, 64, 10_000]))
    return bytes(damaged)


def changed_value(dice: random.Random, value: Any, times: int = 1) -> Any:
    """Return plain data with junk in some places."""
    value = copy.deepcopy(value)
    for _ in range(times):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(dice.choice(JUNK))
        container, key = dice.choice(places)
        match dice.randrange(6):
            case 0 | 1 | 2:
                container[key] = _junk(dice)
            case 3:
                del container[key]
            case 4:
                if isinstance(container, dict):
                    name = dice.choice(["x", "", "type", "\0", "prompt", "__class__"])
                    container[name] = _junk(dice)
                else:
                    container.insert(0, _junk(dice))
            case 5:
                inner = container[key]
                for _ in range(dice.choice([2, 30, 300])):
                    inner = [inner] if dice.random() < 0.5 else {"a": inner}
                container[key] = inner
    return value


def _junk(dice: random.Random) -> Any:
    return copy.deepcopy(dice.choice(JUNK))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    unvisited: list[Any] = [value]
    while unvisited:
        container = unvisited.pop()
        if isinstance(container, dict | list):
            keys = list(container) if isinstance(container, dict) else range(len(container))
            yield from ((container, key) for key in keys)
            unvisited += [container[key] for key in keys]


def changed_text(dice: random.Random, text: str, parts: tuple[str, ...]) -> str:
    """Return a text with parts inserted, removed, doubled and cut."""
    for _ in range(dice.choice([1, 1, 2, 4, 10])):
        place = dice.randrange(len(text) + 1)
        end = min(len(text), place + dice.choice([1, 3, 20, 200]))
        match dice.randrange(6):
            case 0 | 1:
                text = text[:place] + dice.choice(parts) + text[place:]
            case 2:
                text = text[:place] + text[end:]
            case 3:
                text = text[:end] + text[place:end] * dice.choice([1, 2, 50]) + text[end:]
            case 4:
                text = text[:place] + dice.choice(parts) * dice.choice([2, 30, 1000]) + text[place:]
            case 5:
                letter = chr(dice.choice([0, 9, 34, 92, 123, 955, 0x1F98A]))
                text = text[:place] + letter + text[place:]
    return text[:200_000]


# --- the world ---


class World:
    """Models, engines, a server and files, each made when it is first used.

    Args:
        folder: Where the files are.
        seconds: What one input may compute, and what a health check may take meanwhile.
    """

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self.folder, self.seconds = folder, seconds
        self.stack = ExitStack()

    @cached_property
    def gguf_files(self) -> dict[str, Path]:
        """The tiny models and an adapter."""
        builders = {**models.BUILDERS, "lora": models.lora}
        return {
            name: models.write(self.folder / f"{name}.gguf", *build())
            for name, build in builders.items()
        }

    @cached_property
    def model(self) -> Model:
        """The tiny llama."""
        return self.stack.enter_context(Model(self.gguf_files["llama"], gpu_layers=0))

    @cached_property
    def engine(self) -> Engine:
        """An engine on it."""
        return self.stack.enter_context(Engine(self.model, ctx_size=256, threads=1, n_parallel=2))

    @cached_property
    def context(self) -> Context:
        """A context of two sequences, with a few tokens."""
        context = self.stack.enter_context(Context(self.model, ctx_size=64, sequences=2, threads=1))
        context.decode([5, 6, 7])
        return context

    @cached_property
    def server(self) -> Server:
        """A server on the demo model and one that ranks."""
        rank = models.write(self.folder / "rank.gguf", *models.reranker(labels=2))
        return Server(self.stack, self.folder, rank)

    @cached_property
    def states(self) -> list[tuple[str, bytes]]:
        """States of each kind of memory, of a sequence and of a whole context."""
        found = []
        for kind in ("llama", "gemma3", "mamba"):
            with (
                Model(self.gguf_files[kind], gpu_layers=0) as model,
                Context(model, ctx_size=64, sequences=2, threads=1) as context,
            ):
                context.decode(list(range(20)))
                found += [(kind, context.memory.save(0)), (kind, context.memory.save())]
        return found

    @cached_property
    def templates(self) -> list[str]:
        """The templates beside llama.cpp's source."""
        return [path.read_text() for path in sorted((VENDOR_MODELS / "templates").glob("*.jinja"))]

    @cached_property
    def grammars(self) -> list[str]:
        """The grammars beside llama.cpp's source."""
        return [path.read_text() for path in sorted(GRAMMARS.glob("*.gbnf"))]


# --- files ---


def gguf(dice: random.Random, world: World) -> None:
    """Read a damaged model file in every way, and compute with it where it loads."""
    kind = dice.choice([*models.BUILDERS])
    path = world.folder / "damaged.gguf"
    if dice.random() < 0.7:
        data = world.gguf_files[kind].read_bytes()
        path.write_bytes(changed_bytes(dice, data, 14_000))
    else:
        _write_strange(dice, path, kind)
    for read in (_read_gguf, inspect_gguf, _load_tensors, _compute):
        with suppress(LlcudaError), redirect_stdout(io.StringIO()):
            read(path)


def _write_strange(dice: random.Random, path: Path, kind: str) -> None:
    """Write a well-formed file with strange metadata and tensors."""
    metadata, tensors = models.BUILDERS[kind]()
    keys = [key for key in metadata if key != "general.architecture"]
    values: list[Any] = [0, 1, 3, 2**31, 2**32 - 1, 1.5, math.nan, "", "x" * 1000, True, [1], ["a"]]
    for key in dice.sample(keys, dice.randint(1, 3)):
        if dice.random() < 0.2:
            del metadata[key]
        elif isinstance(metadata[key], list) and dice.random() < 0.7:
            items = metadata[key]
            metadata[key] = dice.choice(
                [items[:-1], items[:1], items * 2, [items[0]] * len(items), items[::-1]]
            )
        else:
            metadata[key] = dice.choice(values)
    for name in dice.sample(list(tensors), dice.choice([0, 0, 1, 2])):
        tensor = tensors[name]
        match dice.randrange(5):
            case 0:
                del tensors[name]
            case 1:
                tensors[name] = tensor.T.copy()
            case 2:
                tensors[name] = tensor[..., : dice.randint(1, tensor.shape[-1])].copy()
            case 3:
                tensors[name] = tensor.astype(dice.choice([np.float16, np.float64, np.int8]))
            case 4:
                tensors[name] = np.full_like(tensor, dice.choice([np.nan, np.inf, 1e38]))
    try:
        models.write(path, metadata, tensors)
    except Exception:  # the writer refuses it
        path.write_bytes(b"GGUF")


def _read_gguf(path: Path) -> None:
    with GGUFReader(path) as reader:
        dict(reader.metadata)
        for tensor in list(reader.tensors)[:3]:
            with suppress(LlcudaError):
                reader.numpy(getattr(tensor, "name", tensor))


def _load_tensors(path: Path) -> None:
    for tensor in list(core.load_tensors(path).values())[:3]:
        tensor.numpy()


def _compute(path: Path) -> None:
    with Model(path, gpu_layers=0) as model:
        with suppress(LlcudaError):
            tokens = model.tokenize("the sea <|user|>", parse_special=True)
            model.detokenize(tokens)
        repr((dict(model.metadata), model.chat_template, model.description, model.eog_tokens))
        with Context(model, ctx_size=32, threads=1) as context:
            if context.remembers:
                context.decode([1, 2, 3][: model.vocab_size])
                Sampler(temperature=0).sample(context)
            else:
                context.encode([1, 2, 3])


def lora(dice: random.Random, world: World) -> None:
    """Load a damaged adapter, and compute with it where it loads."""
    path = world.folder / "damaged-lora.gguf"
    if dice.random() < 0.8:
        data = world.gguf_files["lora"].read_bytes()
        path.write_bytes(changed_bytes(dice, data, 900))
    else:
        metadata, tensors = models.lora(rank=dice.choice([1, 3, 8]))
        metadata["adapter.lora.alpha"] = dice.choice([0.0, math.nan, 1e38, "x", True])
        name = dice.choice(list(tensors))
        tensors[dice.choice([name, name + "x", "blk.9.x.lora_a"])] = tensors.pop(name).T.copy()
        with suppress(Exception):
            models.write(path, metadata, tensors)
    try:
        adapter = Adapter(world.model, path)
        world.context.set_adapters({adapter: 1.0})
        world.context.decode([5])
    except LlcudaError:
        pass
    finally:
        world.context.set_adapters({})
        world.context.memory.remove(0)


def states(dice: random.Random, world: World) -> None:
    """Restore a damaged state, also one whose checksum is right, and decode after it."""
    kind, state = dice.choice(world.states)
    damaged = bytearray(changed_bytes(dice, state, 600))
    if dice.random() < 0.7 and len(damaged) > HEADER.size:
        *facts, _, _ = HEADER.unpack_from(state)
        payload = bytes(damaged[HEADER.size :])
        damaged[: HEADER.size] = HEADER.pack(*facts, checksum(tuple(facts), payload), len(payload))
    whole = HEADER.unpack_from(state)[3] < 0
    with (
        Model(world.gguf_files[kind], gpu_layers=0) as model,
        Context(model, ctx_size=64, sequences=2, threads=1) as context,
    ):
        context.decode([5, 6, 7])
        given: Any = bytes(damaged)
        if dice.random() < 0.3:
            given = world.folder / "damaged.state"
            given.write_bytes(bytes(damaged))
        with suppress(LlcudaError):
            context.load_state(given, seq=None if whole else dice.randrange(2))
        for seq in (0, 1):
            with suppress(LlcudaError):
                context.decode([8], seq=seq)
                context.memory.remove(seq)


_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4,
    "num_hidden_layers": 1, "torch_dtype": "float16", "quantization_config": None,
}  # fmt: skip
_TENSORS = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "F16", "shape": [8, 4], "data_offsets": [0, 64]},
    "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [64, 80]},
}
_PAIR = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
_LORA = {
    f"{_PAIR}A.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    f"{_PAIR}B.weight": {"dtype": "F32", "shape": [6, 2], "data_offsets": [32, 80]},
}
_ADAPTER_CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base", "bias": "none",
    "target_modules": ["q_proj"], "alpha_pattern": {"q.*": 8}, "rank_pattern": {},
}  # fmt: skip


def checkpoints(dice: random.Random, world: World) -> None:
    """Read a damaged checkpoint, or a PEFT adapter, as far as the converter's checks."""
    folder = world.folder / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    is_adapter = dice.random() < 0.4
    config: Any = _ADAPTER_CONFIG if is_adapter else _CONFIG
    header: Any = _LORA if is_adapter else _TENSORS
    index: Any = {"weight_map": dict.fromkeys(list(_TENSORS)[1:], "model.safetensors")}
    match dice.randrange(4):
        case 0:
            config = changed_value(dice, config, dice.choice([1, 2]))
        case 1:
            header = changed_value(dice, header, dice.choice([1, 2]))
        case 2:
            index = changed_value(dice, index, 1)
    text = _json(header)
    size = len(text) if dice.random() < 0.9 else dice.choice(HUGE)
    weights = struct.pack("<Q", size) + text + bytes(80)
    if dice.random() < 0.4:
        weights = changed_bytes(dice, weights, 400)
    data = _json(config)
    if dice.random() < 0.2:
        data = changed_bytes(dice, data, len(data))
    (folder / ("adapter_config.json" if is_adapter else "config.json")).write_bytes(data)
    name = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    (folder / name).write_bytes(weights)
    (folder / "tokenizer.json").write_bytes(changed_bytes(dice, b'{"model": {"vocab": {}}}', 20))
    if not is_adapter and dice.random() < 0.5:
        (folder / "model.safetensors.index.json").write_bytes(_json(index))
    with suppress(LlcudaError):
        if is_adapter:
            read_adapter(folder)
        else:
            read_checkpoint(folder, architectures())
    if dice.random() < 0.1:
        from llcuda import convert

        with suppress(LlcudaError):
            convert(folder, world.folder / "converted.gguf")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def downloads(dice: random.Random, world: World) -> None:
    """Look a model up in a damaged cache of downloads.

    huggingface_hub reads the environment when it is imported: `main` says where the cache is, and
    that there is no network.
    """
    cache = world.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    repository = cache / "models--me--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    blob = repository / "blobs" / ("a" * 64)
    blob.write_bytes(changed_bytes(dice, world.gguf_files["llama"].read_bytes(), 14_000))
    link = snapshot / "tiny.Q4_K_M.gguf"
    match dice.randrange(9):
        case 0:
            link.symlink_to(blob)
        case 1:
            link.symlink_to(repository / "blobs" / "missing")
        case 2:
            link.symlink_to(link)
        case 3:
            link.mkdir()
        case 4:
            (repository / "refs" / "main").write_bytes(dice.randbytes(40))
            link.symlink_to(blob)
        case 5:
            (repository / "refs" / "main").write_text("../../..")
        case 6:
            shutil.rmtree(repository / "snapshots")
            (repository / "snapshots").write_text("x")
        case 7:
            (snapshot / "tiny-00001-of-00003.gguf").symlink_to(blob)
        case 8:
            link.write_bytes(b"")
    names = ["Q4_K_M", "tiny.Q4_K_M.gguf", "../x.gguf", "", "tiny-00001-of-00003.gguf"]
    names = [f"me/tiny:{name}" for name in names]
    names += ["me/tiny", "me/\0", "a" * 5000, "me//tiny:Q4", "hf://me/tiny"]
    with suppress(LlcudaError):
        found = resolver.resolve(dice.choice(names))
        with suppress(LlcudaError):
            _compute(Path(found))
    with suppress(LlcudaError):
        for model in installed.installed_models():
            assert model.path is None or model.path.exists()
        installed.remove(installed.plan_removal(dice.choice(names)))


# --- texts ---

_SCHEMA_PARTS = (
    "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "pattern", "format", "enum", "const",
    "minLength", "maxLength", "uniqueItems", "contains", "propertyNames", "dependentRequired",
)  # fmt: skip


def json_schemas(dice: random.Random, world: World) -> None:
    """Compile a strange schema, and follow it for some tokens."""
    seed = dice.randrange(2**31)
    make = schemas.damaged_schema if dice.random() < 0.7 else schemas.random_schema
    schema: Any = make(seed)
    match dice.randrange(8):
        case 0:
            schema = changed_value(dice, schema, 2)
        case 1:
            for _ in range(dice.choice([10, 200, 3000])):
                schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        case 2:
            count = dice.choice([50, 2000, 20_000])
            schema = {"enum": [f"{i}{'x' * dice.randrange(9)}" for i in range(count)]}
        case 3:
            low, high = sorted(dice.choices([0, 1, 7, 1000, 10**6, 2**31, 10**30], k=2))
            schema = {"type": "string", "minLength": low, "maxLength": high}
            schema = {"type": "array", "items": schema, "minItems": low, "maxItems": high}
        case 4:
            schema = {"anyOf": [copy.deepcopy(schema) for _ in range(dice.choice([3, 60]))]}
        case 5:
            part = dice.choice(_SCHEMA_PARTS)
            schema = {**schema, part: dice.choice([schema, [schema], *JUNK])}
    _follow(dice, world, {"type": "json_schema", "json_schema": {"schema": schema}})


def _follow(dice: random.Random, world: World, response_format: Any) -> None:
    """Compile a format, and choose allowed tokens for a while."""
    with suppress(LlcudaError):
        guide = compile_format(world.model, response_format).guide()
        for _ in range(12):
            forced = guide.forced()
            if forced:
                token = forced[0]
            else:
                bits = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")
                allowed = np.flatnonzero(bits)
                if not len(allowed):
                    raise AssertionError("the mask allows nothing")
                token = int(dice.choice(list(allowed)))
            if world.model.is_eog(token):
                break
            guide.accept(token)


_GBNF = (
    "root ::= ", "::=", "|", "(", ")", "*", "+", "?", "{3}", "{1,}", "{0,1000000}", "[a-z]", "[^",
    "\\x", '"a"', "a", "\n", "# x\n", ".", "<|user|>", "<[11]>", "!<[3]>", "\\U0010ffff", "root",
    '""', "{999999999999}", "a ::= a\n", "b ::= (b)*\n",
)  # fmt: skip
_LARK = (
    "start: ", "x: ", ":", "|", "(", ")", "*", "+", "?", "~3", "~1..100000", '"a"', "/a+/",
    "/(a|b)*c/", "%json {}", '%json {"type": "object"}', "%regex {}", "%ignore /x/", "<[1-5]>",
    "<|user|>", "[max_tokens=3]", "[lazy]", "\n", '"a".."z"', "start", "%import common.WORD",
    "/(?i:x)/", "%llguidance {}",
)  # fmt: skip
_REGEX = (
    "a", ".", "*", "+", "?", "{3}", "{1,1000}", "{100000}", "(", ")", "(?:", "(?i)", "(?=a)",
    "(?<x>", "[a-z]", "[^é]", "\\d", "\\w", "\\p{L}", "\\b", "^", "$", "|", "\\x{10FFFF}", "(a*)*",
    "(a|aa)+", "[^", "\\", "日", "(.*a){20}", "((a{9}){9}){9}", "&", "~",
)  # fmt: skip


def gbnf(dice: random.Random, world: World) -> None:
    """Compile a strange GBNF grammar, as a format and as a sampler's."""
    text = dice.choice(["root ::= [a-z]+", *world.grammars])
    if dice.random() < 0.3:
        text = "root ::= " + "".join(dice.choice(_GBNF) for _ in range(dice.randint(1, 40)))
    elif dice.random() < 0.1:
        count = dice.choice([100, 2000, 11_000])
        text = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} | [a-z]\n" for i in range(count))
        text += f'r{count} ::= "x"'
    else:
        text = changed_text(dice, text, _GBNF)
    with suppress(LlcudaError):
        sampler = Sampler(model=world.model, grammar=text, seed=1)
        sampler.sample_logits(np.zeros(world.model.vocab_size, np.float32))
    _follow(dice, world, {"type": "gbnf", "grammar": text})


def lark(dice: random.Random, world: World) -> None:
    """Compile a strange Lark grammar."""
    text = 'start: x+ "end"\nx: /[a-z]+/ | "(" start ")"\n'
    if dice.random() < 0.4:
        text = "start: " + " ".join(dice.choice(_LARK) for _ in range(dice.randint(1, 30)))
    else:
        text = changed_text(dice, text, _LARK)
    _follow(dice, world, {"type": "lark", "grammar": text})


def regex(dice: random.Random, world: World) -> None:
    """Compile a strange regular expression, or choices."""
    if dice.random() < 0.1:
        count = dice.randint(0, 300)
        choices: Any = [dice.choice(_REGEX) * dice.randint(0, 50) for _ in range(count)]
        return _follow(dice, world, {"type": "choice", "choices": changed_value(dice, choices)})
    text = "".join(dice.choice(_REGEX) for _ in range(dice.choice([1, 4, 12, 40, 400])))
    return _follow(dice, world, {"type": "regex", "regex": text})


_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "the sea <|user|>"}]},
    {
        "role": "assistant", "content": None, "reasoning_content": "hm",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "blue"},
    {"role": "user", "content": "and?"},
]  # fmt: skip
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
                "required": ["a"],
            },
        },
    }
]
_JINJA = (
    "{{ messages }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ 7 // 0 }}",
    "{{ x.y.z }}", "{{ ''.__class__.__mro__ }}", "{{ 'a' * 100000000 }}",
    "{{ range(10**9) | list }}", "{% for i in range(99999) %}", "{% endfor %}", "{{ [1] * 10**8 }}",
    "{{ 10 ** 100000 }}", "{{ 'f' * 20000000 | int(0, 16) }}",
    "{% set n = namespace(a=[]) %}{% for i in range(26) %}{% set n.a = [n.a, n.a] %}{% endfor %}",
    "{{ n.a }}",
    "{{ messages | tojson(indent=4) }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ raise_exception('no') }}", "{% include 'x' %}", "{{ self }}", "{{ cycler }}",
    "{{ lipsum(1000) }}", "{{ dict(a=1) | dictsort }}", "{{ 'a' | center(10**9) }}",
    "{{ 'x' | indent(10**8) }}", "{{ strftime_now('%Y' * 10000) }}", "{{ '%999999999d' % 1 }}",
    "{{ 'a{:>999999999}'.format(1) }}", "{{ messages | map('attr', '__class__') | list }}",
    "{%- if %}", "{{ }}", "{# ", "{{ [].append }}",
    "{{ messages.append(messages) }}{{ messages | tojson }}", "{{ tools | tojson }}",
    "{% generation %}", "{{ messages | sum(start=[]) }}",
    "{{ 'aaaa' | replace('a', 'a' * 9999) | replace('a', 'a' * 9999) }}", "{{ bos_token * 10**7 }}",
    "{{ range(99999) | join('x' * 999) }}", "{% filter upper %}", "{{ (1).__add__ }}",
    "{{ 1e308 * 10 }}", "{% set x = [1] %}{% for i in range(40) %}{% set x = x + x %}{% endfor %}",
    "{{ 'x' | batch(10**9) | list }}", "{{ 9 ** 9 ** 9 }}", "{{ (10 ** 9999) ** 9 // 7 % 3 }}",
    "{{ 'x'.join(['y' * 10**6] * 10**3) }}", "{{ 1 | round(10**9) }}",
    "{{ messages | groupby('role') | list }}", "{{ 'a' | urlize(10**9) }}",
    "{{ ('a' * 10**5) | wordwrap(1) }}", "{{ ' ' * 10**6 | xmlattr }}", "{{ 'a' | unique | list }}",
    "{{ messages | slice(10**8) | list }}", "{{ 'a' | truncate(10**9) }}",
    "{{ 1 | filesizeformat }}",
)  # fmt: skip


def templates(dice: random.Random, world: World) -> None:
    """Render strange messages with a strange template."""
    text = dice.choice(world.templates)
    if dice.random() < 0.5:
        text = "".join(dice.choice(_JINJA) for _ in range(dice.randint(1, 6)))
    elif dice.random() < 0.8:
        text = changed_text(dice, text, _JINJA)
    messages: Any = copy.deepcopy(_MESSAGES[: dice.randint(1, len(_MESSAGES))])
    tools: Any = copy.deepcopy(_TOOLS) if dice.random() < 0.5 else None
    if dice.random() < 0.4:
        messages = changed_value(dice, messages)
    if tools and dice.random() < 0.3:
        tools = changed_value(dice, tools)
    with suppress(LlcudaError):
        ChatTemplate.of(world.model, text).prompt(world.model, messages, tools)


def chats(dice: random.Random, world: World) -> None:
    """Ask an engine with strange messages, tools and choices."""
    given: dict[str, Any] = {
        "messages": copy.deepcopy(_MESSAGES),
        "tools": copy.deepcopy(_TOOLS),
        "tool_choice": dice.choice(["auto", "none", "required"]),
        "template_variables": {"enable_thinking": False},
        "stop": ["zz"],
    }
    if dice.random() < 0.8:
        given["template"] = dice.choice(world.templates)
    given = changed_value(dice, given, dice.choice([1, 1, 2, 3]))
    messages = given.pop("messages", [])
    keywords = {key: value for key, value in given.items() if key.isidentifier()}
    keywords = {"max_tokens": 2, "timeout": 5, "overflow": "truncate", **keywords}
    with suppress(LlcudaError, TypeError):  # TypeError: an unknown keyword
        world.engine.chat(messages, **keywords).result(PATIENCE)


_MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "look", "arguments": {"a": 1}}',
    "{", "}", "<|channel|>analysis<|message|>", "<|start|>assistant", "<|call|>", "[TOOL_CALLS]",
    "[ARGS]", "<function=look>", "<parameter=a>", "</parameter>", "</function>", "look", "\n", " ",
    '"', "\\u00", "[look(a=1)]", "<|python_tag|>", "<arg_key>a</arg_key>",
    "<arg_value>1</arg_value>", "é", "\ud83e", "1e999", "<|tool_calls_section_begin|>", "all\n",
    "<invoke name=\"look\">", "</invoke>", "]]>", "<![CDATA[", "null", "a" * 3000, "[" * 500,
    '{"a":' * 300,
)  # fmt: skip


def answers(dice: random.Random, world: World) -> None:
    """Parse what no model should write, in pieces: no text is an error."""
    syntax = ChatTemplate.of(world.model, dice.choice(world.templates)).syntax
    tools = dice.choice([None, {}, {"look": _TOOLS[0]["function"]["parameters"], "time": {}}])
    text = "".join(dice.choice(_MARKS) for _ in range(dice.choice([2, 8, 30, 200])))
    marks = [mark for pair in syntax.reasoning for mark in (pair.begin, pair.end)]
    for _ in range(3):
        place = dice.randrange(len(text) + 1)
        text = text[:place] + dice.choice([*marks, ""]) + text[place:]
    parser = ChatParser(syntax, dice.choice(["", "<think>", text[:9]]), tools)
    while text:
        size = dice.choice([1, 3, 50, len(text)])
        parser.feed(text[:size])
        text = text[size:]
    parser.flush()
    json.dumps(parser.message())


# --- HTTP ---

_HELLO = [{"role": "user", "content": "Hi"}]
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "demo", "prompt": "Once", "max_tokens": 2, "temperature": 0.5, "stop": ["x"],
        "n": 1, "logprobs": 1, "seed": 1, "logit_bias": {"5": 1}, "stream": False, "timeout": 1,
        "echo": False,
    },
    "/v1/chat/completions": {
        "model": "demo", "messages": _HELLO, "max_tokens": 2, "timeout": 1, "tools": _TOOLS,
        "tool_choice": "auto", "stream": True, "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_object"}, "stream_options": {"include_usage": True},
    },
    "/v1/responses": {
        "model": "demo", "input": _HELLO, "max_output_tokens": 16, "instructions": "a",
        "tools": [{"type": "function", **_TOOLS[0]["function"]}], "tool_choice": "auto",
        "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}, "store": True,
        "metadata": {"a": "b"}, "include": ["message.output_text.logprobs"], "truncation": "auto",
    },
    "/v1/embeddings": {
        "model": "demo", "input": ["a", [1, 2]], "encoding_format": "float", "dimensions": 8,
    },
    "/v1/rerank": {"model": "rank", "query": "a", "documents": ["a", {"text": "b"}], "top_n": 1},
    "/rerank": {"model": "rank", "query": "a", "texts": ["a", "b"], "return_text": True},
    "/v1/classify": {"model": "rank", "input": ["a", [1, 2]], "truncate": True},
    "/v1/score": {"model": "rank", "text_1": "a", "text_2": ["a", "b"], "truncate": True},
    "/tokenize": {"model": "demo", "content": ["a", 5], "add_special": True, "with_pieces": True},
    "/detokenize": {"model": "demo", "tokens": [1, 2, 3]},
    "/completion": {
        "model": "demo", "prompt": ["Once", [1, "a"]], "n_predict": 2, "samplers": ["top_k"],
        "n_probs": 2, "post_sampling_probs": True, "logit_bias": [[5, 1], ["a", False]],
        "grammar": 'root ::= "a"', "id_slot": 0, "response_fields": ["content"], "stream": True,
        "cache_prompt": True, "lora": [], "t_max_predict_ms": 50, "timeout": 1, "n_keep": 1,
    },
    "/infill": {
        "model": "demo", "input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": 2,
        "input_extra": [{"filename": "a", "text": "b"}], "timeout": 1,
    },
    "/apply-template": {"model": "demo", "messages": _HELLO, "tools": _TOOLS},
    "/v1/chat/completions/input_tokens": {"model": "demo", "messages": _HELLO},
    "/lora-adapters": {"model": "demo", "adapters": [{"id": 0, "scale": 0.5}]},
    "/slots/0?action=save&model=demo": {"model": "demo", "filename": "a"},
    "/slots/0?action=restore&model=demo": {"model": "demo", "filename": "a"},
    "/slots/0?action=erase&model=demo": {"model": "demo"},
    "/v1/messages": {
        "model": "demo", "messages": _HELLO, "system": [{"type": "text", "text": "a"}],
        "max_tokens": 2, "stop_sequences": ["x"], "stream": True, "thinking": {"type": "disabled"},
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"}, "temperature": 0.5, "metadata": {"user_id": "a"},
    },
    "/v1/messages/count_tokens": {"model": "demo", "messages": _HELLO, "system": "a"},
    "/api/chat": {
        "model": "demo", "messages": _HELLO, "tools": _TOOLS, "format": "json", "think": False,
        "options": {"num_predict": 2, "temperature": 0.5, "stop": ["x"]}, "logprobs": True,
        "top_logprobs": 2, "keep_alive": 5,
    },
    "/api/generate": {
        "model": "demo", "prompt": "Once", "system": "a", "raw": False, "stream": False,
        "options": {"num_predict": 2, "seed": 1}, "format": {"type": "object"},
    },
    "/api/embed": {"model": "demo", "input": ["a", "b"], "truncate": True, "dimensions": 4},
    "/api/embeddings": {"model": "demo", "prompt": "a", "options": {"num_ctx": 5}},
    "/api/show": {"model": "demo", "verbose": True},
    "/api/pull": {"name": "demo", "stream": False},
    "/v1/batches": {
        "input_file_id": "FILE", "endpoint": "/v1/completions", "completion_window": "24h",
        "metadata": {"a": "b"},
    },
}  # fmt: skip
_LINE = {"custom_id": "1", "method": "POST", "url": "/v1/completions",
         "body": {"model": "demo", "prompt": "Once", "max_tokens": 2}}  # fmt: skip
_PATHS = (
    "/health", "/metrics", "/v1/models", "/v1/models/demo", "/openapi.json", "/docs", "/", "/x",
    "/props", "/props?model=rank", "/slots?model=demo&fail_on_no_slot=1", "/slots/999999999999",
    "/slots/0?action=", "/lora-adapters?model=demo", "/v1/files?limit=0&order=up", "/v1/files/..",
    "/v1/files/x/content", "/v1/batches?limit=1&after=x", "/v1/batches/x", "/v1/batches/x/cancel",
    "/v1/responses/x", "/v1/responses/x/input_items", "/api/tags", "/api/ps", "/api/version",
    "/api/blobs/x", "/api/copy", "/messages",
)  # fmt: skip


class Server:
    """A server in this process, and a thread that asks for its health.

    Args:
        stack: Closes both.
        folder: Where it keeps slots and files.
        rank: The file of a model that ranks.
    """

    def __init__(self, stack: ExitStack, folder: Path, rank: Path) -> None:
        self.slots = folder / "slots"
        files = folder / "files"
        for path in (self.slots, files):
            path.mkdir()
        specs = (demo(ctx_size=128), ModelSpec("rank", str(rank)))
        self.served = stack.enter_context(served(*specs, slot_folder=self.slots, file_folder=files))
        self.bodies = copy.deepcopy(_BODIES)
        answer = self.upload("requests.jsonl", _json(_LINE))
        self.bodies["/v1/batches"]["input_file_id"] = answer.json()["id"]
        self.slowest = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        stack.callback(self._stop)

    def _stop(self) -> None:
        self._ends.set()
        self._thread.join()

    def upload(self, name: str, data: bytes, purpose: str = "batch") -> httpx.Response:
        """Upload a file of requests."""
        form = {"files": {"file": (name, data)}, "data": {"purpose": purpose}}
        return self.served.client.post("/v1/files", **form)  # type: ignore[arg-type]

    def _watch(self) -> None:
        headers = {"connection": "close"}  # the server ends idle ones
        with httpx.Client(base_url=self.served.url, timeout=120, trust_env=False) as client:
            while not self._ends.wait(0.05):
                began = time.monotonic()
                assert 200 == client.get("/health", headers=headers).status_code
                self.slowest = max(self.slowest, time.monotonic() - began)


def http(dice: random.Random, world: World) -> None:
    """Send a strange request; the answer is not 500, and the server's loop goes on."""
    server = world.server
    server.slowest = 0.0
    path = dice.choice([*server.bodies])
    body = server.bodies[path]
    value: Any = changed_value(dice, body, dice.choice([1, 1, 2, 3]))
    headers = {"content-type": "application/json"}
    method = "POST"
    data = _json(value)
    match dice.randrange(16):
        case 0:
            data = changed_bytes(dice, data, len(data))
        case 1:
            data = data[: dice.randrange(len(data) + 1)]
        case 2:
            kinds = ["text/plain", "", "application/json; charset=utf-16", "\xff"]
            headers["content-type"] = dice.choice([*kinds, "multipart/form-data"])
        case 3:
            key = dice.choice(list(body))
            data = data[:-1] + b", " + _json({key: _junk(dice)})[1:]  # a name twice
        case 4:
            data = dice.choice([b"[", b'{"a":', b"[[{", b'"']) * dice.choice([10, 5000, 200_000])
        case 5:
            key = dice.choice(list(body))
            size = dice.choice([1000, 100_000, 1_000_000])
            item = dice.choice(["1", "1.5", '"a"', "null", "[]", "{}", "-1", "1e400", '"\\ud800"'])
            data = f'{{"{key}": [{", ".join([item] * (size // 4))}]}}'.encode()
        case 6:
            method = dice.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "FOO"])
            path = dice.choice([path, *_PATHS])
        case 7:
            path += dice.choice(["?a=b", "/", "//", "%00", "/../x", "?stream=true", "#x", "\u00ff"])
        case 8:
            return _raw(dice, server)
        case 9:
            headers[dice.choice(["authorization", "x-request-id", "host", "expect", "origin"])] = (
                dice.choice(["x" * 5000, "\xff", "100-continue", "Bearer \x7f", "null", "a b\tc"])
            )
        case 10:
            return _upload(dice, server)
        case 11:
            return _restore(dice, server)
    try:
        answer = server.served.client.request(method, path, content=data, headers=headers)
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        return None  # the client refuses to send it
    _check(answer)
    if server.slowest > world.seconds:
        raise AssertionError(f"the health check took {server.slowest:.1f} s")
    return None


def _check(answer: httpx.Response) -> None:
    """Assert that an answer is none of a fault, and that an error has the shape of its API."""
    text = answer.text
    is_known = answer.status_code == 501 or "retry-after" in answer.headers
    if (answer.status_code >= 500 and not is_known) or "internal error" in text:
        raise AssertionError(f"{answer.status_code} {text[:300]}")
    if text == "Invalid HTTP request received.":  # uvicorn's
        return
    if answer.status_code < 400 or answer.request.method in ("HEAD", "OPTIONS"):
        return
    document, path = answer.json(), answer.request.url.path
    assert "Traceback" not in text
    if path.startswith("/api/"):
        assert isinstance(document["error"], str), document
    elif path.startswith(("/v1/messages", "/messages")):
        assert {"type", "message"} == set(document["error"]), document
    else:
        assert {"message", "type", "param", "code"} == set(document["error"]), document


def _upload(dice: random.Random, server: Server) -> None:
    """Upload a strange file in a strange form, and begin a batch of it where it is kept."""
    lines = [_json(changed_value(dice, _LINE)) for _ in range(dice.choice([1, 2, 20]))]
    data = dice.choice([b"\n", b"\r\n", b"", b"\0"]).join(lines)
    if dice.random() < 0.3:
        data = changed_bytes(dice, data, len(data))
    if dice.random() < 0.6:
        name = dice.choice(["a.jsonl", "../../a", "a" * 5000, "\0", "\ud800", ""])
        try:
            answer = server.upload(name, data, dice.choice(["batch"] * 5 + ["", "x" * 70_000]))
        except UnicodeEncodeError:
            return
    else:
        begin = b"--b\r\nContent-Disposition: form-data; name="
        form = begin + b'"purpose"\r\n\r\nbatch\r\n' + begin + b'"file"; filename="a"\r\n\r\n'
        form = changed_bytes(dice, form + data + b"\r\n--b--\r\n", len(form) + 50)
        kinds = ["b", "b", "b", "", "b" * 300, '"', "b; charset=utf-16"]
        headers = {"content-type": f"multipart/form-data; boundary={dice.choice(kinds)}"}
        answer = server.served.client.post("/v1/files", content=form, headers=headers)
    _check(answer)
    if answer.status_code == 200:
        body = {"input_file_id": answer.json()["id"], "endpoint": "/v1/completions"}
        _check(server.served.post("/v1/batches", **body))
        _check(server.served.client.get(f"/v1/files/{body['input_file_id']}/content"))


def _restore(dice: random.Random, server: Server) -> None:
    """Restore a damaged file of a slot, and use the slot after it."""
    name = f"state-{dice.randrange(3)}"
    fill = {"model": "demo", "prompt": "Once upon a time", "n_predict": 2, "id_slot": 1}
    _check(server.served.post("/completion", **fill))
    path = "/slots/1?model=demo&action="
    _check(server.served.post(f"{path}save", model="demo", filename=name))
    file = server.slots / name
    file.write_bytes(changed_bytes(dice, file.read_bytes(), 400))
    _check(server.served.post(f"{path}restore", model="demo", filename=name))
    answer = server.served.post("/completion", **fill)
    _check(answer)
    assert answer.status_code == 200


def _raw(dice: random.Random, server: Server) -> None:
    """Send what is no HTTP, or half of it, and leave."""
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Content-Length: 50", b""]
    lines += [b'{"prompt": "a"', dice.randbytes(30), b"Transfer-Encoding: chunked", b"5", b"\0"]
    lines += [b"Content-Length: -1", b"Expect: 100-continue", b"Upgrade: websocket"]
    data = b"\r\n".join(dice.choice(lines) for _ in range(dice.randint(1, 9)))
    with socket.create_connection(server.served.address, timeout=5) as connection:
        connection.sendall(data)
        connection.settimeout(0.05)
        with suppress(OSError):
            first = connection.recv(4096)
            if b" 500 " in first[:20]:
                raise AssertionError(first[:200])


Kind = Callable[[random.Random, World], None]
KINDS: dict[str, Kind] = {
    call.__name__: call
    for call in (
        gguf, lora, states, checkpoints, downloads, json_schemas, gbnf, lark, regex, templates,
        chats, answers, http,
    )
}  # fmt: skip
SHARES = {"gguf": 3, "http": 4, "json_schemas": 2, "gbnf": 2, "templates": 2, "states": 2}


def kind_of(number: int, names: list[str]) -> str:
    """Return the kind of a number's inputs."""
    weighted = [name for name in names for _ in range(SHARES.get(name, 1))]
    return weighted[number % len(weighted)]


# --- running ---


def run_number(
    number: int, names: list[str], world: World, log: Path | None = None, inputs: int = BATCH
) -> dict[str, Any]:
    """Run the inputs of a number and return what the parent process prints."""
    name = kind_of(number, names)
    failures: list[dict[str, Any]] = []
    slowest, largest = 0.0, 0
    for i in range(inputs):
        if log is not None:
            log.write_text(f"{name} {number} {i}")
        problem, seconds, size = run_input(name, number, i, world)
        slowest, largest = max(slowest, seconds), max(largest, size)
        if problem:
            failures.append({"kind": name, "input": i, "problem": problem})
    return {
        "inputs": inputs,
        "failures": failures,
        "counts": {name: inputs},
        "peaks": {f"{name} seconds": [slowest, number], f"{name} MiB": [largest >> 20, number]},
    }


def run_input(name: str, number: int, i: int, world: World) -> tuple[str, float, int]:
    """Run one input; return what is wrong with it, its seconds of computing and its bytes."""
    dice = random.Random(f"{name} {number} {i}")
    before = _reset_peak()
    began = time.process_time()
    problem = ""
    try:
        KINDS[name](dice, world)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        trace = traceback.extract_tb(error.__traceback__)[-4:]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(trace))
        problem = f"{type(error).__name__}: {str(error)[:500]} at {places}"
    seconds, size = time.process_time() - began, max(0, _peak() - before)
    if not problem and seconds > world.seconds:
        problem = f"{seconds:.1f} s"
    if not problem and size > BYTES:
        problem = f"{size >> 20} MiB"
    return problem, seconds, size


def _reset_peak() -> int:
    """Let the peak of the memory in use begin anew; return what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def main() -> int:
    """Run numbers until so many inputs were tried."""
    parser = argparse.ArgumentParser(description="Hostile inputs.")
    parser.add_argument("--inputs", type=int, default=30_000)
    parser.add_argument("--first", type=int, default=0, help="the first number")
    parser.add_argument("--number", type=int, help="run this one in this process")
    parser.add_argument("--kinds", default=",".join(KINDS), help="names with commas between")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.kinds.split(",")
    if not given.child and given.number is None:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "input"
            arguments = ("--kinds", given.kinds, "--log", str(log))
            module = "tests.stress.hostile_inputs"
            return run_in_children(module, given.first, given.inputs, 300.0, *arguments, log=log)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(Path(folder) / "cache"))
        world = World(Path(folder))
        with world.stack:
            if given.child:
                return run_in_children.child(lambda n: run_number(n, names, world, given.log))
            result = run_number(given.number, names, world)
        for failure in result["failures"]:
            print(failure)
        print(result["counts"], result["peaks"])
        return bool(result["failures"])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
