"""Content, reasoning and tool calls out of what models write, however it is cut."""
# ruff: noqa: RUF001 - DeepSeek writes its marks with a fullwidth bar

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda.chat.formats import TOOL_CALLS, ChatSyntax, ReasoningFormat, detect
from llcuda.chat.parser import ChatParser
from llcuda.chat.template import ChatTemplate
from tests.conftest import VENDOR_MODELS

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
TOOLS = {"weather": SCHEMA, "time": {"type": "object", "properties": {}}}
PARIS = ("weather", {"city": "Paris", "days": 2})
TIME: tuple[str, dict[str, Any]] = ("time", {})
THINK = ChatSyntax(reasoning=(ReasoningFormat("<think>", "</think>"),))
HERMES = detect("<think></think><tool_call></tool_call>")
Split = tuple[str, str, list[tuple[str, str]]]


def split(syntax: ChatSyntax, pieces: list[str], prompt: str = "", tools: Any = TOOLS) -> Split:
    """Content, reasoning, and each call's name and arguments, as the deltas add them up."""
    parser = ChatParser(syntax, prompt, tools)
    content = reasoning = ""
    calls: list[list[str]] = []
    for delta in [*map(parser.feed, pieces), parser.flush()]:
        content += delta.content
        reasoning += delta.reasoning
        for call in delta.tool_calls:
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, reasoning, [(name, arguments) for name, arguments in calls]


@cache
def syntax_of(name: str) -> ChatSyntax:
    """What is found in one of the templates beside llama.cpp's source."""
    templates = VENDOR_MODELS / "templates"
    [path] = [*templates.glob(f"{name}.jinja")] or templates.glob(f"{name}*.jinja")
    return ChatTemplate(path.read_text(), bos="<s>", eos="</s>").syntax


