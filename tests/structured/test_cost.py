"""What a format may cost: small ones compile at once, others within bounds, or are refused."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llcuda import InferenceEngine, Model, structured
from llcuda.errors import ArgumentError, GrammarError
from llcuda.structured import compiler, trial
from llcuda.structured.cost import MAX_SMALL, regex_cost
from llcuda.structured.gbnf import MAX_RULES, to_lark
from tests.support.grammars import doubling_rules, endless_format
from tests.support.processes import trials
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


def schema(**keywords: Any) -> dict[str, Any]:
    """Return OpenAI's response_format of a JSON schema."""
    return {"type": "json_schema", "json_schema": {"schema": keywords}}


def lark(grammar: str) -> dict[str, Any]:
    """A grammar."""
    return {"type": "lark", "grammar": grammar}


EXPENSIVE: dict[str, Any] = {
    "rules that double": {"type": "gbnf", "grammar": doubling_rules(4000)},
    "repetitions in one another": {"type": "regex", "regex": "((a{1000}){1000}){1000}"},
    "terminals that double": lark(
        "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(28)) + 'R28: "b"'
    ),
    "remainders": endless_format(),
    "a token in front": lark("start: <[5]> R\nR: /((a{1000}){1000}){1000}/"),
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_expensive_formats_are_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They are compiled in a process that a bound ends."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 0.5)
    with pytest.raises(GrammarError):
        structured.compile(model, EXPENSIVE[name])
    assert trials() == []


def test_backtraces_of_rust_change_no_reason(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs milliseconds, and a large grammar drops errors by the thousand: 2 s were over."""
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    with pytest.raises(GrammarError, match="too big"):
        structured.compile(model, EXPENSIVE["rules that double"])


def test_small_formats_start_no_process(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A usual format is compiled here, at once; a large one that costs little is, too."""
    monkeypatch.setattr(trial, "CHILD", Path("/no/such/file"))
    properties = {f"w{i}": {"type": "string", "maxLength": 99} for i in range(200)}
    properties["id"] = {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
    for response_format in (
        {"type": "json_object"},
        {"type": "choice", "choices": ["a", "b"]},
        {"type": "regex", "regex": r"[A-Z][a-z]{2,8} (ran|sat)\."},
        {"type": "gbnf", "grammar": 'root ::= "a" root | [0-9]{1,20}'},
        schema(type="object", properties=properties),
    ):
        assert structured.compile(model, response_format)
    with pytest.raises(GrammarError):
        structured.compile(model, lark('start: "no child"'))


def test_a_large_format_that_is_cheap_enough(model: Model) -> None:
    """It is tried out, and then compiled."""
    for response_format in (
        lark('start: "a"{3} <[5]> /[0-9]/ // a comment with <tokens>'),
        schema(enum=[f"word {i}" for i in range(6000)]),
    ):
        assert structured.compile(model, response_format).guide().mask().any()


@pytest.mark.parametrize(
    ("child", "error"),
    [
        ("import os; os.abort()", "takes more than 256 MiB"),
        ("import os; os.kill(os.getpid(), 11)", "nested too deeply"),
        ("import signal, os; os.kill(os.getpid(), signal.SIGPROF)", "takes more than 2 s"),
        ("raise SystemExit(3)", "ended with 3"),
        ('print(\'{"error": "panic: at x\\\\nstate"}\')', "llguidance fails on it: panic: at x"),
    ],
)
def test_a_process_that_fails(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, child: str, error: str
) -> None:
    """Its end is a refusal, in words."""
    path = tmp_path / "child.py"
    path.write_text(child)
    monkeypatch.setattr(trial, "CHILD", path)
    with pytest.raises(GrammarError, match=error):
        structured.compile(model, lark(f'start: "{error}"'))


def test_no_process_at_all(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program that Python is embedded in, for example."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(GrammarError, match=r"the process that tries it out fails: .*No such file"):
        structured.compile(model, lark('start: "embedded"'))


def test_few_large_formats_are_kept(model: Model) -> None:
    """They may take much memory; a usual one is not forgotten for them."""
    usual = structured.compile(model, {"type": "regex", "regex": "usual"})
    large = [lark(f'start: "a{i}" | "b"') for i in range(compiler.MAX_LARGE_GRAMMARS + 1)]
    first = [structured.compile(model, response_format) for response_format in large]
    assert structured.compile(model, large[-1]) is first[-1]
    assert structured.compile(model, large[0]) is not first[0]
    assert structured.compile(model, {"type": "regex", "regex": "usual"}) is usual


@pytest.mark.parametrize(
    ("pattern", "cost"),
    [
        ("", 0), ("abc", 3), (r"\p{L}\d[^\]]", 3), ("a{9}", 10), ("(ab){0,9}", 30),
        ("(a{9}){9}", 110), ("a|b*", 4), ("a{2", 3), (")(", 1), ("a{999999999}", 1e9),
    ],
)  # fmt: skip
def test_the_cost_of_a_regular_expression(pattern: str, cost: float) -> None:
    """Its length, with repetitions written out."""
    assert regex_cost(pattern) == cost


def test_the_cost_of_gbnf() -> None:
    """Rules in one another count as often as they occur; the expansion itself is linear."""
    assert to_lark(doubling_rules(4))[1] < MAX_SMALL < to_lark(doubling_rules(40))[1]
    assert to_lark('root ::= "a" root | "b"')[1] < MAX_SMALL
    assert to_lark(doubling_rules(9000))[0].count("\n") == 9002
    with pytest.raises(GrammarError, match=f"more than {MAX_RULES} rules and groups"):
        to_lark("root ::= " + "()" * MAX_RULES)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"multipleOf": 99_991, "allOf": [{"multipleOf": 99_989}]}, "99989, 99991"),
        ({"multipleOf": 99_991, "allOf": [{"multipleOf": 99_991}]}, "99991"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"multipleOf": 7}}, "multipleOf": 0.0001}, "0.0001"),
    ],
)
def test_multiples_that_llguidance_cannot_multiply(
    model: Model, keywords: dict[str, Any], text: str
) -> None:
    """Two whose product passes 32 bits would be taken for others."""
    with pytest.raises(ArgumentError, match=rf"multipleOf: {text}.* beside other schemas"):
        structured.compile(model, schema=keywords)


