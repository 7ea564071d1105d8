"""The delimiters with which models write reasoning and tool calls, as chat templates show them.

Data only; `ChatParser` reads text by it. A row is chosen by the text of a template and by what the
template makes of a conversation with a call.
"""
# ruff: noqa: RUF001 - DeepSeek's delimiters have a fullwidth bar

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

_CHANNEL_ENDS = ("<|end|>", "<|eom|>", "<|call|>", "<|return|>", "<|eot|>")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _python(arguments: dict[str, Any]) -> str:
    """Return keyword arguments; JSON in Python but for True, False and None."""
    known = {"true": "True", "false": "False", "null": "None"}
    texts = {key: _json(value) for key, value in arguments.items()}
    return ", ".join(f"{key}={known.get(text, text)}" for key, text in texts.items())


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """The way in which a model writes its tool calls.

    Attributes:
        notation: The text behind `begin`. "objects": JSON, one object or more, with name and
            arguments; "json": a name up to `name_end`, then the arguments as JSON; "tags": a name,
            then a pair of delimiters for each parameter; "python": a list of calls in Python;
            "gemma": a name, then arguments in Gemma's notation.
        begin: The delimiter before a call, or before a list of calls; "" when a JSON object that
            begins the text is a call.
        end: The delimiter behind it. A name may be followed by another such call.
        evidence: Texts that stand in a template of this kind, all of them.
        name_end: The text between name and arguments.
        header: A regular expression that finds `name`, and `id` if there is one, before `name_end`.
        parameter: For "tags": the delimiters before a name, before a value and behind it.
        frames: Delimiters around calls that mean nothing by themselves, in pairs before and behind
            all calls of a text; a single one stands before them.
        body: The text between `begin` and `end` as the model would write it, with %NAME% and %ARGS%
            (JSON) in their places; "" when arguments are not JSON.
        keyed: An object's only key is the name, and its value the arguments.
        padded: A value on lines of its own has one line break before and behind it that are not
            part of it.
        nested: A value that is an object or an array is written in delimiters like a parameter's.
        cdata: A value may stand in <![CDATA[ and ]]>.
        content_name: The name in a header behind which content stands, "" when there is none.
        ends_reasoning: A call may begin within the reasoning, and ends it. Other models also speak
            of calls there.
    """

    notation: Literal["objects", "json", "tags", "python", "gemma"]
    begin: str
    end: str = ""
    evidence: tuple[str, ...] = ()
    name_end: str = ""
    header: str = r"\s*(?P<name>[^\s\"'<>{}()\[\]]+)\s*"
    parameter: tuple[str, str, str] = ("", "", "")
    frames: tuple[str, ...] = ()
    body: str = ""
    keyed: bool = False
    padded: bool = False
    nested: bool = False
    cdata: bool = False
    content_name: str = ""
    ends_reasoning: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        """The delimiters with which calls may begin."""
        return tuple(filter(None, (self.begin, *self.frames[::2])))

    @property
    def behind_arguments(self) -> str:
        """The text between the arguments and `end`, without the space around it."""
        return self.body.partition("%ARGS%")[2].strip()

    def around(self, name: str) -> tuple[str, str]:
        """Return the text of an answer that is one call, before and behind its JSON arguments."""
        before, after = self.inside(name)
        first, last = self.frames if len(self.frames) == 2 else ("", "")
        return first + self.begin + before, after + last

    def write(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
        """Return calls, each a name and arguments, as the model writes them; "" if unknown."""
        if self.notation == "python":
            texts = [f"{name}({_python(arguments)})" for name, arguments in calls]
            return f"{self.begin}[{', '.join(texts)}]{self.end}"
        if not self.body:
            return ""
        bodies = [
            self.body.replace("%NAME%", name).replace("%ARGS%", _json(arguments))
            for name, arguments in calls
        ]
        if self.body.startswith("["):
            bodies = [f"[{', '.join(body[1:-1].strip() for body in bodies)}]"]
        return "".join(f"{self.begin}{body}{self.end}" for body in bodies)

    def inside(self, name: str) -> tuple[str, str]:
        """Return the text between `begin` and the arguments, and from there to `end`."""
        before, after = self.body.split("%ARGS%")
        return before.replace("%NAME%", name), after + self.end


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The delimiters before and behind reasoning.

    Attributes:
        begin: The delimiter before it.
        end: The delimiter behind it.
        spoken: `begin` is the first words of the reasoning.
        anywhere: Reasoning also begins behind content, because `begin` cannot be meant as content.
    """

    begin: str
    end: str
    spoken: bool = False
    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class ChannelFormat:
    """Messages within an answer, each with a header that says of what kind it is.

    Attributes:
        start: The delimiter before a header.
        message: The delimiter between header and text.
        ends: The delimiters behind a message.
        reasoning: A regular expression for headers of reasoning.
        recipient: A regular expression for headers of messages to a tool, with the group `name`.
        people: Recipients that are not tools.
        json_calls: A message to a tool is the arguments as JSON. Otherwise it holds calls in the
            format of `tool_calls`.
        content_header: The header of a message that is content.
    """

    start: str
    message: str
    ends: tuple[str, ...]
    reasoning: str
    recipient: str
    people: frozenset[str]
    json_calls: bool
    content_header: str

    def tool(self, header: str) -> str:
        """Return the tool to which a header addresses its message, "" when it is none."""
        match = re.search(self.recipient, header)
        return "" if match is None or match["name"] in self.people else match["name"]

    def is_content(self, header: str) -> bool:
        """Return whether the message behind a header is content."""
        return not self.tool(header) and re.search(self.reasoning, header) is None


@dataclass(frozen=True, slots=True)
class ChatSyntax:
    """The delimiters of one template's model.

    Attributes:
        reasoning: The formats of reasoning.
        tool_calls: The format of tool calls, None when the template has none that is known.
        channels: The format of messages within an answer, None for most models.
        frames: Delimiters that are left out of the text.
        content_begins: Those of `frames` behind which content begins; they end reasoning.
    """

    reasoning: tuple[ReasoningFormat, ...] = ()
    tool_calls: ToolCallFormat | None = None
    channels: ChannelFormat | None = None
    frames: tuple[str, ...] = ()
    content_begins: tuple[str, ...] = ()

    @property
    def delimiters(self) -> frozenset[str]:
        """Every delimiter; the parser has to see it even when it is a control token."""
        delimiters = {*self.frames}
        for reasoning in self.reasoning:
            delimiters |= {reasoning.begin, reasoning.end}
        if (calls := self.tool_calls) is not None:
            delimiters |= {calls.begin, calls.end, calls.name_end, *calls.parameter, *calls.frames}
        if (channels := self.channels) is not None:
            delimiters |= {channels.start, channels.message, *channels.ends}
        return frozenset(delimiters - {""})

    @property
    def has_reasoning(self) -> bool:
        """Whether answers have reasoning."""
        return bool(self.reasoning) or self.channels is not None

    def open_reasoning(self, prompt: str) -> ReasoningFormat | None:
        """Return the format of the reasoning that a prompt has opened, None when it has not."""
        text = prompt.rstrip()
        return next((row for row in self.reasoning if text.endswith(row.begin.rstrip())), None)

    def reasoning_ends(self, reasoning: ReasoningFormat) -> tuple[str, ...]:
        """Return the delimiters that end reasoning, calls aside."""
        return (reasoning.end, *self.content_begins)

    def open_reasoning_ends(self, prompt: str) -> tuple[str, ...]:
        """Return the delimiters that end the reasoning that a prompt has opened; () without one."""
        if (row := self.open_reasoning(prompt)) is not None:
            return self.reasoning_ends(row)
        channels = self.channels
        if channels is None or not prompt.endswith(channels.message):
            return ()
        header = prompt.rpartition(channels.start)[2]
        return channels.ends if re.search(channels.reasoning, header) else ()

    def opens_channel(self, prompt: str) -> bool:
        """Return whether an answer to a prompt begins with a header."""
        return self.channels is not None and prompt.rstrip().endswith(self.channels.start)


REASONING = (
    ReasoningFormat("<think>", "</think>"),
    ReasoningFormat("<think:opensource>", "</think:opensource>"),
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<mm:think>", "</mm:think>"),
    ReasoningFormat("<thinking>", "</thinking>"),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>", anywhere=True),
    ReasoningFormat("<|inner_prefix|>", "<|inner_suffix|>", anywhere=True),
    ReasoningFormat("<|channel>thought", "<channel|>", anywhere=True),
    ReasoningFormat("<|open|>think<|sep|>", "<|close|>think<|sep|>", anywhere=True),
    ReasoningFormat("<|think|>", "<|end|>", anywhere=True),
    ReasoningFormat("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]", spoken=True),
)

# The evidence of delimiters that are left out of the text, and the delimiters; behind the first one
# of a row content begins.
FRAMES = (
    ("<|START_RESPONSE|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ("<|START_TEXT|>", ("<|START_TEXT|>", "<|END_TEXT|>")),
    ("between <response></response>", ("<response>", "</response>")),
    (
        "<|open|>response<|sep|>",
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    ("<|begin|>assistant<|content|>", ("<|content|>", "<|begin|>assistant")),
    ("[BEGIN FINAL RESPONSE]", ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]")),
    ("<|channel>thought", ("<channel|>", "<|channel>")),
)

CHANNELS = (
    (
        ("<|channel|>analysis", "functions."),
        ChannelFormat(
            "<|start|>assistant",
            "<|message|>",
            _CHANNEL_ENDS,
            reasoning=r"<\|channel\|>analysis",
            recipient=r"to=(?P<name>[\w.-]+)",
            people=frozenset({"assistant", "user"}),
            json_calls=True,
            content_header="<|channel|>final",
        ),
    ),
    (
        ("<atem:", "to=self"),
        ChannelFormat(
            "<|start|>assistant",
            "<|message|>",
            _CHANNEL_ENDS,
            reasoning=r"to=self",
            recipient=r"to=(?P<name>[\w.-]+)",
            people=frozenset({"self", "user"}),
            json_calls=False,
            content_header=" to=user",
        ),
    ),
)

_OBJECT = '{"name": "%NAME%", "arguments": %ARGS%}'
_HERMES = ToolCallFormat(
    "objects",
    "<tool_call>",
    "</tool_call>",
    evidence=("<tool_call>", "</tool_call>"),
    body=f"\n{_OBJECT}\n",
)
_FUNCTION_TAGS = ToolCallFormat(
    "tags",
    "<function=",
    "</function>",
    evidence=("<function=", "<parameter="),
    name_end=">",
    parameter=("<parameter=", ">", "</parameter>"),
    frames=("<tool_call>", "</tool_call>"),
    padded=True,
    ends_reasoning=True,
)
_KEYS = ("<arg_key>", "<arg_value>", "</arg_value>")
_GLM = ToolCallFormat(
    "tags",
    "<tool_call>",
    "</tool_call>",
    evidence=("<tool_call>", "<arg_key>"),
    parameter=_KEYS,
    ends_reasoning=True,
)
_INVOKE = ToolCallFormat(
    "tags",
    '<invoke name="',
    "</invoke>",
    evidence=("<minimax:tool_call>",),
    name_end='">',
    parameter=('<parameter name="', ">", "</parameter>"),
    frames=("<minimax:tool_call>", "</minimax:tool_call>"),
    ends_reasoning=True,
)


def _prefixed(prefix: str, outer: tuple[str, ...]) -> ToolCallFormat:
    """Return the tags of `_INVOKE` with a prefix in each."""
    return replace(
        _INVOKE,
        begin=f'<{prefix}invoke name="',
        end=f"</{prefix}invoke>",
        evidence=(f"<{prefix}", "invoke"),
        parameter=(f'<{prefix}parameter name="', ">", f"</{prefix}parameter>"),
        frames=tuple(tag for name in outer for tag in (f"<{prefix}{name}>", f"</{prefix}{name}>")),
    )


_PYTHON = ToolCallFormat(
    "python", "<|tool_call_start|>", "<|tool_call_end|>", evidence=("<|tool_call_start|>",)
)
_MINIMAX = "]<]minimax[>["

# The first row whose evidence is there counts: a special case stands before the general one.
TOOL_CALLS = (
    ToolCallFormat(
        "tags",
        f'{_MINIMAX}<invoke name="',
        f"{_MINIMAX}</invoke>",
        evidence=(f"{_MINIMAX}<invoke",),
        name_end='">',
        parameter=(f"{_MINIMAX}<", ">", f"{_MINIMAX}</%KEY%>"),
        frames=(f"{_MINIMAX}<tool_call>", f"{_MINIMAX}</tool_call>"),
        nested=True,
        ends_reasoning=True,
    ),
    _prefixed("｜DSML｜", ("tool_calls", "function_calls")),
    _prefixed("atem:", ("function_calls",)),
    _INVOKE,
    ToolCallFormat(
        "tags",
        '<|open|>call tool="',
        "<|close|>call<|sep|>",
        evidence=('<|open|>call tool="',),
        name_end="<|sep|>",
        header=r"(?P<name>[^\"]+)\".*",
        parameter=('<|open|>argument key="', "<|sep|>", "<|close|>argument<|sep|>"),
        frames=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        ends_reasoning=True,
    ),
    ToolCallFormat(
        "tags",
        '<function name="',
        "</function>",
        evidence=('<function name="', '<param name="'),
        name_end='">',
        parameter=('<param name="', ">", "</param>"),
        cdata=True,
        ends_reasoning=True,
    ),
    ToolCallFormat(
        "tags",
        "<tool_call:opensource>",
        "</tool_call:opensource>",
        evidence=("<tool_call:opensource>",),
        name_end="<tool_sep:opensource>",
        parameter=("<arg_key:opensource>", "<arg_value:opensource>", "</arg_value:opensource>"),
        frames=("<tool_calls:opensource>", "</tool_calls:opensource>"),
        ends_reasoning=True,
    ),
    _GLM,
    replace(
        _FUNCTION_TAGS,
        evidence=("<seed:tool_call>",),
        frames=("<seed:tool_call>", "</seed:tool_call>"),
    ),
    _FUNCTION_TAGS,
    ToolCallFormat(
        "json",
        "<function=",
        "</function>",
        evidence=("<function=",),
        name_end=">",
        body="%NAME%>%ARGS%",
    ),
    ToolCallFormat(
        "json",
        ">>>",
        evidence=(">>>all",),
        name_end="\n",
        body="%NAME%\n%ARGS%",
        content_name="all",
    ),
    ToolCallFormat(
        "json",
        "[TOOL_CALLS]",
        evidence=("[TOOL_CALLS]", "[ARGS]"),
        name_end="[ARGS]",
        header=r"\s*(?P<name>[^\[\s]+)\s*(?:\[CALL_ID\](?P<id>.*))?",
        body="%NAME%[ARGS]%ARGS%",
    ),
    ToolCallFormat(
        "objects", "[TOOL_CALLS]", evidence=("[TOOL_CALLS]",), body=f"[{_OBJECT}]"
    ),
    ToolCallFormat(
        "json",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        evidence=("<｜tool▁call▁begin｜>", "```json"),
        name_end="\n```json\n",
        frames=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        body="%NAME%\n```json\n%ARGS%\n```",
        ends_reasoning=True,
    ),
    ToolCallFormat(
        "json",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        evidence=("<｜tool▁call▁begin｜>",),
        name_end="<｜tool▁sep｜>",
        frames=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        body="%NAME%<｜tool▁sep｜>%ARGS%",
        ends_reasoning=True,
    ),
    ToolCallFormat(
        "json",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        evidence=("<|tool_call_argument_begin|>",),
        name_end="<|tool_call_argument_begin|>",
        header=r"\s*(?P<id>(?:functions\.)?(?P<name>[^\s:]+)(?::\d+)?)\s*",
        frames=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        body="functions.%NAME%:0<|tool_call_argument_begin|>%ARGS%",
        ends_reasoning=True,
    ),
    ToolCallFormat(
        "json",
        "<|tool_call:begin|>",
        "<|tool_call:end|>",
        evidence=("<|tool_call:args|>",),
        name_end="<|tool_call:args|>",
        header=r"\s*(?P<id>.*?)\s*<\|tool_call:name\|>\s*(?P<name>\S+)\s*",
        frames=("<|tool_calls|>",),
        ends_reasoning=True,
    ),
    ToolCallFormat(
        "objects",
        "<tool_calls>",
        "</tool_calls>",
        evidence=("<tool_calls>",),
        body=f"[{_OBJECT}]",
    ),
    _HERMES,
    ToolCallFormat(
        "objects",
        "<TOOLCALL>",
        "</TOOLCALL>",
        evidence=("<TOOLCALL>",),
        body=f"[{_OBJECT}]",
    ),
    ToolCallFormat(
        "objects",
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        evidence=("<|START_ACTION|>",),
        body='[\n    {"tool_call_id": "0", "tool_name": "%NAME%", "parameters": %ARGS%}\n]',
    ),
    ToolCallFormat(
        "objects",
        "Action:",
        "```",
        evidence=("Write 'Action:' followed by a json-formatted list",),
        frames=("```json",),
    ),
    ToolCallFormat(
        "objects",
        "<|tools_prefix|>",
        "<|tools_suffix|>",
        evidence=("<|tools_prefix|>",),
        keyed=True,
        body='[{"%NAME%": %ARGS%}]',
    ),
    ToolCallFormat(
        "objects",
        "<|function_call|>",
        evidence=("<|function_call|>",),
        body=_OBJECT,
    ),
    ToolCallFormat(
        "objects",
        "<|message_sep|>\n\nfunction call<|role_sep|>\n",
        evidence=("function call<|role_sep|>",),
        body=_OBJECT,
    ),
    ToolCallFormat("objects", "functools", evidence=("functools[",), body=f"[{_OBJECT}]"),
    _PYTHON,
    replace(_PYTHON, evidence=("<|tool_list_start|>",)),
    replace(_PYTHON, evidence=("List of tools: [", "<|im_start|>")),
    ToolCallFormat("gemma", "<|tool_call>call:", "<tool_call|>", evidence=("<|tool_call>call:",),
          name_end="{"),
    ToolCallFormat(
        "objects",
        "<|tool_call|>",
        evidence=("<|tool_call|>",),
        body=f"[{_OBJECT}]",
    ),
    ToolCallFormat(
        "objects",
        "",
        evidence=('{"name": function name, "parameters":',),
        frames=("<|python_tag|>",),
        body='{"name": "%NAME%", "parameters": %ARGS%}',
    ),
)  # fmt: skip


def detect(template: str) -> ChatSyntax:
    """Return the syntax of a template's model.

    Args:
        template: The text of the template, with the texts that it renders.
    """
    channels = next(
        (row for evidence, row in CHANNELS if all(e in template for e in evidence)), None
    )
    frames = [row for evidence, row in FRAMES if evidence in template]
    return ChatSyntax(
        reasoning=tuple(
            row
            for row in REASONING
            if channels is None and row.begin.rstrip() in template and row.end in template
        ),
        tool_calls=next(
            (row for row in TOOL_CALLS if all(e in template for e in row.evidence)), None
        ),
        channels=channels,
        frames=tuple(text for row in frames for text in row),
        content_begins=tuple(row[0] for row in frames),
    )