# template: what its model writes before, as one call, and as a call without arguments behind it
WRITTEN: dict[str, tuple[str, str]] = {
    "Qwen-Qwen3-0.6B": (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        '\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ),
    "Qwen3-Coder": (
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
    ),
    "ByteDance-Seed-OSS": (
        "<seed:tool_call>\n<function=weather>\n<parameter=city>Paris</parameter>\n"
        "<parameter=days>2</parameter>\n</function>\n</seed:tool_call>",
        "\n<seed:tool_call>\n<function=time>\n</function>\n</seed:tool_call>",
    ),
    "GLM-4.6": (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        "\n<tool_call>time\n</tool_call>",
    ),
    "tencent-Hy3": (
        "<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n"
        "<arg_key:opensource>city</arg_key:opensource>\n"
        "<arg_value:opensource>Paris</arg_value:opensource>\n"
        "<arg_key:opensource>days</arg_key:opensource>\n"
        "<arg_value:opensource>2</arg_value:opensource>\n</tool_call:opensource>\n",
        "<tool_call:opensource>time<tool_sep:opensource>\n</tool_call:opensource>\n"
        "</tool_calls:opensource>",
    ),
    "MiniMax-M2": (
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n',
        '<invoke name="time">\n</invoke>\n</minimax:tool_call>',
    ),
    "MiniMax-M3": (
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="weather">]<]minimax[>[<city>Paris'
        "]<]minimax[>[</city>]<]minimax[>[<days>2]<]minimax[>[</days>]<]minimax[>[</invoke>\n",
        ']<]minimax[>[<invoke name="time">]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>',
    ),
    "deepseek-ai-DeepSeek-V3.2": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n',
        '<｜DSML｜invoke name="time">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    ),
    "Kimi-K3": (
        '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>2<|close|>argument<|sep|>'
        "<|close|>call<|sep|>",
        '<|open|>call tool="time" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    ),
    "openbmb-MiniCPM5-1B": (
        '<function name="weather"><param name="city">Paris</param><param name="days">2</param>'
        "</function>",
        '\n<function name="time"></function>',
    ),
    "meetkai-functionary-medium-v3.1": (
        '<function=weather>{"city": "Paris", "days": 2}</function>',
        "<function=time>{}</function>",
    ),
    "meetkai-functionary-medium-v3.2": (
        '>>>weather\n{"city": "Paris", "days": 2}',
        ">>>time\n{}",
    ),
    "Mistral-Small-3.2": (
        '[TOOL_CALLS]weather[CALL_ID]abcdefgh0[ARGS]{"city": "Paris", "days": 2}',
        "[TOOL_CALLS]time[ARGS]{}",
    ),
    "mistralai-Mistral-Nemo": (
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris", "days": 2}, "id": "a"},',
        ' {"name": "time", "arguments": {}}]',
    ),
    "deepseek-ai-DeepSeek-V3.1": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Paris", "days": 2}<｜tool▁call▁end｜>',
        "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Llama": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜>',
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    "moonshotai-Kimi-K2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "Paris", "days": 2}<|tool_call_end|>',
        "<|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
    ),
    "upstage-Solar-Open": (
        "<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>weather<|tool_call:args|>"
        '{"city": "Paris", "days": 2}<|tool_call:end|>',
        "<|tool_call:begin|>b<|tool_call:name|>time<|tool_call:args|>{}<|tool_call:end|>",
    ),
    "MiniMax-M1": (
        '<tool_calls>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n',
        '{"name": "time", "arguments": {}}\n</tool_calls>',
    ),
    "Apriel-1.6": (
        '<tool_calls>[{"name": "weather", "arguments": {"city": "Paris", "days": 2}, "id": "a"}, ',
        '{"name": "time", "arguments": {}}]</tool_calls>',
    ),
    "NVIDIA-Nemotron-Nano-v2": (
        '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}, ',
        '{"name": "time", "arguments": {}}]</TOOLCALL>',
    ),
    "CohereForAI-c4ai-command-r7b": (
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", '
        '"parameters": {"city": "Paris", "days": 2}},\n',
        '    {"tool_call_id": "1", "tool_name": "time", "parameters": {}}\n]<|END_ACTION|>',
    ),
    "CohereForAI-c4ai-command-r-plus": (
        'Action:\n```json\n[\n    {\n        "tool_name": "weather",\n'
        '        "parameters": {"city": "Paris", "days": 2}\n    },\n',
        '    {\n        "tool_name": "time",\n        "parameters": {}\n    }\n]```',
    ),
    "Apertus": (
        '<|tools_prefix|>[{"weather": {"city": "Paris", "days": 2}}, ',
        '{"time": {}}]<|tools_suffix|>',
    ),
    "GigaChat3.1": (
        '<|function_call|>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
        '<|function_call|>{"name": "time", "arguments": {}}',
    ),
    "GigaChat3-10B": (
        '<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "weather", '
        '"arguments": {"city": "Paris", "days": 2}}',
        '<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "time", "arguments": {}}',
    ),
    "fireworks-ai-llama-3-firefunction": (
        ' functools[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}, ',
        '{"name": "time", "arguments": {}}]',
    ),
    "ibm-granite-granite-3.3": (
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}, ',
        '{"name": "time", "arguments": {}}]',
    ),
    "LFM2-8B": (
        "<|tool_call_start|>[weather(city='Paris', days=2), ",
        "time()]<|tool_call_end|>",
    ),
    "google-gemma-4-31B-it-interleaved": (
        '<|tool_call>call:weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
        "<|tool_call>call:time{}<tool_call|>",
    ),
    "meta-llama-Llama-3.1": (
        '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}',
        '; {"name": "time", "parameters": {}}',
    ),
    "muse-glimmer": (
        ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
        '<atem:parameter name="city">Paris</atem:parameter>\n'
        '<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
        '<|eom|><|start|>assistant to=time<|message|><atem:function_calls>\n'
        '<atem:invoke name="time">\n</atem:invoke>\n</atem:function_calls>',
    ),
    "openai-gpt-oss": (
        "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
        '{"city": "Paris", "days": 2}<|call|>',
        "<|start|>assistant<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}"
        "<|call|>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_of_every_kind_are_found(name: str) -> None:
    """Two calls in the model's notation, whole and letter by letter; nothing is left as content."""
    syntax = syntax_of(name)
    text = "".join(WRITTEN[name])
    prompt = "<|start|>assistant" if name == "muse-glimmer" else ""
    for pieces in ([text], list(text)):
        content, reasoning, calls = split(syntax, pieces, prompt)
        assert [(n, json.loads(a)) for n, a in calls] == [PARIS, TIME]
        assert (content, reasoning) == ("", "")


@pytest.mark.parametrize("name", WRITTEN)
def test_arguments_that_are_left_out_or_no_json(name: str) -> None:
    """An empty text before the end of a call is no argument; another one comes as it is."""
    syntax = syntax_of(name)
    calls = syntax.tool_calls
    is_json = calls is not None and calls.notation == "json" and bool(calls.end)
    if not is_json and name != "openai-gpt-oss":
        return
    prompt = "<|start|>assistant" if name == "openai-gpt-oss" else ""
    for written, arguments in (("", "{}"), (" \n", "{}"), ("1 + 1", "1 + 1"), ("f(x)", "f(x)")):
        text = WRITTEN[name][1].removeprefix(prompt).replace("{}", written)
        for pieces in ([text], list(text)):
            assert ("", "", [("time", arguments)]) == split(syntax, pieces, prompt)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_text_before_a_call_is_content(name: str) -> None:
    """So it is for all but those where a call must begin the text."""
    if not (calls := syntax_of(name).tool_calls) or not calls.begin or name == "muse-glimmer":
        return
    content, _, parsed = split(syntax_of(name), [f"I look it up.\n\n{''.join(WRITTEN[name])}"])
    assert (content, len(parsed)) == ("I look it up.", 2)


@pytest.mark.parametrize("name", WRITTEN)
def test_without_tools_nothing_is_a_call(name: str) -> None:
    """The text of a call is then content, but for channels, which are no text."""
    syntax = syntax_of(name)
    if syntax.channels is not None:
        return
    text = "".join(WRITTEN[name])
    assert split(syntax, [text], tools=None) == (text, "", [])


def test_every_row_of_calls_is_tried() -> None:
    """Each notation in the table is that of one of the texts above."""
    tried = {syntax_of(name).tool_calls for name in WRITTEN}
    assert {row.begin for row in TOOL_CALLS} == {calls.begin for calls in tried if calls}


@pytest.mark.parametrize(
    ("name", "prompt", "text", "expected"),
    [
        ("Qwen-Qwen3-0.6B", "", "<think>\nwhy\n</think>\n\nYes. ", ("Yes. ", "why")),
        ("Qwen-Qwen3-0.6B", "", "Yes: <think> is a tag.", ("Yes: <think> is a tag.", "")),
        ("Qwen-Qwen3-0.6B", "", " <b>Yes</b> <thi", (" <b>Yes</b> <thi", "")),
        ("Qwen3.5-4B", "<think>\n", "why\n</think>\n\nYes", ("Yes", "why")),
        ("Qwen3.5-4B", "<think>\n\n</think>\n\n", "Yes", ("Yes", "")),
        ("Qwen3.5-4B", "<think>\n", "why </thin", ("", "why </thin")),
        ("ByteDance", "", "<seed:think>why</seed:think>Yes", ("Yes", "why")),
        ("CohereForAI-c4ai-command-r7b", "<|START_THINKING|>",
         "why<|END_THINKING|><|START_RESPONSE|>Yes<|END_RESPONSE|>", ("Yes", "why")),
        ("mistralai-Ministral", "", "[THINK]why[/THINK]Yes", ("Yes", "why")),
        ("google-gemma-4-31B-it-inter", "", "<|channel>thought\nwhy<channel|>Yes", ("Yes", "why")),
        ("Apriel-1.6", "Here are my reasoning steps:\n",
         "why\n[BEGIN FINAL RESPONSE]\nYes\n[END FINAL RESPONSE]",
         ("Yes", "Here are my reasoning steps:\nwhy")),
        ("Kimi-K3", "<|open|>think<|sep|>",
         "why<|close|>think<|sep|><|open|>response<|sep|>Yes<|close|>response<|sep|>",
         ("Yes", "why")),
        ("upstage", "<|begin|>assistant",
         "<|think|>why<|end|><|begin|>assistant<|content|>Yes", ("Yes", "why")),
        ("openai-gpt-oss", "<|start|>assistant",
         "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>Yes",
         ("Yes", "why")),
        ("muse-glimmer", "<|start|>assistant",
         " to=self<|message|>why<|eom|><|start|>assistant<|message|>Yes", ("Yes", "why")),
        ("meetkai-functionary-medium-v3.2", ">>>", "all\nYes", ("Yes", "")),
        ("ibm-granite-granite-3.3", "", "<think>why</think><response>Yes</response>",
         ("Yes", "why")),
        ("google-gemma-4-31B-it-inter", "",
         "<|channel>thought<channel|>Yes<channel|>", ("Yes", "")),
        ("google-gemma-4-31B-it-inter", "", "A<|channel>thought\nb<channel|>c", ("Ac", "b")),
        ("MiniMax-M3", "", "</mm:think>Yes </mm:think>", ("Yes </mm:think>", "")),
        ("meetkai-functionary-medium-v3.2", ">>>", "all\nYes\nNo >>>", ("Yes\nNo >>>", "")),
        ("meetkai-functionary-medium-v3.2", ">>>", "Yes\nNo", ("Yes\nNo", "")),
        ("openai-gpt-oss", "<|start|>assistant", "<|channel|>commen", ("", "")),
        ("openai-gpt-oss", "<|start|>assistant",
         "<|channel|>commentary to=assistant<|channel|>final<|message|>Yes<|end|>", ("Yes", "")),
        ("openai-gpt-oss", "<|start|>assistant",
         "<|channel|>commentary to=python <|constrain|>code<|message|>1 + 1<|call|>", ("", "")),
        ("muse-glimmer", "<|start|>assistant",
         ' to=user<|message|><atem:invoke name="time"> is a call<|eom|>',
         ('<atem:invoke name="time"> is a call', "")),
        ("Qwen3.5-4B", "<think>\n", "A <tool_call> is one:\n<tool_call>\n<function=f></think>Yes",
         ("Yes", "A <tool_call> is one:\n<tool_call>\n<function=f>")),
        ("LFM2.5-8B", "<think>", "I say <|tool_call_start|>[time()]<|tool_call_end|></think>Yes",
         ("Yes", "I say <|tool_call_start|>[time()]<|tool_call_end|>")),
    ],
)  # fmt: skip
def test_reasoning_is_split_off(name: str, prompt: str, text: str, expected: Any) -> None:
    """Reasoning, wherever it begins; marks and the space around them are not shown."""
    for pieces in ([text], list(text)):
        assert (*expected, []) == split(syntax_of(name), pieces, prompt)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no JSON</tool_call>",
        '<tool_call>\n{"city": "Paris"}\n</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}',
        "<tool_call>[]</tool_call> and more",
        "<tool_call> is the mark",
        '<tool_call>\n{"city": "Paris"}',
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    """With its mark; only a mark of an end, which stands alone then, is left out."""
    content, _, calls = split(HERMES, [text])
    assert (content, calls) == (text.replace("</tool_call>", ""), [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Qwen-Qwen2.5", '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome"}}'),
        ("Qwen3-Coder", "<tool_call>\n<function=get_time>\n"),
        ("mistralai-Mistral-Nemo", '[TOOL_CALLS][{"name": "get_time", "arguments": {}}'),
        ("LFM2.5-8B", '<|tool_call_start|>[get_time(city="Rome", day="now")'),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama",
         "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n"),
    ],
)  # fmt: skip
def test_a_call_that_is_cut_is_not_shown_as_text(name: str, text: str) -> None:
    """Wherever the text ends behind the delimiter, content has neither the delimiter nor a part."""
    syntax = syntax_of(name)
    assert syntax.tool_calls is not None
    begin = max(text.find(mark) + len(mark) for mark in syntax.tool_calls.begins)
    for end in range(begin, len(text)):
        parser = ChatParser(syntax, tools={"get_time": {}})
        deltas = [parser.feed(letter) for letter in f"Yes. {text[:end]}"] + [parser.flush()]
        assert "Yes." == "".join(delta.content for delta in deltas).rstrip()
        calls = parser.message().get("tool_calls", [])
        assert parser.ends_within_call or json.loads(calls[-1]["function"]["arguments"]) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "weather", "arguments": {"city": "Par', '{"city": "Par'),
        ('{"name": "weather", "arguments": "{\\"city\\": 1}"}', '{"city": 1}'),
        ('{"name": "weather"}', "{}"),
        ('{"arguments": {"a": [1, "}"]}, "name": "weather"}', '{"a": [1, "}"]}'),
        ('{"id": "x", "name": "weather", "parameters": {"a": "\\"}"}}', '{"a": "\\"}"}'),
    ],
)
def test_arguments_are_as_the_model_wrote_them(text: str, expected: str) -> None:
    """Also cut off, before the name, left out, or as JSON in a text."""
    for pieces in ([text], list(text)):
        [(name, arguments)] = split(HERMES, ["<tool_call>\n", *pieces])[2]
        assert (name, arguments) == ("weather", expected)


