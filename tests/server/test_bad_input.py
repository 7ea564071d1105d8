"""Whatever is sent: the right status, OpenAI's shape, and the other requests go on."""

import json
import math
from typing import Any

import httpx
import pytest

from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.server.errors import translate
from tests.support.server import Served, demo, is_error, served
from tests.support.waiting import eventually

COMPLETIONS = "/v1/completions"


def post(server: Served, data: bytes, path: str = COMPLETIONS) -> httpx.Response:
    """Send bytes as JSON."""
    headers = {"content-type": "application/json"}
    return server.client.post(path, content=data, headers=headers)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"5", b'"text"', b"{]", b'{"prompt": "a",}', b"prompt=a",
        b'{"prompt": "\xff\xfe"}', b'\xff\xfe{\x00', b"[" * 50_000, b'{"a":' * 50_000,
        b'{"prompt": "\\ud800"}', b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b"\x00" * 100, b'{"prompt": "a"} {"prompt": "b"}',
    ],
    ids=lambda data: repr(data[:16]),
)  # fmt: skip
def test_what_is_no_request(server: Served, data: bytes) -> None:
    """Bytes that are no JSON, no UTF-8, no object, or too deep."""
    is_error(post(server, data), 400)


@pytest.mark.parametrize("header", ["Origin", "Sec-Fetch-Site"])
def test_no_json_of_a_page(server: Served, header: str) -> None:
    """A page can send a form without asking; it is refused, and one of `curl -d` is taken."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    data = b'{"prompt": "a", "max_tokens": 1}'
    answer = server.client.post("/v1/completions", content=data, headers={**kind, header: "null"})
    assert "Content-Type: application/json" in is_error(answer, 400)["message"]
    assert 200 == server.client.post("/v1/completions", content=data, headers=kind).status_code


def test_no_utf8(server: Served) -> None:
    """The answer names the encoding."""
    assert "UTF-8" in is_error(post(server, b'{"prompt": "\xff"}'), 400)["message"]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("prompt", None), ("prompt", 5), ("prompt", {}),
        ("prompt", ""), ("prompt", [""]), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]),
        ("prompt", [-1]), ("prompt", [10**12]), ("prompt", [1.5]), ("prompt", [True]),
        ("prompt", "a " * 2000), ("prompt", ["a"] * 5000),
        ("max_tokens", -2), ("max_tokens", "5"), ("max_tokens", 1.5),
        ("max_tokens", True), ("max_tokens", 10**20),
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", -math.inf), ("temperature", "hot"), ("temperature", True),
        ("top_p", 2), ("top_p", -1), ("top_k", -1), ("min_p", math.nan), ("mirostat", 3),
        ("frequency_penalty", 3), ("presence_penalty", -3), ("repeat_penalty", 0),
        ("n", 0), ("n", -1), ("n", 10**9), ("n", 1.5), ("best_of", 0), ("logprobs", -1),
        ("logprobs", 101), ("logprobs", True), ("seed", 1.5), ("seed", "a"), ("echo", "yes"),
        ("stop", 5), ("stop", ["a", 5]), ("stop", ["a"] * 10_000),
        ("stop", {"a": 1}), ("suffix", "end"), ("stream", "true"), ("stream_options", {}),
        ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"-1": 1}),
        ("logit_bias", {"999999": 1}), ("logit_bias", [1]), ("logit_bias", {"1": math.nan}),
        ("timeout", 0), ("timeout", -1), ("timeout", math.nan), ("overflow", "burst"),
        ("response_format", "json"), ("response_format", {"type": "poem"}), ("response_format", {}),
        ("response_format", {"type": "json_schema"}), ("model", 5),
        ("stop_token_ids", ["a"]), ("stop_token_ids", [-1]), ("stop_token_ids", [10**6]),
        ("guided_regex", 5), ("guided_choice", "a"), ("bad_words", ["a"]),
        ("chat_template", "{{ 1 }}"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values(server: Served, param: str, value: Any) -> None:
    """The parameter is named, nothing is computed, and the next request is answered."""
    steps = server.engine.metrics.snapshot()["batch"]["steps"]
    body = {"prompt": "a", "max_tokens": 2, param: value}
    error = is_error(post(server, json.dumps(body).encode()), 400)
    assert str(error["param"]).startswith(param), error
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 2000
    assert steps == server.engine.metrics.snapshot()["batch"]["steps"]


@pytest.mark.parametrize(
    ("param", "value", "message"),
    [
        ("prompt", 5, "prompt=5: expected a text or a list"),
        ("prompt", [], "prompt=[]: expected at least 1 element, not 0"),
        ("prompt", [[]], "prompt[0]=[]: expected at least 1 element, not 0"),
        ("prompt", [1, "a"], "prompt[1]='a': expected a whole number"),
        ("prompt", [1.5], "prompt[0]=1.5: expected a whole number, a text or a list"),
        ("logit_bias", {str(i): 1 for i in range(5000)},
         "logit_bias: expected at most 4096 elements, not 5000"),
        ("prompt", ["a"] * 5000, "prompt: expected at most 2048 elements, not 5000"),
        ("max_tokens", -2, "max_tokens=-2: expected a whole number at least -1"),
        ("n_predict", -2, "n_predict=-2: expected a whole number at least -1"),
        ("repetition_penalty", "1", "repetition_penalty='1': expected a number"),
        ("max_tokens", 10**20, f"max_tokens={10**20}: expected a whole number at most {2**31 - 1}"),
        ("max_tokens", "5", "max_tokens='5': expected a whole number"),
        ("temperature", math.nan, "temperature=NaN: expected a finite number"),
        ("temperature", True, "temperature=true: expected a number"),
        ("top_p", 5.0, "top_p=5.0: expected a number at most 1"),
        ("frequency_penalty", 3, "frequency_penalty=3: expected a number at most 2"),
        ("timeout", 0, "timeout=0: expected a number above 0"),
        ("stop", ["a", 5], "stop[1]=5: expected a text"),
        ("stop", ["a"] * 999, "stop: expected at most 256 elements, not 999"),
        ("overflow", "burst", "overflow='burst': expected error, truncate or shift"),
        ("echo", "yes", "echo='yes': expected true or false"),
        ("stream_options", 3, "stream_options=3: expected an object"),
        ("logit_bias", [1], "logit_bias: expected an object"),
        ("logit_bias", {"7": "x"}, "logit_bias.7='x': expected a number"),
    ],
    ids=str,
)  # fmt: skip
def test_messages(server: Served, param: str, value: Any, message: str) -> None:
    """The rule follows the field and its value, whoever found the mistake."""
    answer = post(server, json.dumps({"prompt": "a", param: value}).encode())
    assert message == is_error(answer, 400, message.partition("=")[0].partition(":")[0])["message"]


def test_messages_of_other_bodies(server: Served) -> None:
    """A missing field, a field with one value, an element of two types, no object at all."""
    error = is_error(server.post("/v1/chat/completions"), 400, "messages")
    assert error["message"] == "messages: missing"
    message = {"role": "user", "content": "a"}
    error = is_error(
        server.post("/v1/chat/completions", messages=[message], tool_choice=5), 400, "tool_choice"
    )
    assert error["message"] == "tool_choice=5: expected none, auto or required, or an object"
    error = is_error(server.post("/v1/rerank", query="a", documents=["a", 5]), 400, "documents[1]")
    assert error["message"] == "documents[1]=5: expected a text or an object"
    assert is_error(post(server, b"5"), 400)["message"] == "the body=5: expected an object"
    error = is_error(server.post("/v1/responses", input=[{"type": "x"}]), 400, "input[0].type")
    assert error["message"].startswith("input[0].type='x': expected one of message, function_call")
    answer = server.post(COMPLETIONS, prompt="a", logit_bias={"1": 200})
    error = is_error(answer, 400, "logit_bias.1")
    assert error["message"] == "logit_bias.1=200.0: expected a number from -100 to 100"
    error = is_error(server.post(COMPLETIONS, prompt=["a", "b " * 2000]), 400, "prompt[1]")
    assert error["message"].startswith("prompt[1]: has 2")
    error = is_error(server.post(COMPLETIONS, prompt=["a", "b " * 100_000]), 400, "prompt[1]")
    assert error["message"].startswith("prompt[1]: has more than ")
    assert error["code"] == "context_length_exceeded"
    long = {"role": "user", "content": "b " * 100_000}
    error = is_error(server.post("/v1/chat/completions", messages=[long]), 400, "messages")
    assert error["message"].startswith("messages: has more than ")
    assert "; this model's maximum context length is 512 tokens; " in error["message"]
    remedy = 'shorten it, give "overflow": "drop", or start the server with a larger --ctx-size'
    assert error["message"].endswith(f"; {remedy}")
    short = {"role": "user", "content": "Who are you?"}
    asked = {"messages": [long, short], "overflow": "drop", "max_tokens": 4}
    assert server.post("/v1/chat/completions", **asked).status_code == 200
    error = is_error(server.post(COMPLETIONS, prompt="a", n=2, best_of=1), 400, "best_of")
    assert error["message"] == "best_of=1: expected at least n=2"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "user"}, "input[0].content: missing"),
        ({"role": 5, "content": "a"}, "input[0].role=5: expected a text"),
        ({"role": "user", "content": 5}, "input[0].content=5: expected a text or a list"),
        ({"role": "user", "content": ["a"]}, "input[0].content[0]='a': expected an object"),
        ({"role": "user", "content": [{}]}, "input[0].content[0].type: missing"),
        (
            {"role": "user", "content": [{"type": "input_image"}]},
            "input[0].content[0].type='input_image': images and other files cannot be read yet, "
            "only text",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": 5}]},
            "input[0].content[0].text=5: expected a text",
        ),
        ({"type": 5}, "input[0].type=5: expected a text"),
        ({"type": "function_call", "name": "f"}, "input[0].arguments: missing"),
        (
            {"type": "function_call", "name": "f", "arguments": {}},
            "input[0].arguments={}: expected a text",
        ),
        ({"type": "function_call_output", "output": "a"}, "input[0].call_id: missing"),
        ({"type": "reasoning", "summary": 5}, "input[0].summary=5: expected a list"),
        ({"type": "reasoning", "summary": [5]}, "input[0].summary[0]=5: expected an object"),
    ],
    ids=str,
)
def test_messages_on_items(server: Served, item: dict[str, Any], message: str) -> None:
    """The part of an item that is wrong is named as other fields are."""
    field = message.partition("=")[0].partition(": ")[0]
    error = is_error(server.post("/v1/responses", input=[item]), 400, field)
    assert error["message"] == message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405), ("GET", "/v1", 404),
        ("POST", "/v1/images/generations", 404), ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/%00%ff", 404), ("POST", "/docs", 405), ("PUT", "/health", 405),
    ],
)  # fmt: skip
def test_wrong_paths(server: Served, method: str, path: str, status: int) -> None:
    """Other paths and methods are errors in the same shape."""
    is_error(server.client.request(method, path), status)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\xa5", b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
    ],
)  # fmt: skip
def test_what_is_no_http(server: Served, sent: bytes) -> None:
    """Broken HTTP, and a client that leaves within its body, harm nobody."""
    server.connect(sent).close()
    assert eventually(server.idle)
    assert 200 == server.client.get("/health").status_code


def test_an_engine_that_fails(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is a 500 that shows nothing of it, within a stream an event."""
    body = {"prompt": "a", "max_tokens": 3}

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret of the server")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "submit_n", fails)
        answer = server.post(COMPLETIONS, **body)
        assert "secret" not in is_error(answer, 500)["message"]
    with monkeypatch.context() as patch:
        patch.setattr("llcuda.server.completions.finish_reason", fails)
        text = server.post(COMPLETIONS, **body, stream=True).text
    assert "internal error" in json.loads(text.split("data: ")[-1])["error"]["message"]
    assert eventually(server.idle)
    assert 200 == server.post(COMPLETIONS, **body).status_code


