"""Names that only other libraries have: the error says what to write, and that runs."""

from __future__ import annotations

import ast
import asyncio
import copy
import importlib
import inspect
import pickle
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

import llcuda
from llcuda import _instead
from llcuda.chat.session import Message
from llcuda.cli.main import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
ENGINES = ("Engine", "InferenceEngine")
RESULTS = ("Model", "Request", "Chat", "Completion", "ChatCompletion", "Message")


@pytest.fixture(scope="module")
def engine() -> Iterator[llcuda.InferenceEngine]:
    with llcuda.InferenceEngine("demo", n_parallel=2, ctx_size=128, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def objects(engine: llcuda.InferenceEngine) -> dict[str, Any]:
    """One object of each class that explains names."""
    request = engine.submit("Hello", max_tokens=4)
    chat = engine.chat("Hello", max_tokens=4, logprobs=1)
    answer = chat.result()
    return {
        "Engine": engine.engine,
        "InferenceEngine": engine,
        "Model": engine.model,
        "Request": request,
        "Chat": chat,
        "Completion": request.result(),
        "ChatCompletion": answer,
        "Message": answer.message,
    }


def run_line(line: str, names: dict[str, Any]) -> None:
    """Run a line of Python as a reader would; of a line for a shell check the command."""
    if line.startswith("$ llcuda "):
        assert line.split()[2] in COMMANDS
        return
    code = compile(line, line, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waits = eval(code, names)
    if inspect.iscoroutine(waits):
        asyncio.run(waits)


def distinct_lines(owner: str) -> list[str]:
    """Return the lines for the names of an owner; those that end the engine come last."""
    names = _instead._NAMES[owner]
    lines = {line for name in names for line in _instead.lines(owner, name)}
    return sorted(lines, key=lambda line: ("load_model" in line, "close" in line, line))


def readers_names(objects: dict[str, Any]) -> dict[str, Any]:
    """Return the names that the lines have for the objects of results."""
    names = {"answer": "ChatCompletion", "chat": "Chat", "engine": "InferenceEngine"}
    names |= {"request": "Request", "result": "Completion"}
    return {name: objects[kind] for name, kind in names.items()} | {"llcuda": llcuda}


@pytest.mark.parametrize("line", distinct_lines("llcuda"))
def test_a_line_for_a_name_of_the_package_runs(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, with nothing but `import llcuda` before it."""
    run_line(line, {"llcuda": llcuda})


@pytest.mark.parametrize("owner", RESULTS)
def test_the_lines_for_results_run(
    owner: str, objects: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """On the objects that have no such name."""
    with llcuda.Model("demo") as model:
        for line in distinct_lines(owner):
            run_line(line, {**readers_names(objects), "model": model})


@pytest.mark.parametrize("kind", [llcuda.Engine, llcuda.InferenceEngine])
def test_the_lines_for_engines_run(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other; the last ones close and load."""
    with kind("demo", n_parallel=2, ctx_size=128, threads=1) as engine:
        for line in distinct_lines(kind.__name__):
            run_line(line, {"engine": engine, "llcuda": llcuda})


@pytest.mark.parametrize("owner", (*ENGINES, *RESULTS))
def test_no_name_of_the_table_is_there(owner: str, objects: dict[str, Any]) -> None:
    """Each is an AttributeError whose message ends in the line; nobody lists it."""
    value = objects[owner]
    for name in _instead._NAMES[owner]:
        assert not hasattr(value, name), name
        assert name not in dir(value)
        with pytest.raises(AttributeError) as raised:
            getattr(value, name)
        told = f"'{owner}' object has no attribute {name!r}{_instead.hint(owner, name)}"
        assert str(raised.value) == told
        assert raised.value.name == name
        assert raised.value.obj is value


def test_missing_names_of_the_package() -> None:
    """An attribute is an AttributeError, an import an ImportError; both have the line."""
    told = r"has no attribute 'LLM'; write llcuda.InferenceEngine\(\"demo\", n_parallel=4\)"
    with pytest.raises(AttributeError, match=told):
        llcuda.LLM  # type: ignore[attr-defined]  # noqa: B018
    for name in _instead._NAMES["llcuda"]:
        if _instead.lines("llcuda", name) == (f"import llcuda.{name}",):
            exec(f"from llcuda import {name}", {})
            continue
        with pytest.raises(ImportError) as raised:
            exec(f"from llcuda import {name}", {})
        told = f"cannot import name {name!r} from 'llcuda'{_instead.hint('llcuda', name)}"
        assert (str(raised.value), raised.value.name) == (told, "llcuda")
    with pytest.raises(ImportError, match=r"^cannot import name 'nothing' from 'llcuda' \("):
        exec("from llcuda import nothing", {})
    with pytest.raises(AttributeError, match=r"^module 'llcuda' has no attribute 'nothing'$"):
        llcuda.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert not set(_instead._NAMES["llcuda"]) & set(dir(llcuda))


def test_near_names_are_suggested_as_ever(
    objects: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's own suggestion follows its own message."""
    for value, name, near in (
        (llcuda, "quik_infer", "quick_infer"),
        (objects["InferenceEngine"], "unload_modl", "unload_model"),
        (objects["ChatCompletion"], "mesage", "message"),
        (objects["Completion"], "tokns", "tokens"),
    ):
        with pytest.raises(AttributeError) as raised:
            getattr(value, name)
        sys.__excepthook__(raised.type, raised.value, raised.tb)
        told = f"has no attribute '{name}'. Did you mean: '{near}'?"
        assert told in capsys.readouterr().err


def test_an_error_within_a_property_stays() -> None:
    """An AttributeError of a property is not taken for its absence; other errors pass."""

    class Broken(llcuda.InferenceEngine):
        @property
        def model(self) -> Any:
            return None.nothing  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'nothing'"):
        Broken().model  # noqa: B018
    with pytest.raises(
        AttributeError, match=r"^'Broken' object has no attribute 'generate'; write"
    ):
        Broken().generate  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(llcuda.ClosedError):
        llcuda.InferenceEngine().engine  # noqa: B018


def test_results_are_copied_pickled_and_looked_at(objects: dict[str, Any]) -> None:
    """As other dataclasses and dicts are."""
    for owner in ("Completion", "ChatCompletion", "Message"):
        value = objects[owner]
        for same in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert type(same) is type(value)
            assert same == value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the old names
            if sys.version_info >= (3, 11, 3):  # before, slots of a dataclass cannot be inspected
                assert dict(inspect.getmembers(value))["__class__"] is type(value)
    assert type(Message(a=1) | {"b": 2}) is dict
    importlib.reload(_instead)


def test_an_answer_is_read_by_names(objects: dict[str, Any]) -> None:
    """As ollama's; an unknown name says what to write, and nothing iterates over it."""
    answer = objects["ChatCompletion"]
    assert answer["message"]["content"] == answer.message["content"] == answer.content
    assert answer["finish_reason"] == "length"
    with pytest.raises(KeyError, match=r"choices; write answer\.content, or answer.message"):
        answer["choices"]
    with pytest.raises(KeyError, match=r"^'to_dict'$"):
        answer["to_dict"]
    for wrong in (0, None, ("message",)):
        with pytest.raises(TypeError, match="'ChatCompletion' object is not a sequence"):
            answer[wrong]
    with pytest.raises(TypeError, match="not a sequence, and has no item 0"):
        list(answer)
    result = objects["Completion"]
    assert result["text"] == result.text
    with pytest.raises(KeyError, match=r"choices; write result\.text"):
        result["choices"]


def test_handles_have_what_their_results_have(engine: llcuda.InferenceEngine) -> None:
    """`engine.chat("Hello").content` waits; so does `text` of a request."""
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    chat = engine.chat("Who are you?", **asked)
    assert chat.content == engine.chat("Who are you?", **asked).result().content != ""
    assert chat.message == {"role": "assistant", "content": chat.content}
    assert chat["message"]["content"] == chat.content
    assert chat.tool_calls == []
    assert chat.parsed is None
    form = {"type": "json_schema", "json_schema": {"schema": {"const": "a"}}}
    request = engine.submit("One day", response_format={"type": "json_object"}, **asked)
    assert request.text == request.result().text
    assert engine.submit("One day", response_format=form).parsed == "a"
    with pytest.raises(llcuda.errors.AnswerError):
        request.parsed  # noqa: B018


def test_vectors_in_one_call() -> None:
    """`llcuda.embed` shares its model with `llcuda.chat`; wrong values are errors."""
    vectors = llcuda.embed("demo", ["Hello", "World"], pooling="mean")
    assert vectors.shape[0] == 2
    assert llcuda.embed("demo", "Hello", pooling="mean") == pytest.approx(vectors[0], abs=1e-5)
    with pytest.raises(llcuda.ArgumentError, match="pooling"):
        llcuda.embed("demo", "Hello")
    with pytest.raises(TypeError, match=r"input: embed\(\) takes texts"):
        llcuda.embed(model="demo", input="Hello")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="normalise: did you mean normalize"):
        llcuda.embed("demo", "Hello", normalise=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="model=5: expected a path"):
        llcuda.embed(5, "Hello")  # type: ignore[arg-type]
    with pytest.raises(llcuda.ModelNotFoundError):
        llcuda.embed("no-such-model", "Hello")
