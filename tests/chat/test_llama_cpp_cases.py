"""The cases of llama.cpp's tests/test-chat.cpp: what models write, and the message it means.

They are read from llama.cpp's source, so that a newer source brings its new cases. A case either
passes or stands in OTHERWISE with a reason.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llcuda.chat.formats import ChatSyntax
from llcuda.chat.parser import ChatParser
from llcuda.chat.template import ChatTemplate
from llcuda.errors import ArgumentError
from tests.conftest import VENDOR_MODELS
from tests.support.llama_cpp_chat import Case, read_cases

CASES = read_cases(VENDOR_MODELS.parent / "tests" / "test-chat.cpp")
USER = {"role": "user", "content": "Hey there!"}
Message = tuple[str, str, list[tuple[str, Any]]]  # content, reasoning, calls

# What llcuda does otherwise, by the name of the case (`case_name`), and why.
FREE = "a guide makes the answer begin with the JSON itself: a fence around it cannot be written"
SPLIT = "reasoning is split off always, not only on demand"
SPELLED = "the token ends the answer; its name written in other tokens is what the model says"
FIRST_WORDS = "reasoning begins with the words with which the prompt opens it, as in other answers"
NO_REASONING = "the template has no reasoning; <think> is then an ordinary text"
OTHERWISE: dict[str, str] = {
    "mistralai-Ministral-3-14B-Reasoning-2512-b288e95f": FREE,
    "meta-llama-Llama-3.1-8B-Instruct-08070798": FREE,
    "inclusionai-ling-3.0-flash-a6fc8559": SPLIT,
    "openai-gpt-oss-120b-c8fbfdb1": SPLIT,
    "inclusionai-ling-3.0-flash-af2677e9": SPELLED,
    "inclusionai-ling-3.0-flash-6e4d91cc": SPELLED,
    "CohereForAI-c4ai-command-r-plus-tool_use-5f9abe80": (
        "control tokens that are no delimiters never reach the parser"
    ),
    "Apriel-1.6-15b-Thinker-fixed-e2cba173": FIRST_WORDS,
    "Apriel-1.6-15b-Thinker-fixed-c8ad0f76": FIRST_WORDS,
    "moonshotai-Kimi-K2-e2cba173": NO_REASONING,
    "moonshotai-Kimi-K2-08180343": NO_REASONING,
    "mistralai-Mistral-Nemo-Instruct-2407-84d87def": (
        "the id comes behind the arguments, when the call was streamed with an id of llcuda's"
    ),
    "MiniMax-M3-58d078b0": "delimiters of a nested value are read as such, and not as a text",
}


def case_name(case: Case) -> str:
    """A name that stays when the lines of the source move."""
    options = {k: v for k, v in case.options.items() if k not in ("tools", "messages")}
    known = json.dumps([case.text, options], sort_keys=True)
    return f"{Path(case.template).stem}-{zlib.crc32(known.encode()):08x}"


@cache
def template_of(path: str) -> ChatTemplate:
    """A template beside llama.cpp's source."""
    source = (VENDOR_MODELS.parent / path).read_text()
    return ChatTemplate(source, bos="<s>", eos="</s>")


