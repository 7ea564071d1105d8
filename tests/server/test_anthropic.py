"""POST /v1/messages, as Anthropic's client sees it."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import pytest

from llcuda.chat.parser import ChatDelta
from llcuda.server.anthropic import CountTokensBody, MessageBuilder, as_chat
from tests.server.test_chat import ROME, THOUGHT
from tests.support.server import Served, demo, served

HELLO: Any = [{"role": "user", "content": "Who are you?"}]
TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "The weather.",
        "input_schema": ROME["function"]["parameters"],
    }
]


def says(text: str, **further: Any) -> dict[str, Any]:
    """Make the model write this text, whatever it would."""
    form = {"type": "choice", "choices": [text]}
    return {"output_config": {"format": form}, "temperature": 0, **further}


def nested(levels: int) -> Any:
    """Return objects within objects."""
    return {"a": nested(levels - 1)} if levels else 1


@pytest.fixture(scope="module")
def client(tool_server: Served) -> Iterator[anthropic.Anthropic]:
    url = tool_server.url
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: anthropic.Anthropic, messages: Any = HELLO, **fields: Any) -> Any:
    """Return a message, and check that a stream builds the same."""
    limit = fields.pop("max_tokens", 200)
    body = {"model": "demo", "max_tokens": limit, "messages": messages}
    named = {name: fields.pop(name) for name in ("tools", "system") if name in fields}
    whole = client.messages.create(**body, **named, extra_body=fields)
    with client.messages.stream(**body, **named, extra_body=fields) as stream:
        events = [event.type for event in stream if not hasattr(event, "snapshot")]
        streamed = stream.get_final_message()
    assert ("message_start", "message_stop") == (events[0], events[-1])
    count = len(whole.content)
    assert (count, count) == (
        events.count("content_block_start"),
        events.count("content_block_stop"),
    )
    for mine, other in zip(whole.content, streamed.content, strict=True):
        ids = {"id"}
        assert mine.model_dump(exclude=ids) == other.model_dump(exclude=ids)
    assert whole.stop_reason == streamed.stop_reason
    assert whole.usage.output_tokens
    assert streamed.usage.output_tokens
    return whole


def test_answer_is_that_of_the_engine(client: anthropic.Anthropic, tool_server: Served) -> None:
    """The text and the counts are those of `engine.chat`."""
    template = tool_server.service.models.loaded["demo"].spec.parameters["template"]
    expected = tool_server.engine.chat(
        HELLO, system="Be brief.", template=template, temperature=0, max_tokens=200
    ).result()
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    message = ask(client, system=system, temperature=0)
    assert expected.content == "".join(block.text for block in message.content)
    assert "end_turn" == message.stop_reason
    usage = message.usage
    assert expected.completion.prompt_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert len(expected.completion.tokens) == usage.output_tokens
    counted = client.messages.count_tokens(model="demo", messages=HELLO, system=system)
    assert expected.completion.prompt_tokens == counted.input_tokens
    assert message._request_id


def test_thinking_is_a_block(client: anthropic.Anthropic) -> None:
    """Reasoning comes before the text; display: omitted leaves its text out."""
    message = ask(client, **says(THOUGHT))
    thinking, text = message.content
    assert ("The user greets me.", "Hello!") == (thinking.thinking, text.text)
    assert message.usage.output_tokens_details.thinking_tokens
    hidden = ask(client, **says(THOUGHT, thinking={"type": "adaptive", "display": "omitted"}))
    assert ("", "Hello!") == (hidden.content[0].thinking, hidden.content[1].text)
    again: Any = [*HELLO, {"role": "assistant", "content": message.content}, *HELLO]
    counted = client.messages.count_tokens(model="demo", messages=again).input_tokens
    plain = [*HELLO, {"role": "assistant", "content": "Hello!"}, *HELLO]
    assert counted > client.messages.count_tokens(model="demo", messages=plain).input_tokens


def test_the_count_is_that_of_the_answer() -> None:
    """Also where the template knows thinking, and where no tool may be called."""
    template = (
        "{% for message in messages %}{{ message.content }}\n{% endfor %}"
        "{% if tools %}{{ tools[0].function.name }}\n{% endif %}"
        "{% if enable_thinking %}Think step by step.\n{% endif %}"
    )
    kinds: list[dict[str, Any]] = [
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
    ]
    counts = []
    with served(demo(template=template)) as server:
        for fields in kinds:
            body = {"model": "demo", "messages": HELLO, **fields}
            usage = server.post("/v1/messages", **body, max_tokens=1).json()["usage"]
            counts.append(server.post("/v1/messages/count_tokens", **body).json()["input_tokens"])
            assert counts[-1] == usage["input_tokens"] + usage["cache_read_input_tokens"], fields
        path, tools = "/chat/completions/input_tokens", [ROME]
        given = server.post(path, messages=HELLO, tools=tools).json()["input_tokens"]
        none = server.post(path, messages=HELLO, tools=tools, tool_choice="none").json()
    assert counts[1] > counts[0] == counts[3] < counts[2]
    assert none["input_tokens"] == counts[0] < given


def test_tools_and_their_results(client: anthropic.Anthropic) -> None:
    """A call is a block; a result goes back with the id of its call."""
    for named in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        choice = {**named, "disable_parallel_tool_use": True}
        message = ask(client, tools=TOOLS, tool_choice=choice, temperature=0)
        [call] = message.content
        assert "tool_use" == message.stop_reason
        assert ("get_weather", {"city": "Rome", "days": 2}) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny"}
    history: Any = [
        *HELLO,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    none = {"type": "none"}
    answer = ask(client, history, tools=TOOLS, **says("Done.", tool_choice=none))
    assert "Done." == answer.content[0].text


def test_a_format_by_its_older_name(client: anthropic.Anthropic) -> None:
    """output_format is output_config.format."""
    form = {"type": "json_schema", "schema": {"const": {"x": 1}}}
    assert {"x": 1} == json.loads(ask(client, output_format=form).content[0].text)


def test_blocks_follow_the_order_of_the_deltas() -> None:
    """Text, two calls, text: four blocks; the arguments are whole where they have come whole."""

    def call(index: int, arguments: str, **fields: Any) -> ChatDelta:
        function = {"arguments": arguments, **({"name": "f"} if fields else {})}
        return ChatDelta(tool_calls=[{"index": index, "function": function, **fields}])

    message = MessageBuilder("m", 5, True)
    events = message.begin()
    for delta in (
        ChatDelta(content="a"), ChatDelta(content="b"), call(0, "", id="1"), call(0, '{"x":'),
        call(0, "1}"), call(1, "", id="2"), ChatDelta(content="c"), call(2, '{"x": "y', id="3"),
    ):  # fmt: skip
        events += message.add(delta)
    done = SimpleNamespace(prompt_tokens=5, cached_tokens=2, tokens=[1, 2], stop_text=None)
    answer: Any = SimpleNamespace(finish_reason="length", completion=done, reasoning_tokens=0)
    events += message.end(answer)
    assert (3, 2) == tuple(
        message.document["usage"][name] for name in ("input_tokens", "cache_read_input_tokens")
    )
    assert [("text", "ab"), ("tool_use", {"x": 1}), ("tool_use", {}), ("text", "c")] == [
        (block["type"], block.get("text", block.get("input")))
        for block in message.document["content"][:4]
    ]
    assert {"x": "y"} == message.document["content"][4]["input"]
    assert 5 == events.count("event: content_block_start")


def test_what_the_model_reads() -> None:
    """Neighbours of one role are one message; results and documents are in their place."""
    source = {"type": "text", "media_type": "text/plain", "data": "the text"}
    body = CountTokensBody.model_validate({
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "document", "title": "T", "source": source}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "why", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True},
                {"type": "tool_result", "tool_use_id": "2"},
                {"type": "text", "text": "b"},
            ]},
        ],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "thinking": {"type": "disabled"},
    })  # fmt: skip
    chat = as_chat(body)

    def parts(*texts: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text} for text in texts]

    function = {"name": "f", "arguments": {"x": 1}}
    assert [
        {"role": "user", "content": parts("a", "T\n", "the text")},
        {
            "role": "assistant",
            "content": [],
            "reasoning_content": "why",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": parts("Error: ", "no")},
        {"role": "tool", "tool_call_id": "2", "content": parts("")},
        {"role": "user", "content": parts("b")},
    ] == chat.messages
    assert (None, "none") == (chat.tools, chat.reasoning_effort)
    assert ("messages[1].content[0]", "messages[3].content[2]") == (
        chat.places["messages[0].content[2].text"],
        chat.places["messages[4]"],
    )


def test_the_end_is_named(client: anthropic.Anthropic) -> None:
    """A stop sequence, max_tokens, and a call that max_tokens cuts."""
    stopped = ask(client, **says("one two three", stop_sequences=["two", "zzz"]))
    assert ("one ", "stop_sequence", "two") == (
        stopped.content[0].text,
        stopped.stop_reason,
        stopped.stop_sequence,
    )
    body: Any = {"model": "demo", "messages": HELLO, "max_tokens": 3}
    assert "max_tokens" == client.messages.create(**body).stop_reason
    choice = {"type": "any"}
    cut = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=12)
    assert "max_tokens" == cut.stop_reason


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "content[0].type"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "id": "1", "name": "f", "input": "x"}]}]}, "content[0].input"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]}]},
            "images and other files"),
        ({"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1/"}}]}]},
            "source.type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"mcp_servers": [{"type": "url", "url": "http://127.0.0.1/"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "no"}}}},
            "output_config.format"),
        ({"output_format": {"type": "json_schema", "schema": {"type": "no"}}}, "output_format"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"},
            {"name": "f", "input_schema": {"type": "array"}}]}, "tools[1].input_schema.type="),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0].name="),
        ({"system": "s", "messages": [*HELLO, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "x", "signature": "s"},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"a": nested(70)}}]}]},
            "messages[1].content[1].input.a.a.a"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [1]}, "stop_sequences[0]"),
        ({"messages": [{"role": "user", "content": "a " * 2000}]}, "prompt is too long"),
    ],
)  # fmt: skip
def test_refusals(tool_server: Served, fields: dict[str, Any], place: str) -> None:
    """An error has Anthropic's shape, and names the field."""
    body = {"model": "demo", "max_tokens": 5, "messages": HELLO, **fields}
    answer = tool_server.client.post("/v1/messages", json=body)
    is_error(answer, 400, "invalid_request_error", place)


