"""BatchProcessor: tables in and out, one model for each process, pools of processes."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llcuda
from llcuda.errors import (
    ArgumentError,
    ModelChangedError,
    ModelNotFoundError,
)
from tests.server.test_chat import TEMPLATE
from tests.support import models
from tests.support.programs import run

LOADING: dict[str, Any] = {"n_parallel": 2, "ctx_size": 128, "threads": 1}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
PROMPTS = ["One day", "There was a fox and a hen", "Once"]
FAR = "a " * 500


@pytest.fixture(scope="module")
def engine() -> Iterator[llcuda.InferenceEngine]:
    with llcuda.InferenceEngine("demo", **LOADING) as loaded:
        yield loaded


@pytest.fixture(scope="module", autouse=True)
def model_of_the_process() -> Iterator[None]:
    """Free the model that all processors with the same settings share."""
    yield
    llcuda.BatchProcessor("demo", **LOADING).close()


def processor(task: str = "infer", **more: Any) -> llcuda.BatchProcessor:
    """Return a processor; texts have four tokens."""
    greedy = {} if task == "embed" else GREEDY
    return llcuda.BatchProcessor("demo", task, **{**LOADING, **greedy, **more})


# --- tables ---


def test_prompts(engine: llcuda.InferenceEngine) -> None:
    """The results of batch_infer in the order of the rows; the other columns stay."""
    batch = {"prompt": np.array(PROMPTS), "number": np.arange(3)}
    table = processor()(batch)
    assert ["prompt", "number"] == [*batch]
    expected = engine.batch_infer(PROMPTS, **GREEDY)
    assert [result.text for result in expected] == table["text"].tolist()
    assert [result.finish_reason for result in expected] == table["finish_reason"].tolist()
    assert [result.prompt_tokens for result in expected] == table["prompt_tokens"].tolist()
    assert [4, 4, 4] == table["tokens_generated"].tolist()
    assert [0, 1, 2] == table["number"].tolist()
    kinds = {name: column.dtype.kind for name, column in table.items()}
    figures = {"prompt_tokens": "i", "tokens_generated": "i"}
    assert {"prompt": "U", "number": "i", "text": "O", "finish_reason": "O", **figures} == kinds


def test_prompts_of_tokens(engine: llcuda.InferenceEngine) -> None:
    """A row may be a list of tokens, or an array; a table of lists is one too."""
    tokens = [engine.tokenize(prompt) for prompt in PROMPTS[:1]]
    expected = engine.infer(PROMPTS[0], **GREEDY).text
    for column in (tokens, np.array(tokens)):
        assert [expected] == processor()({"prompt": column})["text"].tolist()


def test_conversations(engine: llcuda.InferenceEngine) -> None:
    """Texts, lists, and what Arrow makes of lists: arrays, with None for the keys of others."""
    message = {"role": "user", "content": "Who are you?"}
    rows = np.empty(3, dtype=object)
    rows[0] = "Who are you?"
    rows[1] = [message]
    rows[2] = np.array([{**message, "tool_calls": None, "name": None}], dtype=object)
    table = processor("chat")({"messages": rows})
    expected = engine.chat("Who are you?", **GREEDY).result()
    assert [expected.content] * 3 == table["content"].tolist()
    assert [expected.finish_reason] * 3 == table["finish_reason"].tolist()
    assert [expected.completion.prompt_tokens] * 3 == table["prompt_tokens"].tolist()
    assert [""] * 3 == table["reasoning"].tolist()
    assert ["[]"] * 3 == table["tool_calls"].tolist()


def test_calls_of_tools() -> None:
    """They are OpenAI's objects, as JSON."""
    parameters = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    asked = {"tools": [tool], "tool_choice": "required", "template": TEMPLATE, "max_tokens": 60}
    ask = processor("chat", ctx_size=512, **asked)
    table = ask({"messages": ["Call it."]})
    [call] = json.loads(table["tool_calls"][0])
    assert ("f", {"n": 1}) == (call["function"]["name"], json.loads(call["function"]["arguments"]))
    assert "tool_calls" == table["finish_reason"][0]
    ask.close()