def openai_message(given: dict[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's shape."""
    names = ("role", "reasoning_content", "tool_call_id")
    message = {name: given[name] for name in names if given.get(name)}
    if given["tool_calls"]:
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments, i in given["tool_calls"]
        ]
    return {**message, "content": given["content"]}


def prompt_of(case: Case, tools: list[Any], messages: list[dict[str, Any]]) -> str:
    """The prompt of a case; without its tools where the template fails with them."""
    template = template_of(case.template)
    thinking = case.options.get("enable_thinking", True)
    for choice in (tools or None if template.takes_tools else None, None, []):
        try:
            return template.render(messages, choice, enable_thinking=thinking)
        except ArgumentError:
            continue
    raise AssertionError(f"{case.template} renders no prompt")


def prompt_and_text(case: Case, tools: list[Any]) -> tuple[str, str]:
    """The prompt and the whole answer.

    Where a case continues a message, the answer begins with what the message holds, in the model's
    notation: llcuda continues no messages.
    """
    messages = [openai_message(m) for m in case.options.get("messages", [])] or [USER]
    if not (kind := case.options.get("continue_final_message")):
        return prompt_of(case, tools, messages), case.text
    *before, last = messages
    prompt = prompt_of(case, tools, before)
    syntax = template_of(case.template).syntax
    begun = ""
    thought = last.get("reasoning_content", "") if case.expected.get("reasoning_content") else ""
    if syntax.channels is not None:
        begun = f"<|channel|>analysis<|message|>{thought}"
        end = "<|end|><|start|>assistant<|channel|>final<|message|>"
    elif thought:
        assert syntax.reasoning
        row = syntax.open_reasoning(prompt)
        begun = thought if row is not None else f"{syntax.reasoning[0].begin}{thought}"
        end = (row or syntax.reasoning[0]).end
    else:
        end = "all\n" if prompt.endswith(">>>") else ""
    return prompt, begun + (end + last["content"] if kind.endswith("CONTENT") else "") + case.text


def expected_message(case: Case, syntax: ChatSyntax) -> Message:
    """The message of a case, without the space around texts.

    llama.cpp leaves reasoning in the content by default. llcuda always splits it off.
    """
    content = case.expected.get("content", "")
    reasoning = case.expected.get("reasoning_content", "")
    if case.options.get("reasoning_format", "NONE").endswith("NONE"):
        for row in syntax.reasoning:
            if not reasoning and row.begin in content:
                before, _, rest = content.partition(row.begin)
                reasoning, _, content = rest.partition(row.end)
                content = before + content
    return message(content, reasoning, [c[:2] for c in case.expected.get("tool_calls", [])])


def message(content: str, reasoning: str, calls: list[Any]) -> Message:
    """A message that can be compared; arguments that are cut off are None."""
    named = []
    for name, arguments in calls:
        try:
            named.append((name, json.loads(arguments)))
        except ValueError:
            named.append((name, None))
    return content.strip(), reasoning.strip(), named


def tools_of(case: Case) -> list[dict[str, Any]]:
    """The tools of a case in OpenAI's shape."""
    names = ("name", "description", "parameters")
    functions = [dict(zip(names, tool, strict=True)) for tool in case.options.get("tools", [])]
    for function in functions:
        function["parameters"] = json.loads(function["parameters"] or "{}")
    return [{"type": "function", "function": function} for function in functions]


def check(case: Case) -> None:
    """Compare a case with the parser's message, which may come whole or letter by letter."""
    tools = tools_of(case)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    syntax = template_of(case.template).syntax
    prompt, text = prompt_and_text(case, tools)
    for pieces in ([text], list(text)):
        parser = ChatParser(syntax, prompt, schemas or None)
        for piece in pieces:
            parser.feed(piece)
        if not case.options.get("is_partial"):
            parser.flush()
        parsed = parser.message()
        calls = parsed.get("tool_calls", [])
        functions = [(c["function"]["name"], c["function"]["arguments"]) for c in calls]
        reasoning = parsed.get("reasoning_content", "")
        assert expected_message(case, syntax) == message(
            parsed["content"] or "", reasoning, functions
        )
        given = [identity for _, _, identity in case.expected.get("tool_calls", [])]
        assert given == [call["id"] if i else i for i, call in zip(given, calls, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_the_message_is_what_llama_cpp_expects(case: Case) -> None:
    """Content, reasoning and calls, whole and streamed."""
    if case_name(case) not in OTHERWISE:
        check(case)
        return
    with pytest.raises(AssertionError):
        check(case)


# Templates that the sandbox or their own code refuses with these messages, as in transformers.
REFUSING = {"Kimi-K2-Instruct-fd9a89da", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use-0d4ea99a"}


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.options.get("expect_reconstruction")], ids=case_name
)
def test_the_message_goes_back_into_the_prompt(case: Case) -> None:
    """The template writes the message again as the model wrote it."""
    if case_name(case) in OTHERWISE:
        return
    template, tools = template_of(case.template), tools_of(case)
    prompt, text = prompt_and_text(case, tools)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    parser = ChatParser(template.syntax, prompt, schemas or None)
    parser.feed(text)
    parser.flush()
    messages = [openai_message(m) for m in case.options.get("messages", [])] or [USER]

    def render() -> str:
        return template.render(
            [*messages, parser.message()],
            tools or None if template.takes_tools else None,
            add_generation_prompt=False,
            enable_thinking=case.options.get("enable_thinking", True),
        )

    if case_name(case) in REFUSING:
        with pytest.raises(ArgumentError):
            render()
        return
    rendered = render()
    assert prompt + text == rendered[: len(prompt + text)]


SOURCE = """
static common_chat_tool tool{ /* .name = */ "f", "says", R"({"type": "object"})" };
static void test_all(bool debug) {
    for (const auto & path : { "a.jinja", "b.jinja" }) {
        auto tst = peg_tester(path, debug);
        const std::string text = "one" " two\\n";
        if (debug) { throw std::runtime_error("never"); }
        tst.test(text + "three").tools({ tool }).expect_content("x").%s.run();  // why
    }
}
int main() { test_all(true); return 0; }
"""


def test_the_reader_leaves_no_case_out(tmp_path: Path) -> None:
    """What it does not know is an error that names the line."""
    path = tmp_path / "test-chat.cpp"
    path.write_text(SOURCE % "is_partial(true)")
    options = {"tools": [["f", "says", '{"type": "object"}']], "is_partial": True}
    expected = {"role": "assistant", "content": "x"}
    assert read_cases(path) == [
        Case(8, name, "one two\nthree", expected, options) for name in ("a.jinja", "b.jinja")
    ]
    path.write_text(SOURCE % "expect_something(new)")
    with pytest.raises(AssertionError, match=r"cannot read the cases of lines \[8\]"):
        read_cases(path)


def test_the_table_holds_cases_of_the_source() -> None:
    """No name in it is left over, and no two cases share one."""
    names = Counter(map(case_name, CASES))
    assert OTHERWISE.keys() <= names.keys()
    assert dict.fromkeys(OTHERWISE, 1) == {name: names[name] for name in OTHERWISE}