def test_a_compilation_can_be_cancelled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once, its process too, and others did not wait for it."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 300)
    monkeypatch.setattr(trial, "WALL_SECONDS", 300)
    monkeypatch.setattr(trial, "MEMORY_BYTES", 4 << 30)
    cancelled = threading.Event()

    def run(number: int) -> None:
        with trial.cancellable(cancelled):
            structured.compile(model, endless_format(number))

    with ThreadPoolExecutor() as pool:
        compilations = [pool.submit(run, number) for number in (0, 0, 1)]
        assert eventually(lambda: len(trials()) > 0)
        structured.compile(model, {"type": "regex", "regex": "meanwhile"})
        assert not any(compilation.done() for compilation in compilations)
        cancelled.set()
        for compilation in compilations:
            with pytest.raises(CancelledError):
                compilation.result(PATIENCE)
    assert trials() == []


def test_an_event_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a format is compiled; the task's end stops it."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 300)
    monkeypatch.setattr(trial, "WALL_SECONDS", 300)
    monkeypatch.setattr(trial, "MEMORY_BYTES", 4 << 30)

    async def run(engine: InferenceEngine) -> int:
        task = asyncio.ensure_future(
            engine.ainfer("a", max_tokens=5, response_format=endless_format())
        )
        ticks = 0
        while ticks < 20 or not trials():
            assert not task.done()
            await asyncio.sleep(0.001)
            ticks += 1
        answer = await engine.ainfer("a", response_format={"type": "regex", "regex": "b"})
        assert answer.text == "b"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ticks

    with InferenceEngine() as engine:
        engine.load_model("demo", gpu_layers=0, silent=True)
        assert asyncio.run(run(engine)) >= 20
    assert eventually(lambda: trials() == [])


def test_a_process_that_does_not_answer_is_ended(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time, whatever it does."""
    monkeypatch.setattr(trial, "WALL_SECONDS", 0.0)
    with pytest.raises(GrammarError, match="takes more than"):
        structured.compile(model, lark('start: "slow" | "' + time.ctime() + '"'))
    assert trials() == []