@pytest.mark.parametrize("name", [*WRITTEN, "Qwen3.5-4B"])
def test_calls_within_the_reasoning(name: str) -> None:
    """They end it where a model does not close it first."""
    syntax = syntax_of(name)
    if syntax.tool_calls is None or not syntax.tool_calls.ends_reasoning or not syntax.reasoning:
        return
    text = "".join(WRITTEN["Qwen3-Coder" if name == "Qwen3.5-4B" else name])
    begin = syntax.reasoning[0].begin
    for pieces in ([f"why\n{text}"], list(f"why\n{text}")):
        content, reasoning, calls = split(syntax, pieces, begin)
        assert [PARIS, TIME] == [(n, json.loads(a)) for n, a in calls]
        assert ("", "why") == (content, reasoning)
    assert f"why\n{text}" == split(syntax, [f"why\n{text}"], begin, {"other": {}})[1]


@pytest.mark.parametrize("name", ["Qwen3.5-4B", "GLM-4.6", "MiniMax-M2", "openbmb"])
def test_reasoning_flows_behind_a_mention_of_a_call(name: str) -> None:
    """Text is held back only as long as it can be the header of a call."""
    syntax = syntax_of(name)
    assert syntax.tool_calls is not None
    for begin in syntax.tool_calls.begins:
        parser = ChatParser(syntax, "<think>\n", TOOLS)
        assert "I write" == parser.feed(f"I write {begin}").reasoning
        assert f" {begin} when I" == parser.feed(" when I ").reasoning


