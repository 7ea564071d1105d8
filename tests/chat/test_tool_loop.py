"""Tool loops: functions are called as the answers ask for them; scripted answers, real parsing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Literal

import pytest

from llcuda import Engine, Model, structured
from llcuda.chat.session import Chat, start
from llcuda.chat.tool_calls import ToolCall
from llcuda.chat.tool_loop import ToolRun, arun, run
from llcuda.chat.tool_schema import call_arguments
from llcuda.errors import ArgumentError
from tests.conftest import VENDOR_MODELS
from tests.support.waiting import ENDLESS, PATIENCE

HERMES = (VENDOR_MODELS / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text()
QUESTION = [{"role": "user", "content": "Will it rain?"}]


def call(name: str, text: str = "{}") -> str:
    """Return a call as the template's models write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'


made: list[Any] = []


def weather(city: str, days: int = 1) -> str:
    """Return the weather.

    Args:
        city: Name of the city.
        days: How many days.
    """
    made.append((city, days))
    return f"Rain in {city}."


def broken() -> str:
    """Fail."""
    raise KeyError("no sky")


async def later(city: str) -> str:
    """Return the weather later."""
    await asyncio.sleep(0)
    return f"Sun in {city}."


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Model("demo", gpu_layers=0) as model, Engine(model, ctx_size=1024, threads=1) as opened:
        yield opened


@pytest.fixture
def script(engine: Engine) -> Iterator[Callable[..., Callable[..., Chat[Any]]]]:
    """Return a `chat` whose answers are these texts; a further one is an IndexError."""
    made.clear()

    def scripted(*texts: str) -> Callable[..., Chat[Any]]:
        rest = list(texts)

        def submit(tokens: list[int], **keywords: Any) -> Any:
            text = rest.pop(0)
            keywords["guide"] = structured.guide(
                engine.model, {"type": "choice", "choices": [text]}
            )
            return engine.submit(tokens, **keywords)

        def chat(messages: Any, **keywords: Any) -> Chat[Any]:
            return start(submit, engine.model, 1024, messages, template=HERMES, **keywords)

        return chat

    yield scripted


def both(
    chat: Callable[[], Callable[..., Chat[Any]]], tools: Any, **options: Any
) -> list[ToolRun[Any]]:
    """Return what `run` and `arun` make of the same answers."""
    first = run(chat(), QUESTION, tools, **options)
    return [first, asyncio.run(arun(chat(), QUESTION, tools, **options))]


def test_calls_until_the_answer(script: Any) -> None:
    """Two turns with calls, then a text; the conversation can go on."""
    messages: list[Any] = []
    deltas: list[str] = []
    texts = (
        call("weather", '{"city": "Rome", "days": 2}'),
        call("weather", '{"city": "Oslo"}') + "\n" + call("weather", '{"city": "Bonn"}'),
        "Everywhere.",
    )
    runs = both(
        lambda: script(*texts),
        [weather],
        on_message=messages.append,
        on_delta=lambda delta: deltas.append(delta.content),
    )
    assert messages == runs[0].messages[1:] + runs[1].messages[1:]
    assert "".join(deltas) == "Everywhere." * 2
    for done in runs:
        assert str(done) == done.content == "Everywhere."
        assert (done.turns, done.finish_reason) == (3, "stop")
        assert [result.content for result in done.results] == [
            "Rain in Rome.", "Rain in Oslo.", "Rain in Bonn.",
        ]  # fmt: skip
        roles = [message["role"] for message in done.messages]
        assert roles == ["user", "assistant", "tool", "assistant", "tool", "tool", "assistant"]
        ids = [message["tool_call_id"] for message in done.messages if message["role"] == "tool"]
        assert ids == [result.call.id for result in done.results]
        assert json.loads(json.dumps(done.to_dict()))["turns"] == 3
        assert "3 calls in 3 turns, stop" in repr(done)
        assert "weather(" in done._repr_html_()
    assert made == [("Rome", 2), ("Oslo", 1), ("Bonn", 1)] * 2
    assert QUESTION == [{"role": "user", "content": "Will it rain?"}]


def test_what_cannot_be_called_goes_back(script: Any) -> None:
    """An unknown tool, arguments that do not fit, and an exception are results of their calls."""
    texts = (
        call("wether"),
        call("weather"),
        call("weather", '{"city": 5}'),
        call("weather", '{"city": "Rome", "unit": "C"}'),
        call("broken"),
        "Sorry.",
    )
    for done in both(lambda: script(*texts), [weather, broken], response_format=None):
        told = [result.content for result in done.results]
        assert told[0] == "error: no tool is called 'wether'; the tools are: weather, broken"
        assert told[1].startswith("error: missing a required argument: 'city'; the arguments are:")
        assert told[2] == "error: city: expected string, not 5"
        assert "unexpected keyword argument 'unit'" in told[3]
        assert told[4] == "error: KeyError: 'no sky'"
        assert all(result.error for result in done.results)
        assert str(done) == "Sorry."
    assert made == []


