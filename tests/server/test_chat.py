"""POST /v1/chat/completions and /v1/responses, as the official client sees them."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pydantic
import pytest

from llcuda.server.leniency import HEADER
from tests.support.server import Served, demo, is_error, served
from tests.support.waiting import ENDLESS, eventually

MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]
GREEDY: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 12}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA},
}
ROME: Any = {  # leaves no choice
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"const": "Rome"}, "days": {"const": 2}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
ASKED: dict[str, Any] = {
    "model": "demo", "messages": MESSAGES, "tools": [ROME], "tool_choice": "required",
    "temperature": 0, "max_tokens": 200,
}  # fmt: skip
# As Hermes and Qwen write it; the demo model's own template has no tools.
TEMPLATE = """{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}
Call as <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}
{{- message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
)
THOUGHT = "<think>\nThe user greets me.\n</think>\n\nHello!"


def says(text: str) -> dict[str, Any]:
    """Make the model write this text, whatever it would."""
    return {"response_format": {"type": "choice", "choices": [text]}}


@pytest.fixture(scope="module")
def caller(tool_server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_answer_is_that_of_the_engine(client: openai.OpenAI, server: Served) -> None:
    """The content, the end and the counts are those of `engine.chat`."""
    expected = server.engine.chat(MESSAGES, temperature=0, max_tokens=12).result()
    answer = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    [choice] = answer.choices
    assert (expected.message["content"], "length") == (choice.message.content, choice.finish_reason)
    assert "assistant" == choice.message.role
    assert answer.usage is not None
    assert (expected.completion.prompt_tokens, 12) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


def test_stream_is_the_same_text(client: openai.OpenAI) -> None:
    """Deltas make the whole content; role first, reason and usage last."""
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "assistant" == deltas[0].role
    assert whole.choices[0].message.content == "".join(delta.content or "" for delta in deltas)
    assert "length" == chunks[-2].choices[0].finish_reason
    usage, expected = chunks[-1].usage, whole.usage
    assert usage is not None
    assert expected is not None
    assert (expected.prompt_tokens, expected.total_tokens) == (
        usage.prompt_tokens,
        usage.total_tokens,
    )


def test_the_model_ends_its_turn(client: openai.OpenAI) -> None:
    """Without max_tokens the answer goes on to its end."""
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    assert "stop" == answer.choices[0].finish_reason
    assert "<|im_end|>" not in str(answer.choices[0].message.content)


def test_async_streams(server: Served) -> None:
    """The asynchronous client streams ten answers at once."""

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def stream_once() -> str:
                stream = await client.chat.completions.create(
                    messages=MESSAGES, stream=True, **GREEDY
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return list(await asyncio.gather(*(stream_once() for _ in range(10))))

    assert 1 == len(set(asyncio.run(ask())))


@pytest.mark.parametrize("stream", [False, True])
def test_choices_and_logprobs(client: openai.OpenAI, stream: bool) -> None:
    """Several answers; each token with its bytes and alternatives, which make the content."""
    answer: Any = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Tell me a story"}], max_tokens=10,
        n=3, seed=5, logprobs=True, top_logprobs=2, stream=stream,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    texts, scored = dict.fromkeys(range(3), ""), dict.fromkeys(range(3), b"")
    for choice in [c.choices[0] for c in answer] if stream else answer.choices:
        texts[choice.index] += (choice.delta if stream else choice.message).content or ""
        for entry in choice.logprobs.content if choice.logprobs else ():
            scored[choice.index] += bytes(entry.bytes)
            assert 2 == len(entry.top_logprobs)
            assert entry.logprob <= entry.top_logprobs[0].logprob
    assert texts == {i: data.decode() for i, data in scored.items()}
    assert 3 == len(set(texts.values()))


def test_json_schema() -> None:
    """At temperature 1 every answer follows its schema, and a stream is the same text.

    Each way has a server of its own, so that both find the same cached prefixes: a prompt whose
    prefix is cached rounds otherwise than a whole one.
    """
    form: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    given: dict[str, Any] = {"model": "demo", "messages": MESSAGES, "response_format": form}
    given |= {"temperature": 1, "max_tokens": 200}
    contents: list[str] = []
    with served() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        for seed in range(5):
            answer = client.chat.completions.create(seed=seed, **given)
            assert "stop" == answer.choices[0].finish_reason
            contents.append(str(answer.choices[0].message.content))
            assert jsonschema_rs.is_valid(SCHEMA, json.loads(contents[-1]))
    with served() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        for seed, content in enumerate(contents):
            chunks = client.chat.completions.create(seed=seed, stream=True, **given)
            assert content == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_parse_into_a_pydantic_model(client: openai.OpenAI) -> None:
    """The official client's `parse` gets an object of the class."""

    class Trip(pydantic.BaseModel):
        city: str = pydantic.Field(max_length=10)
        days: int = pydantic.Field(ge=0, le=9)

    answer = client.chat.completions.parse(
        model="demo", messages=MESSAGES, response_format=Trip, max_tokens=200, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Trip)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(caller: openai.OpenAI, stream: bool) -> None:
    """A call has a name, an id and JSON arguments, and ends with "tool_calls"."""
    answer: Any = caller.chat.completions.create(stream=stream, parallel_tool_calls=False, **ASKED)
    if stream:
        calls, reason = _joined(answer)
    else:
        message, reason = answer.choices[0].message, answer.choices[0].finish_reason
        assert not message.content
        calls = [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls]
    [(identity, name, arguments)] = calls
    assert ("get_weather", {"city": "Rome", "days": 2}) == (name, json.loads(arguments))
    assert identity
    assert "tool_calls" == reason


def _joined(chunks: Any) -> tuple[list[tuple[str, str, str]], str]:
    calls: list[list[str]] = []
    reason = ""
    for chunk in chunks:
        [choice] = chunk.choices
        reason = choice.finish_reason or reason
        assert not choice.delta.content
        for call in choice.delta.tool_calls or ():
            if call.index == len(calls):
                calls.append([call.id, call.function.name, ""])
            calls[call.index][2] += call.function.arguments or ""
    return [(a, b, c) for a, b, c in calls], reason


def test_arguments_follow_the_schema(caller: openai.OpenAI) -> None:
    """At temperature 1 every call's arguments are valid, that of a named function too."""
    choice = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(5):
        given: Any = {**ASKED, "tools": [WEATHER], "temperature": 1, "seed": seed}
        given["tool_choice"] = choice if seed % 2 else "required"
        answer = caller.chat.completions.create(**given)
        assert answer.choices[0].message.tool_calls
        for call in answer.choices[0].message.tool_calls:
            assert jsonschema_rs.is_valid(SCHEMA, json.loads(call.function.arguments))


def test_a_conversation_with_a_result(caller: openai.OpenAI) -> None:
    """The answer's message and the tool's result are the next request, as they are."""
    first = caller.chat.completions.create(parallel_tool_calls=False, **ASKED)
    message = first.choices[0].message
    assert message.tool_calls is not None
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sun"}
    answer = caller.chat.completions.create(
        model="demo", messages=[*MESSAGES, message, result], tools=[WEATHER], max_tokens=5
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_apart(caller: openai.OpenAI, stream: bool) -> None:
    """What the model thinks is reasoning_content, and counted."""
    answer: Any = caller.chat.completions.create(
        model="demo", messages=MESSAGES, stream=stream, extra_body=says(THOUGHT)
    )
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer]
        content = "".join(delta.content or "" for delta in deltas)
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    else:
        content, reasoning = (
            answer.choices[0].message.content,
            answer.choices[0].message.reasoning_content,
        )
        assert answer.usage.completion_tokens_details.reasoning_tokens > 3
    assert ("Hello!", "The user greets me.") == (content, reasoning.strip())


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("messages", []), ("messages", "hello"), ("messages", None), ("messages", [5]),
        ("messages", [{}]), ("messages", [{"role": "pope", "content": "a"}]),
        ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("messages", [{"role": "user", "content": "a", "images": ["a.png"]}]),
        ("messages", [{"role": "tool", "content": 5}]),
        ("messages", [{"role": "user", "content": "a " * 2000}]),
        ("messages", [{"role": "assistant", "tool_calls": [5]}]),
        ("tools", [WEATHER]), ("tools", 5), ("tools", [5]), ("tools", [{}]),
        ("tools", [{"type": "function"}]), ("tools", [{"type": "web_search"}]),
        ("tool_choice", "always"), ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "no"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": 5}}),
        ("response_format", {"type": "regex", "regex": "("}),
        ("response_format", {"type": "gbnf", "grammar": "root ::="}),
        ("top_logprobs", 2), ("top_logprobs", 21), ("logprobs", 2), ("n", 0),
        ("functions", [{}]), ("function_call", "auto"), ("modalities", ["audio"]),
        ("chat_template_kwargs", {"messages": 5}),
        ("bare_tool_calls", "no"),
        ("max_completion_tokens", 7), ("stop", ["a"] * 10_000), ("temperature", -1),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_chats(server: Served, param: str, value: Any) -> None:
    """What cannot be honoured is a 400 that names it, and nothing is computed."""
    steps = server.engine.metrics.snapshot()["batch"]["steps"]
    body = {"messages": MESSAGES, "max_tokens": 2, param: value}
    error = is_error(server.post("/v1/chat/completions", **body), 400)
    assert str(error["param"]) in ("max_tokens", param) or error["param"].startswith(param), error
    assert steps == server.engine.metrics.snapshot()["batch"]["steps"]


@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"type": 5}, [], "text", {"properties": 5}],
    ids=str,
)
def test_tools_whose_schema_is_none(tool_server: Served, schema: Any) -> None:
    """A tool's parameters must be a schema that can be followed; a 400 says where they are not."""
    function = {"name": "f", "parameters": schema}
    body = {"messages": MESSAGES, "tools": [{"type": "function", "function": function}]}
    answer = tool_server.post("/v1/chat/completions", **body, tool_choice="required", max_tokens=20)
    error = is_error(answer, 400)
    assert str(error["param"]).startswith("tools"), error


