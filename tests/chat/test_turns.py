"""overflow="drop": the oldest turns of a conversation go, and the rest is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda import Engine, Model
from llcuda.chat.turns import drop_oldest
from llcuda.errors import ArgumentError, ContextLengthError
from tests.support.waiting import PATIENCE

SYSTEM = {"role": "system", "content": "sys"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "done"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def size(messages: Sequence[Any]) -> int:
    """Count ten tokens for each message."""
    return 10 * len(messages)


def dropped(messages: list[Any], limit: int, step: int = 1) -> list[Any]:
    kept, number = drop_oldest(messages, size, limit, step)
    assert number == len(messages) - len(kept)
    return kept


def test_whole_turns_go_from_the_oldest_on() -> None:
    """Never an answer without its question, and never the instructions."""
    talk = [SYSTEM, user("1"), assistant("1"), user("2"), assistant("2"), user("3")]
    assert dropped(talk, 60) == talk
    assert dropped(talk, 59) == dropped(talk, 40) == [SYSTEM, *talk[3:]]
    assert dropped(talk, 39) == [SYSTEM, talk[5]]
    assert dropped(talk, 1) == [SYSTEM, talk[5]]  # the caller's error says that it does not fit
    greeted = [assistant("Hello"), user("1")]
    assert dropped(greeted, 10) == [user("1")]
    assert dropped([SYSTEM, assistant("a")], 1) == [SYSTEM, assistant("a")]


def test_calls_of_the_last_turn_go_too() -> None:
    """A question that took many calls keeps the last of them, with its results."""
    loop = [user("old"), assistant("old"), user("q"), CALL, RESULT, CALL, RESULT, RESULT]
    assert dropped(loop, 70) == loop[2:]
    assert dropped(loop, 50) == dropped(loop, 1) == [loop[2], *loop[5:]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 300))
def test_the_beginning_stays_while_the_conversation_grows(sizes: list[int], limit: int) -> None:
    """What is left fits where it can, and the first message that stays changes seldom."""
    step = max(1, limit // 4)
    before: list[int] = []
    changes = 0
    talk: list[Any] = []
    for i, length in enumerate(sizes):
        talk.append({"role": "user", "content": i, "size": length})
        kept, _ = drop_oldest(talk, lambda rest: sum(m["size"] for m in rest), limit, step)
        assert sum(m["size"] for m in kept) <= limit or len(kept) == 1
        assert kept == talk[len(talk) - len(kept) :]
        now = [m["content"] for m in kept]
        changes += now[: len(before)] != before
        before = now
    assert changes <= 1 + sum(sizes) // step + sum(size > step for size in sizes)


@pytest.fixture(scope="module")
def engine() -> Any:
    with (
        Model("demo", gpu_layers=0) as model,
        Engine(model, ctx_size=256, threads=1, n_parallel=2) as opened,
    ):
        yield opened


def test_a_chat_that_outgrows_its_context(engine: Engine) -> None:
    """It goes on, says what it left out, and uses the cached prefix between two drops."""
    talk: list[Any] = [{"role": "system", "content": "You tell stories."}]
    reports = []
    for _ in range(14):
        talk.append(user("Tell me a story about a fox and a hen."))
        chat = engine.chat(talk, overflow="drop", max_tokens=16, seed=1, ignore_eos=True)
        answer = chat.result(PATIENCE)
        assert answer.dropped_messages == chat.dropped_messages
        assert answer.completion.prompt_tokens + 16 <= 256
        reports.append((answer.dropped_messages, answer.completion.cached_tokens))
        talk.append(answer.message)
    numbers = [number for number, _ in reports]
    assert (numbers[0], numbers == sorted(numbers)) == (0, True)
    assert 1 < len(set(numbers)) < 8
    same = [cached for (a, cached), b in zip(reports[1:], numbers, strict=False) if a == b]
    assert min(same) > 20
    with pytest.raises(ContextLengthError, match=r"larger ctx_size.*overflow='drop'"):
        engine.chat(talk, max_tokens=16)


def test_bad_input(engine: Engine) -> None:
    """A last question that is too long alone, a raw prompt, and `keep`."""
    with pytest.raises(ContextLengthError):
        engine.chat([user("hello"), assistant("a"), user("fox " * 400)], overflow="drop")
    with pytest.raises(ArgumentError, match="overflow='drop': only a chat has turns to drop"):
        engine.submit("Once", overflow="drop")
    with pytest.raises(ArgumentError, match='keep=3: has no effect with overflow="drop"'):
        engine.chat([user("hello")], overflow="drop", keep=3)
    with pytest.raises(ArgumentError, match="overflow='most': expected one of"):
        engine.chat([user("hello")], overflow="most")
    with pytest.raises(ArgumentError, match="messages: expected a text or a list"):
        engine.chat(5, overflow="drop")  # type: ignore[arg-type]


def test_a_text_and_its_system_message(engine: Engine) -> None:
    """Short for a list of messages; the same prompt."""
    long = engine.chat([{"role": "system", "content": "Be short."}, user("Who are you?")])
    short = engine.chat("Who are you?", system="Be short.")
    assert short.request.prompt_tokens == long.request.prompt_tokens
    assert (
        engine.chat("Hi").request.prompt_tokens == engine.chat([user("Hi")]).request.prompt_tokens
    )
    with pytest.raises(ArgumentError, match="system='a': the messages begin with a system message"):
        engine.chat([SYSTEM, user("Hi")], system="a")
    with pytest.raises(ArgumentError, match="system=5: expected a text"):
        engine.chat("Hi", system=5)  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentError, match="messages: expected a text or a list of messages, not int"
    ):
        engine.chat(5, system="a")  # type: ignore[arg-type]
