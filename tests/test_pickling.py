"""What another process can be sent, and what the objects that stay say to send in their place."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest

import llcuda
from llcuda import errors, structured
from llcuda.chat.template import ChatTemplate
from llcuda.core import Device, Tensor
from llcuda.engine.metrics import Metrics
from llcuda.gguf_parser import GGUFReader
from llcuda.hub.repository import HubUnreachableError
from llcuda.llama_cpp import ModelPathError
from llcuda.native.memory import Memory
from llcuda.nf4 import QuantState
from llcuda.server import Limits, ModelSpec
from llcuda.server.errors import ApiError
from llcuda.structured.rewrite import KeywordError
from tests.docs.test_reference import OBJECTS


@dataclasses.dataclass
class Fruit:
    """A format that is a class."""

    name: str


PLUM = {"type": "json_schema", "json_schema": {"schema": {"const": "plum"}}}


def again(value: Any) -> Any:
    """Return what another process gets."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture(scope="module")
def engine() -> Iterator[llcuda.InferenceEngine]:
    with llcuda.InferenceEngine("demo", ctx_size=128, n_parallel=2, threads=1) as loaded:
        yield loaded


# --- exceptions ---

KINDS = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
OURS = [kind for kind in KINDS if issubclass(kind, errors.LlcudaError)]


@pytest.mark.parametrize("kind", [*OURS, HubUnreachableError, KeywordError, ModelPathError])
def test_exceptions(kind: type[errors.LlcudaError]) -> None:
    """Type, message and every attribute arrive."""
    error = kind("what was given")
    error.parameter, error.remedy = "place", "give another"
    if isinstance(error, errors.ContextLengthError):
        error.tokens, error.limit = 9, 8
    arrived = again(error)
    assert kind is type(arrived)
    assert ("what was given; give another", "place") == (str(arrived), arrived.parameter)
    assert vars(error) == vars(arrived)


def test_an_error_with_a_number_of_the_system() -> None:
    """`errno` and `strerror` arrive too."""
    error = errors.FileWriteError("cannot write")
    error.errno, error.strerror = 28, "No space left on device"
    arrived = again(error)
    assert (28, "No space left on device") == (arrived.errno, arrived.strerror)
    assert str(error) == str(arrived)


def test_errors_of_the_server() -> None:
    """Status, message and fields arrive, and with them the body and the headers."""
    error = ApiError(429, "busy", param="n", code="rate_limit_exceeded", retry=2, closes=True)
    error.message += "; see the log"
    arrived = again(error)
    assert vars(error) == vars(arrived)
    assert (error.kind, error.headers) == (arrived.kind, arrived.headers)


# --- parameters and results ---

GIVEN: list[Any] = [
    ModelSpec("a", "demo", parameters={"ctx_size": 64}, aliases=["b"]),
    Limits(requests=5),
    llcuda.ModelParams(gpu_layers=3, overrides={"general.name": "x"}, devices=["CPU"]),
    llcuda.ContextParams(ctx_size=64, type_k="q8_0"),
    llcuda.EngineParams(n_parallel=3),
    llcuda.EngineConfig.from_kwargs(n_parallel=3, ctx_size=64, threads=1, gpu_layers=0),
    llcuda.SamplingParams(temperature=0.5, logit_bias={3: -1.0}, seed=7),
    llcuda.RequestParams(max_tokens=5, stop=["a", "b"], stop_tokens=[3]),
    llcuda.RunParams(max_turns=2),
    llcuda.steps.Python(np.argmax),
    llcuda.steps.LogitBias({5: 1.0}),
    llcuda.steps.Grammar('root ::= "a"', patterns=["a"]),
]


def _sample(kind: type) -> Any:
    """Return an object of a dataclass or an enum, with any values where it takes any."""
    for given in GIVEN:
        if type(given) is kind:
            return given
    if issubclass(kind, Enum):
        return next(iter(kind))
    needed = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    return kind(**dict.fromkeys(needed, 1))