def test_a_base_address_without_v1(server: Served) -> None:
    """A client that leaves /v1 out is answered."""
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path, body in (
        ("/completions", {"prompt": "a", "max_tokens": 1}), ("/chat/completions", chat),
        ("/responses", {"input": "a", "max_output_tokens": 1}), ("/embeddings", {"input": "a"}),
    ):  # fmt: skip
        assert 200 == server.post(path, **body).status_code
    assert "demo" == server.client.get("/models").json()["data"][0]["id"]
    assert is_error(server.post("/chat/none"), 404)["message"] == "no such path: /chat/none"


def test_embeddings_of_a_model_without_pooling() -> None:
    """The answer names the server's option, not a Python call."""
    with served(demo(pooling=None)) as plain:
        message = is_error(plain.post("/v1/embeddings", input="a"), 400)["message"]
    assert "names no pooling" in message
    assert message.endswith("start the server with --pooling mean, or with a model for embeddings")


CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
SCHEMA_REMEDY = 'a JSON schema is given as {"type": "json_schema", "json_schema": {"schema": ...}}'


@pytest.mark.parametrize(
    ("path", "body", "param", "remedy"),
    [
        ("chat/completions", {**CHAT, "response_format": {"type": "object"}}, "response_format",
         SCHEMA_REMEDY),
        ("completions", {"prompt": "a", "response_format": {"type": "string"}}, "response_format",
         SCHEMA_REMEDY),
        ("responses", {"input": "a", "text": {"format": {"type": "object"}}}, "text.format",
         'a JSON schema is given as {"type": "json_schema", "name": ..., "schema": ...}'),
        ("completions", {"prompt": "a", "guided_json": {"x-guidance": {}}}, "guided_json",
         "leave it out"),
        ("completions", {"prompt": "a", "keep": 3}, "keep",
         'give "overflow": "truncate" or "shift"'),
        ("completions", {"prompt": "a", "min_tokens": 3, "max_tokens": 2}, "min_tokens",
         "raise max_tokens, or lower it"),
        ("completions", {"prompt": "a", "mirostat": 9}, "mirostat", "0 turns it off"),
        ("completions", {"prompt": ""}, "prompt", "give a text, or at least one token"),
        ("completions", {"prompt": "a " * 2000}, "prompt",
         "shorten it, or start the server with a larger --ctx-size"),
        ("embeddings", {"input": ["a", "a " * 2000]}, "input[1]",
         "shorten it, or start the server with a larger --ctx-size"),
    ],
)  # fmt: skip
def test_an_error_ends_with_what_to_do(
    server: Served, path: str, body: dict[str, Any], param: str, remedy: str
) -> None:
    """In the client's words: names of fields and JSON, never a Python call."""
    error = is_error(server.post(f"/v1/{path}", **body), 400, param)
    assert error["message"].startswith(param)
    assert error["message"].endswith(f"; {remedy}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UnsupportedError("tool_choice='required': no", parameter="tool_choice", remedy="f()"),
         'tool_choice=\'required\': no; give "tool_choice": "auto"'),
        (ArgumentError("template: none", parameter="template", remedy="use infer()"),
         "model: none; start the server with --chat-template, or use /v1/completions"),
        (ArgumentError("documents[1]: long", parameter="documents[1]", remedy="truncate=True"),
         "documents[1]: long; shorten it"),
        (ArgumentError("ctx_size=8: no room", parameter="ctx_size", remedy="give a larger one"),
         "--ctx-size=8: no room; start the server with a larger --ctx-size"),
        (ArgumentError("echo=True: no room", parameter="echo", remedy="Engine(outputs_max=0)"),
         "echo=true: no room; start the server with --outputs-max 0"),
        (ArgumentError("n=True: no room", parameter="n", remedy="Engine(outputs_max=0)"),
         "n=true: no room"),
    ],
)  # fmt: skip
def test_a_python_remedy_is_translated_or_left_out(error: Exception, message: str) -> None:
    """No client reads the name of a Python call."""
    assert translate(error).message == message


@pytest.mark.parametrize("stream", [False, True])
def test_json_object_with_a_schema(server: Served, stream: bool) -> None:
    """The form of llama-cpp-python and of older servers: the answer follows the schema."""
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
    asked = {**CHAT, "response_format": {"type": "json_object", "schema": schema}}
    answer = server.post("/v1/chat/completions", **asked, stream=stream, max_tokens=40)
    assert answer.status_code == 200
    if stream:
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        content = "".join(delta.get("content") or "" for delta in deltas)
    else:
        content = answer.json()["choices"][0]["message"]["content"]
    assert json.loads(content) == {"a": 7}
    wrong = {"type": "json_object", "schema": 5}
    answer = server.post("/v1/chat/completions", **CHAT, response_format=wrong)
    error = is_error(answer, 400, "response_format")
    assert error["message"] == "response_format: expected a JSON schema as an object, not a number"
