"""What an editor completes within a call, by the objects as in a notebook, and by the source."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import jedi
import pytest

import llcuda
from tests.support.documents import ROOT

NAMES = {
    "llcuda": llcuda,
    "engine": llcuda.InferenceEngine(),
    "raw": object.__new__(llcuda.Engine),
}
# A call of the README or of a guide up to the cursor -> the keywords that are completed there.
CALLS = {
    'llcuda.chat("demo", "Hello", max_t': "max_tokens",
    'llcuda.chat("demo", "Hello", sys': "system",
    'llcuda.embed("demo", "Hello", norm': "normalize",
    'llcuda.quick_infer("Hello", "demo", max_t': "max_tokens",
    'llcuda.InferenceEngine("demo", n_par': "n_parallel",
    'llcuda.Engine("demo", ctx_s': "ctx_size",
    'engine.load_model("demo", gpu_l': "gpu_layers",
    'engine.load_model("demo", thr': "threads threads_batch",
    'engine.infer("Hello", max_t': "max_tokens",
    'engine.infer("Hello", min_': "min_keep min_p min_tokens",
    'engine.infer_n("Hello", 2, se': "seed",
    'engine.batch_infer(["Hello"], temp': "temperature",
    'engine.batch_infer_iter(["Hello"], prog': "progress",
    'engine.batch_chat(["Hello"], temp': "temperature template template_variables",
    'engine.batch_chat_iter(["Hello"], response_f': "response_format",
    'engine.stream("Hello", sto': "stop stop_sequences stop_tokens stopping_criteria",
    'engine.ainfer("Hello", prio': "priority",
    'engine.submit("Hello", logits_p': "logits_processor",
    'engine.chat("Hello", tool_c': "tool_choice",
    'engine.run("Hello", [print], max_tu': "max_turns",
    'engine.arun("Hello", [print], appr': "approve",
    'engine.embed("Hello", dim': "dimensions",
    'engine.count_tokens("Hello", too': "tools",
    'raw.submit("Hello", max_t': "max_tokens",
    'raw.submit_n("Hello", 2, se': "seed",
    'raw.chat("Hello", over': "overflow",
    'raw.run("Hello", [print], on_m': "on_message",
    'raw.arun("Hello", [print], on_e': "on_error",
    'raw.embed("Hello", trunc': "truncate",
    'raw.count_tokens("Hello", sys': "system",
}
READ = "import llcuda\nengine = llcuda.InferenceEngine()\n"
# The same by the source alone: jedi knows what a signature spells out.
SOURCE_CALLS = {
    'llcuda.chat("demo", "Hello", tool_c': "tool_choice",
    'llcuda.embed("demo", "Hello", pool': "pooling",
    'engine.infer("Hello", max_t': "max_tokens",
    'engine.load_model("demo", gpu_l': "gpu_layers",
}


def keywords(script: Any) -> str:
    """Return the keywords that are completed at the end of a script, one after the other."""
    return " ".join(sorted(c.name[:-1] for c in script.complete() if c.name.endswith("=")))


@pytest.mark.parametrize(("call", "expected"), CALLS.items())
def test_a_notebook_completes_keywords(call: str, expected: str) -> None:
    """The signatures of the objects are read."""
    assert keywords(jedi.Interpreter(call, [NAMES])) == expected


@pytest.mark.parametrize(("call", "expected"), SOURCE_CALLS.items())
def test_an_editor_completes_keywords(call: str, expected: str) -> None:
    """The source is read, by an interpreter without the import hook of an editable install."""
    project = jedi.Project(ROOT, sys_path=[str(ROOT)])
    python = jedi.create_environment(Path(sys.executable).resolve(), safe=False)
    assert keywords(jedi.Script(READ + call, project=project, environment=python)) == expected


def test_signatures_list_every_keyword() -> None:
    """No public call of the front door hides keywords behind `**keywords`."""
    calls: list[Any] = [llcuda.chat, llcuda.embed, llcuda.quick_infer]
    for kind in (llcuda.Engine, llcuda.InferenceEngine):
        calls += [kind, *(value for name, value in vars(kind).items() if not name.startswith("_"))]
    for call in filter(callable, calls):
        kinds = [p.kind for p in inspect.signature(call).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, call
    assert list(inspect.signature(llcuda.chat).parameters)[:2] == ["model", "messages"]
    assert "max_tokens" in inspect.signature(llcuda.chat).parameters
