"""Functions of the caller over tokens and logits, min_tokens, and the order of the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llcuda import Engine, InferenceEngine, Model
from llcuda.engine.functions import SequenceFunctions
from llcuda.engine.metrics import RequestRecord
from llcuda.engine.request import RequestParams
from llcuda.errors import ArgumentError, ConcurrencyError
from tests.engine.test_guide import Sequence
from tests.support.waiting import PATIENCE

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


def only(token: int) -> Callable[[Any, Any], None]:
    """Return a function that leaves one token."""

    def function(tokens: Any, logits: Any) -> None:
        logits[:] = -np.inf
        logits[token] = 0

    return function


@pytest.fixture(scope="module")
def word(model: Model) -> int:
    """The token of " ball"."""
    return model.tokenize(" ball", add_special=False)[0]


# --- logits processors ---


def test_a_function_sees_tokens_and_logits(engine: Engine, model: Model) -> None:
    """The prompt and the text so far; logits as the model has them, of one row."""
    seen: list[tuple[list[int], Any]] = []

    def function(tokens: Any, logits: Any) -> None:
        assert (tokens.dtype, logits.dtype) == (np.int32, np.float32)
        assert logits.shape == (model.vocab_size,)
        seen.append((tokens.tolist(), logits.copy()))
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 0

    plain = engine.submit(PROMPT, **GREEDY).result(PATIENCE)
    done = engine.submit(PROMPT, logits_processor=function, **GREEDY).result(PATIENCE)
    assert done.tokens == plain.tokens
    prompt = model.tokenize(PROMPT)
    assert [tokens for tokens, _ in seen] == [prompt + done.tokens[:i] for i in range(12)]
    assert [int(logits.argmax()) for _, logits in seen] == done.tokens


def test_a_function_changes_its_own_text(engine: Engine, word: int) -> None:
    """In a batch, by a new array or in place; the texts beside it are as they are alone."""
    asked: dict[str, Any] = {"max_tokens": 12, "seed": 3, "top_k": 0}
    alone = [engine.submit(PROMPT, **{**asked, "seed": i}).result(PATIENCE) for i in range(3)]

    def function(tokens: Any, logits: Any) -> Any:
        return np.where(np.arange(len(logits)) == word, logits + 50.0, logits).astype(np.float64)

    with engine.loop.hold():
        requests = [engine.submit(PROMPT, **{**asked, "seed": i}) for i in range(3)]
        changed = engine.submit(PROMPT, logits_processor=function, **asked)
    assert changed.result(PATIENCE).tokens == [word] * 12
    assert [request.result(PATIENCE).tokens for request in requests] == [d.tokens for d in alone]


@pytest.mark.parametrize("device_logits", [False, True])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"top_k": 0}, {"repeat_penalty": 1.3}])
def test_a_function_that_changes_nothing(
    model: Model, sampling: dict[str, Any], device_logits: bool
) -> None:
    """Leaves the text as it is: same seed, same text, same cached prefix."""
    with Engine(model, ctx_size=256, threads=1, device_logits=device_logits) as engine:
        asked: dict[str, Any] = {"max_tokens": 20, "seed": 7, **sampling}
        plain = [engine.submit(PROMPT, **asked).result(PATIENCE) for _ in range(2)]
        with_it = engine.submit(PROMPT, logits_processor=lambda t, x: x, **asked).result(PATIENCE)
    assert with_it.tokens == plain[1].tokens == plain[0].tokens
    assert with_it.cached_tokens == plain[1].cached_tokens > 0


def test_several_functions_run_in_their_order(engine: Engine, word: int) -> None:
    """Each sees what the one before it left."""
    calls: list[str] = []

    def first(tokens: Any, logits: Any) -> Any:
        calls.append("first")
        return np.full_like(logits, -5)

    def second(tokens: Any, logits: Any) -> None:
        calls.append("second")
        assert (logits == -5).all()
        logits[word] = 1

    asked: dict[str, Any] = {**GREEDY, "max_tokens": 2}
    done = engine.submit(PROMPT, logits_processor=[first, second], **asked).result(PATIENCE)
    assert done.tokens == [word, word]
    assert calls == ["first", "second"] * 2


def test_infinity_is_the_largest_bias(engine: Engine, word: int) -> None:
    """A token with an infinite logit is chosen, at any temperature."""

    def function(tokens: Any, logits: Any) -> None:
        logits[word] = np.inf

    for temperature in (0, 0.1, 2):
        asked: dict[str, Any] = {"max_tokens": 3, "temperature": temperature}
        done = engine.submit(PROMPT, logits_processor=function, **asked).result(PATIENCE)
        assert done.tokens == [word] * 3


def test_functions_come_before_everything_else(engine: Engine, model: Model, word: int) -> None:
    """Guide, grammar, bias and penalties have the last word; log-probabilities are the model's."""

    def function(tokens: Any, logits: Any) -> None:
        logits[word] += 30

    def run(**asked: Any) -> Any:
        given: dict[str, Any] = {"logits_processor": function, **GREEDY, **asked}
        return engine.submit(PROMPT, **given).result(PATIENCE)

    assert run(grammar='root ::= "yes" | "no"').text in ("yes", "no")
    assert run(guide=Sequence(model, "Tom had a red ball.")).text == "Tom had a red ball."
    assert run(response_format={"type": "regex", "regex": "[ab]{3}"}).text.strip("ab") == ""
    assert run(max_tokens=1, logit_bias={word: -100}).tokens != [word]
    assert run().tokens == [word] * 12
    assert run(presence_penalty=100).tokens.count(word) == 1
    plain = engine.submit(PROMPT, logprobs=5, **GREEDY).result(PATIENCE)
    changed = run(logprobs=5)
    assert plain.logprobs
    assert changed.logprobs
    assert changed.logprobs[0].token == word
    assert changed.logprobs[0].top == plain.logprobs[0].top
    assert changed.logprobs[0].logprob < -5


