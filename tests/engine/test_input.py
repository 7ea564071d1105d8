"""What is asked of the engine: bad input, limits, scores."""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Engine, Model, RequestParams
from llcuda.errors import (
    ArgumentError,
    ContextLengthError,
    QueueFullError,
)
from tests.support.waiting import ENDLESS, PATIENCE

# --- bad input ---

TOKENS = [1, 20, 30, 40]


@pytest.mark.parametrize(
    "prompt",
    [
        tuple(TOKENS),
        range(20, 24),
        [np.int64(token) for token in TOKENS],
        *(np.array(TOKENS, dtype=kind) for kind in ("int32", "int64", "uint16")),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_prompts_of_tokens(engine: Engine, prompt: Any) -> None:
    """Any sequence of whole numbers, and an array of them in one dimension."""
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    done = engine.submit(prompt, **asked).result(PATIENCE)
    assert done.tokens == engine.submit(list(prompt), **asked).result(PATIENCE).tokens


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([True], "True: expected a whole number"),
        ([1.5], "1.5: expected a whole number"),
        ([1, None], "None: expected a whole number"),
        ([[1, 2]], "expected a whole number"),
        ([-1], "token -1: expected 0 to 2559"),
        ([1, 2560], "token 2560: expected 0 to 2559"),
        ([2**70], "expected 0 to 2559"),
        (np.array([1.0, 2.0]), "1.0: expected a whole number"),
        (np.array([True]), "True: expected a whole number"),
        (np.array([[1, 2]]), "one dimension, not ndarray"),
        (np.array(5), "one dimension, not ndarray"),
        (np.array([], dtype=int), "the prompt is empty"),
        ((), "the prompt is empty"),
        (5, "not int"),
        (True, "not bool"),
        ({1: 2}, "not dict"),
        ({1, 2}, "not set"),
        (bytearray(b"x"), "not bytearray"),
    ],
    ids=repr,
)
def test_prompts_that_are_refused(engine: Engine, prompt: Any, says: str) -> None:
    """Each is an ArgumentError that says what was given."""
    with pytest.raises(ArgumentError, match=says):
        engine.submit(prompt)


def test_a_prompt_that_is_far_too_long(engine: Engine) -> None:
    """It is refused before all of it is tokenized; its end is taken where that is wanted."""
    text = "There was a fox. " * 20_000
    timings = engine.model.tokenizer_timings
    before = timings.tokenized_tokens
    with pytest.raises(
        ContextLengthError, match=r"prompt: has more than .*; give a larger ctx_size"
    ):
        engine.submit(text)
    read = timings.tokenized_tokens - before
    done = engine.submit(text, max_tokens=1, overflow="truncate").result(PATIENCE)
    assert read < (timings.tokenized_tokens - before - read) / 2
    assert done.dropped_tokens > read


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"stop": 5}, "stop=5: expected a list of texts"),
        ({"stop": True}, "stop=True"),
        ({"stop": {"a": 1}}, "stop={'a': 1}: expected a list"),
        ({"stop": b"x"}, "stop=b'x': expected a list"),
        ({"stop": [b"x"]}, "not b'x'"),
        ({"stop": ["a", ""]}, "none of them empty, not ''"),
        ({"stop": ["\ud800"]}, "surrogate"),
        ({"stop_tokens": 5}, "stop_tokens=5: expected a list of tokens"),
        ({"stop_tokens": "5"}, "stop_tokens='5': expected a list"),
        ({"stop_tokens": [True]}, "stop_tokens=True"),
        ({"stop_tokens": [1.0]}, "stop_tokens=1.0"),
        ({"stop_tokens": [-1]}, "stop_tokens=-1"),
        ({"stop_tokens": None}, "stop_tokens=None"),
        ({"params": {"max_tokens": 3}}, "expected RequestParams"),
        ({"sampling": "greedy"}, "expected SamplingParams"),
        ({"params": RequestParams(), "max_tokens": 3}, "not both"),
    ],
    ids=repr,
)
def test_parameters_that_are_refused(engine: Engine, asked: dict[str, Any], says: str) -> None:
    """Each is an ArgumentError that names it."""
    with pytest.raises(ArgumentError, match=says):
        engine.submit("x", **asked)


