"""Messages and tools: what is taken, what is refused, and what a template gets to see."""

from __future__ import annotations

import enum
import time
from typing import Any, Literal

import pytest

from llcuda.chat.messages import check_messages, check_tools
from llcuda.chat.prompt import ControlTexts
from llcuda.chat.template import ChatTemplate
from llcuda.chat.tool_schema import function_schema
from llcuda.errors import ArgumentError
from tests.conftest import VENDOR_MODELS

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
SHOWN = ChatTemplate("{{ messages | tojson }}")


def nested(depth: int) -> Any:
    """Lists in lists."""
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages: expected a list, not NoneType"),
        ("Hi", "expected a list, not str"),
        (USER, "expected a list, not dict"),
        ([], "at least one"),
        (["Hi"], r"messages\[0\]: expected an object"),
        ([None], r"messages\[0\]: expected an object"),
        ([USER, {"content": "Hi"}], r"messages\[1\].role=None: expected one of system"),
        ([{"role": "wizard", "content": "Hi"}], r"role='wizard'"),
        ([{"role": ["user"], "content": "Hi"}], r"messages\[0\].role"),
        ([{"role": "user"}], r"messages\[0\].content: expected a string or a list"),
        ([{"role": "user", "content": None}], r"messages\[0\].content"),
        ([{"role": "assistant", "content": None}], r"messages\[0\].content"),
        ([{"role": "user", "content": 7}], r"content: expected a string, not int"),
        ([{"role": "user", "content": {"text": "Hi"}}], r"content: expected a string, not dict"),
        ([{"role": "user", "content": ["Hi"]}], r"content\[0\].type=None"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"content\[0\].text"),
        ([{"role": "user", "content": "\ud800"}], "half of a surrogate pair"),
        ([{"role": "user", "content": "Hi", "na\udfffme": "x"}], "half of a surrogate pair"),
        ([{"role": "user", "content": "Hi", "extra": object()}], "extra: expected JSON data"),
        ([{"role": "user", "content": "Hi", "extra": nested(99)}], "nested more than 64"),
        ([{"role": "user", "content": "Hi", 5: "x"}], "strings as keys"),
        ([{"role": "user", "content": b"Hi"}], "expected JSON data, not bytes"),
        ([{"role": "user", "content": "Hi", "name": 5}], r"messages\[0\].name"),
        ([{**CALLING, "reasoning_content": ["x"]}], "reasoning_content"),
        ([{**USER, "images": ["a.png"]}], r"messages\[0\].images: unknown key; images and other"),
        ([{**USER, "audio": {"id": "a"}}], r"audio: unknown key; images and other files cannot"),
        ([{**USER, "function_call": {"name": "f"}}], "function_call: unknown key; write the call"),
        ([{**USER, "contents": "x"}], "contents: unknown key; expected role, content, name, tool"),
        ([{**CALLING, "tool_calls": "f()"}], "tool_calls: expected a list"),
        ([{**CALLING, "tool_calls": [{}]}], r"tool_calls\[0\]: expected an object"),
        ([{**CALLING, "tool_calls": [{"function": {"name": ""}}]}], r"tool_calls\[0\]"),
        ([{**CALLING, "tool_calls": [{"function": {"name": "<|x|>"}}]}], r"tool_calls\[0\]"),
        ([{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}], "arguments"),
        ([{**CALLING, "tool_calls": [{**CALL, "id": 3}]}], r"tool_calls\[0\].id"),
    ],
)
def test_messages_of_a_wrong_shape(messages: Any, said: str) -> None:
    """Each is an error that names the place."""
    with pytest.raises(ArgumentError, match=said):
        SHOWN.render(messages)


def test_keys_that_change_no_answer() -> None:
    """Clients send back what servers wrote into an answer; a template may read keys of its own."""
    notes = {"id": "1", "refusal": None, "annotations": [{}], "audio": None, "function_call": None}
    answer = {"role": "assistant", "content": "A", "name": "a", "images": [], "x": "", **notes}
    assert check_messages([USER, answer])[1]["content"] == "A"
    check_messages([USER, {**CALLING, "function_call": CALL["function"]}, RESULT])
    for source in ("{{ messages[0].prefix }}", "{{ messages[0]['prefix'] }}"):
        assert ChatTemplate(source).render([{**USER, "prefix": "P"}]) == "P"
    reads_images = ChatTemplate("{{ messages[0].images | length }}")
    with pytest.raises(ArgumentError, match="images: unknown key"):
        reads_images.render([{**USER, "images": ["a.png"]}])