def is_error(answer: httpx.Response, status: int, kind: str, words: str = "") -> None:
    """Assert Anthropic's shape of an error."""
    assert status == answer.status_code, answer.text
    document = answer.json()
    error = document["error"]
    assert ("error", kind) == (document["type"], error["type"])
    assert answer.headers["x-request-id"] == document["request_id"]
    assert words in error["message"]
    assert {"type", "message"} == set(error)


def test_what_is_ignored_is_named(client: anthropic.Anthropic) -> None:
    """Unknown fields and the tools of Anthropic's servers leave the answer as it is."""
    body: Any = {"model": "demo", "max_tokens": 2, "messages": HELLO}
    search: Any = [{"type": "web_search_20250305", "name": "web_search"}]
    answer = client.messages.with_raw_response.create(
        **body, tools=search, service_tier="auto", extra_body={"container": "c"}
    )
    header = answer.headers["x-llcuda-ignored"]
    assert "container" in header
    assert "tools[0]" in header
    assert "service_tier" not in header


def test_models(client: anthropic.Anthropic, tool_server: Served) -> None:
    """Anthropic's clients get Anthropic's shape, others OpenAI's."""
    [model] = client.models.list()
    assert ("demo", "demo", "active") == (model.id, model.display_name, model.lifecycle)
    assert tool_server.engine.ctx_size == model.max_input_tokens
    assert model == client.models.retrieve("demo")
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("other")
    assert "list" == tool_server.client.get("/v1/models").json()["object"]
    headers = {"anthropic-version": "2023-06-01"}
    for path in ("/v1/models/other", "/models/other", "/v1/none"):
        is_error(tool_server.client.get(path, headers=headers), 404, "not_found_error", "no such")
    assert "code" in tool_server.client.get("/v1/models/other").json()["error"]