def test_stops_of_many_kinds(engine: Engine, model: Model) -> None:
    """One text, any collection of texts, ten thousand of them; tokens as an array."""
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    whole = engine.submit("There was a", **asked).result(PATIENCE)
    stop = model.piece(whole.tokens[5])
    expected = whole.text.split(stop)[0]
    many = [f"no such text {i}" for i in range(10_000)]
    for given in (stop, [stop], (stop,), {stop}, iter([stop]), [*many, stop]):
        assert engine.submit("There was a", stop=given, **asked).result(PATIENCE).text == expected
    tokens = np.array(whole.tokens[5:6])
    done = engine.submit("There was a", stop_tokens=tokens, **asked).result(PATIENCE)
    assert done.tokens == whole.tokens[: whole.tokens.index(whole.tokens[5])]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sequences": 3}, "n_parallel="),
        ({"embeddings": True}, "generates text"),
        ({"pooling": "mean"}, "generates text"),
        ({"attention": "non_causal"}, "generates text"),
        ({"on_step": 5}, "on_step=5: expected a function"),
        ({"on_request": "log"}, "on_request='log': expected a function"),
        ({"n_parallel": 4, "outputs_max": 4, "speculation": 2}, "outputs_max=4: .* = 12"),
        ({"swa_full": False, "ubatch_size": 8, "speculation": 8}, "less than ubatch_size=8"),
    ],
    ids=repr,
)
def test_what_no_engine_takes(model: Model, given: dict[str, Any], says: str) -> None:
    """Each is an ArgumentError that names it, and no thread is left."""
    before = threading.active_count()
    with pytest.raises(ArgumentError, match=says):
        Engine(model, **given)
    assert threading.active_count() == before


def test_scores_of_a_prompt_need_room_for_its_logits(model: Model) -> None:
    """echo=True is refused where it would fail the step that it shares with others."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1, outputs_max=2) as engine:
        good = engine.submit("One day", max_tokens=20, ignore_eos=True)
        with pytest.raises(ArgumentError, match="outputs_max=0"):
            engine.submit("One day", echo=True, logprobs=0)
        assert len(good.result(PATIENCE).tokens) == 20


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"ctx_size": 2048}, 1),
        ({"ctx_size": 1024}, 0),
        ({"ctx_size": 2048, "yarn_orig_ctx": 1024}, 0),
    ],
    ids=repr,
)
def test_a_context_beyond_the_training(
    model: Model, caplog: pytest.LogCaptureFixture, given: dict[str, int], lines: int
) -> None:
    """One warning with both numbers, unless positions are scaled on purpose."""
    with (
        caplog.at_level(logging.WARNING, "llcuda.engine"),
        Engine(model, threads=1, **given) as engine,
    ):
        engine.submit("One day", max_tokens=1).result(PATIENCE)
    told = [record for record in caplog.records if record.name == "llcuda.engine"]
    assert len(told) == lines
    assert all("ctx_size=2048" in r.message and "1024" in r.message for r in told)


def test_speculation_on_a_recurrent_model(
    model_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """It is off, and one line of the log says so; the text is what it is without."""
    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    texts = []
    with Model(model_files["mamba"]) as mamba, caplog.at_level(logging.WARNING, "llcuda.engine"):
        for speculation in (4, 0):
            with Engine(mamba, ctx_size=256, threads=1, speculation=speculation) as engine:
                texts.append(engine.submit([5, 6, 7] * 9, **asked).result(PATIENCE).tokens)
    assert texts[0] == texts[1]
    assert [r.message for r in caplog.records if "speculation" in r.message] == [
        "speculation is off: mamba.gguf cannot forget a wrong guess"
    ]


# --- control tokens ---

CHAT = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("ways", [{}, {"parse_special": True}, {"parse_special": False}], ids=repr)
def test_control_tokens_in_a_raw_prompt(
    engine: Engine, model: Model, ways: dict[str, bool]
) -> None:
    """They are read as such unless parse_special=False, also beside params=; the texts differ."""
    special = ways.get("parse_special", True)
    tokens = model.tokenize(CHAT, parse_special=special)
    expected = engine.submit(tokens, max_tokens=8, temperature=0).result(PATIENCE)
    done = engine.submit(CHAT, max_tokens=8, temperature=0, **ways).result(PATIENCE)
    assert (len(tokens), expected.tokens) == (done.prompt_tokens, done.tokens)
    params = RequestParams(max_tokens=1)
    assert len(tokens) == engine.submit(CHAT, params, **ways).result(PATIENCE).prompt_tokens
    several = engine.submit_n(CHAT, 2, max_tokens=1, **ways)
    assert [len(tokens)] * 2 == [request.result(PATIENCE).prompt_tokens for request in several]
    scored = engine.submit(CHAT, max_tokens=0, echo=True, **ways).result(PATIENCE)
    assert scored.prompt_logprobs is not None
    assert tokens[1:] == [report.token for report in scored.prompt_logprobs]


def test_one_bos_begins_a_prompt(engine: Engine, model: Model) -> None:
    """A prompt that writes BOS gets no second one; as text it has both."""
    written = engine.submit("<|bos|>One day", max_tokens=1).result(PATIENCE)
    assert len(model.tokenize("One day")) == written.prompt_tokens
    as_text = engine.submit("<|bos|>One day", max_tokens=1, parse_special=False).result(PATIENCE)
    assert len(model.tokenize("<|bos|>One day")) == as_text.prompt_tokens


def test_parse_special_is_true_or_false_and_never_a_chats(engine: Engine) -> None:
    """Another value, and the keyword in a chat, are errors."""
    with pytest.raises(ArgumentError, match="parse_special=1: expected True or False"):
        engine.submit("One day", parse_special=1)  # type: ignore[arg-type]
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(TypeError, match=r"raw prompts, chat\(\) never does"):
        engine.chat(messages, parse_special=True)  # type: ignore[call-arg]


# --- how many ---


def test_what_the_queue_counts(model: Model) -> None:
    """As many as may run and wait are taken, all at once or one by one; the error says so."""
    sizes: dict[str, Any] = {"n_parallel": 3, "queue_size": 2, "ctx_size": 128, "threads": 1}
    with Engine(model, **sizes) as engine:
        for _ in range(3):
            with engine.loop.hold():
                requests = engine.submit_n("Once", 4, max_tokens=3)
                requests.append(engine.submit("One day", max_tokens=3))
                with pytest.raises(QueueFullError, match=r"1 more .*, 5 are .* at most 5 in all"):
                    engine.submit("One day")
            for request in requests:
                request.result(PATIENCE)
        with pytest.raises(QueueFullError, match=r"6 more .* n_parallel=3 .* queue_size=2"):
            engine.submit_n("Once", 6)
        requests = [engine.submit("Once", **ENDLESS) for _ in range(5)]
        for request in requests:
            request.cancel()
        for request in requests:
            request.result(PATIENCE)
        assert len(engine.submit_n("Once", 5, max_tokens=1)) == 5


def test_unknown_parameters_are_named(engine: Engine) -> None:
    """The arguments of submit_n are none of submit's."""
    with pytest.raises(TypeError, match="unknown keyword n: submit_n"):
        engine.submit("x", n=3)


