"""Ollama's API, as its Python client sees it."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import ollama
import pytest

from llcuda import Model, structured
from llcuda.chat.constraint import Constraint
from llcuda.server.ollama import OllamaChatBody, chat_messages
from tests.server.test_chat import CALL, ROME, THOUGHT
from tests.support.server import Served, demo, served

HELLO: Any = [{"role": "user", "content": "Who are you?"}]
OPTIONS: Any = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def caller(tool_server: Served) -> Iterator[ollama.Client]:
    with ollama.Client(host=tool_server.url, trust_env=False) as opened:
        yield opened


def test_chat_is_that_of_the_engine(client: ollama.Client, server: Served) -> None:
    """Whole and streamed, with the counts and times of the completion."""
    expected = server.engine.chat(HELLO, temperature=0, max_tokens=12).result()
    answer = client.chat(model="demo", messages=HELLO, options=OPTIONS)
    assert (expected.content, "length") == (answer.message.content, answer.done_reason)
    assert (expected.completion.prompt_tokens, 12) == (answer.prompt_eval_count, answer.eval_count)
    assert answer.total_duration
    assert answer.eval_duration
    parts = list(client.chat(model="demo:latest", messages=HELLO, options=OPTIONS, stream=True))
    assert expected.content == "".join(part.message.content or "" for part in parts)
    assert [False] * (len(parts) - 1) + [True] == [part.done for part in parts]
    assert "length" == parts[-1].done_reason


def test_prompts(client: ollama.Client, server: Served) -> None:
    """`generate` goes through the template; raw continues the text, with log-probabilities."""
    engine = server.engine
    chat = engine.chat(HELLO, system="Be brief.", temperature=0, max_tokens=12).result()
    prompt = HELLO[0]["content"]
    asked: Any = {"model": "demo", "prompt": prompt, "options": OPTIONS}
    assert chat.content == client.generate(**asked, system="Be brief.").response
    text = engine.submit(prompt, temperature=0, max_tokens=12, logprobs=2).result()
    raw = client.generate(**asked, raw=True, logprobs=True, top_logprobs=2)
    assert text.text == raw.response
    assert text.logprobs is not None
    assert raw.logprobs is not None
    np.testing.assert_allclose(
        [score.logprob for score in text.logprobs],
        [score.logprob for score in raw.logprobs],
        atol=1e-5,
    )
    assert 2 == len(raw.logprobs[0].top_logprobs or ())
    streamed = client.generate(**asked, raw=True, stream=True)
    assert text.text == "".join(part.response for part in streamed)
    first_word = text.text.split()[1]
    stopped = client.generate(
        model="demo", prompt=prompt, raw=True, options={**OPTIONS, "stop": [first_word]}
    )
    assert (text.text.split(first_word)[0], "stop") == (stopped.response, stopped.done_reason)


def test_nothing_to_answer_loads_the_model(client: ollama.Client) -> None:
    """Clients load a model so."""
    assert "load" == client.chat(model="demo", messages=[]).done_reason
    assert "load" == client.generate(model="demo", prompt="", keep_alive=-1).done_reason


def test_formats(client: ollama.Client) -> None:
    """A schema is followed, and "json" gives an object."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    asked: Any = {"model": "demo", "messages": HELLO, "options": {"temperature": 0}}
    assert {"a": 1} == json.loads(client.chat(**asked, format=schema).message.content or "")
    asked["options"] = OPTIONS
    assert (client.chat(**asked, format="json").message.content or "").startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_and_calls(
    caller: ollama.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Reasoning is a field of its own; a call is whole, and its arguments are an object."""

    def guide(model: Model, *_: Any, **__: Any) -> Any:
        text = f"{THOUGHT}\n{CALL}"
        form = {"type": "choice", "choices": [text]}
        return Constraint(structured.compile(model, form).guide())

    monkeypatch.setattr("llcuda.chat.constraint.chat_guide", guide)
    answer: Any = caller.chat(model="demo", messages=HELLO, tools=[ROME], stream=stream, think=True)
    messages = [part.message for part in answer] if stream else [answer.message]
    thinking = "".join(message.thinking or "" for message in messages)
    content = "".join(message.content for message in messages)
    assert ("The user greets me.", "Hello!") == (thinking.strip(), content.strip())
    [call] = [call for message in messages for call in message.tool_calls or ()]
    assert ("get_weather", {"city": "Rome", "days": 2}) == (
        call.function.name,
        call.function.arguments,
    )


def test_calls_and_results_get_ids() -> None:
    """A result belongs to the first call of its name without a result, or to the first one."""
    function = {"name": "f", "arguments": {}}
    other = {"name": "g", "arguments": {}}
    body = OllamaChatBody(
        messages=[
            {"role": "user", "content": "x", "images": None, "tool_calls": None},
            {"role": "assistant", "tool_calls": [{"function": function}, {"function": other}]},
            {"role": "tool", "tool_name": "g", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "content": "3"},
        ]
    )
    user, assistant, *results = chat_messages(body)
    assert {"role": "user", "content": "x"} == user
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert 2 == len(set(ids))
    assert [ids[1], ids[0], None] == [result.get("tool_call_id") for result in results]
    assert "g" == results[0]["name"]


def test_models(client: ollama.Client, server: Served) -> None:
    """Lists and descriptions come from the file; no path is shown."""
    [listed] = client.list().models
    path = server.service.models.paths["demo"]
    assert ("demo", path.stat().st_size) == (listed.model, listed.size)
    assert listed.modified_at is not None
    [running] = client.ps().models
    assert ("demo", 512) == (running.name, running.context_length)
    assert listed.digest == running.digest
    shown = client.show("demo")
    assert shown.template == server.engine.model.chat_template
    assert shown.details is not None
    assert shown.details == listed.details
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == shown.details.family
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert ["completion"] == shown.capabilities
    whole = server.post("/api/show", name="demo", verbose=True)
    assert isinstance(whole.json()["model_info"]["tokenizer.ggml.tokens"], list)
    assert str(path.parent) not in whole.text
    assert server.client.get("/api/version").json()["version"]
    assert 200 == server.client.head("/").status_code


def test_vectors(client: ollama.Client, server: Served) -> None:
    """Both paths give the embedder's vectors; a long text is cut unless truncate is false."""
    texts = ["A fox.", "The sea"]
    expected = [
        entry["embedding"] for entry in server.post("/v1/embeddings", input=texts).json()["data"]
    ]
    answer = client.embed(model="demo", input=texts)
    np.testing.assert_allclose(expected, answer.embeddings, atol=1e-6)
    older = client.embeddings(model="demo", prompt=texts[0])
    np.testing.assert_allclose(expected[0], older.embedding, atol=1e-6)
    assert [] == client.embed(model="demo", input=[]).embeddings
    short = client.embed(model="demo", input="A fox.", dimensions=8)
    assert 8 == len(short.embeddings[0])
    long = "a " * 3000
    assert client.embed(model="demo", input=long).embeddings
    with pytest.raises(ollama.ResponseError, match="input"):
        client.embed(model="demo", input=long, truncate=False)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["YWJj"]}]}, "images"),
        ("chat", {"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": "x"}, "messages"),
        ("chat", {"messages": HELLO, "options": {"temperature": -1}}, "options.temperature"),
        ("chat", {"messages": HELLO, "options": {"num_predict": "x"}}, "options.num_predict"),
        ("chat", {"messages": HELLO, "options": {"repeat_penalty": -1}}, "options.repeat_penalty"),
        ("chat", {"messages": HELLO, "format": "xml"}, "format"),
        ("chat", {"messages": HELLO, "format": {"type": "no"}}, "format"),
        ("chat", {"messages": HELLO, "tools": [{"type": "function"}]}, "tools[0]"),
        ("chat", {"messages": [{"role": "user", "content": "a " * 3000}]}, "messages"),
        ("generate", {"prompt": "x", "images": ["YWJj"]}, "images"),
        ("generate", {"prompt": "x", "context": [1, 2]}, "context"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": 5}, "prompt"),
        ("generate", {"prompt": "a " * 3000}, "prompt"),
        ("embed", {}, "input: missing"),
        ("embed", {"input": [5]}, "input[0]"),
        ("embeddings", {"prompt": 5}, "prompt"),
        ("pull", {"model": "llama3"}, "llcuda serve"),
        ("pull", {}, "model: missing"),
        ("create", {"model": "x", "from": "demo"}, "llcuda serve"),
        ("copy", {"source": "demo", "destination": "x"}, "llcuda serve"),
        ("push", {"model": "demo"}, "llcuda serve"),
    ],
)
def test_refusals(server: Served, path: str, fields: dict[str, Any], words: str) -> None:
    """An error is one text that names the field."""
    answer = server.post(f"/api/{path}", **fields)
    assert 400 == answer.status_code, answer.text
    assert ["error"] == list(answer.json())
    assert words in answer.json()["error"]
    for word in ("llcuda/", "Traceback", "truncate="):
        assert word not in answer.text