def test_no_tokens(client: anthropic.Anthropic) -> None:
    """With max_tokens 0 the prompt is only read, and the next request finds it in the cache."""
    messages: Any = [{"role": "user", "content": "A prompt that no other test has. " * 5}]
    body: dict[str, Any] = {"model": "demo", "messages": messages}
    for stream in (False, True):
        answer = client.messages.create(**body, max_tokens=0, stream=stream)
        if not stream:
            assert ([], "max_tokens") == (answer.content, answer.stop_reason)
            assert not answer.usage.output_tokens
        else:
            assert "message_stop" == [event.type for event in answer][-1]
    later = client.messages.create(**body, max_tokens=1)
    assert later.usage.cache_read_input_tokens


def test_keys_and_paths() -> None:
    """The key is that of x-api-key or a bearer's; other errors have Anthropic's shape as well."""
    with served(demo(), keys=["secret"]) as server:
        for headers, status in (
            ({"x-api-key": "secret"}, 200),
            ({"authorization": "Bearer secret"}, 200),
            ({"x-api-key": "wrong"}, 401),
            ({}, 401),
        ):
            for path in ("/v1/messages", "/messages"):
                body = {"max_tokens": 1, "messages": HELLO}
                answer = server.client.post(path, json=body, headers=headers)
                assert status == answer.status_code
        is_error(answer, 401, "authentication_error", "missing API key")
        key = {"x-api-key": "secret"}
        is_error(server.client.get("/v1/messages", headers=key), 405, "invalid_request_error")
        headers = key | {"content-type": "application/json"}
        answer = server.client.post("/v1/messages", content=b"{", headers=headers)
        is_error(answer, 400, "invalid_request_error", "JSON")