# --- scores and what was dropped ---


@pytest.mark.parametrize("length", [1, 2, 40, 200, 256])
def test_a_text_is_scored_without_a_token(model: Model, length: int) -> None:
    """max_tokens=0 with echo=True: the scores that a longer answer has, and the reason "length"."""
    tokens = model.tokenize("The fox was happy and went to the river. " * 40)[:length]
    sizes: dict[str, Any] = {"n_parallel": 2, "ctx_size": 256, "batch_size": 64, "threads": 1}
    with Engine(model, flash_attention=False, **sizes) as engine:
        beside = engine.submit("Once upon a time", max_tokens=50, ignore_eos=True)
        done = engine.submit(tokens, max_tokens=0, echo=True, logprobs=2).result(PATIENCE)
        assert (done.text, done.tokens, done.finish_reason) == ("", [], "length")
        assert done.prompt_logprobs is not None
        assert [report.token for report in done.prompt_logprobs] == tokens[1:]
        assert all(len(report.top) == 2 for report in done.prompt_logprobs)
        assert done.prompt_tokens == length
        if length < 256:
            longer = engine.submit(tokens, max_tokens=1, echo=True, logprobs=2).result(PATIENCE)
            assert longer.prompt_logprobs is not None
            expected = [report.logprob for report in longer.prompt_logprobs]
            reported = [report.logprob for report in done.prompt_logprobs]
            np.testing.assert_allclose(reported, expected, atol=0.1)
        assert len(beside.result(PATIENCE).tokens) == 50
    with pytest.raises(ArgumentError, match="max_tokens=0"):
        RequestParams(max_tokens=0)


@pytest.mark.parametrize("overflow", ["truncate", "shift"])
def test_dropped_tokens_are_told(model: Model, overflow: str) -> None:
    """As a number, and in what is shown."""
    given = len(model.tokenize("fox " * 300))
    with Engine(model, ctx_size=64, threads=1) as engine:
        done = engine.submit("fox " * 300, overflow=overflow, max_tokens=3).result(PATIENCE)
        whole = engine.submit("fox", overflow=overflow, max_tokens=3).result(PATIENCE)
    assert done.dropped_tokens + done.prompt_tokens == given
    assert f"{done.dropped_tokens} tokens of the prompt dropped" in repr(done)
    assert whole.dropped_tokens == 0
    assert "dropped" not in repr(whole)
