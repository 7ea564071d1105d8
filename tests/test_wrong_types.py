"""Values of a wrong type, in every public call: errors in the words of the caller."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llcuda
from llcuda.chat.template import ChatTemplate
from llcuda.engine.config import EngineConfig, EngineParams
from llcuda.engine.request import RequestParams
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.gguf_parser import GGUFReader, inspect_gguf
from llcuda.gguf_writer import write_gguf
from llcuda.params import ContextParams, ModelParams
from tests.support.hostile_arguments import VALUES

PATHS: dict[str, Callable[[Any, Path], Any]] = {
    "Model": lambda wrong, _: llcuda.Model(wrong),
    "memory_needed": lambda wrong, _: llcuda.memory_needed(wrong),
    "perplexity": lambda wrong, _: llcuda.perplexity(wrong, "text"),
    "GGUFReader": lambda wrong, _: GGUFReader(wrong),
    "inspect_gguf": lambda wrong, _: inspect_gguf(wrong),
    "write_gguf": lambda wrong, _: write_gguf(wrong, {}, {}),
    "convert": lambda wrong, folder: llcuda.convert(wrong, folder / "x.gguf"),
    "quantize": lambda wrong, folder: llcuda.quantize(wrong, folder / "x.gguf", "Q8_0"),
    "quantize to": lambda wrong, _: llcuda.quantize("demo", wrong, "Q8_0"),
    "ImportanceMatrix.load": lambda wrong, _: llcuda.ImportanceMatrix.load(wrong),
}


@pytest.mark.parametrize("wrong", [5, None, b"bytes.gguf", ["list"]], ids=str)
@pytest.mark.parametrize("call", PATHS)
def test_a_path_of_another_type(call: str, wrong: Any, tmp_path: Path) -> None:
    """A TypeError that shows the value and says what a path is."""
    with pytest.raises(TypeError, match=r"=.*: expected a path; give a str or a pathlib\.Path"):
        PATHS[call](wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5, {}), "metadata=5: expected a mapping"),
        (({}, [1]), r"tensors=\[1\]: expected a mapping"),
    ],
)
def test_write_gguf_takes_mappings(arguments: Any, says: str, tmp_path: Path) -> None:
    """The parameter is named, and no file is begun."""
    with pytest.raises(ArgumentError, match=says):
        write_gguf(tmp_path / "x.gguf", *arguments)
    assert list(tmp_path.iterdir()) == []


# --- objects of another type, and settings without effect ---


@pytest.fixture(scope="module")
def engine() -> Iterator[llcuda.Engine]:
    with llcuda.Model("demo") as model, llcuda.Engine(model, ctx_size=128, threads=1) as engine:
        yield engine


REFUSED: list[tuple[Callable[[llcuda.Engine], Any], str]] = [
    (lambda e: llcuda.Engine(5), "model=5: expected a Model"),  # type: ignore[call-overload]
    (lambda e: llcuda.Context(5), "model=5: expected a Model; give Model(path)"),  # type: ignore[arg-type]
    (lambda e: llcuda.Embedder(None), "model=None: expected a Model"),  # type: ignore[arg-type]
    (lambda e: llcuda.Adapter("demo", "x"), "model='demo': expected a Model"),  # type: ignore[arg-type]
    (lambda e: ChatTemplate.of(5), "model=5: expected a Model"),  # type: ignore[arg-type]
    (lambda e: llcuda.Engine(e.model, config=5), "config=5: expected an EngineConfig"),  # type: ignore[arg-type]
    (lambda e: llcuda.Engine(e.model, metrics=5), "metrics=5: expected a Metrics"),  # type: ignore[arg-type]
    (lambda e: EngineConfig(engine=5), "engine=5: expected EngineParams"),  # type: ignore[arg-type]
    (lambda e: EngineConfig(model={}), "model={}: expected ModelParams"),  # type: ignore[arg-type]
    (lambda e: EngineConfig(context=ContextParams()), "expected a mapping of fields of Context"),  # type: ignore[arg-type]
    (
        lambda e: EngineConfig(context={"ctx_size": 5}),
        "context: 'ctx_size' is a field of EngineParams; give engine=EngineParams(ctx_size=...)",
    ),
    (
        lambda e: llcuda.Engine(e.model, config=EngineConfig.from_kwargs(gpu_layers=7)),
        "gpu_layers=7: the model is loaded already, with gpu_layers=None; give it to Model()",
    ),
    (
        lambda e: llcuda.Engine(e.model, config=EngineConfig(model=ModelParams(mmap=False))),
        "mmap=False: the model is loaded already",
    ),
    (
        lambda e: e.submit("x", grammar="root ::= 'a'", response_format={"type": "json_object"}),
        "response_format: a grammar is given as well; give response_format or grammar, not both",
    ),
    (
        lambda e: e.chat(
            [{"role": "user", "content": "x"}],
            grammar="root ::= 'a'",
            response_format={"type": "json_object"},
        ),
        "grammar: expected none with tools, response_format or max_reasoning_tokens",
    ),
    (lambda e: e.submit("x", keep=7), 'keep=7: has no effect with overflow="error"'),
    (lambda e: e.embed(["x"], pooling="mean", normalize="no"), "normalize='no': expected True"),  # type: ignore[arg-type]
    (lambda e: e.embed(["x"], pooling="mean", truncate=1), "truncate=1: expected True or False"),  # type: ignore[arg-type]
    (lambda e: e.submit("x", stop_tokens=[5, 10**7]), "stop_tokens=[10000000]: expected tokens"),
    (lambda e: e.submit("x", shown_tokens=[10**7]), "shown_tokens=[10000000]: expected tokens"),
    (lambda e: e.submit(["x", "y"]), "prompt: expected one text, or a list of tokens; submit() "),  # type: ignore[list-item]
    (lambda e: e.submit(""), "prompt: the prompt is empty; give a text, or at least one token"),
    (lambda e: e.submit("x", stop=5), "stop=5: expected a list of texts, or one text"),  # type: ignore[arg-type]
    (
        lambda e: e.submit("x", RequestParams(), max_tokens=3),
        "params: max_tokens= cannot be given beside params= and sampling=; give objects or",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_has_no_meaning_or_no_effect(
    call: Callable[[llcuda.Engine], Any], says: str, engine: llcuda.Engine
) -> None:
    """The parameter is named, with the rule and a remedy."""
    with pytest.raises(ArgumentError, match=re.escape(says)) as caught:
        call(engine)
    assert says.startswith(str(caught.value.parameter)) or "expected a mapping" in says


def test_a_config_may_repeat_how_the_model_was_loaded(engine: llcuda.Engine) -> None:
    """The same settings, and defaults, are no contradiction."""
    config = EngineConfig(engine.model.params, {"threads": 1}, EngineParams(ctx_size=64))
    with llcuda.Engine(engine.model, config=config) as other:
        assert other.params.ctx_size == 64


# --- hostile values in every public call ---


@pytest.mark.parametrize(
    "values", [3, pytest.param(len(VALUES), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_no_call_raises_a_foreign_exception(values: int) -> None:
    """Each parameter of each public call gets hostile values, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_arguments", str(values)],
        capture_output=True,
        text=True,
        check=False,
    )
    *foreign, count = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (0, []) == (ended.returncode, foreign), ended.stderr[-3000:]
    assert count > 800 * values
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e, p: e.model.tokenize("x", "yes"), "add_special='yes': expected True or False"),
        (lambda e, p: e.model.detokenize([5], special=2), "special=2: expected True or False"),
        (lambda e, p: llcuda.Sampler().bind(5), "model=5: expected a Model"),
        (lambda e, p: llcuda.Sampler().sample(5), "context=5: expected a Context"),
        (lambda e, p: e.close(drain="no"), "drain='no': expected True or False"),
        (lambda e, p: write_gguf(p, {5: 1}, {}), "metadata=5: expected texts as names"),
        (lambda e, p: write_gguf(p, {"a": "\ud800"}, {}), r"metadata\['a'\]: .*surrogates"),
        (lambda e, p: write_gguf(p, {"a": 1e300}, {}), "too large for Float32; give a numpy"),
        (lambda e, p: write_gguf(p, {}, {"t": [1]}), r"\['t'\]=\[1\]: expected a numpy array"),
        (lambda e, p: llcuda.core.DType("F33"), "value='F33': expected one of F32, F16"),
        (lambda e, p: e.submit("x", overflow=[1]), r"overflow=\[1\]: expected one of"),
    ],
    ids=range(11),
)  # fmt: skip
def test_wrong_values_are_named(
    call: Callable[[llcuda.Engine, Path], Any], says: str, engine: llcuda.Engine, tmp_path: Path
) -> None:
    """The parameter, the value and the rule."""
    with pytest.raises(ArgumentError, match=says):
        call(engine, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_not_read_from_or_written_to_a_file_descriptor(tmp_path: Path) -> None:
    """A number is not a path; a path that does not exist is an error of llcuda's."""
    with llcuda.Model("demo") as model, llcuda.Context(model, ctx_size=64) as context:
        for call in (context.save_state, context.load_state):
            with pytest.raises(TypeError, match="=1: expected a path"):
                call(1)
        with pytest.raises(ModelNotFoundError, match="no such file: /no/such"):
            context.load_state("/no/such")
        with pytest.raises(ModelError, match=r"cannot read .*: Is a directory"):
            context.load_state(tmp_path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("a\0b", r"path='a\\x00b': contains a NUL character"),
        ("\ud800", "path='.*surrogates not allowed"),
        ("x" * 300, "is longer than the path of a file can be"),
        ("x/" * 3000, "is longer than the path of a file can be"),
    ],
    ids=range(4),
)
def test_a_path_that_no_file_can_have(path: str, says: str) -> None:
    """A ModelError, to read and to write."""
    for call in (llcuda.Model, GGUFReader, lambda path: write_gguf(path, {}, {})):
        with pytest.raises(ModelError, match=says):
            call(path)


def test_values_are_shown_whatever_they_are() -> None:
    """A list that is nested too deeply for repr, and an object whose repr raises."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value, text in ((deep, "<list>"), ("x" * 500, "'" + "x" * 196 + "...")):
        with pytest.raises(ArgumentError) as caught:
            ContextParams(ctx_size=value)
        assert str(caught.value).startswith(f"ctx_size={text}: expected")
