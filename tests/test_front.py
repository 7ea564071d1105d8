"""The short ways in: texts in place of lists, one call, batches as they come, results."""

from __future__ import annotations

import dataclasses
import html
import inspect
import io
import json
import math
import re
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llcuda
from llcuda.display import show_stream
from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.errors import (
    AnswerError,
    ArgumentError,
    ClosedError,
    ConcurrencyError,
    ContextLengthError,
)
from llcuda.inference import chat
from tests.support import models
from tests.support.programs import run
from tests.support.waiting import ENDLESS, PATIENCE

HELLO = [{"role": "user", "content": "Who are you?"}]
SHORT: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


@dataclasses.dataclass
class Fox:
    """A class as format."""

    name: str
    age: int


@pytest.fixture(scope="module")
def engine() -> Iterator[llcuda.InferenceEngine]:
    with llcuda.InferenceEngine("demo", n_parallel=2, ctx_size=256, threads=1) as opened:
        yield opened


# --- loading ---


def test_a_name_loads_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Silently, with the keywords of load_model; closing it frees the model, twice too."""
    engine = llcuda.InferenceEngine("demo", ctx_size=128, gpu_layers=0)
    assert engine.is_loaded
    assert engine.engine.ctx_size == 128
    engine.close()
    engine.close()
    assert not engine.is_loaded
    with pytest.raises(ClosedError):
        engine.tokenize("x")
    assert engine.load_model("demo", silent=True)
    engine.close()
    deferred = llcuda.InferenceEngine("demo", auto_start=False)
    assert not deferred.is_loaded
    assert deferred.count_tokens("One day") > 1
    deferred.close()
    assert capfd.readouterr() == ("", "")


def test_a_name_that_is_wrong(tmp_path: Path) -> None:
    """As load_model says it; keywords without a name say what to do."""
    with pytest.raises(llcuda.errors.ModelNotFoundError):
        llcuda.InferenceEngine(tmp_path / "none.gguf")
    with pytest.raises(TypeError, match="unknown keyword n_ctx: llcuda calls it ctx_size"):
        llcuda.InferenceEngine("demo", n_ctx=5)  # type: ignore[call-arg]
    rule = "model_name: ctx_size= has no effect without a model; give its name, or call load_model"
    with pytest.raises(ArgumentError, match=rule):
        llcuda.InferenceEngine(ctx_size=64)


# --- llcuda.chat ---


def test_one_call() -> None:
    """`llcuda.chat` answers, keeps the model, and is still the package of its modules."""
    import llcuda.chat.session as session

    answer = llcuda.chat("demo", "Who are you?", **SHORT)
    again = llcuda.chat("demo", HELLO, **SHORT)
    assert isinstance(answer, llcuda.ChatCompletion)
    assert answer.content == str(answer) == str(again) != ""
    assert again.completion.cached_tokens > 0  # by the same engine
    assert llcuda.chat.session is session  # type: ignore[attr-defined]
    with pytest.raises(llcuda.errors.ModelNotFoundError):
        llcuda.chat("no-such-model", "Hello")
    assert llcuda.chat("demo", HELLO, **SHORT).completion.cached_tokens > 0  # it stayed
    with pytest.raises(TypeError, match="unknown keyword max_new_tokens: llcuda calls it max_toke"):
        llcuda.chat("demo", "Hello", max_new_tokens=1)  # type: ignore[call-arg]
    for wrong in ((), ("Hello",), ("demo", "Hello", 5)):
        rule = rf"llcuda.chat: expected two arguments, the model and the messages, not {len(wrong)}"
        with pytest.raises(TypeError, match=rule):
            llcuda.chat(*wrong)
    for messages in (None, b"Hello", HELLO[0]):
        with pytest.raises(ArgumentError, match="messages: expected a text or a list of messages"):
            llcuda.chat("demo", messages)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model=5: expected a path"):
        llcuda.chat(5, "Hello")  # type: ignore[arg-type]


def test_another_model_waits_for_the_one_in_use(tmp_path: Path) -> None:
    """Two threads with two names: each gets the answer of its model."""
    other = tmp_path / "other.gguf"
    other.write_bytes(llcuda.demo_model().read_bytes())
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        name = "demo" if number % 2 else str(other)
        answers[number] = llcuda.chat(name, "Who are you?", **SHORT).content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 6
    assert len(set(answers.values())) == 1


def test_the_process_ends_with_a_model_kept() -> None:
    """Without a word, and with status 0."""
    program = "import llcuda; print(llcuda.chat('demo', 'Hello', max_tokens=1).finish_reason)"
    result = run(program)
    assert (result.stdout, result.stderr, result.returncode) == ("length\n", "", 0)


def test_signatures_have_the_keywords() -> None:
    """An interactive Python completes them."""
    kind = llcuda.InferenceEngine
    for call in (kind.chat, kind.submit, kind.infer_n, kind.run, kind.batch_chat, chat):
        assert "max_tokens" in inspect.signature(call).parameters


# --- batches ---


def test_a_batch_of_chats(engine: llcuda.InferenceEngine) -> None:
    """In the order of the conversations, each with the answer that it has alone."""
    talks: list[Any] = ["Who are you?", HELLO, "Tell me a story."]
    answers = engine.batch_chat(talks, **SHORT)
    assert [answer.content for answer in answers][:2] == [answers[0].content] * 2
    assert len(answers) == 3
    with pytest.raises(ArgumentError, match=r"conversation 1: messages\[0\].role='no'"):
        engine.batch_chat(["Hi", [{"role": "no", "content": "x"}]])
    for one in ("Hi", HELLO):
        with pytest.raises(TypeError, match="conversations: expected a list of conversations"):
            engine.batch_chat(one)
        with pytest.raises(TypeError, match="conversations: expected a list of conversations"):
            engine.batch_chat_iter(one)
    with pytest.raises(TypeError, match="did you mean temperature"):
        engine.batch_chat(["Hi"], temprature=1)  # type: ignore[call-arg]


def test_results_as_they_come(engine: llcuda.InferenceEngine) -> None:
    """Short ones first, each with its index; prompts are read as they are needed."""
    taken = []

    def prompts() -> Iterator[str]:
        for number in range(12):
            taken.append(number)
            yield "One day " * (number + 1)

    seen = {}
    for index, result in engine.batch_infer_iter(prompts(), max_tokens=2):
        assert result.prompt_tokens == engine.count_tokens("One day " * (index + 1))
        seen[index] = result
        assert len(taken) <= len(seen) + 4  # twice n_parallel
    assert sorted(seen) == list(range(12))
    long = [{"role": "user", "content": "Tell me a story about a fox and a hen."}]
    order = [
        index
        for index, _ in engine.batch_chat_iter(
            iter([long, HELLO]), temperature=0, max_tokens=60, ignore_eos=True
        )
    ]
    assert sorted(order) == [0, 1]
    assert list(engine.batch_infer_iter([])) == []


def test_leaving_a_batch_cancels_it(engine: llcuda.InferenceEngine) -> None:
    """And the next request runs; a wrong prompt ends the loop at its place."""
    short = {"response_format": {"type": "choice", "choices": ["a"]}}
    for _index, result in engine.batch_infer_iter(["One day"] * 3, **short):
        assert result.text == "a"
        break
    far = "a " * 1000
    with pytest.raises(llcuda.ContextLengthError, match="prompt 1: prompt: has"):
        engine.batch_infer(["One day", far])
    with pytest.raises(llcuda.ContextLengthError, match="prompt 0: prompt: has"):
        list(engine.batch_infer_iter([far]))
    with pytest.raises(llcuda.ContextLengthError, match="conversation 0: prompt: has"):
        engine.batch_chat([far])
    with pytest.raises(ArgumentError, match="prompt 1: prompt: the prompt is empty"):
        list(engine.batch_infer_iter(["One day", ""], max_tokens=1))
    with pytest.raises(TypeError, match="prompts: expected a list of texts"):
        engine.batch_infer_iter("One day")
    steps = engine.batch_infer_iter(["One day"] * 2, **{"seed": 1, **ENDLESS})
    del steps
    assert engine.infer("One day", max_tokens=1).tokens_generated == 1


FAR = "a " * 1000


def test_errors_of_a_batch_in_their_places(engine: llcuda.InferenceEngine) -> None:
    """The others have what they have alone; an error knows its index and what it measured."""
    prompts: list[Any] = ["One day", "", "There was", FAR, None]
    alone = engine.batch_infer(["One day", "There was"], **SHORT)
    results = engine.batch_infer(prompts, on_error="return", **SHORT)
    kinds = (Completion, ArgumentError, Completion, ContextLengthError, ArgumentError)
    assert [*kinds] == [type(result) for result in results]
    assert [one.text for one in alone] == [results[0].text, results[2].text]  # type: ignore[union-attr]
    far = results[3]
    assert isinstance(far, ContextLengthError)
    assert str(far).startswith("prompt 3: prompt: has 1002 tokens, prompt and answer may have 256")
    assert (1002, 256, "prompt") == (far.tokens, far.limit, far.parameter)
    assert far.__traceback__ is None
    seen = dict(engine.batch_infer_iter(iter(prompts), on_error="return", **SHORT))
    assert [str(result) for result in results] == [str(seen[index]) for index in range(5)]


def test_errors_of_a_batch_of_chats_in_their_places(engine: llcuda.InferenceEngine) -> None:
    """Messages that are wrong or too long, whatever they are."""
    talks: list[Any] = [HELLO, FAR, [{"role": "no", "content": "x"}], 5, [], None]
    answers = engine.batch_chat(talks, on_error="return", **SHORT)
    kinds = (llcuda.ChatCompletion, ContextLengthError, *[ArgumentError] * 4)
    assert [*kinds] == [type(answer) for answer in answers]
    assert "conversation 2: messages[0].role='no'" in str(answers[2])
    seen = dict(engine.batch_chat_iter(iter(talks), on_error="return", **SHORT))
    assert [str(answer) for answer in answers] == [str(seen[index]) for index in range(6)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"on_error": "skip"}, "on_error='skip': expected one of raise, return"),
        ({"on_error": "return", "temperature": -1}, "temperature=-1"),
        ({"on_error": "return", "response_format": {"type": "x"}}, "response_format"),
        ({"on_error": "return", "max_tokens": -1}, "max_tokens=-1"),
    ],
)
def test_an_error_of_every_text_is_raised(
    engine: llcuda.InferenceEngine, given: dict[str, Any], says: str
) -> None:
    """It is not returned as often as there are texts."""
    for call in (engine.batch_infer, engine.batch_chat):
        with pytest.raises(ArgumentError, match=says):
            call(["One day", "There was"], **given)
    for call in (engine.batch_infer_iter, engine.batch_chat_iter):
        with pytest.raises(ArgumentError, match=says):
            list(call(["One day", "There was"], **given))


def test_a_text_that_fails_in_a_batch(engine: llcuda.InferenceEngine) -> None:
    """Its error is returned, and the engine goes on; a closed engine's is raised."""
    size = engine.count_tokens("One day")

    def fail(tokens: Any, logits: Any) -> None:
        if len(tokens) > size + 3:
            logits[:] = -math.inf

    asked: dict[str, Any] = {"logits_processor": fail, "ignore_eos": True, **SHORT}
    results = engine.batch_infer(["One day", "One day and another", ""], **asked, on_error="return")
    assert ["it has forbidden every token"] * 2 == [str(r)[18:46] for r in results[:2]]
    short = engine.batch_infer(["One day"], **{**asked, "max_tokens": 2}, on_error="return")
    assert [2] == [result.tokens_generated for result in short if isinstance(result, Completion)]
    with llcuda.InferenceEngine("demo", ctx_size=64, threads=1) as other:
        running = other.batch_infer_iter(["One day"] * 3, on_error="return", **ENDLESS)
        threading.Timer(0.1, other.unload_model).start()
        with pytest.raises(ClosedError):
            list(running)