def test_arguments_flow_while_they_are_written() -> None:
    """The name comes as soon as it is known, and then each piece of the arguments."""
    parser = ChatParser(HERMES, "", TOOLS)
    assert not parser.feed('<tool_call>\n{"name": "wea')
    [call] = parser.feed('ther", "arguments": ').tool_calls
    assert call["function"] == {"name": "weather", "arguments": ""}
    [part] = parser.feed('{"city": "Pa').tool_calls
    assert part == {"index": 0, "function": {"arguments": '{"city": "Pa'}}


def test_values_without_quotes_get_their_schema_s_type() -> None:
    """A parameter that is a text stays one; another is read as JSON."""
    tools = {"f": {"properties": {"a": {"type": "string"}, "b": {"type": ["integer", "string"]}}}}
    text = "".join(
        f"<parameter={name}>\n{value}\n</parameter>\n"
        for name, value in [("a", "12"), ("b", "12"), ("c", "[1]"), ("d", "x y"), ("e", "True")]
    )
    [(_, arguments)] = split(
        syntax_of("Qwen3-Coder"), [f"<function=f>\n{text}</function>"], tools=tools
    )[2]
    assert json.loads(arguments) == {"a": "12", "b": 12, "c": [1], "d": "x y", "e": True}


HTML = {"html": {"properties": {"markup": {"type": "string"}, "data": {"type": "object"}}}}
NESTED: dict[str, Any] = {
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "string"}}}},
    "properties": {
        "points": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/point"}}]},
        "item": {"type": "object", "properties": {"item": {"type": "integer"}}},
        "none": {"type": "array"},
    },
}
NAMESPACE = "]<]minimax[>["


