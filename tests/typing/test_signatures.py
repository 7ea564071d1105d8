"""What a type checker makes of the public calls' keywords."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from llcuda import keywords
from llcuda.engine.config import EngineParams
from llcuda.engine.request import RequestParams
from llcuda.params import ContextParams, ModelParams, SamplingParams

ROOT = Path(__file__).parents[2]
BEGIN = """\
import llcuda
from llcuda import BatchProcessor, Context, Engine, InferenceEngine, LlcudaError, Model, Sampler
from llcuda import memory_needed, quick_infer

m = Model("demo", gpu_layers=1, mmap=True)
context = Context(m, ctx_size=64, type_k="q8_0")
engine = Engine(m, n_parallel=2, ctx_size=64, threads=1)
Engine("demo", gpu_layers=0, ctx_size=64)
e = InferenceEngine()
chat = [{"role": "user", "content": "Hello"}]
"""
RIGHT = """\
Model.from_pretrained("folder", quantization="Q8_0", gpu_layers=1)
Sampler(temperature=1, top_k=5, seed=None)
memory_needed("demo", gpu_layers=1, ctx_size=64)
engine.submit("x", max_tokens=5, stop="a", response_format={"type": "json_object"})
engine.submit_n("x", 2, max_tokens=5, min_p=0.1, parse_special=False)
engine.chat(chat, max_tokens=5, tools=[], temperature=0)
engine.chat("Hello", system="x", overflow="drop")
engine.embed(["x"], pooling="mean", dimensions=5)
e.load_model("demo", ctx_size=5, gpu_layers=None, threads=2, queue_size=5, mlock=True)
e.load_model(model_name="a/b", filename="c.gguf", context_size=5, silent=True)
e.infer("x", 5, temperature=1, stop_sequences=["a"], min_p=0.1, echo=True)
e.infer_n("x", 2, max_tokens=5)
e.batch_infer(["x"], max_tokens=5, seed=1, parse_special=False)
e.stream("x", max_tokens=5, stop=["a"])
e.submit([1, 2], max_tokens=5, stop_sequences=["a"])
e.chat(chat, max_tokens=5, template_variables={"enable_thinking": False})
e.embed(["x"], normalize=False)
quick_infer("x", max_tokens=5)
InferenceEngine("demo", ctx_size=64, gpu_layers=0, n_parallel=2, silent=True)
llcuda.chat("demo", "Hello", system="x", max_tokens=5).content.upper()
e.chat("Hello").result().to_dict()
e.batch_chat(["Hello", chat], progress=True, temperature=0)[0].tool_calls[0].arguments
e.count_tokens(chat, tools=[]) + len(e.tokenize("x")) + engine.count_tokens("x", system="y")
def tool(x: int) -> int: return x
engine.run("Hello", [tool], max_turns=2, approve=lambda call: call.name == "tool", max_tokens=5)
e.run(chat, tools=[tool], on_error="raise", tool_choice="auto").results[0].call.arguments
[str(one) for one in e.batch_infer(["x"], on_error="return") if isinstance(one, LlcudaError)]
e.embed(["x"], on_error="return")[0]
BatchProcessor("demo", "chat", on_error="return", max_tokens=5, n_parallel=2)({"messages": ["x"]})
for i, answer in e.batch_infer_iter(["x"], 5, seed=1):
    answer.text[i]
for i, reply in e.batch_chat_iter(iter(["x"]), max_tokens=1):
    reply.content[i]
"""
WRONG = """\
Model("demo", gpu_layer=1)
Model("demo", n_gpu_layers=1)
Model("demo", gpu_layers="all")
Model.from_pretrained("folder", gpu_layer=1)
Context(m, n_ctx=64)
Context(m, ctx_size="64")
Sampler(temprature=1)
memory_needed("demo", n_ctx=64)
Engine(m, n_paralel=2)
Engine("demo", n_gpu_layers=2)
Engine(m, gpu_layers=2)
engine.submit("x", max_tokn=5)
engine.submit_n("x", 2, max_tokn=5)
engine.chat(chat, max_tokn=5)
engine.chat(chat, system_prompt="x")
engine.chat(chat, parse_special=True)
engine.embed(["x"], normalise=True)
e.load_model("demo", n_ctx=5)
e.load_model("demo", temperature=1)
e.infer("x", temprature=1)
e.infer("x", stream=True)
e.infer_n("x", 2, max_new_tokens=5)
e.batch_infer(["x"], max_new_tokens=5)
e.stream("x", repetition_penalty=1.1)
e.submit("x", n_predict=1)
e.chat(chat, max_tokn=5)
e.embed(["x"], dimension=5)
quick_infer("x", temp=1)
InferenceEngine("demo", n_ctx=64)
llcuda.chat("demo", "Hello", max_new_tokens=5)
e.batch_chat(["Hello"], max_new_tokens=5)
e.batch_infer(["x"], on_error="return")[0].text
e.batch_infer(["x"], on_error="skip")
BatchProcessor("demo", max_new_tokens=5)
e.batch_infer_iter(["Hello"], max_new_tokens=5)
e.count_tokens(chat, max_tokens=5)
engine.run("Hello", [tool], max_turn=2)
e.run("Hello", [tool], n_predict=2)
"""


def test_mypy_knows_the_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes the right calls and refuses each wrong one, at its line."""
    from mypy import api

    program = tmp_path / "program.py"
    program.write_text(BEGIN + RIGHT + WRONG)
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    # The settings, and so the cache, are those of the project's own run: 20 s without it.
    monkeypatch.chdir(ROOT)
    told, error, _ = api.run([str(program)])
    assert not error
    lines = (BEGIN + RIGHT + WRONG).splitlines()
    refused = {int(number) for number in re.findall(r"program\.py:(\d+): error", told)}
    first = len((BEGIN + RIGHT).splitlines())
    assert [lines[n - 1] for n in sorted(refused)] == lines[first:], told


@pytest.mark.parametrize(
    ("kind", "dataclasses_"),
    [
        (keywords.ModelKeywords, [ModelParams]),
        (keywords.ContextKeywords, [ContextParams]),
        (keywords.SamplingKeywords, [SamplingParams]),
        (keywords.RequestKeywords, [RequestParams]),
        (keywords.TextKeywords, [RequestParams, SamplingParams]),
        (keywords.PlanKeywords, [ModelParams, ContextParams]),
        (keywords.EngineKeywords, [ContextParams, EngineParams]),
        (keywords.ConfigKeywords, [ContextParams, ModelParams, EngineParams]),
    ],
)
def test_keywords_are_the_fields(kind: type, dataclasses_: list[type]) -> None:
    """Names and types; of the context an engine decides four itself."""
    expected = {}
    for each in dataclasses_:
        hints = typing.get_type_hints(each)
        expected |= {item.name: hints[item.name] for item in dataclasses.fields(each)}
    if EngineParams in dataclasses_:
        for name in ("sequences", "embeddings", "pooling", "attention"):
            del expected[name]
    assert typing.get_type_hints(kind) == expected
