"""Calls every public function with hostile values: `python -m tests.support.hostile_arguments`.

The arguments are how many values each parameter gets, of all by a seed, and the names of the calls.
Prints a line of JSON for each exception that is neither llcuda's nor a TypeError. An exception of
a value's own methods may pass.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, get_type_hints

import numpy as np

import llcuda
from llcuda import core, keywords, nf4, samplers, structured
from llcuda.engine.config import EngineParams
from llcuda.errors import LlcudaError
from llcuda.gguf_editor import merge_gguf, set_metadata, split_gguf
from llcuda.gguf_parser import GGUFReader
from llcuda.gguf_writer import RawTensor, write_gguf
from tests.support.waiting import PATIENCE

WATCHDOG = 60.0  # seconds for one call


class RaisedError(Exception):
    """What the methods of a hostile object raise."""


class Raising:
    """An object each of whose methods raises."""

    def _raise(self, *_: Any, **__: Any) -> Any:
        raise RaisedError

    __len__ = __iter__ = __getitem__ = __contains__ = __index__ = __int__ = __float__ = _raise
    __bool__ = __eq__ = __hash__ = __fspath__ = __call__ = __lt__ = __neg__ = __add__ = _raise
    __enter__ = __exit__ = __array__ = __dlpack__ = __dlpack_device__ = keys = items = _raise


class Endless:
    """A sequence that says that it is long and then ends, or has no end."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        raise IndexError


deep: list[Any] = []
for _ in range(2000):
    deep = [deep]
VALUES: dict[str, Any] = {
    "None": None, "True": True, "0": 0, "-1": -1, "2**31": 2**31, "2**63": 2**63, "2**70": 2**70,
    "-2**70": -(2**70), "1.5": 1.5, "nan": float("nan"), "inf": float("inf"), "1e308": 1e308,
    "complex": 1j, "empty text": "", "text": "x", "long text": "x " * 5000, "surrogate": "a\ud800b",
    "zero": "a\0b", "bytes": b"\xff\x00", "bytearray": bytearray(b"x"), "[]": [], "[[]]": [[]],
    "[None]": [None], "[-1]": [-1], "[2**70]": [2**70], "[nan]": [float("nan")], "[text]": ["x"],
    "[surrogate]": ["\ud800"], "deep": deep, "{}": {}, "{x: y}": {"x": "y"}, "{1: 2}": {1: 2},
    "{None}": {None}, "object": object(), "type": int, "raising": Raising(),
    "[raising]": [Raising()],
    "endless": Endless(), "array": np.zeros(3, np.float32), "no array": np.zeros((0, 3), np.int32),
    "object array": np.array([None]), "nan array": np.full((2, 2), np.nan), "generator": range(3),
    "path": Path("/no/such/file"), "folder": Path("/"), "/dev/null": "/dev/null",
}  # fmt: skip

Call = tuple[str, Callable[..., Any], dict[str, Any]]


def read_nothing(path: str) -> str:
    """Read a file; a tool."""
    return path


def named(kind: Any, **valid: Any) -> dict[str, Any]:
    """The keywords of a TypedDict, each left out unless it has a valid value."""
    return {**dict.fromkeys(get_type_hints(kind), ...), **valid}


