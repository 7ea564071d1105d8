"""Calls that a model writes as JSON, without the delimiters of its template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llcuda import Engine, Model
from llcuda.chat.formats import detect
from llcuda.chat.parser import ChatParser
from llcuda.chat.tool_arguments import Schema
from llcuda.errors import ArgumentError
from tests.support.waiting import PATIENCE

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1},
        "units": {"enum": ["C", "F"]},
        "at": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "items": {"type": "number"}, "maxItems": 2}},
}
TOOLS = {"weather": WEATHER, "time": {"type": "object", "properties": {}}}
HERMES = detect("<think></think><tool_call></tool_call>")
PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
PARIS_CALL = ("weather", {"city": "Paris"})
Split = tuple[str, list[tuple[str, Any]]]


def split(pieces: list[str], prompt: str = "", tools: Any = TOOLS, bare: Any = TOOLS) -> Split:
    """Content, and the name and arguments of each call, as the deltas add them up."""
    parser = ChatParser(HERMES, prompt, tools, bare)
    content = ""
    calls: list[list[str]] = []
    for delta in [*map(parser.feed, pieces), parser.flush()]:
        content += delta.content
        for call in delta.tool_calls:
            if "id" in call:
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (PARIS, [PARIS_CALL]),
        (f"\n {PARIS} \n", [PARIS_CALL]),
        (f"```json\n{PARIS}\n```", [PARIS_CALL]),
        (f"```\n{PARIS}\n```\n", [PARIS_CALL]),
        (f"[{PARIS}, {PARIS}]", [PARIS_CALL] * 2),
        (f"```json\n[\n{PARIS}\n]\n```", [PARIS_CALL]),
        ('{"arguments": {}, "name": "time"}', [("time", {})]),
        ('{"name":"time","parameters":{}}', [("time", {})]),
        (f"<think>I call it.</think>\n\n{PARIS}", [PARIS_CALL]),
        (
            r'{"name": "weather", "arguments": {"at": [1, -2.5e0], "units": "C", "days": 3,'
            r' "city": "\u00e9\"}</tool_call><tool_call>"}}',
            [("weather", {"at": [1, -2.5], "units": "C", "days": 3,
                          "city": 'é"}</tool_call><tool_call>'})],
        ),
    ],
)  # fmt: skip
def test_an_answer_of_json_is_a_call(text: str, calls: Any) -> None:
    """Whole, letter by letter, and with the option off not at all."""
    for pieces in ([text], list(text)):
        assert ("", calls) == split(pieces)
    assert [] == split([text], bare=None)[1]


@pytest.mark.parametrize(
    "text",
    [
        f"Well: {PARIS}",
        f"{PARIS} That is it.",
        f"{PARIS}\n{PARIS}",
        f"{PARIS}, {PARIS}",
        f"[{PARIS}",
        f"[{PARIS}]]",
        "[]",
        f"```json\n{PARIS}",
        f"```json\n{PARIS}\n``` There.",
        f"```python\n{PARIS}\n```",
        f"`{PARIS}`",
        '{"name": "no tool", "arguments": {"city": "Paris"}}',
        '{"name": "weathe", "arguments": {"city": "Paris"}}',
        '{"name": "weather", "arguments": {"city": 5}}',
        '{"name": "weather", "arguments": {"town": "Paris"}}',
        '{"name": "weather", "arguments": {"city": "Paris", "city": "Rome"}}',
        '{"name": "weather", "arguments": {"city": "Paris", "days": 0}}',
        '{"name": "weather", "arguments": {"city": "Paris", "days": 1.5}}',
        '{"name": "weather", "arguments": {"city": "Paris", "units": "K"}}',
        '{"name": "weather", "arguments": {"city": "Paris", "at": [1, 2, 3]}}',
        '{"name": "weather", "arguments": {"city": "Paris or one of its many longer names, this"}}',
        '{"name": "weather", "arguments": {"city": "Par\nis"}}',
        '{"name": "weather", "arguments": {}}',
        '{"name": "weather", "arguments": "{}"}',
        '{"name": "weather", "arguments": {"city": "Paris"}, "more": 1}',
        '{"name": "weather", "name": "time", "arguments": {}}',
        '{"name": "weather"}',
        '{"arguments": {"days": 0}, "name": "weather"}',
        '{"name": "weather", "arguments": {"city": "Paris"',
        '{"name": "time", "arguments": {"a": [1,]}}',
        '{"name": "time", "arguments": {"a": 01}}',
        '{"name": "time", "arguments": {"a": NaN}}',
        '{"name": "time", "arguments": {"a": ' + "[" * 100 + "]" * 100 + "}}",
        '{"city": "Paris"}',
        "{}",
        "null",
        "",
    ],
)
def test_other_answers_stay_content(text: str) -> None:
    """Every letter of them, in order."""
    for pieces in ([text], list(text)):
        assert (text, []) == split(pieces)


@pytest.mark.parametrize(
    ("held", "last"),
    [
        ("{", "1"),
        ('{"na', "w"),
        ('{"name": "wea', "l"),
        ('{"name": "weather", "arguments": {"town', '"'),
        ('{"name": "weather", "arguments": {"city": ', "5"),
        ('{"name": "weather", "arguments": {"city": "Paris", "days": 0', "}"),
        ('{"name": "weather", "arguments": {"city": "Paris"}}', "x"),
        ("``", "x"),
        ("```js", "x"),
        ("[", "["),
    ],
)
def test_text_is_held_back_while_it_can_be_a_call(held: str, last: str) -> None:
    """And all of it comes with the letter that rules a call out."""
    parser = ChatParser(HERMES, "", TOOLS, TOOLS)
    assert "" == "".join(parser.feed(letter).content for letter in held)
    assert f"{held}{last}" == parser.feed(last).content


def test_delimiters_within_what_was_held_back_are_read() -> None:
    """A text that is no call after all is read as if it had not been held back."""
    text = '{"name": "time", "arguments": {"a": "<tool_call>"}} and <tool_call>' + PARIS
    for pieces in ([text], list(text)):
        assert (text.removesuffix(f" <tool_call>{PARIS}"), [PARIS_CALL]) == split(pieces)


PARTS = st.sampled_from(
    [PARIS, '{"name": "time", "arguments": {}}', "```json\n", "```", "\n", " ", "[", "]", ",", "{",
     "}", '"name"', ":", '"weather"', '"arguments"', "<think>", "</think>", "<tool_call>",
     "</tool_call>", "Yes", '"', "\\", "1"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=12), st.lists(st.integers(0, 300), max_size=8))
def test_any_cut_gives_the_same_answer(parts: list[str], cuts: list[int]) -> None:
    """And without a call it is the answer of a parser that looks for none."""
    text = "".join(parts)
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    whole = split([text])
    assert whole == split([text[a:b] for a, b in pairwise(places)]) == split(list(text))
    if not whole[1]:
        assert whole == split([text], bare=None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "a", "abc"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
            "enum": st.lists(JSON, min_size=1, max_size=3),
            "const": JSON,
            "minimum": st.integers(-2, 2),
            "exclusiveMaximum": st.integers(-2, 2),
            "minLength": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
            "minProperties": st.integers(0, 2),
            "required": st.lists(st.sampled_from("ab"), unique=True),
            "$ref": st.sampled_from(["#/$defs/x", "#/$defs/y"]),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("ab"), inner),
            "additionalProperties": inner,
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=3),
            "allOf": st.lists(inner, min_size=1, max_size=2),
        },
    ),
    max_leaves=6,
)


@example({"enum": [[]], "const": None}, {}, None)
@given(SCHEMAS, st.fixed_dictionaries({"x": JSON.map(lambda v: {"enum": [v]})}), JSON)
def test_schemas_admit_what_jsonschema_admits(schema: Any, more: Any, value: Any) -> None:
    """For the keywords that are looked at."""
    definitions = {**more, "y": {"type": ["string", "integer"]}}
    root = {"$defs": definitions, "allOf": [schema]}
    expected = jsonschema.Draft202012Validator(root).is_valid(value)
    assert expected == Schema(root, root).admits(value)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": 5, "type": 5, "enum": 5, "required": 5, "properties": [], "items": 5, "allOf": {}},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}}, "$ref": "#/$defs/a"},
        {"nullable": True, "type": "object"},
    ],
)
def test_schemas_that_lead_nowhere(schema: Any) -> None:
    """Circles end, and what is not a schema restricts nothing."""
    assert Schema(schema, schema).admits({"a": [1, {"b": None}]})
    assert Schema(schema, schema).types() <= {"object", "null"}


def test_a_schema_that_takes_too_many_steps_admits_nothing() -> None:
    """A stranger's schema costs no more than some steps."""
    schema: Any = {"type": "array", "items": {"allOf": [{"minimum": i} for i in range(200)]}}
    assert Schema(schema, schema).admits([1000 + i for i in range(40)])
    assert not Schema(schema, schema).admits([1000 + i for i in range(100)])
    for _ in range(2000):
        schema = {"allOf": [schema]}
    assert not Schema(schema, schema).admits([])
    many: Any = {"anyOf": [{"const": i} for i in range(10_000)]}
    assert Schema(many, many).types() == frozenset()
    tools: Any = {"f": {"type": "object", "properties": {"a": {"items": many}}}}
    text = f'{{"name": "f", "arguments": {{"a": {[9999] * 10_000}}}}}'
    assert (text, []) == split([text], tools=tools, bare=tools)


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
            "required": ["x"],
        },
    },
}
PLAIN = "{% for m in messages %}{{ m.content }}\n{% endfor %}{{ tools | tojson }}"  # no delimiters


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine on the demo model."""
    with Model("demo", gpu_layers=0) as model, Engine(model, ctx_size=512, threads=1) as engine:
        yield engine


def answer(engine: Engine, text: str, **keywords: Any) -> Any:
    """A chat whose answer is `text`."""
    return engine.chat(
        [{"role": "user", "content": "Add."}],
        tools=[ADD],
        template=PLAIN,
        grammar=f"root ::= {json.dumps(text)}",
        max_tokens=200,
        **keywords,
    )


def test_chats_call_by_bare_json(engine: Engine) -> None:
    """Streamed too; a named choice, the option and a parameter of no tool rule it out."""
    text = '{"name": "add", "arguments": {"x": 1}}'
    chat = answer(engine, text)
    deltas = list(chat)
    [call] = [call for delta in deltas for call in delta.tool_calls]
    assert {"name": "add", "arguments": '{"x": 1}'} == call["function"]
    done = chat.result(PATIENCE)
    assert "".join(delta.content for delta in deltas) == ""
    assert (None, "tool_calls") == (done.message["content"], done.finish_reason)
    for keywords in ({"bare_tool_calls": False}, {"tool_choice": "none"}):
        other = answer(engine, text, **keywords).result(PATIENCE)
        assert (text, "stop") == (other.message["content"], other.finish_reason)
    further = '{"name": "add", "arguments": {"x": 1, "z": 2}}'
    assert further == answer(engine, further).result(PATIENCE).message["content"]
    assert '{"name": "add"' == str(answer(engine, text, stop=[","]).result(PATIENCE))


def test_the_option_is_a_flag(engine: Engine) -> None:
    """Other values are refused."""
    with pytest.raises(ArgumentError, match="bare_tool_calls='no': expected True or False"):
        answer(engine, "x", bare_tool_calls="no")