def test_vectors(engine: llcuda.InferenceEngine) -> None:
    """Rows of one array, of as many numbers as asked for."""
    table = processor("embed", pooling="mean", dimensions=8)({"text": PROMPTS})
    expected = engine.embed(PROMPTS, pooling="mean", dimensions=8)
    assert (np.float32, (3, 8)) == (table["embedding"].dtype, table["embedding"].shape)
    np.testing.assert_allclose(expected, table["embedding"], atol=1e-5)


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_no_rows(on_error: str) -> None:
    """The columns are there, with their types."""
    table = processor(on_error=on_error)({"prompt": np.array([], dtype=object)})
    assert {0} == {len(column) for column in table.values()}
    assert "i" == table["prompt_tokens"].dtype.kind
    vectors = processor("embed", pooling="mean", on_error=on_error)({"text": []})["embedding"]
    assert (0, np.float32) == (len(vectors), vectors.dtype)


def test_names_of_columns() -> None:
    """Any column is read, and the new ones get a prefix; none is replaced in silence."""
    batch = {"question": PROMPTS[:1], "text": ["kept"]}
    with pytest.raises(ArgumentError, match="prefix='': the batch has a column text already; give"):
        processor(column="question")(batch)
    table = processor(column="question", prefix="new_")(batch)
    assert "kept" == table["text"][0]
    assert 4 == table["new_tokens_generated"][0]