def nested(text: str) -> str:
    """A call of `f` with <a> for each delimiter of MiniMax-M3."""
    return f'<invoke name="f">{text}</invoke>'.replace("<", f"{NAMESPACE}<")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ByteDance", "<function=f><parameter=a>x\n</parameter></function>", {"a": "x\n"}),
        ("ByteDance", "<function=f><parameter=a>\nx\n\n</parameter></function>", {"a": "x\n"}),
        ("GLM-4.6", "<tool_call>f<arg_key>a</arg_key><arg_value>\nx\n</arg_value></tool_call>",
         {"a": "\nx\n"}),
        ("openbmb", '<function name="html"><param name="markup"><![CDATA[</param>]]></param>'
         "<param name=\"data\">{'a': True, 'b': 'c'}</param></function>",
         {"markup": "</param>", "data": {"a": True, "b": "c"}}),
        ("openbmb", '<function name="html"><param name="markup"><![CDATA[]]]]><![CDATA[>]]></param>'
         "</function>", {"markup": "]]>"}),
        ("MiniMax-M3",
         nested("<points><item><x>1</x></item><item><x>2</x><y>3</y></item></points>"
                "<item><item>7</item></item><none></none><more><item>1</item></more>"),
         {"points": [{"x": "1"}, {"x": "2", "y": 3}], "item": {"item": 7}, "none": [],
          "more": [1]}),
        ("LFM2-8B", "<|tool_call_start|>[f(a={'b': true}, c=null, d=[1, \"]<|tool_call_end|>)\"])]"
         "<|tool_call_end|>", {"a": {"b": True}, "c": None, "d": [1, "]<|tool_call_end|>)"]}),
        ("LFM2-8B", r"""<|tool_call_start|>f(a='\d\'\n', b='''x'y''', c=wrong)<|tool_call_end|>""",
         {"a": "\\d'\n", "b": "x'y", "c": "wrong"}),
        ("LFM2.5-8B",
         "<|tool_call_start|>[f(a='x\ny', b=[\n'\n', \"\"\"\n\"\"\"])]<|tool_call_end|>",
         {"a": "x\ny", "b": ["\n", "\n"]}),
        ("google-gemma-4-31B-it-inter", '<|tool_call>call:f{a:<|"|><tool_call|>{}<|"|>,b:[{c:-1.5},'
         'true,<|"|>é<|"|>],<|"|>d e<|"|>:12:30}<tool_call|>',
         {"a": "<tool_call|>{}", "b": [{"c": -1.5}, True, "é"], "d e": "12:30"}),
        ("Qwen3-Coder", "<function=f><parameter=a>\nNaN\n</parameter></function>", {"a": "NaN"}),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
         '```json\n{"a": "```"}```<｜tool▁call▁end｜>', {"a": "```"}),
    ],
)  # fmt: skip
def test_arguments_in_the_notation_of_the_template(name: str, text: str, expected: Any) -> None:
    """Nested values, texts with delimiters in them, line breaks, literals of two languages."""
    tools = {"f": NESTED, **HTML}
    for pieces in ([text], list(text)):
        content, _, [(_, arguments)] = split(syntax_of(name), pieces, tools=tools)
        assert (expected, "") == (json.loads(arguments), content)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("LFM2-8B", "<|tool_call_start|>[time(), f(1)]<|tool_call_end|>", ("f(1)]", ["{}"])),
        ("LFM2-8B", "<|tool_call_start|>[f(1)]<|tool_call_end|> x",
         ("<|tool_call_start|>[f(1)] x", [])),
        ("LFM2-8B", "<|tool_call_start|>[f(a=1, b", ("", ['{"a": 1'])),
        ("LFM2-8B", "<|tool_call_start|>[f(a=1, 2)]", ("2)]", ['{"a": 1}'])),
        ("MiniMax-M3", nested("<points><item>1</item></points><item>")[:-22],
         ("", ['{"points": [1]'])),
        ("MiniMax-M3", nested("<a>" * 3000), ("", [""])),
    ],
)  # fmt: skip
def test_a_call_that_is_cut_off(name: str, text: str, expected: Any) -> None:
    """What was written stays: as arguments, or as content behind the calls."""
    for pieces in ([text], list(text)):
        content, _, calls = split(syntax_of(name), pieces)
        assert expected == (content, [arguments for _, arguments in calls])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Qwen-Qwen3-0.6B", '<tool_call>\n{"name": "time", "arguments": null}\n</tool_call>'),
        ("NVIDIA-Nemotron-Nano", '<TOOLCALL>[{"name": "time", "arguments": {}}]</TOOLCALL>'),
        ("LFM2.5-8B", "<|tool_call_start|>[time()]<|tool_call_end|>"),
        ("mistralai-Ministral", "[TOOL_CALLS]time[ARGS]{}"),
        ("CohereForAI-c4ai-command-r7b",
         '<|START_ACTION|>[{"tool_name": "time", "parameters": {}}]<|END_ACTION|>'),
        ("Apertus", '<|tools_prefix|>[{"time": {}}]<|tools_suffix|>'),
    ],
)  # fmt: skip
def test_calls_at_the_end_of_reasoning_that_is_not_closed(name: str, text: str) -> None:
    """They are calls, though their text was shown as reasoning; earlier mentions are none."""
    syntax = syntax_of(name)
    begin, end = syntax.reasoning[0].begin, syntax.reasoning[0].end
    thought = f"I say {text} or so.\n{text}\n{text}"
    for pieces in ([thought], list(thought)):
        assert ("", thought, [("time", "{}")] * 2) == split(syntax, pieces, begin)
    assert ("", f"I say {text} or so.", []) == split(syntax, [f"I say {text} or so."], begin)
    assert ("Yes", thought, []) == split(syntax, [f"{thought}{end}Yes"], begin)
    assert [] == split(syntax, [thought], begin, {"other": {}})[2]
    assert [] == split(syntax, [thought], begin, None)[2]