def f(x: int) -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("f", "tools: expected a list"),
        ({"name": "f"}, "tools: expected a list"),
        ([7], r"tools\[0\]: expected a function"),
        ([{}], r"tools\[0\]: expected a function"),
        ([{"type": "web_search"}], r"tools\[0\]: expected a function"),
        ([{"type": "web_search", "function": {"name": "f"}}], r"tools\[0\]: expected a function"),
        ([{"type": "function", "function": {}}], r"function.name=None"),
        ([{"type": "function", "function": {"name": "two words"}}], "function.name='two words'"),
        ([{"name": "f", "description": 3}], "description"),
        ([{"name": "f", "parameters": "none"}], "parameters: expected a JSON schema, not str"),
        ([{"name": "f", "parameters": {"type": "array"}}], "type='array': expected 'object'"),
        ([{"name": "f", "parameters": {"properties": []}}], "properties: expected an object"),
        ([{"name": "f", "parameters": {"properties": {"a": "int"}}}], "properties.a"),
        ([{"name": "f", "parameters": {"required": "a"}}], "required: expected a list"),
        ([f, f], "several have the name 'f'"),
        ([int], r"tools\[0\]"),
        ([lambda x: x], "has no type hint"),
    ],
)
def test_tools_of_a_wrong_shape(tools: Any, said: str) -> None:
    """Each is an error that names the place."""
    with pytest.raises(ArgumentError, match=said):
        check_tools(tools)


class Unit(enum.Enum):
    """Of temperatures."""

    CELSIUS = "celsius"
    KELVIN = "kelvin"


def test_a_function_is_a_tool() -> None:
    """Its hints are the schema, its docstring the descriptions, its defaults what may be left."""

    def weather(  # noqa: D417 - as people write them
        city: str,
        days: int | None = None,
        unit: Unit = Unit.CELSIUS,
        kind: Literal["rain", "wind"] = "rain",
        places: list[dict[str, float]] = [],  # noqa: B006
        pair: tuple[int, str] = (1, ""),
        either: int | list[str] = 1,
    ) -> str:
        """Say how the weather will be.

        It may be wrong.

        Args:
            city: Its name,
                as people write it.
            days: How many.

        Returns:
            A sentence: nothing more.

        """
        return city

    tool = function_schema(weather)["function"]
    assert (tool["name"], tool["description"]) == (
        "weather",
        "Say how the weather will be.\n\nIt may be wrong.",
    )
    assert tool["parameters"]["required"] == ["city"]
    assert tool["parameters"]["properties"] == {
        "city": {"type": "string", "description": "Its name, as people write it."},
        "days": {"type": "integer", "nullable": True, "description": "How many."},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
        "kind": {"type": "string", "enum": ["rain", "wind"]},
        "places": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": {"type": "number"}},
        },
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
    }