def test_frames(engine: llcuda.InferenceEngine) -> None:
    """A DataFrame comes back with its index and its columns, and is not changed."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": [*PROMPTS, None], "size": [1, 2, 3, 4]}, index=[9, 8, 7, 6])
    table = processor(on_error="return")(frame)
    assert ["prompt", "size"] == [*frame.columns]
    assert isinstance(table, pandas.DataFrame)
    assert [9, 8, 7, 6] == table.index.tolist()
    expected = [result.text for result in engine.batch_infer(PROMPTS, **GREEDY)]
    assert [*expected, ""] == table["text"].tolist()
    assert "ArgumentError: prompt 3: prompt: expected a text" in table["error"].iloc[3]
    vectors = processor("embed", pooling="mean", column="prompt")(frame[:2])["embedding"]
    assert engine.model.embedding_size == len(vectors.iloc[1])


# --- errors of rows ---


def test_a_bad_row_is_raised() -> None:
    """The message has its place in the batch."""
    for task, column, rows, says in (
        ("infer", "prompt", ["One day", FAR], "prompt 1: prompt: has"),
        ("chat", "messages", ["Hi", [{"role": "no", "content": ""}]], "conversation 1: messages"),
        ("embed", "text", ["One day", FAR], r"texts\[1\]: has"),
    ):
        more = {"pooling": "mean"} if task == "embed" else {}
        with pytest.raises(ArgumentError, match=says):
            processor(task, **more)({column: rows})


def test_bad_rows_are_returned(engine: llcuda.InferenceEngine) -> None:
    """The column has their errors, and the other rows what they have alone."""
    table = processor(on_error="return")({"prompt": [PROMPTS[0], "", FAR, None, PROMPTS[1]]})
    expected = [result.text for result in engine.batch_infer(PROMPTS[:2], **GREEDY)]
    assert [expected[0], "", "", "", expected[1]] == table["text"].tolist()
    assert ["length", "error", "error", "error", "length"] == table["finish_reason"].tolist()
    assert [0, 0, 0] == table["prompt_tokens"][1:4].tolist()
    errors = table["error"].tolist()
    assert ("", "") == (errors[0], errors[4])
    assert errors[1].startswith("ArgumentError: prompt 1: prompt: the prompt is empty")
    assert errors[2].startswith("ContextLengthError: prompt 2: prompt: has")
    answers = processor("chat", on_error="return")({"messages": [5, "Hi", [{"role": "no"}]]})
    assert [True, False, True] == [bool(error) for error in answers["error"]]
    vectors = processor("embed", pooling="mean", on_error="return")({"text": [PROMPTS[0], FAR]})
    assert [False, True] == np.isnan(vectors["embedding"]).all(axis=1).tolist()
    assert vectors["error"][1].startswith("ContextLengthError: texts[1]: has")


def test_all_rows_may_be_bad() -> None:
    """Columns have the types that they always have."""
    table = processor("embed", pooling="mean", on_error="return")({"text": [FAR, None]})
    assert (np.float32, 2) == (table["embedding"].dtype, table["embedding"].ndim)
    table = processor(on_error="return")({"prompt": [FAR]})
    assert ("O", "i") == (table["text"].dtype.kind, table["tokens_generated"].dtype.kind)


# --- wrong input ---


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"task": "write"}, ArgumentError, "task='write': expected one of infer, chat, embed"),
        ({"on_error": "skip"}, ArgumentError, "on_error='skip': expected one of raise, return"),
        ({"temperature": -1}, ArgumentError, "temperature=-1"),
        ({"n_parallel": 0}, ArgumentError, "n_parallel=0"),
        ({"temprature": 1}, TypeError, "temprature: did you mean temperature"),
        ({"n_ctx": 64}, TypeError, "llcuda calls it ctx_size"),
        ({"tools": []}, TypeError, "tools: a keyword of task 'chat', not of task='infer'"),
        ({"task": "chat", "pooling": "mean"}, TypeError, "pooling: a keyword of task 'embed'"),
        ({"task": "embed", "max_tokens": 1}, TypeError, "a keyword of task 'infer' and 'chat'"),
        ({"task": "embed", "normalize": 1}, ArgumentError, "normalize=1: expected True or False"),
        ({"task": "embed", "dimensions": 0}, ArgumentError, "dimensions=0"),
        ({"source": 5}, TypeError, "source=5: expected a path"),
        ({"column": 5}, ArgumentError, "column=5: expected a text"),
    ],
)
def test_wrong_settings(given: dict[str, Any], kind: type[Exception], says: str) -> None:
    """They are refused where the processor is made, before anything is loaded or sent."""
    with pytest.raises(kind, match=says):
        llcuda.BatchProcessor(**{"source": "no such model", **given})


def test_wrong_batches() -> None:
    """The column is missing, columns have several lengths, or it is no table."""
    ask = processor()
    with pytest.raises(ArgumentError, match="column='prompt': the batch has no such column, only"):
        ask({"question": ["a"]})
    with pytest.raises(ArgumentError, match="expected columns of one length, not prompt 1, n 2"):
        ask({"prompt": ["a"], "n": [1, 2]})
    with pytest.raises(TypeError, match="batch: expected a dict of arrays or a pandas DataFrame"):
        ask(["a"])
    for column in ("One day", b"One day", {"a": 1}, np.array("One day"), None):
        with pytest.raises(ArgumentError, match="batch: column prompt: expected an array"):
            ask({"prompt": column})
    with pytest.raises(ArgumentError, match=r"batch: column n: expected .*, not int; one row"):
        ask({"prompt": ["a"], "n": 1})


# --- one model for a process ---


def test_it_can_be_sent_before_and_after_it_has_loaded() -> None:
    """It is small, and the other one gives the same."""
    ask = processor()
    sent = pickle.dumps(ask)
    expected = ask({"prompt": PROMPTS})["text"].tolist()
    for data in (sent, pickle.dumps(ask)):
        assert len(data) < 1000
        assert expected == pickle.loads(data)({"prompt": PROMPTS})["text"].tolist()
    assert "<llcuda.BatchProcessor: infer with 'demo'>" == repr(pickle.loads(sent))


def test_a_model_is_loaded_once(caplog: pytest.LogCaptureFixture) -> None:
    """For all processors with the same settings of loading, until one of them is closed."""
    caplog.set_level(logging.INFO, "llcuda.engine")
    settings = {"ctx_size": 64}
    first = processor(**settings)
    again = pickle.loads(pickle.dumps(processor("chat", **settings)))
    assert [] == caplog.records
    for ask, batch in ((first, {"prompt": ["a"]}), (again, {"messages": ["a"]})):
        ask(batch)
        ask(batch)
    assert 1 == len(caplog.records)
    again.close()
    again.close()
    first({"prompt": ["a"]})
    assert 2 == len(caplog.records)
    first.close()


def test_a_model_that_comes_later(tmp_path: Path) -> None:
    """A file that is missing is looked for again by the next call, also where rows may fail."""
    path = tmp_path / "model.gguf"
    ask = llcuda.BatchProcessor(path, on_error="return", **LOADING, **GREEDY)
    for _ in range(2):
        with pytest.raises(ModelNotFoundError):
            ask({"prompt": ["a"]})
    models.write(path, *models.llama())
    assert "" == ask({"prompt": ["a"]})["error"][0]
    ask.close()


def test_a_model_that_fails_for_good(tmp_path: Path) -> None:
    """That concerns every row, so it is raised; the next call loads the file anew."""
    good = models.write(tmp_path / "good.gguf", *models.llama())
    path = Path(shutil.copy(good, tmp_path / "model.gguf"))
    ask = llcuda.BatchProcessor(path, on_error="return", **LOADING, **GREEDY)
    assert "" == ask({"prompt": ["a"]})["error"][0]
    os.truncate(path, 4096)
    with pytest.raises(ModelChangedError):
        ask({"prompt": ["a", "b"]})
    shutil.copy(good, path)
    assert "" == ask({"prompt": ["a"]})["error"][0]
    ask.close()


# --- pools ---

POOLS = """
import multiprocessing, sys
import llcuda