def test_a_batch_in_a_hook_does_not_wait() -> None:
    """It would wait for itself."""
    errors: list[BaseException] = []

    def hook(record: Any) -> None:
        if errors:
            return
        try:
            list(engine.batch_infer_iter(["One day"], max_tokens=1))
        except ConcurrencyError as error:
            errors.append(error)

    with llcuda.InferenceEngine("demo", ctx_size=64, on_request=hook) as engine:
        engine.infer("One day", max_tokens=1)
    assert len(errors) == 1


def test_progress(engine: llcuda.InferenceEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """Drawn where somebody sees it; a pipe gets nothing."""
    results = engine.batch_infer(["One day"] * 3, max_tokens=1, progress=True)
    assert [result.tokens_generated for result in results] == [1] * 3
    assert engine.batch_infer([], progress=True) == []
    assert capfd.readouterr().err == ""
    with pytest.raises(ArgumentError, match="progress=5: expected True or False"):
        engine.batch_infer(["x"], progress=5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="progress=True: a bar needs the number of prompts"):
        engine.batch_infer_iter(iter(["x"]), progress=True)


def test_a_bar_counts_what_it_was_given(
    engine: llcuda.InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, or conversations; as they come too."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert len(list(engine.batch_infer_iter(["One"] * 2, max_tokens=1, progress=True))) == 2
    assert "2 prompts [" in terminal.getvalue()
    engine.batch_chat(["Hi"] * 3, max_tokens=1, progress=True)
    assert "3 conversations [" in terminal.getvalue()
    assert len(list(engine.batch_chat_iter(["Hi"] * 4, max_tokens=1, progress=True))) == 4
    assert "4 conversations [" in terminal.getvalue()


# --- tokens ---


def test_tokens(engine: llcuda.InferenceEngine) -> None:
    """What submit would compute: of a text, of messages, with a system message."""
    text = "One day<|im_end|>"
    tokens = engine.tokenize(text)
    assert engine.count_tokens(text) == len(tokens) == engine.submit(text).prompt_tokens
    assert engine.tokenize(text, parse_special=False) != tokens
    assert engine.detokenize(engine.tokenize("One day")) == "One day"
    chat = engine.chat(HELLO, system="Be kind.", max_tokens=1)
    assert engine.count_tokens(HELLO, system="Be kind.") == chat.request.prompt_tokens
    assert engine.count_tokens("Who are you?", system="Be kind.") == chat.request.prompt_tokens
    assert engine.count_tokens(HELLO) < chat.request.prompt_tokens
    with pytest.raises(TypeError, match="unknown keyword max_tokens"):
        engine.count_tokens(HELLO, max_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError):
        engine.count_tokens(5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="parse_special=1"):
        engine.tokenize("x", parse_special=1)  # type: ignore[arg-type]


def test_one_text_has_one_vector(tmp_path: Path) -> None:
    """Of its own shape; a list of one text has a row."""
    path = models.write(tmp_path / "bert.gguf", *models.BUILDERS["bert"]())
    with llcuda.InferenceEngine(path, threads=1) as engine:
        vector = engine.embed("a fox")
        assert vector.shape == (engine.model.embedding_size,)
        assert vector.tolist() == engine.embed(["a fox"])[0].tolist()
        assert engine.embed("a fox", dimensions=4).shape == (4,)
        with pytest.raises(ArgumentError, match=r"texts\[0\]"):
            engine.embed("fox " * 10_000)


# --- results ---


def test_what_a_format_holds(engine: llcuda.InferenceEngine) -> None:
    """An instance of a class, data of JSON, and None where the format says nothing of it."""
    schema = {"type": "json_schema", "json_schema": {"schema": {"enum": [{"a": [1]}]}}}
    fox = {"type": "json_schema", "json_schema": {"schema": {"const": {"name": "F", "age": 3}}}}
    assert engine.infer("x", response_format=schema, max_tokens=60).parsed == {"a": [1]}
    assert engine.chat(HELLO, response_format=schema).result().parsed == {"a": [1]}
    done = engine.infer("x", response_format=fox, max_tokens=60)
    assert dataclasses.replace(done, response_format=Fox).parsed == Fox("F", 3)
    choice = {"type": "choice", "choices": ["yes"]}
    assert engine.infer("x", response_format=choice).parsed is None
    assert engine.infer("x", max_tokens=1).parsed is None
    short = engine.infer("x", response_format=Fox, max_tokens=1)
    with pytest.raises(AnswerError, match="no complete Fox: it ended by 'length'; give a larger m"):
        _ = short.parsed
    wrong = dataclasses.replace(short, text="{}", finish_reason="stop")
    with pytest.raises(AnswerError, match="the answer is no Fox: "):
        _ = wrong.parsed


def test_a_coroutine_reads_its_format(engine: llcuda.InferenceEngine) -> None:
    """Although it is compiled in another thread."""
    import asyncio

    schema = {"type": "json_schema", "json_schema": {"schema": {"const": 5}}}
    assert asyncio.run(engine.ainfer("x", response_format=schema)).parsed == 5


def test_a_result_as_data(engine: llcuda.InferenceEngine) -> None:
    """JSON holds all of it, with the texts of tokens."""
    done = engine.infer("One day", max_tokens=2, temperature=0, logprobs=2, echo=True)
    data = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert data["text"] == done.content == done.text
    assert (data["tokens_generated"], data["finish_reason"]) == (2, "length")
    assert [score["text"] for score in data["logprobs"]] == [
        engine.model.token_name(token) for token in done.tokens
    ]
    assert data["logprobs"][0]["top"][0]["text"] == data["logprobs"][0]["text"]
    assert "".join(score.text for score in done.logprobs or ()) == done.text
    never = TokenLogprob(5, -math.inf, [(5, -math.inf)])
    assert never.to_dict() == {
        "token": 5, "text": "", "logprob": None,
        "top": [{"token": 5, "text": "", "logprob": None}],
    }  # fmt: skip
    answer = engine.chat(HELLO, **SHORT).result()
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert data["message"] == answer.message
    assert data["completion"]["text"] == answer.completion.text


def test_handles_as_texts(engine: llcuda.InferenceEngine) -> None:
    """str() waits for the end; repr() does not."""
    assert str(engine.chat(HELLO, **SHORT)) == engine.chat(HELLO, **SHORT).result().content
    assert str(engine.submit("One day", **SHORT)) == engine.infer("One day", **SHORT).text
    running = engine.submit("One day", **ENDLESS)
    assert "unfinished" in repr(running)
    running.cancel()


def answer(**message: Any) -> llcuda.ChatCompletion[Any]:
    """Return the answer of a chat that holds a message."""
    done = llcuda.Completion("raw", [5], "stop", 4, 0, 2, 1, 0.0, 0.1, 0.1, 0.2)
    return llcuda.ChatCompletion({"role": "assistant", "content": None, **message}, "stop", done)


def test_the_calls_of_an_answer() -> None:
    """Arguments as data, and why they cannot be read."""
    written = ['{"city": "Rome"}', "", '{"city"', "[1]"]
    calls = [
        {"id": str(i), "type": "function", "function": {"name": "weather", "arguments": text}}
        for i, text in enumerate(written)
    ]
    done = answer(tool_calls=calls)
    assert [call.arguments for call in done.tool_calls] == [{"city": "Rome"}, {}, {}, {}]
    assert [call.text for call in done.tool_calls] == written
    problems = [call.problem for call in done.tool_calls]
    assert problems[:2] == [None, None]
    assert str(problems[2]).startswith("the arguments are no JSON: ")
    assert problems[3] == "the arguments are no JSON object"
    assert (done.content, done.parsed, done.reasoning) == ("", None, "")
    assert str(done.tool_calls[0]) == 'weather({"city": "Rome"})'
    shown = repr(answer(tool_calls=calls[:1]))
    assert shown.startswith('<llcuda.ChatCompletion \'\' weather({"city": "Rome"}): 1 tokens, ')


def test_an_engine_loads_a_name(tmp_path: Path) -> None:
    """With the keywords of the model too; it frees the model, and one that it was given stays."""
    with llcuda.Engine("demo", gpu_layers=0, n_parallel=2, ctx_size=64, threads=1) as engine:
        model = engine.model
        assert engine.submit("One day", max_tokens=1).result(PATIENCE).tokens_generated == 1
        assert engine.embed("a fox", pooling="mean").shape == (model.embedding_size,)
    assert model.closed
    with llcuda.Engine(llcuda.demo_model(), config=llcuda.EngineConfig()) as engine:
        assert engine.ctx_size == 1024
    with llcuda.Model("demo") as model:
        llcuda.Engine(model, ctx_size=64).close()
        assert not model.closed
    with pytest.raises(llcuda.errors.ModelNotFoundError):
        llcuda.Engine(tmp_path / "none.gguf")
    with pytest.raises(TypeError, match="unknown keyword n_gpu_layers: llcuda calls it gpu_layers"):
        llcuda.Engine("demo", n_gpu_layers=1)  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="config= and ctx_size="):
        llcuda.Engine("demo", config=llcuda.EngineConfig(), ctx_size=1)
    encoder = models.write(tmp_path / "bert.gguf", *models.BUILDERS["bert"]())
    with pytest.raises(llcuda.errors.NoTextError):
        llcuda.Engine(encoder)


# --- notebooks and IPython ---


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What a notebook shows below its cell: the output, and what replaced it."""
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data)

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(data)
        return Handle()

    fake = ModuleType("IPython.display")
    fake.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr("llcuda.display.in_notebook", lambda: True)
    monkeypatch.setattr("llcuda.display.UPDATE_SECONDS", 0.0)
    return shown


def test_a_notebook_shows_a_text_while_it_is_written(
    engine: llcuda.InferenceEngine, notebook: list[dict[str, str]]
) -> None:
    """The text grows, and the result takes its place; also of one that was cancelled."""
    for handle in (engine.chat(HELLO, **SHORT), engine.submit("One day", **SHORT)):
        notebook.clear()
        handle._ipython_display_()
        found = [re.findall(r"(?s)>\n(.*)</pre>", data["text/html"])[0] for data in notebook]
        texts = [html.unescape(text) for text in found]
        assert texts[0] == ""
        assert all(a == b[: len(a)] for a, b in pairwise(texts))
        assert len(texts) > 3
        assert texts[-1] == str(handle)
        assert notebook[-1] == {
            "text/html": handle.result()._repr_html_(), "text/plain": repr(handle.result()),
        }  # fmt: skip
    stopped = engine.chat(HELLO, **ENDLESS)
    stopped.cancel()
    stopped._ipython_display_()
    assert "cancelled" in notebook[-1]["text/plain"]


def test_the_stop_button_keeps_the_text(notebook: list[dict[str, str]]) -> None:
    """A KeyboardInterrupt cancels, and the result is shown."""
    done = answer(content="so far")
    cancelled = []

    def pieces() -> Iterator[str]:
        yield "so "
        raise KeyboardInterrupt

    show_stream(pieces(), lambda: done, lambda: cancelled.append(True))
    assert (cancelled, notebook[-1]["text/plain"]) == ([True], repr(done))


def test_ipython_in_a_terminal_prints(
    engine: llcuda.InferenceEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text as it comes, and a line break."""
    chat = engine.chat(HELLO, **SHORT)
    chat._ipython_display_()
    assert capsys.readouterr().out == f"{chat.result().content}\n"


def test_the_table_of_probabilities(engine: llcuda.InferenceEngine) -> None:
    """Each token with its share and the best ones; nothing is markup; long ones are cut."""
    done = engine.infer("One day", max_tokens=3, temperature=0, logprobs=2)
    shown = done._repr_html_()
    assert shown.count("<tr>") == 4
    for score in done.logprobs or ():
        assert f"<code>{html.escape(repr(score.text))}</code>" in shown
        assert f"{math.exp(score.logprob):.1%}" in shown
    evil = TokenLogprob(5, -0.5, [(6, -1.0)], "<script>$x$", ["</code><b>"])
    for result in (
        dataclasses.replace(done, logprobs=[evil] * 300),
        engine.chat(HELLO, logprobs=1, **SHORT).result(),
    ):
        shown = result._repr_html_()
        assert "<script>" not in shown
        assert "<b>" not in shown
        assert "Token probabilities" in shown
    cut = dataclasses.replace(done, logprobs=[evil] * 300)._repr_html_()
    assert "44 more tokens are not shown" in cut
    assert cut.count("60.7%") == 256


def test_an_answer_in_a_notebook() -> None:
    """Reasoning folded, content, calls; all escaped."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": "<i>"}'}}
    shown = answer(content="<b>", reasoning_content="<u>", tool_calls=[call])._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<details><summary>Reasoning</summary><pre" in shown
    assert "&lt;u&gt;" in shown
    assert "<code>f({&quot;a&quot;: &quot;&lt;i&gt;&quot;})</code>" in shown
    assert "<b>" not in shown + answer(tool_calls=[call])._repr_html_()