def test_functions_that_have_no_schema() -> None:
    """Any number of arguments, classes of one's own, hints that name nothing."""

    def many(*values: int) -> None: ...
    def own(value: ArgumentError) -> None: ...
    def lost(value: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821
    def mixed(value: Literal[b"x"]) -> None: ...

    for function in (many, own, lost, mixed):
        with pytest.raises(ArgumentError, match=function.__name__):
            function_schema(function)


def test_methods_and_partial_tools() -> None:
    """A method's self is no parameter; a definition without its wrapper gets one."""

    class Shop:
        def price(self, item: str) -> int:
            """Say what it costs."""
            return len(item)

    [tool, bare] = check_tools([Shop().price, {"name": "f", "description": None}])
    assert list(tool["function"]["parameters"]["properties"]) == ["item"]
    assert bare == {
        "type": "function",
        "function": {
            "name": "f",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    }


def test_the_caller_s_messages_stay_as_they_are() -> None:
    """Templates get plain copies, of pydantic's models too."""

    class Answer:
        def model_dump(self, exclude_none: bool) -> dict[str, Any]:
            assert exclude_none
            return CALLING

    given = [USER, Answer(), RESULT]
    checked = check_messages(given)
    assert checked[1]["tool_calls"] == [CALL]
    checked[1]["tool_calls"][0]["function"]["name"] = "g"
    assert CALL["function"]["name"] == "f"  # type: ignore[index]


def template(name: str) -> ChatTemplate:
    """One of the templates beside llama.cpp's source."""
    [path] = (VENDOR_MODELS / "templates").glob(f"{name}*")
    return ChatTemplate(path.read_text(), bos="<s>", eos="</s>")


TOOL = {"name": "f", "description": "F", "parameters": {"properties": {"a": {"type": "integer"}}}}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Qwen-Qwen2.5", '{"name": "f", "arguments": {"a": 1}}'),
        ("Qwen3-Coder", "<parameter=a>\n1\n</parameter>"),
        ("mistralai-Mistral-Nemo", '"arguments": {"a": 1}'),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama", '```json\n{"a": 1}\n```'),
        ("meetkai-functionary-medium-v3.2", '>>>f\n{"a": 1}'),
        ("meta-llama-Llama-3.1", '{"name": "f", "parameters": {"a": 1}}'),
    ],
)
@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}], ids=["text", "object"])
@pytest.mark.parametrize("content", [None, ""])
def test_calls_get_the_shape_that_a_template_reads(
    name: str, written: str, arguments: Any, content: Any
) -> None:
    """Arguments as a text or an object, and no content as None or "", come out alike."""
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    program = template(name)
    messages = [USER, {**CALLING, "content": content, "tool_calls": [call]}, RESULT]
    text = program.render(messages, [TOOL] if program.takes_tools else None)
    assert written in text
    assert "done" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("Qwen-Qwen2.5", "", '"arguments": {}}'),
        ("Qwen-Qwen2.5", None, '"arguments": {}}'),
        ("Qwen-Qwen2.5", "null", '"arguments": {}}'),
        ("Qwen-Qwen2.5", '"{\\"a\\": 1}"', '"arguments": {"a": 1}}'),  # encoded twice
        ("Qwen-Qwen2.5", '{"a": ', r'"arguments": "{\"a\": "}'),
        ("Qwen-Qwen2.5", "[1]", '"arguments": "[1]"}'),
        ("Qwen3-Coder", '{"a": ', '<parameter=arguments>\n{"a": \n</parameter>'),  # keys only
        ("deepseek-ai-DeepSeek-R1-Distill-Llama", '{"a": ', '```json\n{"a": \n```'),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama", '"{\\"a\\": 1}"', '```json\n{"a": 1}\n```'),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama", "", "```json\n{}\n```"),
    ],
)
def test_any_arguments_go_on(name: str, arguments: Any, written: str) -> None:
    """Agents send their history back, also calls that were cut; a template gets what it takes."""
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    program = template(name)
    messages = [USER, {**CALLING, "tool_calls": [call]}, RESULT]
    assert written in program.render(messages, [TOOL] if program.takes_tools else None)


def test_parts_of_text_become_what_the_template_reads() -> None:
    """A template that knows no parts gets one text."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    assert "user\none\ntwo<|im_end|>" in template("Qwen-Qwen2.5").render(messages)
    assert "onetwo" in template("Mistral-Small").render(messages)


def test_results_get_the_name_of_their_call() -> None:
    """Templates that show a tool's name find it, though OpenAI's messages have only the id."""
    assert "response:f{" in template("google-gemma-4-31B-it.jinja").render(
        [USER, CALLING, RESULT], [TOOL]
    )


def test_roles_that_a_template_names_are_taken() -> None:
    """Beyond OpenAI's; a developer's message is the system's where the template knows no other."""
    ipython = [USER, {"role": "ipython", "content": "4"}]
    assert "ipython" in template("meta-llama-Llama-3.1").render(ipython)
    developer = [{"role": "developer", "content": "Be brief."}, USER]
    assert "<|im_start|>system\nBe brief." in template("Qwen-Qwen3").render(developer)


def test_tools_need_a_template_that_shows_them() -> None:
    """A model that was never told of its tools is no answer."""
    with pytest.raises(ArgumentError, match="tools: this model's chat template"):
        template("google-gemma-2").render([USER], [TOOL])