def _fails(tokens: Any, logits: Any) -> Any:
    raise ZeroDivisionError("in the function")


def _exits(tokens: Any, logits: Any) -> Any:
    raise SystemExit("in the function")


FAULTS: dict[str, tuple[Any, type[BaseException], str]] = {
    "raises": (_fails, ZeroDivisionError, "in the function"),
    "exits": (_exits, SystemExit, "in the function"),
    "shape": (lambda t, x: x[:5], ArgumentError, r"logits_processor: .* shape \(5,\), expected"),
    "rows": (lambda t, x: x[None], ArgumentError, "shape"),
    "list": (lambda t, x: x.tolist(), ArgumentError, "returned list, expected a numpy array"),
    "whole": (lambda t, x: x.astype(int), ArgumentError, "array of int64, expected float32"),
    "NaN": (lambda t, x: x * np.nan, ArgumentError, "tokens are NaN after it"),
    "one NaN": (lambda t, x: x.__setitem__(4, np.nan), ArgumentError, "1 tokens are NaN"),
    "none left": (lambda t, x: x.fill(-np.inf), ArgumentError, "has forbidden every token"),
    "arguments": (lambda x: x, TypeError, "positional argument"),
}


@pytest.mark.parametrize("speculation", [0, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_function_fails_its_own_request(
    engine: Engine, model: Model, fault: str, speculation: int
) -> None:
    """At its third token; its reader gets the exception, with the original as cause."""
    faulty, kind, says = FAULTS[fault]

    def function(tokens: Any, logits: Any) -> Any:
        return faulty(tokens, logits) if len(tokens) >= 7 and fault != "arguments" else None

    failing = faulty if fault == "arguments" else function
    with Engine(model, n_parallel=2, ctx_size=128, threads=1, speculation=speculation) as small:
        beside = small.submit("Once", max_tokens=40, ignore_eos=True)
        with pytest.raises(kind, match=says) as raised:
            small.submit(PROMPT, logits_processor=failing, max_tokens=20).result(PATIENCE)
        assert type(raised.value.__cause__) is kind
        assert len(beside.result(PATIENCE).tokens) == 40
        assert small.submit("Once", max_tokens=2).result(PATIENCE).tokens


def test_a_function_cannot_wait_for_the_engine(engine: Engine) -> None:
    """It runs on the thread that computes."""

    def function(tokens: Any, logits: Any) -> None:
        engine.submit("Once", max_tokens=1).result()

    with pytest.raises(ConcurrencyError, match="cannot wait"):
        engine.submit(PROMPT, logits_processor=function).result(PATIENCE)


def test_speculation_is_off_for_the_row(model: Model, word: int) -> None:
    """The rows beside it are guessed as before; all texts are those without speculation."""
    repeated = model.tokenize("Tom had a red ball. " * 8)
    texts = []
    for speculation in (0, 4):
        calls: list[int] = []

        def function(tokens: Any, logits: Any, calls: list[int] = calls) -> None:
            calls.append(len(tokens))
            logits[word] = -np.inf

        with Engine(
            model, n_parallel=2, ctx_size=256, threads=1, speculation=speculation
        ) as engine:
            asked: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
            with engine.loop.hold():
                requests = [
                    engine.submit(repeated, **asked),
                    engine.submit(repeated, logits_processor=function, logprobs=1, **asked),
                ]
            done = [request.result(PATIENCE) for request in requests]
        texts.append([completion.tokens for completion in done])
        assert calls == list(range(len(repeated), len(repeated) + 60))
        assert done[1].logprobs
        assert [item.token for item in done[1].logprobs] == done[1].tokens
    assert texts[0] == texts[1]
    assert word not in texts[0][1]


def test_tokens_after_a_shift(model: Model) -> None:
    """A text that outgrew the context is given without what was dropped."""
    arrays: list[list[int]] = []

    def function(tokens: Any, logits: Any) -> None:
        arrays.append(tokens.tolist())

    with Engine(model, ctx_size=32, threads=1) as engine:
        asked: dict[str, Any] = {"max_tokens": 100, "overflow": "shift", "ignore_eos": True}
        done = engine.submit([2], logits_processor=function, **asked).result(PATIENCE)
    assert len(arrays) == len(done.tokens) == 100
    for i, tokens in enumerate(arrays):
        last = done.tokens[max(0, i - 10) : i]
        assert tokens[len(tokens) - len(last) :] == last
    assert max(map(len, arrays)) < 32


def test_the_time_of_functions_is_that_of_sampling() -> None:
    """In the records of requests and steps."""
    records: list[RequestRecord] = []

    def function(tokens: Any, logits: Any) -> None:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass

    with (
        Model("demo") as model,
        Engine(model, ctx_size=64, threads=1, on_request=records.append) as engine,
    ):
        engine.submit(PROMPT, logits_processor=function, max_tokens=10, ignore_eos=True).result(
            PATIENCE
        )
        batch = engine.metrics.snapshot()["batch"]
    assert records[0].sample_seconds >= 10 * 0.002
    assert batch["sample_seconds"] >= 10 * 0.002


def test_every_way_to_ask_takes_functions(word: int) -> None:
    """infer, stream, batch_infer, infer_n, ainfer, chat; where they leave the end, it ends."""
    asked: dict[str, Any] = {"logits_processor": only(word), "max_tokens": 3}
    text = " ball" * 3
    with InferenceEngine() as engine:
        engine.load_model("demo", silent=True, n_parallel=2)
        assert engine.infer(PROMPT, **asked).text == text
        assert "".join(engine.stream(PROMPT, **asked)) == text
        assert [done.text for done in engine.batch_infer([PROMPT] * 3, **asked)] == [text] * 3
        assert [done.text for done in engine.infer_n(PROMPT, 2, **asked)] == [text] * 2
        assert asyncio.run(engine.ainfer(PROMPT, **asked)).text == text
        message = {"role": "user", "content": "Hello"}
        assert str(engine.chat([message], **asked).result(PATIENCE)).strip() == text.strip()
        ended = engine.chat([message], logits_processor=only(3), min_tokens=4).result(PATIENCE)
        assert (ended.completion.tokens, ended.finish_reason) == ([], "stop")


# --- stopping criteria ---


def test_a_function_ends_the_text(engine: Engine, model: Model) -> None:
    """After the token with which it says so; beside other texts, and with several functions."""
    plain = engine.submit(PROMPT, **GREEDY).result(PATIENCE)
    prompt = model.tokenize(PROMPT)
    seen: list[tuple[list[int], str]] = []

    def function(tokens: Any, text: str) -> bool:
        seen.append((tokens.tolist(), text))
        return len(tokens) == len(prompt) + 5

    beside = engine.submit("Once", max_tokens=40, ignore_eos=True)
    criteria = [function, lambda tokens, text: np.bool_(False)]
    done = engine.submit(PROMPT, stopping_criteria=criteria, **GREEDY).result(PATIENCE)
    assert (done.tokens, done.finish_reason) == (plain.tokens[:5], "stop")
    assert seen[-1] == (prompt + done.tokens, done.text)
    assert [text for _, text in seen] == [model.detokenize(done.tokens[:i]) for i in range(1, 6)]
    assert len(beside.result(PATIENCE).tokens) == 40


@pytest.mark.parametrize("device_logits", [False, True])
def test_a_function_sees_the_whole_text(model: Model, device_logits: bool) -> None:
    """Also where texts are delivered beside the next step, and with what a stop text holds back."""
    with Engine(model, ctx_size=128, threads=1, device_logits=device_logits) as engine:
        asked: dict[str, Any] = {**GREEDY, "max_tokens": 40, "stop": ["grumpy cat"]}
        done = engine.submit(
            PROMPT, stopping_criteria=lambda tokens, text: "girl" in text, **asked
        ).result(PATIENCE)
    assert done.text.endswith("grumpy girl")


@pytest.mark.parametrize("answer", [None, 1, "yes", ZeroDivisionError("in it")], ids=str)
def test_a_faulty_criterion_fails_its_own_request(engine: Engine, answer: Any) -> None:
    """Whether it raises, or answers neither True nor False."""

    def function(tokens: Any, text: str) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    beside = engine.submit("Once", max_tokens=30, ignore_eos=True)
    with pytest.raises((ArgumentError, ZeroDivisionError), match=r"expected True or False|in it"):
        engine.submit(PROMPT, stopping_criteria=function, overflow="shift").result(PATIENCE)
    assert len(beside.result(PATIENCE).tokens) == 30


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("wrong", [5, "f", [5], [len, None], {"f": len}])
def test_what_is_no_function_is_refused(engine: Engine, name: str, wrong: Any) -> None:
    """Before anything is computed."""
    with pytest.raises(ArgumentError, match=f"^{name}=.*expected a function"):
        engine.submit(PROMPT, **{name: wrong})
    assert getattr(RequestParams(**{name: None}), name) == ()


# --- min_tokens ---


def test_min_tokens_bars_every_end(engine: Engine, model: Model) -> None:
    """The model's end, stop tokens, stop texts and stopping criteria; then they are heeded."""
    end = min(model.eog_tokens)
    plain = engine.submit(PROMPT, **GREEDY).result(PATIENCE)
    wanted: dict[str, dict[str, Any]] = {
        "end": {"logit_bias": {end: 1e6}},
        "stop token": {"stop_tokens": [plain.tokens[2]]},
        "stop text": {"stop": [" "]},
        "criterion": {"stopping_criteria": lambda tokens, text: True},
        "processor": {
            "logits_processor": lambda tokens, logits: logits.__setitem__(end, 1e6),
        },
    }
    for name, asked in wanted.items():
        early = engine.submit(PROMPT, **GREEDY, **asked).result(PATIENCE)
        assert (early.finish_reason, len(early.tokens) < 8) == ("stop", True), name
        done = engine.submit(PROMPT, min_tokens=8, **{**GREEDY, "max_tokens": 40}, **asked)
        assert done.result(PATIENCE).finish_reason == "stop", name
        assert 8 <= len(done.tokens) < 40, name
        if name == "end":
            assert len(done.tokens) == 8


def test_min_tokens_and_formats(engine: Engine, model: Model) -> None:
    """A text that can only end ends; one that may go on goes on."""

    def run(**asked: Any) -> Any:
        return engine.submit(PROMPT, min_tokens=10, max_tokens=40, seed=1, **asked).result(PATIENCE)

    for asked in (
        {"grammar": 'root ::= "yes" | "no"'},
        {"response_format": {"type": "regex", "regex": "yes|no"}},
    ):
        done = run(**asked)
        assert (done.finish_reason, done.text in ("yes", "no")) == ("stop", True)
    for asked in (
        {"grammar": "root ::= [a-z]+"},
        {"response_format": {"type": "regex", "regex": "[a-z]+"}},
    ):
        assert len(run(**asked).tokens) >= 10
    assert run(guide=Sequence(model, "Tom had.")).text == "Tom had."


def test_min_tokens_leaves_the_others_as_they_are(engine: Engine, model: Model) -> None:
    """In one batch, with speculation too."""
    bias = {min(model.eog_tokens): 100.0}
    ended = engine.submit(PROMPT, **GREEDY, logit_bias=bias).result(PATIENCE)
    with Engine(model, n_parallel=2, ctx_size=128, threads=1, speculation=3) as guessing:
        for used in (engine, guessing):
            with used.loop.hold():
                longer = used.submit(PROMPT, min_tokens=6, logit_bias=bias, **GREEDY)
                beside = used.submit(PROMPT, logit_bias=bias, **GREEDY)
            assert len(longer.result(PATIENCE).tokens) == 6
            assert beside.result(PATIENCE).tokens == ended.tokens == []


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, None, 13])
def test_min_tokens_is_checked(engine: Engine, wrong: Any) -> None:
    """A whole number, at most max_tokens."""
    with pytest.raises(ArgumentError, match=r"^min_tokens="):
        engine.submit(PROMPT, min_tokens=wrong, **GREEDY)


