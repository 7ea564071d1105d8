"""Every chat template beside llama.cpp's source, against transformers' rendering of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import pytest

from llcuda.chat.template import ChatTemplate
from llcuda.chat.tool_schema import function_schema
from llcuda.errors import ArgumentError
from tests.conftest import VENDOR_MODELS

pytest.importorskip("transformers")
from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = sorted((VENDOR_MODELS / "templates").glob("*.jinja"))
TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Say how the weather <is>.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city"],
        },
    },
}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " What is <b>é</b>? "}
ANSWER = {"role": "assistant", "content": "A letter.\n"}
THOUGHT = {"role": "assistant", "content": "A letter.", "reasoning_content": "Let me see."}
MORE = {"role": "user", "content": "And then?"}
RESULT = {
    "role": "tool",
    "tool_call_id": "abcdefgh0",
    "name": "get_weather",
    "content": '{"sun": "é"}',
}


def calling(content: str | None, arguments: Any, count: int = 1, **more: Any) -> dict[str, Any]:
    """An assistant's message with calls."""
    calls = [
        {"id": f"abcdefgh{i}", "type": "function",
         "function": {"name": "get_weather", "arguments": arguments}}
        for i in range(count)
    ]  # fmt: skip
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "one turn": ([USER], False),
    "system": ([SYSTEM, USER], False),
    "turns": ([SYSTEM, USER, ANSWER, MORE, ANSWER, MORE], False),
    "reasoning": ([USER, THOUGHT, MORE], False),
    "reasoning last": ([USER, THOUGHT], False),
    "tools": ([SYSTEM, USER], True),
    "call": ([USER, calling("", {"city": "Köln", "days": 2})], True),
    "result": ([USER, calling("", {"city": 'a"b'}), RESULT], True),
    "answer": ([SYSTEM, USER, calling("", {"city": "x"}), RESULT, ANSWER, MORE], True),
    "two calls": ([USER, calling("", {"city": "x"}, 2), RESULT], True),
    "content and call": ([USER, calling("I look.", {"city": "x"}), RESULT], True),
    "reasoning and call": (
        [USER, calling("", {"city": "x"}, reasoning_content="Hm."), RESULT],
        True,
    ),
    "no arguments": ([USER, calling("", {}), RESULT], True),
    "two users": ([USER, MORE], False),
    "assistant first": ([ANSWER, MORE], False),
}


def rendered(render: Callable[[], str]) -> tuple[str, str]:
    """What comes of it: a text, or an error's last words."""
    try:
        return "text", render()
    except Exception as error:
        return "error", str(error)


def adapted(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages in the shape that a template reads, which transformers leaves to its users."""
    copies = deepcopy(messages)
    for message in copies:
        if "block['thinking']" in template.source and (why := message.get("reasoning_content")):
            text = [{"type": "text", "text": message["content"]}] if message["content"] else []
            message["content"] = [{"type": "thinking", "thinking": why}, *text]
        if "tool_calls" not in message:
            continue
        shape, as_text = template._call_shapes.get("", ("", False))
        message["content"] = message["content"] or shape
        form = template.syntax.tool_calls
        if not template._call_shapes and form is not None:  # the template writes no calls
            calls = [call["function"] for call in message["tool_calls"]]
            message["content"] += form.write([(call["name"], call["arguments"]) for call in calls])
        for call in message["tool_calls"] if as_text else []:
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return copies


@pytest.mark.parametrize("generate", [True, False], ids=["prompt", "whole"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_render_alike(path: Any, name: str, generate: bool) -> None:
    """The same text, or the same refusal."""
    source = path.read_text()
    template = ChatTemplate(source, bos="<BOS>", eos="<EOS>")
    messages, with_tools = CONVERSATIONS[name]
    tools = [TOOL] if with_tools and template.takes_tools else None
    more = template.legacy_variables(tools)

    def oracle() -> str:
        [[text], _] = render_jinja_template(
            [adapted(template, messages)],
            tools=tools,
            chat_template=source,
            add_generation_prompt=generate,
            **TOKENS,
            **more,
        )
        return str(text)

    kind, expected = rendered(oracle)
    outcome, actual = rendered(lambda: template.render(messages, tools, generate, **more))
    assert (kind, True) == (outcome, actual == expected if kind == "text" else expected in actual)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_parts_render_as_one_text(path: Any) -> None:
    """A list of parts is what transformers makes of it, or of its text where it knows no parts."""
    source = path.read_text()
    template = ChatTemplate(source, bos="<BOS>", eos="<EOS>")
    tools = [TOOL] if "_use" in path.stem else None  # which these templates need
    more = template.legacy_variables(tools)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    texts = []
    for content in (parts, "one\ntwo"):
        kind, text = rendered(
            lambda content=content: render_jinja_template(  # type: ignore[misc]
                [[{"role": "user", "content": content}]],
                tools=tools,
                chat_template=source,
                add_generation_prompt=True,
                **TOKENS,
                **more,
            )[0][0]
        )
        texts.append(text if kind == "text" else None)
    rendering = template.render([{"role": "user", "content": parts}], tools, **more)
    assert "one" in rendering
    assert rendering in texts


def test_every_template_is_compiled() -> None:
    """There are as many as there were when this was written, at least."""
    assert len(TEMPLATES) >= 70


def spoken(
    city: str,
    days: int,
    share: float,
    sure: bool,
    names: list[str],
    table: dict[str, int],
    kind: Literal["a", "b"],
    either: int | str = 1,
    maybe: str | None = None,
):  # type: ignore[no-untyped-def]
    """Say something.

    In two paragraphs.

    Args:
        city: Its name,
            on two lines.
        days: How many.
        share: Of it: a part.
        sure: Whether.
        names: Some.
        table: Of numbers.
        kind: Which.
        either: One of them.
        maybe: Or not.

    """


def test_functions_are_described_alike() -> None:
    """A function with hints and a docstring in Google's style."""
    assert get_json_schema(spoken) == function_schema(spoken)


def test_a_refusal_keeps_its_message() -> None:
    """What raise_exception said is in both errors."""
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ArgumentError, match="roles must alternate"):
        ChatTemplate(source).render([USER])
    with pytest.raises(Exception, match="roles must alternate"):
        render_jinja_template([[USER]], chat_template=source)