def test_an_exception_may_go_to_the_caller(script: Any) -> None:
    """With on_error="raise"; the messages so far were seen by on_message."""
    seen: list[Any] = []
    for runner in (
        lambda chat: run(chat, QUESTION, [broken], on_error="raise", on_message=seen.append),
        lambda chat: asyncio.run(arun(chat, QUESTION, [broken], on_error="raise")),
    ):
        with pytest.raises(KeyError, match="no sky"):
            runner(script(call("broken")))
    assert [message["role"] for message in seen] == ["assistant"]


def test_an_endless_loop_ends(script: Any) -> None:
    """After max_turns; the calls that were left are made when the conversation goes on."""
    again = call("weather", '{"city": "Rome"}')
    for done in both(lambda: script(again, again, again), [weather], max_turns=2):
        assert (done.turns, done.finish_reason, len(done.results)) == (2, "max_turns", 1)
        assert done.messages[-1]["tool_calls"]
        more = run(script("Rain."), done.messages, [weather])
        assert [result.content for result in more.results] == ["Rain in Rome."]
        assert str(more) == "Rain."


def test_approval(script: Any) -> None:
    """True, False, a text, and something else; from a coroutine as well."""
    decisions = iter([True, False, "not today"] * 2)
    asked: list[ToolCall] = []

    def approve(call: ToolCall) -> Any:
        asked.append(call)
        return next(decisions)

    async def approve_later(call: ToolCall) -> Any:
        return approve(call)

    text = call("weather", '{"city": "Rome"}')
    texts = (text, text, text, call("weather"), "Done.")  # of the last call nobody is asked
    for runner in (
        lambda chat: run(chat, QUESTION, [weather], approve=approve),
        lambda chat: asyncio.run(arun(chat, QUESTION, [weather], approve=approve_later)),
    ):
        done = runner(script(*texts))
        assert [result.content for result in done.results[:3]] == [
            "Rain in Rome.", "error: the user does not allow this call", "not today",
        ]  # fmt: skip
        assert [result.error for result in done.results[:3]] == [None, "refused", "refused"]
    assert len(made) == 2
    assert [(one.name, one.arguments) for one in asked] == [("weather", {"city": "Rome"})] * 6
    with pytest.raises(ArgumentError, match="approve: expected True, False or a text from it, not"):
        run(script(text), QUESTION, [weather], approve=lambda call: None)
    with pytest.raises(ZeroDivisionError):
        run(script(text), QUESTION, [weather], approve=lambda call: 1 / 0)


def test_tools_of_every_kind(script: Any) -> None:
    """Coroutine functions, methods, lambdas with a definition, threads; results as JSON."""

    class Sky:
        def colour(self, hour: int) -> dict[str, Any]:
            """Return the colour of the sky."""
            return {"colour": "blau", "hour": hour, "thread": threading.current_thread().name}

    definition = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    tools = [later, Sky().colour, (lambda: {1}, definition)]
    texts = (call("later", '{"city": "Rome"}'), call("colour", '{"hour": 5}'), call("now"), "So.")
    done = asyncio.run(arun(script(*texts), QUESTION, tools))
    told = [result.content for result in done.results]
    assert (told[0], told[2]) == ("Sun in Rome.", "[1]")
    assert json.loads(told[1])["thread"] != threading.current_thread().name
    with pytest.raises(ArgumentError, match=r"tools: later is a coroutine function; use arun\(\)"):
        run(script(), QUESTION, [later])
    hidden = run(script(call("now"), "So."), QUESTION, [(lambda: later("x"), definition)])
    assert "arun() waits for it" in hidden.results[0].content


@dataclasses.dataclass
class Point:
    """A result."""

    x: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ä", "ä"), (None, "null"), ({"ä": 1}, '{"ä": 1}'), (Point(3), '{"x": 3}'),
        ([Point(3)], '[{"x": 3}]'), (frozenset([2]), "[2]"), (b"x", "\"b'x'\""),
    ],
    ids=str,
)  # fmt: skip
def test_the_text_of_a_result(value: Any, text: str, script: Any) -> None:
    """A text as it is, everything else as JSON."""

    def get() -> Any:
        """Get it."""
        return value

    done = run(script(call("get"), "So."), QUESTION, [get])
    assert done.results[0].content == text