def calls(folder: Path) -> Iterator[Call]:
    """Yield each public call by its name, with valid arguments; `...` leaves one out."""
    hello = [{"role": "user", "content": "Hello"}]
    text = "Once upon a time there was a fox. " * 30
    demo = llcuda.demo_model()
    out = folder / "out.gguf"
    with llcuda.Model("demo") as model:
        short = {"max_tokens": 2}
        yield (
            "Model",
            llcuda.Model,
            named(keywords.ModelKeywords, path="demo", params=..., progress=...),
        )
        yield "ModelParams", llcuda.ModelParams, named(keywords.ModelKeywords)
        yield "from_pretrained", llcuda.Model.from_pretrained, {
            "source": folder, "quantization": "Q4_K_M", "base": ..., "progress": ...}  # fmt: skip
        yield "tokenize", model.tokenize, {"text": "Hi", "add_special": ..., "parse_special": ...}
        yield "detokenize", model.detokenize, {
            "tokens": [5], "remove_special": ..., "special": ..., "clean_spaces": ...}  # fmt: skip
        for name in ("piece", "piece_bytes", "is_eog", "is_control", "check_token"):
            yield name, getattr(model, name), {"token": 5}
        yield "token_list", model.token_list, {"tokens": [5]}
        yield "Adapter", llcuda.Adapter, {"model": model, "path": demo}
        yield "memory_needed", llcuda.memory_needed, named(
            keywords.PlanKeywords, path="demo", model=..., context=...)  # fmt: skip

        context = llcuda.Context(model, ctx_size=64, sequences=2, threads=1)
        yield "Context", llcuda.Context, named(
            keywords.ContextKeywords, model=model, ctx_size=64, params=...)  # fmt: skip
        yield "ContextParams", llcuda.ContextParams, named(keywords.ContextKeywords)
        yield "decode", context.decode, {"tokens": [5], "seq": ..., "pos": ..., "logits": ...}
        context.memory.clear()
        yield "decode_batch", context.decode_batch, {
            "tokens": [5], "seqs": [0], "positions": ..., "logits": ...}  # fmt: skip
        context.memory.clear()
        context.decode([5, 6])
        for name in ("logits", "embeddings"):
            yield name, getattr(context, name), {"i": -1}
        yield "encode", context.encode, {"tokens": [5]}
        yield "logprobs", context.logprobs, {"tokens": [5], "indices": [-1], "n": ...}
        yield "top_logprobs", context.top_logprobs, {"n": 2, "i": ...}
        yield "logprob", context.logprob, {"token": 5, "i": ...}
        yield "score", context.score, {"tokens": [5, 6], "seq": 1}
        yield "n_past", context.n_past, {"seq": 0}
        yield "sequence_embedding", context.sequence_embedding, {"seq": 0}
        yield "save_state", context.save_state, {"path": folder / "state", "seq": ...}
        yield "load_state", context.load_state, {"state": context.save_state(), "seq": ...}
        yield "set_adapters", context.set_adapters, {"adapters": {}}
        yield "set_embeddings", context.set_embeddings, {"on": False}
        yield "set_threads", context.set_threads, {"threads": 1, "threads_batch": ...}
        memory = context.memory
        span = {"seq": 0, "begin": 0, "end": ...}
        yield "memory.range", memory.range, {"seq": 0}
        yield "memory.rollback", memory.rollback, {"count": 0, "seq": ...}
        yield "memory.copy", memory.copy, {"source": 0, "target": 1, "begin": ..., "end": ...}
        yield "memory.keep", memory.keep, {"seq": 0}
        yield "memory.shift", memory.shift, {"delta": 0, **span}
        yield "memory.divide", memory.divide, {"divisor": 1, **span}
        yield "memory.save", memory.save, {"seq": ..., "partial": ...}
        yield "memory.load", memory.load, {"state": memory.save(), "seq": ...}
        yield "memory.remove", memory.remove, span
        yield "memory.clear", memory.clear, {"data": ...}
        context.decode([5, 6])

        sampler = llcuda.Sampler(model=model)
        yield "Sampler", llcuda.Sampler, named(
            keywords.SamplingKeywords, chain=..., params=..., model=model)  # fmt: skip
        yield "SamplingParams", llcuda.SamplingParams, named(keywords.SamplingKeywords)
        yield "bind", sampler.bind, {"model": model}
        yield "sample", sampler.sample, {"context": context, "i": ...}
        logits = np.zeros(model.vocab_size, np.float32)
        yield "sample_logits", sampler.sample_logits, {"logits": logits, "model": ...}
        yield "accept", sampler.accept, {"token": 5, "model": ...}
        yield "accept_prompt", sampler.accept_prompt, {"tokens": [5], "model": ...}
        for step, fields in STEPS.items():
            yield step, made_chain(step), fields

        engine = llcuda.Engine(model, ctx_size=128, threads=1)
        yield "Engine", llcuda.Engine, named(
            keywords.ConfigKeywords, model=model, config=..., on_step=..., on_request=...,
            metrics=..., ctx_size=64)  # fmt: skip
        yield "EngineParams", EngineParams, dict.fromkeys(EngineParams.__dataclass_fields__, ...)
        yield "EngineConfig", llcuda.EngineConfig, {"model": ..., "context": ..., "engine": ...}
        yield "from_kwargs", llcuda.EngineConfig.from_kwargs, named(keywords.ConfigKeywords)
        submit = named(keywords.SubmitKeywords, **short)
        yield (
            "submit",
            settled(engine.submit),
            {"prompt": "Hi", "params": ..., "sampling": ..., **submit},
        )
        yield "submit_n", settled_n(engine.submit_n), {"prompt": "Hi", "n": 2, **submit}
        yield "chat", settled(engine.chat), named(keywords.ChatKeywords, messages=hello, **short)
        yield "run", engine.run, named(
            keywords.RunKeywords, messages=hello, tools=[read_nothing], max_turns=1, approve=...,
            on_error=..., on_message=..., on_delta=..., **short)  # fmt: skip
        yield "tokenize", engine.tokenize, {"text": "a", "parse_special": ...}
        yield "count_tokens", engine.count_tokens, named(keywords.PromptKeywords, prompt=hello)
        yield "embedder", engine.embedder, {"pooling": "mean"}
        yield "embed", engine.embed, {
            "texts": ["a"], "pooling": "mean", "normalize": ..., "truncate": ..., "dimensions": ...,
            "parse_special": ...}  # fmt: skip
        yield "rerank", engine.rerank, {"query": "a", "documents": ["b"], "truncate": ...}
        yield "Request.result", engine.submit("Hi", max_tokens=1).result, {"timeout": ...}
        yield "Chat.result", engine.chat(hello, max_tokens=1).result, {"timeout": ...}
        yield "engine.close", llcuda.Engine(model, ctx_size=64).close, {"drain": ...}
        with llcuda.Embedder(model, pooling="mean", ctx_size=64) as embedder:
            yield (
                "Embedder",
                llcuda.Embedder,
                named(
                    keywords.EmbedderKeywords,
                    model=model,
                    pooling="mean",
                    ctx_size=64,
                    batch_size=...,
                ),
            )
            yield "Embedder.embed", embedder.embed, {
                "texts": ["a"], "normalize": ..., "truncate": ..., "dimensions": ...}  # fmt: skip
            yield "Embedder.rerank", embedder.rerank, {"query": "a", "documents": ["b"]}
            yield "Embedder.classify", embedder.classify, {"texts": ["a"], "truncate": ...}
        yield "RequestParams", llcuda.RequestParams, dict.fromkeys(
            llcuda.RequestParams.__dataclass_fields__, ...)  # fmt: skip

        template = llcuda.ChatTemplate.of(model)
        yield (
            "ChatTemplate",
            llcuda.ChatTemplate,
            {"source": "x", "bos": ..., "eos": ..., "controls": ...},
        )
        yield "ChatTemplate.of", llcuda.ChatTemplate.of, {"model": model, "name": ...}
        yield "render", template.render, {
            "messages": hello, "tools": ..., "add_generation_prompt": ...,
            "variable": ...}  # fmt: skip
        yield "prompt", template.prompt, {"model": model, "messages": hello, "tools": ...}
        yield "structured.compile", structured.compile, {
            "model": model, "response_format": ..., "schema": {"type": "object"}, "compact": ...,
        }  # fmt: skip
        yield "structured.guide", structured.guide, {"model": model, "response_format": ...}
        guide = structured.guide(model, schema={"type": "object"})
        yield "guide.accept", guide.accept, {"token": 5}
        yield "tool_format", partial(structured.tool_format, around=lambda name: (name, "")), {
            "tools": [{"function": {"name": "a", "parameters": {}}}], "tool_choice": ...,
            "trigger": ..., "parallel": ...}  # fmt: skip

        evaluation = {"text": text, "chunk": 64, "chunks": 1, "progress": ..., "gpu_layers": ...}
        yield "perplexity", llcuda.perplexity, named(
            keywords.EvaluationKeywords, model=model, **evaluation)  # fmt: skip
        yield "divergence", llcuda.divergence, {"model": model, "reference": model, **evaluation}
        yield "importance_matrix", llcuda.importance_matrix, {
            "model": model, **evaluation, "output": ..., "dataset": ...}  # fmt: skip
        engine.close()
        context.close()

    yield "quick_infer", llcuda.quick_infer, named(keywords.GenerateKeywords, prompt="Hi", **short)
    loaded = llcuda.InferenceEngine()
    loaded.load_model("demo", ctx_size=128, verbose=False)
    generate = named(keywords.GenerateKeywords, **short)
    yield "infer", loaded.infer, {"prompt": "Hi", **generate}
    yield "infer_n", loaded.infer_n, {"prompt": "Hi", "n": 2, **short, "seed": ...}
    yield "batch_infer", loaded.batch_infer, {"prompts": ["Hi"], **short, "seed": ..., "stop": ...}
    yield "stream", listed(loaded.stream), {"prompt": "Hi", **short, "seed": ..., "stop": ...}
    loaded.unload_model()
    yield "load_model", llcuda.InferenceEngine().load_model, {
        "model_name": "demo", "filename": ..., "gpu_layers": ..., "ctx_size": 64, "n_parallel": ...,
        "batch_size": ..., "auto_configure": ..., "verbose": False, "silent": ...}  # fmt: skip

    yield "quantize", llcuda.quantize, {
        "source": "demo", "target": out, "file_type": "Q8_0", "imatrix": ..., "tensor_types": ...,
        "threads": ..., "progress": ...}  # fmt: skip
    yield "quantize_plan", llcuda.quantize_plan, {
        "source": "demo", "file_type": "Q8_0", "imatrix": ..., "tensor_types": ...}  # fmt: skip
    yield "convert", llcuda.convert, {
        "source": folder, "target": out, "file_type": ..., "base": ..., "merge": ...,
        "threads": ...}  # fmt: skip
    yield "ImportanceMatrix.load", llcuda.ImportanceMatrix.load, {"path": demo}
    yield "ImportanceMatrix", llcuda.ImportanceMatrix, {
        "entries": ..., "datasets": ..., "chunks": ..., "chunk_size": ...}  # fmt: skip
    yield "ImportanceMatrix.save", llcuda.ImportanceMatrix().save, {"path": folder / "i.gguf"}
    yield "ImportanceMatrix.means", llcuda.ImportanceMatrix().means, {"name": "x"}
    yield "write_gguf", write_gguf, {
        "path": out, "metadata": {"a": 1},
        "tensors": {"t": np.zeros((2, 32), np.float32)}}  # fmt: skip
    yield "write_gguf value", lambda value: write_gguf(out, {"a": value}, {}), {"value": 1}
    yield "write_gguf key", lambda key: write_gguf(out, {key: 1}, {}), {"key": "a"}
    yield "write_gguf tensor", lambda t: write_gguf(out, {}, {"t": t}), {"t": np.zeros(32)}
    yield "set_metadata", set_metadata, {
        "path": "demo", "changes": {"a": 1}, "remove": ..., "target": out,
        "progress": ...}  # fmt: skip
    yield "set_metadata value", lambda value: set_metadata("demo", {"a": value}, target=out), {
        "value": 1}  # fmt: skip
    yield "set_metadata key", lambda key: set_metadata("demo", {key: 1}, target=out), {"key": "a"}
    yield "split_gguf", split_gguf, {
        "path": "demo", "target": out, "max_size": ..., "max_tensors": 20,
        "progress": ...}  # fmt: skip
    parts = split_gguf("demo", folder / "part", max_tensors=20)
    yield "merge_gguf", merge_gguf, {"path": parts[0], "target": out, "progress": ...}
    kind = llcuda.gguf_parser.GGMLType.F32
    yield "RawTensor", lambda **k: write_gguf(out, {}, {"t": RawTensor(**k)}), {
        "shape": [1], "ggml_type": kind, "data": b"1234"}  # fmt: skip
    with GGUFReader("demo") as reader:
        yield "GGUFReader", GGUFReader, {"path": "demo", "split": ...}
        for name in ("get_tensor_data", "numpy"):
            yield name, getattr(reader, name), {"name": "output_norm.weight"}
        yield "get_metadata_value", reader.get_metadata_value, {"key": "general.name"}
    yield "Utf8Decoder", llcuda.Utf8Decoder().decode, {"piece": b"a"}
    yield from tensor_calls()
    yield from nf4_calls()
    yield from batch_calls()


