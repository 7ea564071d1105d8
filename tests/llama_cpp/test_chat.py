"""create_chat_completion: OpenAI's dicts, formats, handlers, tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai.types.chat
import pytest

from llcuda import ChatTemplate, Model
from llcuda.errors import ArgumentError
from llcuda.llama_cpp import Llama, LlamaGrammar, llama_chat_format
from llcuda.llama_cpp.llama_chat_format import (
    FORMATS,
    ChatFormatterResponse,
    Jinja2ChatFormatter,
    register_chat_completion_handler,
    register_chat_format,
)

HELLO = [{"role": "user", "content": "Hello"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    *HELLO,
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"],
    },
}
CALL = {"name": "weather", "arguments": '{"city": "Rome"}'}


@pytest.fixture(scope="module")
def caller() -> Iterator[Llama]:
    """A Llama whose format knows tools."""
    form = "chatml-function-calling"
    with Llama("demo", n_ctx=1024, n_threads=1, chat_format=form, verbose=False) as llama:
        yield llama


def test_an_answer_and_its_chunks(llm: Llama) -> None:
    """OpenAI's fields; the first chunk has the role, the last one the finish reason."""
    answer = llm.create_chat_completion(HELLO, **GREEDY, logprobs=True, top_logprobs=2)
    [choice] = answer["choices"]
    assert answer["id"].startswith("chatcmpl-") and answer["object"] == "chat.completion"
    assert choice["message"].keys() == {"role", "content"}
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    chunks = list(llm.create_chat_completion(HELLO, **GREEDY, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert (deltas[0], deltas[-1]) == ({"role": "assistant"}, {})
    assert choice["message"]["content"] == "".join(d.get("content", "") for d in deltas)
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"] == "length"
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_the_answer_on_the_context_is_the_same(llm: Llama) -> None:
    """With all logits kept, which makes the context generate, whole and in chunks."""
    tools = [{"type": "function", "function": WEATHER}]
    asked: dict[str, Any] = {"messages": HELLO, **GREEDY, "logprobs": True}
    asked |= {"max_tokens": 60, "tools": tools, "tool_choice": "required"}
    form = "chatml-function-calling"
    answers = []
    for given in ({}, {"logits_all": True}):
        with Llama("demo", n_ctx=512, n_threads=1, chat_format=form, verbose=False, **given) as own:
            answers.append(own.create_chat_completion(**asked)["choices"][0])
            chunks = list(own.create_chat_completion(**asked, stream=True))
            assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    for answer in answers:
        assert answer["message"]["tool_calls"][0]["function"] == CALL
    tokens = [[row["token"] for row in a["logprobs"]["content"]] for a in answers]
    assert tokens[0] == tokens[1]


def test_objects_of_openai(llm: Llama) -> None:
    """create_chat_completion_openai_v1 makes them."""
    answer = llm.create_chat_completion_openai_v1(HELLO, **GREEDY)
    assert isinstance(answer, openai.types.chat.ChatCompletion)
    chunks = list(llm.create_chat_completion_openai_v1(HELLO, **GREEDY, stream=True))
    assert all(isinstance(chunk, openai.types.chat.ChatCompletionChunk) for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert answer.choices[0].message.content == text


@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"},
        {
            "tools": [{"type": "function", "function": WEATHER}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        {"functions": [WEATHER], "function_call": {"name": "weather"}},
    ],
    ids=["required", "named", "functions"],
)
def test_a_call(caller: Llama, asked: dict[str, Any]) -> None:
    """Whole and in chunks; OpenAI's older field too where a function is named."""
    given = {"messages": HELLO, "temperature": 0, "max_tokens": 100, **asked}
    [choice] = caller.create_chat_completion(**given)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == CALL
    named = asked.get("tool_choice") != "required"
    assert choice["message"].get("function_call") == (CALL if named else None)
    chunks = [c["choices"][0] for c in caller.create_chat_completion(**given, stream=True)]
    calls = [call for c in chunks for call in c["delta"].get("tool_calls", ())]
    assert CALL["arguments"] == "".join(call["function"]["arguments"] for call in calls)
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_json(llm: Llama) -> None:
    """response_format with and without a schema; a grammar."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    schema["additionalProperties"] = False
    for given in (
        {"response_format": {"type": "json_object", "schema": schema}},
        {"grammar": LlamaGrammar.from_json_schema(schema)},
    ):
        answer = llm.create_chat_completion(HELLO, max_tokens=40, temperature=0, **given)
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"a": 1}
    answer = llm.create_chat_completion(HELLO, response_format={"type": "text"}, **GREEDY)
    assert answer["choices"][0]["message"]["content"]


PROMPTS = {
    "alpaca": "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "gemma": "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\n"
    "Hi<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama-2": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi </s><s>[INST] Bye [/INST]",
    "llama-3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral-instruct": "[INST] Be brief.\n\nHello [/INST]Hi</s>[INST] Bye [/INST]",
    "openchat": "Be brief.<|end_of_turn|>GPT4 Correct User: Hello<|end_of_turn|>"
    "GPT4 Correct Assistant: Hi<|end_of_turn|>GPT4 Correct User: Bye<|end_of_turn|>"
    "GPT4 Correct Assistant:",
    "vicuna": "Be brief. USER: Hello ASSISTANT: Hi</s>USER: Bye ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi</s>\n"
    "<|user|>\nBye</s>\n<|assistant|>\n",
}
PROMPTS["qwen"] = PROMPTS["chatml-function-calling"] = PROMPTS["chatml"]


def test_every_format_has_a_prompt() -> None:
    """A new format fails here until the table has it."""
    assert PROMPTS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_the_prompts_of_formats(name: str, llm: Llama) -> None:
    """Each renders a conversation as its models were trained on, and answers."""
    template = ChatTemplate(FORMATS[name].template, bos="<s>", eos="</s>")
    assert PROMPTS[name] == template.render(TALK)
    with Llama("demo", n_ctx=256, n_threads=1, chat_format=name, verbose=False) as llama:
        assert llama.chat_format == name
        assert llama.create_chat_completion(TALK, **GREEDY)["choices"][0]["message"]["content"]


def test_formats_of_the_caller(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template as text, a registered function, a handler, a Jinja2ChatFormatter."""
    asked: list[Any] = []

    @register_chat_format("mine")
    def formatter(messages: Any, **kwargs: Any) -> ChatFormatterResponse:
        return ChatFormatterResponse(f"Q: {messages[0]['content']} A:", stop="Q:")

    @register_chat_completion_handler("echo")
    def handler(llama: Any, messages: Any, **kwargs: Any) -> Any:
        asked.append((messages, kwargs["temperature"], kwargs["max_tokens"]))
        return {"answer": 1}

    def text(form: Any) -> Any:
        monkeypatch.setattr(llm, "chat_format", form)
        return llm.create_chat_completion(HELLO, **GREEDY)["choices"][0]["message"]["content"]

    plain = llm.create_completion("Q: Hello A:", stop="Q:", **GREEDY)["choices"][0]["text"]
    assert text("mine") == plain
    chunks = list(llm.create_chat_completion(HELLO, **GREEDY, stream=True))
    assert plain == "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    template = "Q: {{ messages[0].content }} A:"
    assert text(template) == plain
    monkeypatch.setattr(llm, "chat_format", "echo")
    assert llm.create_chat_completion(HELLO, **GREEDY) == {"answer": 1}
    assert asked == [(HELLO, 0, 8)]
    made = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>").to_chat_handler()
    monkeypatch.setattr(llm, "chat_handler", made)
    answer = llm.create_chat_completion(HELLO, **GREEDY)
    assert answer["choices"][0]["message"]["content"] == plain


def test_which_format_a_model_has() -> None:
    """Its own template; that of another name by its name."""
    with Llama("demo", n_ctx=64, n_threads=1, verbose=False) as llama:
        assert llama.chat_format == "chat_template.default"
    with Model("demo") as model:
        assert model.chat_template is not None


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("chatlm", "it is none of alpaca.*; did you mean 'chatml'\\? .* a Jinja template"),
        ("functionary-v2", "functionary-v2.*leave it out for the model's own template"),
        (5, "chat_format=5: expected the name of a format"),
    ],
)
def test_formats_that_are_not_there(form: Any, says: str) -> None:
    """An error of the constructor that says what there is."""
    with pytest.raises(ArgumentError, match=says):
        Llama("demo", chat_format=form, verbose=False)
    with pytest.raises(
        AttributeError, match="'Llava15ChatHandler'; images and audio cannot be read yet"
    ):
        _ = llama_chat_format.Llava15ChatHandler


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"messages": 5}, "messages"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]"),
        ({"tools": [5]}, "tools"),
        ({"tool_choice": "must"}, "tool_choice='must'"),
        ({"response_format": {"type": "json"}}, "response_format"),
        ({"functions": [], "tools": []}, "functions: tools are given as well"),
        ({"function_call": "auto", "tool_choice": "auto"}, "function_call: tool_choice is given"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_logprobs": 2000, "logprobs": True}, "logprobs=2000"),
    ],
    ids=repr,
)
def test_wrong_arguments(caller: Llama, given: dict[str, Any], says: str) -> None:
    """Each is an error that names the parameter."""
    with pytest.raises(ArgumentError, match=says):
        caller.create_chat_completion(**{"messages": HELLO, **given})


def test_an_error_of_tools_names_chat_format() -> None:
    """The template's error says chat_format, which is the parameter of this class."""
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    with (
        Llama("demo", chat_format="chatml", verbose=False) as llama,
        pytest.raises(ArgumentError, match="no place for them; give chat_format="),
    ):
        llama.create_chat_completion(HELLO, tools=tools)