def test_variables_reach_the_template() -> None:
    """But for those that are the conversation."""
    qwen = template("Qwen-Qwen3")
    assert "<think>\n\n</think>" in qwen.render([USER], enable_thinking=False)
    assert "<think>" not in qwen.render([USER])
    with pytest.raises(ArgumentError, match="'bos_token' is set by llcuda"):
        qwen.render([USER], bos_token="x")
    with pytest.raises(ArgumentError, match="half of a surrogate"):
        qwen.render([USER], note="\ud800")


CONTROLS = ControlTexts(["<|im_end|>", "<|im_start|>", "<s>", "</think>", "x"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("no mark <|im_end|", None),
        ("a<|im_end|>b", "a<*|im_end|>b"),
        ("<<s><s>", "<<*s><*s>"),
        (["<|im_", "end|>"], ["<*|im_", "end|>"]),
        (["a<", "s>"], ["a<*", "s>"]),
        ("<|im_<|im_end|><|im_end|", "<|im_<*|im_end|><|im_end|"),
        *((f"{'a' * n}<|im_end|><s>", f"{'a' * n}<*|im_end|><*s>") for n in range(65520, 65540)),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_control_tokens_in_messages_are_broken(given: Any, expected: Any) -> None:
    """Also those that two parts make together."""
    content = [{"type": "text", "text": t} for t in given] if isinstance(given, list) else given
    message = {"role": "user", "content": content}
    breaker = CONTROLS.break_up([[message], None, {}], "", ())
    if expected is None:
        assert (breaker, message["content"]) == ("", content)
        return
    actual = message["content"]
    texts = actual if isinstance(actual, str) else [part["text"] for part in actual]
    marked = [t.replace("*", breaker) for t in expected] if isinstance(given, list) else expected
    assert texts == (marked if isinstance(given, list) else expected.replace("*", breaker))


def broken_seconds(count: int, parts: int) -> float:
    """Return the least processor time of breaking up so many control tokens in so many parts."""
    seconds = []
    for _ in range(3):
        content = [{"type": "text", "text": "<s>" * (count // parts)} for _ in range(parts)]
        began = time.process_time()
        assert CONTROLS.break_up([[{"role": "user", "content": content}], None, {}], "", ())
        seconds.append(time.process_time() - began)
    return min(seconds)


@pytest.mark.parametrize("share", [1, 5_000])
def test_many_control_tokens_cost_as_many_as_they_are(share: int) -> None:
    """In one long text, and in many parts."""
    few, many = 5_000, 40_000
    ratio = broken_seconds(many, many // share) / broken_seconds(few, max(1, few // share))
    assert ratio < 3 * many / few


def test_every_letter_that_could_break_is_used() -> None:
    """Then the messages are refused; one that is left is found."""
    letters = "\x7f" + "".join(map(chr, [*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xF0400)]))
    message = {"role": "user", "content": letters[:-1] + "<s>"}
    assert CONTROLS.break_up([[message], None, {}], "", ()) == letters[-1]
    with pytest.raises(ArgumentError, match="without one of the 1057 letters"):
        CONTROLS.break_up([[{"role": "user", "content": letters + "<s>"}], None, {}], "", ())


def test_what_breaks_stands_nowhere_else() -> None:
    """Neither in a message nor in the template; in tools control tokens are broken too."""
    messages = [{"role": "user", "content": "\x7f<s>"}]
    tools = [{"function": {"description": "a <s>", "<s>": 1}}]
    breaker = CONTROLS.break_up([messages, tools, {}], "\ufdd0", ())
    assert breaker == "\ufdd1"
    assert tools == [{"function": {"description": f"a <{breaker}s>", f"<{breaker}s>": 1}}]


def test_an_assistant_s_reasoning_marks_stay() -> None:
    """Templates look for them, in an assistant's messages alone."""
    messages = [{"role": role, "content": "a</think>b<s>"} for role in ("assistant", "user")]
    breaker = CONTROLS.break_up([messages, None, {}], "", ["</think>"])
    assert messages[0]["content"] == f"a</think>b<{breaker}s>"
    assert messages[1]["content"] == f"a<{breaker}/think>b<{breaker}s>"