STEPS: dict[str, dict[str, Any]] = {
    "AdaptiveP": {"target": 0.5, "decay": ..., "seed": ...},
    "DRY": {"multiplier": 0.8, "base": ..., "allowed_length": ..., "last_n": ..., "breakers": ...},
    "Distribution": {"seed": ...},
    "Grammar": {"grammar": 'root ::= "a"', "root": ..., "patterns": ..., "tokens": ...},
    "LogitBias": {"bias": {1: 1.0}},
    "MinP": {"p": 0.1, "min_keep": ...},
    "Mirostat": {"tau": ..., "eta": ..., "m": ..., "seed": ...},
    "MirostatV2": {"tau": ..., "eta": ..., "seed": ...},
    "Penalties": {"last_n": ..., "repeat": 1.1, "frequency": ..., "presence": ...},
    "Python": {"apply": lambda candidates: None, "accept": ..., "reset": ...},
    "Temperature": {"temperature": 0.7, "spread": ..., "exponent": ...},
    "TopK": {"k": 5},
    "TopNSigma": {"n": 1.0},
    "TopP": {"p": 0.9, "min_keep": ...},
    "Typical": {"p": 0.9, "min_keep": ...},
    "XTC": {"probability": 0.5, "threshold": ..., "min_keep": ..., "seed": ...},
}