def test_a_tool_of_which_not_all_can_be_enforced(tool_server: Served) -> None:
    """The rest of it holds, and a header names the place; a strict server refuses it."""
    ids = {"type": "array", "items": {"enum": [7]}, "uniqueItems": True, "maxItems": 3,
           "minItems": 1, "contains": {"type": "integer"}, "maxContains": 2}  # fmt: skip
    parameters = {"type": "object", "properties": {"ids": ids}, "required": ["ids"]}
    tool = {"type": "function", "function": {"name": "get", "parameters": parameters}}
    asked = {**ASKED, "tools": [tool]}
    for stream in (False, True):
        answer = tool_server.post("/v1/chat/completions", **asked, stream=stream)
        assert 200 == answer.status_code
        assert answer.headers[HEADER].count("tools.get#/properties/ids/") == 2, stream
    whole = tool_server.post("/v1/chat/completions", **asked).json()["choices"][0]["message"]
    assert {"ids": [7]} == json.loads(whole["tool_calls"][0]["function"]["arguments"])
    flat = {"type": "function", **tool["function"]}
    answer = tool_server.post("/v1/responses", input="a", tools=[flat], tool_choice="required")
    assert answer.headers[HEADER].startswith("tools.get#")
    form = {"type": "json_schema", "json_schema": {"schema": parameters}}
    error = is_error(
        tool_server.post("/v1/chat/completions", messages=MESSAGES, response_format=form), 400
    )
    assert "#/properties/ids" in error["message"]
    with served(demo(template=TEMPLATE), strict=True) as strict:
        error = is_error(strict.post("/v1/chat/completions", **asked), 400)
        assert "tools.get#/properties/ids/uniqueItems" == error["param"]