# --- priority ---


def test_the_queue_goes_by_priority(model: Model) -> None:
    """Lower numbers first, equal ones in the order of submission; no text is interrupted."""
    order: list[int] = []

    def note(number: int) -> Callable[[Any, Any], None]:
        return lambda tokens, logits: order.append(number)

    with Engine(model, n_parallel=1, ctx_size=64, threads=1) as engine:
        asked: dict[str, Any] = {"max_tokens": 2, "ignore_eos": True}
        with engine.loop.hold():
            requests = [
                engine.submit(PROMPT, priority=priority, logits_processor=note(number), **asked)
                for number, priority in enumerate([0, 5, 0, -2, 5, np.int64(-2)])
            ]
        for request in requests:
            request.result(PATIENCE)
    assert order == [3, 3, 5, 5, 0, 0, 2, 2, 1, 1, 4, 4]


@pytest.mark.parametrize("wrong", [1.5, "high", True, None, 2**31])
def test_priority_is_checked(engine: Engine, wrong: Any) -> None:
    """A whole number of 32 bits."""
    with pytest.raises(ArgumentError, match=r"^priority="):
        engine.submit(PROMPT, priority=wrong)


def test_logits_that_are_not_numbers() -> None:
    """A function gets -inf in place of NaN, as a sampler leaves such tokens out."""
    seen: list[list[float]] = []
    functions = SequenceFunctions(lambda tokens, logits: seen.append(logits.tolist()), None)
    row = np.array([np.nan, 1, 2], np.float32)
    functions.process([5], row)
    assert seen == [[-np.inf, 1, 2]] == [row.tolist()]
    functions.process([5], np.full(3, np.nan, np.float32))  # the sampler has an error for them
    assert len(seen) == 1