def made_chain(step: str) -> Callable[..., Any]:
    """Return a function that makes a sampler with one step, and samples with it."""
    model = llcuda.Model("demo")
    logits = np.linspace(0, 1, model.vocab_size, dtype=np.float32)

    def make(**fields: Any) -> Any:
        chain = [getattr(samplers, step)(**fields), samplers.Greedy()]
        with llcuda.Sampler(chain=chain, model=model) as sampler:
            return sampler.sample_logits(logits, model)

    return make


def settled(submit: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, **k: submit(*a, **k).result(PATIENCE)


def settled_n(submit: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, **k: [request.result(PATIENCE) for request in submit(*a, **k)]


def listed(stream: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, **k: list(stream(*a, **k))


def tensor_calls() -> Iterator[Call]:
    """Yield the calls of llcuda.core."""
    tensor = core.Tensor
    x = tensor.from_numpy(np.arange(12, dtype=np.float32).reshape(3, 4), "cpu")
    rows = tensor.from_numpy(np.array([0, 1], np.int32), "cpu")
    made = {"shape": [2, 2], "dtype": ..., "device": "cpu"}
    for name in ("zeros", "ones"):
        yield name, getattr(tensor, name), made
    yield "Tensor", tensor, made
    yield "full", tensor.full, {"value": 1.0, **made}
    yield "from_numpy", tensor.from_numpy, {"array": np.zeros(3, np.float32), "device": "cpu"}
    yield "from_bytes", tensor.from_bytes, {
        "data": b"1234", "shape": [1], "dtype": core.DType.Float32, "device": "cpu"}  # fmt: skip
    yield "from_dlpack", tensor.from_dlpack, {"source": np.zeros(3, np.float32), "copy": ...}
    yield (
        "__dlpack__",
        x.__dlpack__,
        {"stream": ..., "max_version": (1, 0), "dl_device": ..., "copy": ...},
    )
    yield "write", x.write, {"array": np.ones((3, 4), np.float32)}
    yield "to", x.to, {"target": core.DType.Float16, "importance": ...}
    for name in ("reshape", "view", "transpose"):
        yield (
            name,
            lambda a, name=name: getattr(x, name)(a),
            {"a": [4, 3] if name != "transpose" else [1, 0]},
        )
    yield "getitem", lambda key: x[key], {"key": 0}
    yield "setting", lambda key: x[0, key], {"key": 0}
    for name in ("sum", "mean", "argmax"):
        yield name, getattr(x, name), {"axis": ...}
    for operator in ("add", "sub", "mul", "truediv", "matmul", "radd", "rsub", "rtruediv", "eq"):
        yield operator, getattr(x, f"__{operator}__"), {"other": x.T if operator == "matmul" else x}
    for name in (
        "exp",
        "gelu",
        "relu",
        "silu",
        "log",
        "sqrt",
        "tanh",
        "softmax",
        "sigmoid",
        "square",
    ):
        yield name, getattr(core, name), {"x": x}
    yield "softmax", core.softmax, {"x": x, "axis": ...}
    yield "clamp", core.clamp, {"x": x, "low": 0.0, "high": 1.0}
    yield "concat", core.concat, {"tensors": [x, x], "axis": ...}
    yield "get_rows", core.get_rows, {"table": x, "rows": rows}
    for name in ("layer_norm", "rms_norm"):
        yield name, getattr(core, name), {"x": x, "weight": ..., "eps": ...}
    yield "matmul", core.matmul, {"a": x, "b": x.T}
    yield "scale", core.scale, {"x": x, "factor": 2.0, "bias": ...}
    heads = tensor.zeros([2, 1, 4], device="cpu")
    yield "rope", core.rope, {
        "x": heads, "positions": rows, "dims": ..., "base": ..., "scaling": ..., "neox": ...,
        "factors": ...}  # fmt: skip
    yield (
        "load_tensors",
        core.load_tensors,
        {"path": "demo", "names": ["output_norm.weight"], "device": "cpu"},
    )
    yield "Device", core.Device, {"device": "cpu"}
    for name in (
        "properties",
        "get_free_memory",
        "get_total_memory",
        "synchronize",
        "release_memory",
    ):
        yield name, getattr(core.Device, name), {"device": "cpu"}
    yield "from_nf4", core.from_nf4, {"state": quant_state(), "dtype": ..., "device": "cpu"}


def quant_state() -> nf4.QuantState:
    packed, absmax = nf4.quantize(np.ones((2, 64), np.float32), quant_type="nf4")
    return nf4.QuantState(packed, absmax, "nf4", 64, (2, 64), "float32")


def nf4_calls() -> Iterator[Call]:
    """Yield the calls of llcuda.nf4."""
    state = quant_state()
    fields = {
        "packed": state.packed, "absmax": state.absmax, "quant_type": "nf4", "block_size": 64,
        "shape": (2, 64)}  # fmt: skip
    yield "nf4.quantize", nf4.quantize, {
        "weights": np.ones((2, 64), np.float32), "quant_type": "nf4",
        "block_size": ...}  # fmt: skip
    yield "nf4.dequantize", nf4.dequantize, {**fields, "dtype": ..., "code": ..., "out": ...}
    yield "QuantState", lambda **k: nf4.QuantState(**k).dequantize(), {**fields, "dtype": "float32"}
    yield "QuantState.dequantize", state.dequantize, {"dtype": ..., "code": ..., "out": ...}
    codes, means, nested, offset = nf4.quantize_absmax(state.absmax)
    yield "quantize_absmax", nf4.quantize_absmax, {"absmax": state.absmax, "offset": ...}
    yield "nf4.absmax", nf4.absmax, {
        "quantized": codes, "code": means, "nested_absmax": nested, "nested_block_size": ...,
        "offset": offset}  # fmt: skip
    yield "from_tensors", nf4.QuantState.from_tensors, {"name": "x", "tensors": {}}


def batch_calls() -> Iterator[Call]:
    """Yield the calls for many rows, whose errors may stand in their places."""
    short: dict[str, Any] = {"max_tokens": 1, "ctx_size": 128, "threads": 1, "on_error": "return"}
    recipe = {"source": "demo", "column": ..., "prefix": ..., "filename": ..., "on_error": ...}
    yield "BatchProcessor", llcuda.BatchProcessor, named(keywords.BatchKeywords, task=..., **recipe)
    for task, column, row in (("infer", "prompt", "Hi"), ("chat", "messages", "Hi")):
        ask = llcuda.BatchProcessor("demo", task, **short)
        yield f"{task} batch", ask, {"batch": {column: [row]}}
        yield f"{task} column", lambda rows, a=ask, c=column: a({c: rows}), {"rows": [row]}
        yield f"{task} row", lambda row, a=ask, c=column: a({c: ["Hi", row]}), {"row": row}
    ask.close()
    embed = llcuda.BatchProcessor(
        "demo", "embed", pooling="mean", threads=1, ctx_size=128, on_error="return"
    )
    yield "embed column", lambda rows: embed({"text": rows}), {"rows": ["Hi"]}
    yield "embed row", lambda row: embed({"text": ["Hi", row]}), {"row": "Hi"}
    embed.close()
    with llcuda.InferenceEngine("demo", ctx_size=128, threads=1) as engine:
        for call in (engine.batch_infer, engine.batch_chat):
            yield f"{call.__name__} on_error", call, {"max_tokens": 1, "on_error": ...} | {
                "prompts" if call == engine.batch_infer else "conversations": ["Hi"]}  # fmt: skip
        yield "embed on_error", engine.embed, {"texts": ["Hi"], "pooling": "mean", "on_error": ...}


def attempt(call: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Return the foreign exception that a call raises, or None."""
    try:
        call(**{name: value for name, value in arguments.items() if value is not ...})
    except (LlcudaError, TypeError, BufferError, RaisedError):  # BufferError is DLPack's
        return None
    except Exception as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else ""
        return f"{type(error).__name__}: {str(error)[:200]} at {place}"
    return None


def main(chosen: int, names: list[str]) -> None:
    """Call all, or those with one of the names, with `chosen` values for each parameter."""
    warnings.simplefilter("ignore")
    random = Random(1)
    count = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        contextlib.chdir(temporary),  # "x" is a path as well
        contextlib.redirect_stdout(sys.stderr),
    ):
        for name, call, valid in calls(Path(temporary)):
            if names and name not in names:
                continue
            foreign = attempt(call, valid)
            if foreign:
                print(json.dumps([name, "valid", "", foreign]), file=sys.__stdout__, flush=True)
            for parameter in valid:
                for label in sorted(random.sample(list(VALUES), chosen)):
                    print(name, parameter, label, file=sys.stderr, flush=True)
                    faulthandler.dump_traceback_later(WATCHDOG, exit=True)
                    foreign = attempt(call, {**valid, parameter: VALUES[label]})
                    faulthandler.cancel_dump_traceback_later()
                    count += 1
                    if foreign:
                        line = json.dumps([name, parameter, label, foreign])
                        print(line, file=sys.__stdout__, flush=True)
    print(json.dumps(count))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else len(VALUES), sys.argv[2:])