def test_tools_with_a_format(caller: openai.OpenAI) -> None:
    """The answer is calls, or content that follows the format."""
    asked: dict[str, Any] = {**ASKED, "extra_body": says("yes")}
    demanded = caller.chat.completions.create(**asked).choices[0]
    assert ("tool_calls", None) == (demanded.finish_reason, demanded.message.content)
    asked["tool_choice"] = "auto"
    message = caller.chat.completions.create(**asked).choices[0].message
    assert "yes" == message.content or message.tool_calls
    chunks = caller.chat.completions.create(**asked, stream=True)
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (message.content or "") == content


def test_a_history_with_a_call_that_was_cut(tool_server: Served) -> None:
    """It goes on, whatever its arguments are."""
    for arguments in ("", None, "null", '{"city": "Ro', '"{}"', "[1]"):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        calling = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "c", "content": "no"}
        answer = tool_server.post(
            "/v1/chat/completions",
            messages=[*MESSAGES, calling, result],
            tools=[ROME],
            max_tokens=1,
        )
        assert 200 == answer.status_code, answer.text


def test_an_answer_is_continued(tool_server: Served) -> None:
    """By default, and said so; not where a new one is asked for."""
    begun = {"role": "assistant", "content": "Once upon"}
    asked: dict[str, Any] = {"messages": [*MESSAGES, begun], "temperature": 0, "max_tokens": 8}

    def content(**fields: Any) -> str:
        answer = tool_server.post("/v1/chat/completions", **asked, **fields)
        return str(answer.json()["choices"][0]["message"]["content"])

    expected = tool_server.engine.chat(
        asked["messages"], template=TEMPLATE, temperature=0, max_tokens=8
    )
    assert str(expected) == content() == content(continue_final_message=True)
    new = content(continue_final_message=False)
    assert new == content(add_generation_prompt=True) != content()
    fields = {"continue_final_message": True, "add_generation_prompt": True}
    error = is_error(
        tool_server.post("/v1/chat/completions", **asked, **fields), 400, "continue_final_message"
    )
    assert error["message"].endswith("either continued or new; leave out one of them")