def test_a_channel_calls_what_it_names() -> None:
    """A function that is no tool is called all the same; a recipient of another kind is not."""
    syntax = syntax_of("openai-gpt-oss")
    for recipient, names in {"functions.f": ["f"], "weather": ["weather"], "exec": []}.items():
        text = f" to={recipient}<|channel|>commentary<|message|>{{}}<|call|>"
        content, _, calls = split(syntax, [text], "<|start|>assistant")
        assert ("", names) == (content, [name for name, _ in calls])


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<thi", "<", ">", "{", "}", '"', " ",
     "\n", "a", "Hello", '{"name": "weather", "arguments": {"city": "x"}}', "[", "]", "\\", ":",
     '"name"', "weather", "\u00e9", "[TOOL_CALLS]", "[ARGS]", "<function=", "<parameter=city>",
     "</parameter>", "</function>", "<|channel|>", "analysis", "<|message|>", "<|end|>",
     "<|start|>assistant", " to=functions.time", "<|tool_call>call:", '<|"|>', "<tool_call|>"]
)  # fmt: skip
SYNTAXES = [
    HERMES,
    THINK,
    *map(
        syntax_of,
        ["Qwen3-Coder", "Mistral-Small", "meta-llama-Llama-3.1", "google-gemma-4-31B-it-i",
         "openai-gpt-oss", "meetkai-functionary-medium-v3.2", "LFM2-8B", "Apertus"],
    ),
]  # fmt: skip