PUBLIC = {
    value
    for value in [*OBJECTS, *(getattr(llcuda, name) for name in dir(llcuda))]
    if inspect.isclass(value) and not issubclass(value, BaseException)
}
DATA = {kind for kind in PUBLIC if dataclasses.is_dataclass(kind) or issubclass(kind, Enum)}
DATA.discard(QuantState)  # which has arrays, and so no equality


@pytest.mark.parametrize("kind", sorted(DATA, key=lambda kind: kind.__name__), ids=str)
def test_every_public_dataclass(kind: type) -> None:
    """Parameters, results and specifications arrive as they are."""
    value = _sample(kind)
    assert (kind, value) == (type(again(value)), again(value))


def test_other_values() -> None:
    """A device, weights of 4 bits, and a decoder with half of a character."""
    assert str(Device("cpu")) == str(again(Device("cpu")))
    packed, scales = np.zeros(32, np.uint8), np.ones(1, np.float32)
    weights = QuantState(packed, scales, "nf4", 64, (1, 64), "float16")
    assert repr(weights) == repr(again(weights))
    decoder = llcuda.Utf8Decoder()
    assert "" == decoder.decode("é".encode()[:1])
    assert "é" == again(decoder).decode("é".encode()[1:])


def test_results(engine: llcuda.InferenceEngine) -> None:
    """A text with all it may have, an answer, and a run of tools."""

    def add(a: int) -> int:
        """Add one.

        Args:
            a: The number.
        """
        return a + 1

    text = engine.infer("a", 4, logprobs=2, response_format=Fruit, seed=1)
    answer = engine.chat("a", max_tokens=4, logprobs=2, response_format=Fruit, seed=1).result()
    template = "{{ messages[-1].content }}{% if tools %}{% endif %}"
    run = engine.run("a", [add], template=template, max_tokens=4, seed=1)
    for value in (text, answer, run, engine.engine.load(), *engine.engine.slots()):
        assert value == again(value)
    assert Fruit is again(text).response_format


# --- compiled formats ---


def test_compiled_formats_are_their_definitions(engine: llcuda.InferenceEngine) -> None:
    """Another process gets what `compile` was given, of a class its schema, and compiles it."""
    model = engine.model
    choice = {"type": "choice", "choices": ["plum", "pear"]}
    assert choice == again(structured.compile(model, choice))
    schema = {"type": "object", "properties": {"size": {"type": "integer"}}}
    for compiled in (
        structured.compile(model, Fruit),
        structured.compile(model, schema=schema),
        structured.compile(model, schema=schema, compact=True),
    ):
        definition = again(compiled)
        assert isinstance(definition, dict)
        assert compiled.source == structured.compile(model, definition).source


def test_a_schema_that_is_changed_after_it_was_compiled(engine: llcuda.InferenceEngine) -> None:
    """The definition is that of the compiled format."""
    size: dict[str, Any] = {"type": "integer"}
    schema = {"type": "object", "properties": {"size": size}}
    given = {"type": "json_schema", "json_schema": {"schema": schema}}
    compiled = structured.compile(engine.model, given)
    size["maximum"] = 5
    arrived = again(compiled)["json_schema"]["schema"]
    assert {"size": {"type": "integer"}} == arrived["properties"]


def test_compiled_formats_of_tools(engine: llcuda.InferenceEngine) -> None:
    """The format of calls beside content arrives with the definition of the content."""
    model = engine.model
    tools = [{"type": "function", "function": {"name": "pick", "parameters": {"type": "object"}}}]
    calls = structured.tool_format(tools, around=lambda name: (f'{{"name": "{name}", "a": ', "}"))
    content = structured.compile(model, PLUM)
    both = structured.tools_or_content(calls, content, bare=False, free=[])
    for given in (calls, both):
        compiled = structured.compile(model, given)
        assert compiled.source == structured.compile(model, again(compiled)).source