@pytest.mark.parametrize(
    "fields",
    [
        {"max_reasoning_tokens": 3},
        {"thinking": {"type": "enabled", "budget_tokens": 3}},
        {"reasoning": {"max_tokens": 3, "effort": "high"}},
        {"chat_template_kwargs": {"thinking_budget": 3}},
        {"reasoning_effort": "none"},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"enabled": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=str,
)
def test_reasoning_has_a_limit(tool_server: Served, fields: dict[str, Any]) -> None:
    """By whichever name it is given; the answer ends the reasoning by its delimiter."""
    begun = {"role": "assistant", "content": "", "reasoning_content": "I see"}
    asked: dict[str, Any] = {"messages": [*MESSAGES, begun], "temperature": 0, "max_tokens": 40}
    usage = tool_server.post("/v1/chat/completions", **asked).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 3
    answer = tool_server.post("/v1/chat/completions", **asked, **fields).json()
    limit = 3 if "3" in str(fields) else 0
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= limit
    assert answer["choices"][0]["message"]["content"]


def test_limits_of_reasoning_that_differ(tool_server: Served) -> None:
    """Are refused by their names."""
    asked = {"messages": MESSAGES, "max_reasoning_tokens": 3, "max_tokens": 1}
    for fields, param in (
        ({"thinking": {"budget_tokens": 4}}, "thinking.budget_tokens"),
        ({"max_reasoning_tokens": -2}, "max_reasoning_tokens"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
    ):
        is_error(tool_server.post("/v1/chat/completions", **{**asked, **fields}), 400, param)
    endless = {**asked, "max_reasoning_tokens": -1}
    assert 200 == tool_server.post("/v1/chat/completions", **endless).status_code


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{% for i in range(10**9) %}{% endfor %}", "{{ 1 / 0 }}",
     "{{ ''.__class__.__mro__ }}", "{{ 'a' * 10**9 }}"],
)  # fmt: skip
def test_templates_that_fail(template: str) -> None:
    """A template that raises, loops or pries is a 400, and other requests are answered."""
    with served(demo(template=template)) as running:
        is_error(running.post("/v1/chat/completions", messages=MESSAGES), 400)
        assert 200 == running.post("/v1/completions", prompt="a", max_tokens=1).status_code