settings = {"max_tokens": 3, "temperature": 0, "threads": 1, "ctx_size": 64, "n_parallel": 2}
processor = llcuda.BatchProcessor("demo", on_error="return", **settings)
batches = [{"prompt": ["One day", "a " * 99, f"The {n} "], "n": [n] * 3} for n in range(6)]
tables = []
for method in ("fork", "spawn", "forkserver"):
    with multiprocessing.get_context(method).Pool(2) as pool:
        tables.append(pool.map(processor, batches, chunksize=1))
own = [processor(batch) for batch in batches]  # loads llcuda's library here
for table in tables:
    for expected, actual in zip(own, table, strict=True):
        assert {k: list(v) for k, v in expected.items()} == {k: list(v) for k, v in actual.items()}
assert "ContextLengthError" in own[5]["error"][1]
with multiprocessing.get_context("fork").Pool(1) as pool:
    try:
        pool.map(processor, batches)
    except llcuda.ForkError as error:
        print(error)
"""

DEVICES = """
import multiprocessing
import llcuda
from llcuda.native import library

library.devices()
processor = llcuda.BatchProcessor("demo", "embed", pooling="mean", threads=1, ctx_size=64)
for method in ("fork", "spawn"):
    with multiprocessing.get_context(method).Pool(1) as pool:
        try:
            print(pool.map(processor, [{"text": ["a"]}])[0]["embedding"].shape)
        except llcuda.ForkError as error:
            print(error)
"""
TOLD = (
    "llcuda was loaded before this process was forked, and its threads do not exist here; start "
    "workers with multiprocessing's 'spawn', or load models, and look at devices and sizes, only "
    "after the fork\n"
)


def test_pools() -> None:
    """Forked, spawned and from a server: the same tables. After a load here a fork is told."""
    result = run(POOLS)
    assert ("", TOLD) == (result.stderr, result.stdout)


def test_a_driver_that_looks_at_devices_first() -> None:
    """Forked workers are told; spawned ones compute."""
    result = run(DEVICES)
    assert "" == result.stderr
    assert result.stdout.startswith(f"{TOLD}(1, ")
