"""What a template writes of a call is read as that call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llcuda.chat.parser import ChatParser
from llcuda.chat.template import ChatTemplate
from llcuda.errors import ArgumentError
from tests.conftest import VENDOR_MODELS

PARAMETERS = {
    "type": "object",
    "properties": {
        "s": {"type": "string", "description": "A text."},
        "i": {"type": "integer", "description": "A count."},
        "n": {"type": "number", "description": "A number."},
        "b": {"type": "boolean", "description": "A flag."},
        "l": {"type": "array", "items": {"type": "string"}, "description": "Texts."},
        "o": {"type": "object", "additionalProperties": True, "description": "Pairs."},
    },
}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "A tool.", "parameters": PARAMETERS},
}
TEXTS = [
    "x", "", " a ", "a\nb", "a\n", "12", "true", "null", "[1]", "{", "}", "a: b, c", "é\U0001f98a",
    "http://x/y?z=1", "```", "<b>&amp;</b>", "it's", 'a "b"', "</param",
]  # fmt: skip
ARGUMENTS: list[dict[str, Any]] = [
    {},
    *({"s": text} for text in TEXTS),
    *({"i": number} for number in (0, -3, 10**15)),
    *({"n": number} for number in (1.5, -2, 1e20)),
    {"b": True},
    {"b": False},
    *({"l": texts} for texts in ([], ["a", "b"], ['x"y', "1", "", "a\nb"])),
    *({"o": value} for value in ({}, {"k": "v", "d": {"e": [1, True]}}, {"k": "it's"})),
    {"s": "x", "i": 1, "b": True, "l": ["1"]},
]
# Templates that refuse this conversation, as in transformers.
REFUSING = {"Kimi-K2-Instruct", "Kimi-K2-Thinking", "llama-cpp-deepseek-r1"}
# Templates that write some arguments so that nobody can read them back.
AMBIGUOUS: dict[str, list[dict[str, Any]]] = {
    "LFM2.5-8B-A1B": [{"s": "it's"}],  # 'it's'
}


# Templates that write the first of several calls only, or refuse them.
SINGLE = ("GigaChat3", "openai-gpt-oss", "meta-llama")


def written(template: ChatTemplate, *arguments: Any) -> tuple[str, str]:
    """The prompt, and what the template writes behind it of calls."""
    user = {"role": "user", "content": "Hey"}
    functions = [{"name": "f", "arguments": json.dumps(given)} for given in arguments]
    calls = [
        {"id": f"abcdefgh{i}", "type": "function", "function": function}
        for i, function in enumerate(functions)
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    whole = template.render([user, answer], [TOOL], add_generation_prompt=False)
    prompt = template.render([user], [TOOL])
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    # The prompt opens the reasoning, which this answer does not have.
    before = template.render([user], [TOOL], add_generation_prompt=False)
    pairs = enumerate(zip(before, whole, strict=False))
    return "", whole[next((i for i, (a, b) in pairs if a != b), len(before)) :]


@pytest.mark.parametrize(
    "path", sorted((VENDOR_MODELS / "templates").glob("*.jinja")), ids=lambda path: path.stem
)
def test_a_call_comes_back(path: Path) -> None:
    """With texts that look like other types, line breaks, quotes, delimiters, nested values."""
    template = ChatTemplate(path.read_text(), bos="<s>", eos="</s>")
    if not template.takes_tools or path.stem in REFUSING:
        return
    wrong = [given for given in ARGUMENTS if [given] != read(template, given)]
    assert AMBIGUOUS.get(path.stem, []) == wrong
    if not path.stem.startswith(SINGLE):
        three = [{"l": ["x"]}, {}, {"b": True}]
        assert three == read(template, *three)


def read(template: ChatTemplate, *arguments: Any) -> list[Any]:
    """The arguments of the calls that a parser finds in what a template writes."""
    prompt, text = written(template, *arguments)
    parser = ChatParser(template.syntax, prompt, {"f": PARAMETERS})
    parser.feed(text)
    parser.flush()
    calls = [call["function"] for call in parser.message().get("tool_calls", [])]
    assert {"f"} >= {call["name"] for call in calls}
    return [loads(call["arguments"]) for call in calls]


def loads(text: str) -> Any:
    """The value of JSON, None for other text."""
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_templates_that_refuse(name: str) -> None:
    """They still do."""
    path = VENDOR_MODELS / "templates" / f"{name}.jinja"
    with pytest.raises(ArgumentError):
        written(ChatTemplate(path.read_text()), {})