def test_a_chat_that_is_left(server: Served) -> None:
    """A client that leaves frees the slots of all its answers."""
    body = {"messages": MESSAGES, "n": 2, "stream": True, **ENDLESS}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert eventually(lambda: server.unfinished() == 2)
    assert eventually(server.idle)


# --- /v1/responses ---


def test_response(client: openai.OpenAI) -> None:
    """The text, the status and the usage; instructions are the system's message."""
    chat = client.chat.completions.create(
        messages=[{"role": "system", "content": "Be kind."}, *MESSAGES], **GREEDY
    )
    answer = client.responses.create(
        model="demo", instructions="Be kind.", input="Who are you?", temperature=0,
        max_output_tokens=12,
    )  # fmt: skip
    assert chat.choices[0].message.content == answer.output_text
    assert "incomplete" == answer.status
    assert answer.usage is not None
    assert 12 == answer.usage.output_tokens
    whole = client.responses.create(model="demo", input=MESSAGES, temperature=0)
    assert "completed" == whole.status


def test_response_stream(client: openai.OpenAI) -> None:
    """The events count up, their deltas make the text, and the last one has the whole answer."""
    asked: dict[str, Any] = {"model": "demo", "input": "Who are you?", "temperature": 0}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    assert list(range(len(events))) == [event.sequence_number for event in events]
    assert "response.created" == events[0].type
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1]
    assert last.type == "response.completed"
    assert whole.output_text == "".join(deltas) == last.response.output_text


def test_response_with_a_tool(caller: openai.OpenAI, tool_server: Served) -> None:
    """A call is an item, its result another; both go back as they are."""
    flat: Any = {"type": "function", **WEATHER["function"]}
    spoken = {"name": "said", "schema": {"const": "x"}, "type": "json_schema"}
    text: Any = {"format": {**spoken, "schema": SCHEMA}}
    formed = caller.responses.create(model="demo", input="Where?", text=text, max_output_tokens=200)
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(formed.output_text))
    call = {"type": "function_call", "call_id": "abc", "name": "get_weather", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "abc", "output": "Sun"}
    reasoning = {"type": "reasoning", "id": "r", "summary": [], "content": [{"text": "Hm."}]}
    given: Any = [{"role": "user", "content": "Where?"}, reasoning, call, result]
    answer = caller.responses.create(model="demo", input=given, tools=[flat], max_output_tokens=5)
    assert answer.output_text
    assert [flat["name"]] == [tool.name for tool in answer.tools]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("input", None), ("input", []), ("input", 5), ("input", [{"type": "image"}]),
        ("input", [{"role": "user"}]), ("input", [{"type": "function_call"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image"}]}]),
        ("previous_response_id", "resp_1"), ("background", True), ("store", "yes"),
        ("tools", [{"name": "f"}]), ("truncation", "some"), ("conversation", "a"),
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
        ("tool_choice", {"type": "allowed_tools", "tools": "f"}),
        ("tool_choice", {"type": "allowed_tools", "tools": [], "mode": "some"}),
        ("prompt", {"id": "a"}), ("max_output_tokens", 0), ("temperature", -1),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_responses(server: Served, param: str, value: Any) -> None:
    """What cannot be had is a 400 that names it."""
    error = is_error(server.post("/v1/responses", **{"input": "a", param: value}), 400)
    assert str(error["param"]).startswith(param), error