def test_the_tokens_that_a_penalty_counts(client: ollama.Client) -> None:
    """Those of repeat_last_n; 0 turns the penalty off."""

    def text(**options: Any) -> str:
        given = {"temperature": 0, "num_predict": 30, **options}
        return client.generate("demo", "Once upon", raw=True, options=given).response

    assert text() == text(repeat_penalty=2, repeat_last_n=0) != text(repeat_penalty=2)


def test_no_limit(server: Served) -> None:
    """num_predict 0 is no limit, as it is in ollama."""
    options = {"temperature": 0, "stop": ["e"], "num_predict": 0}
    answer = server.post("/api/generate", prompt="Once", raw=True, options=options, stream=False)
    assert (200, "stop") == (answer.status_code, answer.json()["done_reason"])
    assert answer.json()["eval_count"]


def test_pull_of_a_model_that_is_served(client: ollama.Client) -> None:
    """It is there; others cannot be deleted."""
    assert "success" == client.pull("demo").status
    assert ["success"] == [part.status for part in client.pull("demo:latest", stream=True)]
    with pytest.raises(ollama.ResponseError, match="llcuda serve"):
        client.delete("demo")


def test_several_models_by_name() -> None:
    """Another name than the models' is not found; what is ignored is named in the header."""
    with served(demo(), demo("second", ctx_size=256)) as server:
        answer = server.post("/api/chat", model="third", messages=HELLO)
        assert (404, ["error"]) == (answer.status_code, list(answer.json()))
        assert 404 == server.post("/api/show", model="third").status_code
        options = {**OPTIONS, "num_ctx": 4096}
        answer = server.post(
            "/api/chat", model="demo:latest", messages=HELLO, options=options, stream=False
        )
        assert 200 == answer.status_code
        assert "options.num_ctx" in answer.headers["x-llcuda-ignored"]
        many = [*HELLO, {"role": "assistant", "content": "word " * 300}, *HELLO] * 3
        answer = server.post("/api/chat", model="demo", messages=many[:-1], options=OPTIONS)
        assert "oldest" in answer.headers["x-llcuda-ignored"]
        assert 2 == len(server.client.get("/api/tags").json()["models"])
        assert 1 == len(server.client.get("/api/ps").json()["models"])