@given(
    st.sampled_from(SYNTAXES),
    st.sampled_from(["", "<think>\n", "<|start|>assistant", ">>>"]),
    st.lists(FRAGMENTS, max_size=25),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_any_cut_gives_the_same_split(
    syntax: ChatSyntax, prompt: str, fragments: list[str], cuts: list[int]
) -> None:
    """One piece, one letter at a time, or pieces of any length."""
    text = "".join(fragments)
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    whole = split(syntax, [text], prompt)
    assert whole == split(syntax, pieces, prompt) == split(syntax, list(text), prompt)


@given(st.data())
def test_any_cut_gives_the_same_split_in_every_notation(data: st.DataObject) -> None:
    """With the delimiters of a template, in any order."""
    paths = sorted((VENDOR_MODELS / "templates").glob("*.jinja"))
    syntax = syntax_of(data.draw(st.sampled_from(paths)).stem)
    delimiters = sorted(syntax.delimiters)
    others = ["weather", "functions.time", "to=time", '{"city": "a"}', "city", "a", "item", " ",
              "\n", "=", "(", ")", ",", "[", "]", "'", "<![CDATA[", "]]>", '<|"|>']  # fmt: skip
    fragments = st.lists(st.sampled_from([*delimiters, *others]), max_size=20)
    text = "".join(data.draw(fragments))
    prompt = data.draw(st.sampled_from(["", *delimiters]))
    cut = data.draw(st.integers(0, len(text)))
    whole = split(syntax, [text], prompt)
    assert whole == split(syntax, [text[:cut], text[cut:]], prompt)
    assert whole == split(syntax, list(text), prompt)


@given(st.text(max_size=60))
def test_a_text_without_marks_is_content(text: str) -> None:
    """Every letter of it, white space too."""
    if "<" not in text:
        assert (text, "", []) == split(HERMES, list(text))