def test_a_choice_holds_for_the_first_answer(engine: Engine) -> None:
    """A demanded call would be demanded for ever."""
    choice = {"type": "function", "function": {"name": "weather"}}
    cities: list[str] = []

    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """Return the weather."""
        cities.append(city)
        return "Rain."

    done = engine.run(
        "Rain?", [weather], tool_choice=choice, template=HERMES, max_tokens=60, seed=1, max_turns=2
    )
    assert (len(cities), done.turns) == (1, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tools": "weather"}, "tools='weather': expected a list of functions"),
        ({"tools": [5]}, r"tools\[0\]: expected a function, or a pair"),
        ({"tools": [{"name": "x"}]}, r"tools\[0\]: expected a function, or a pair"),
        ({"tools": [weather, weather]}, "tools: several have the name 'weather'"),
        ({"tools": [lambda x: x]}, "has no type hint"),
        ({"max_turns": 0}, "max_turns=0: expected a whole number at least 1"),
        ({"on_error": "stop"}, "on_error='stop': expected one of result, raise"),
        ({"approve": 5}, "approve=5: expected a function"),
        ({"on_message": 5}, "on_message=5: expected a function"),
        ({"on_delta": 5}, "on_delta=5: expected a function"),
        ({"messages": []}, "messages: expected at least one"),
        ({"messages": 5}, "messages: expected a text or a list of messages, not int"),
        ({"messages": [5]}, r"messages\[0\]: expected an object"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [5]}]},
            r"messages\[0\].tool_calls\[0\]",
        ),
        ({"messages": [{"role": "nobody", "content": ""}]}, r"messages\[0\].role='nobody'"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], says: str, script: Any) -> None:
    """Refused before anything is asked or called, in both ways."""
    given = {"messages": QUESTION, "tools": [weather], **options}
    messages, tools = given.pop("messages"), given.pop("tools")
    with pytest.raises(ArgumentError, match=says):
        run(script("So."), messages, tools, **given)
    with pytest.raises(ArgumentError, match=says):
        asyncio.run(arun(script("So."), messages, tools, **given))


def test_unknown_keywords(engine: Engine) -> None:
    """Say what was meant."""
    with pytest.raises(TypeError, match="unknown keyword max_new_tokens: llcuda calls it max_toke"):
        engine.run("Hi", [weather], max_new_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean max_turns"):
        engine.run("Hi", [weather], max_turn=5)  # type: ignore[call-arg]


def test_a_cancelled_task_cancels_its_answer(engine: Engine) -> None:
    """The engine is free for the next one."""

    async def cancelled() -> None:
        task = asyncio.ensure_future(
            engine.arun("Hi", [weather], template=HERMES, **{"seed": 1, **ENDLESS})
        )
        while not engine.load().running:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert engine.submit("One day", max_tokens=1).result(PATIENCE).tokens_generated == 1


def test_a_hook_that_raises_ends_the_answer(engine: Engine) -> None:
    """Its exception comes through, and the engine is free."""

    def stop(delta: Any) -> None:
        raise ZeroDivisionError

    asked: dict[str, Any] = {"template": HERMES, "on_delta": stop, "seed": 1, **ENDLESS}
    with pytest.raises(ZeroDivisionError):
        engine.run("Hi", [weather], **asked)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(engine.arun("Hi", [weather], **asked))
    assert engine.submit("One day", max_tokens=1).result(PATIENCE).tokens_generated == 1


class Unit(Enum):
    """Of temperatures."""

    C = "celsius"
    F = "fahrenheit"


def test_arguments_follow_the_type_hints() -> None:
    """Members of an Enum, tuples, floats; what a hint does not say stays."""

    def tool(
        unit: Unit,
        pair: tuple[int, str],
        many: tuple[float, ...],
        share: float,
        count: int | None,
        either: str | int,
        names: list[str],
        sizes: dict[str, float],
        kind: Literal["a", 1],
        rest: Any,
        bare,  # type: ignore[no-untyped-def]
    ) -> None:
        """Take all."""

    given = {
        "unit": "celsius", "pair": [1, "a"], "many": [1, 2.5], "share": 1, "count": None,
        "either": 3, "names": ["a"], "sizes": {"a": 1}, "kind": 1, "rest": [1], "bare": {},
    }  # fmt: skip
    assert call_arguments(tool, given) == {
        **given, "unit": Unit.C, "pair": (1, "a"), "many": (1.0, 2.5), "sizes": {"a": 1.0},
    }  # fmt: skip
    wrong: dict[str, list[tuple[Any, str]]] = {
        "unit": [("kelvin", "unit: expected one of 'celsius', 'fahrenheit'"), ([], "expected one")],
        "pair": [
            ([1], "pair: expected 2 items, not 1"),
            (["a", "b"], r"pair\[0\]: expected integ"),
        ],
        "many": [(["x"], r"many\[0\]: expected number, not 'x'"), (5, "many: expected array")],
        "share": [("1", "share: expected number"), (True, "share: expected number")],
        "count": [(1.5, "count: expected integer, not 1.5; or count: expected null")],
        "either": [([], "expected string, not .*; or either: expected integer")],
        "names": [([1], r"names\[0\]: expected string"), ("a", "names: expected array")],
        "sizes": [({"a": "b"}, "sizes.a: expected number")],
        "kind": [(True, "kind: expected one of 'a', 1, not True"), ("b", "kind: expected one of")],
    }
    for name, values in wrong.items():
        for value, says in values:
            with pytest.raises(ValueError, match=says):
                call_arguments(tool, {**given, name: value})
    assert call_arguments(print, {"sep": "x"}) == {"sep": "x"}