def test_a_format_in_parameters_and_results(engine: llcuda.InferenceEngine) -> None:
    """A result that was made with a compiled format arrives with the definition."""
    result = engine.infer("a", 8, response_format=structured.compile(engine.model, PLUM))
    assert PLUM == again(result).response_format
    assert "plum" == again(result).parsed


# --- what stays ---

Make = Callable[[llcuda.InferenceEngine], Any]
STAYS: dict[type, tuple[Make, str]] = {
    llcuda.InferenceEngine: (lambda engine: engine, r"llcuda\.BatchProcessor\(\.\.\.\), or the"),
    llcuda.Engine: (lambda engine: engine.engine, r"llcuda\.BatchProcessor\(\.\.\.\), or the"),
    llcuda.Model: (lambda engine: engine.model, "its path, and load it there"),
    llcuda.Context: (lambda engine: engine.engine.context, "the path of its model"),
    Memory: (lambda engine: engine.engine.context.memory, r"Context\.save_state\(\)"),
    llcuda.Sampler: (lambda engine: llcuda.Sampler(), "its params or its chain, and its seed"),
    llcuda.Adapter: (lambda engine: llcuda.Adapter.__new__(llcuda.Adapter), "its path"),
    llcuda.Request: (lambda engine: engine.submit("a", max_tokens=1), r"its result\(\)"),
    llcuda.Chat: (lambda engine: engine.chat("a", max_tokens=1), r"its result\(\)"),
    llcuda.ChatTemplate: (lambda engine: ChatTemplate("x"), "its source"),
    llcuda.Embedder: (lambda engine: engine.embedder("mean"), 'task="embed"'),
    Metrics: (lambda engine: engine.metrics, r"its snapshot\(\)"),
    Tensor: (lambda engine: Tensor([2], device="cpu"), r"its numpy\(\) array"),
    GGUFReader: (lambda engine: GGUFReader("demo"), "its path"),
    structured.TextGuide: (lambda engine: structured.guide(engine.model, PLUM), "response_format"),
}


@pytest.mark.parametrize("kind", STAYS, ids=lambda kind: kind.__name__)
def test_what_stays_says_what_to_send(engine: llcuda.InferenceEngine, kind: type) -> None:
    """A TypeError that names what to send, by pickle and by copy."""
    make, instead = STAYS[kind]
    value = make(engine)
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(
            TypeError, match=f"{kind.__name__} cannot be pickled.*; send .*{instead}"
        ):
            call(value)  # type: ignore[operator]
    if hasattr(value, "result"):
        value.result()
    if isinstance(value, GGUFReader):
        value.close()


def test_an_engine_that_has_not_loaded() -> None:
    """`auto_start=False` and an engine without a model say the same."""
    deferred = llcuda.InferenceEngine("demo", auto_start=False)
    for value in (deferred, llcuda.InferenceEngine()):
        with pytest.raises(TypeError, match=r"send llcuda\.BatchProcessor"):
            pickle.dumps(value)


# Classes of the reference that are neither data nor bound to a process: protocols and bases, types
# for annotations, and llama-cpp-python's classes, of which a Llama loads its file again.
OTHERS = {
    "BaseLlamaCache",
    "ChatFormatter",
    "Compatibility",
    "CudaInfo",
    "GpuInfo",
    "Guide",
    "Step",
}


def test_every_public_class_is_tried() -> None:
    """A class that is added is data, or says what to send."""
    tuples = {kind for kind in PUBLIC if issubclass(kind, tuple)}
    others = {structured.CompiledGrammar, llcuda.Utf8Decoder, llcuda.BatchProcessor, QuantState}
    left = {kind.__name__ for kind in PUBLIC - {*DATA, *STAYS, *tuples, *others, Device}}
    ours = {name for name in left if not name.startswith(("Llama", "LogitsP", "Stopping", "Jinja"))}
    assert OTHERS == ours
