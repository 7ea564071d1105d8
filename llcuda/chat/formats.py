"""How models mark their reasoning and their tool calls, as chat templates show it.

Data only; `chat_split` reads text by it. A row is chosen by what stands in a template and in what
it makes of a conversation with a call in it.
"""
# ruff: noqa: RUF001 - DeepSeek writes its marks with a fullwidth bar

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

FOR_THE_READER = "all"  # functionary's name for what is no call
_CHANNEL_ENDS = ("<|end|>", "<|eom|>", "<|call|>", "<|return|>", "<|eot|>")


@dataclass(frozen=True, slots=True)
class Calls:
    """How tool calls are written.

    form: what follows `begin`. "objects": JSON, one object or more, with name and arguments in it;
        "json": a name up to `name_end`, then the arguments as JSON; "tags": a name, then a pair of
        marks for each parameter; "python": a list of calls in Python; "gemma": a name and
        arguments in Gemma's own notation.
    begin: the mark before a call, or before a list of them; "" where a JSON object that begins the
        text is the mark. end: the mark behind it. A name may be followed by another such call.
    header: a regular expression that finds `name`, and `id` where there is one, before name_end.
    parameter: for "tags": the marks before a name, before a value and behind it.
    evidence: what stands in a template of this kind, all of it.
    frames: marks around calls that mean nothing by themselves.
    pattern: a call as the model would write it, with %NAME% and %ARGS% (JSON) in their places; ""
        where arguments are not JSON.
    keyed: an object's only key is the name, its value the arguments.
    """

    form: str
    begin: str
    end: str = ""
    evidence: tuple[str, ...] = ()
    name_end: str = ""
    header: str = r"\s*(?P<name>[^\s\"'<>{}()\[\]]+)\s*"
    parameter: tuple[str, str, str] = ("", "", "")
    frames: tuple[str, ...] = ()
    pattern: str = ""
    keyed: bool = False

    @property
    def marks(self) -> Iterator[str]:
        """Every mark that a call may have in it."""
        yield from (self.begin, self.end, self.name_end, *self.parameter, *self.frames)

    def around(self, name: str) -> tuple[str, str]:
        """Return the text before and after the JSON arguments of one call, where it has a pattern.

        With the frames, as it begins and ends an answer.
        """
        before, after = self.pattern.split("%ARGS%")
        return before.replace("%NAME%", name), after

    def inside(self, name: str) -> tuple[str, str]:
        """Return what `around` does, but for all up to `begin`, and for the frames behind."""
        before, after = self.around(name)
        for frame in reversed(self.frames):
            after = after.removesuffix(frame)
        return before.partition(self.begin)[2], after


@dataclass(frozen=True, slots=True)
class Channels:
    """Messages in a message: each has a header that says what it is, up to `message`.

    final: what stands before content, header included.
    """

    start: str
    message: str
    final: str
    ends: tuple[str, ...]
    reasoning: str  # a regular expression for headers of reasoning
    call: str  # and of calls with JSON arguments, with the group `name`; "" where there are none


@dataclass(frozen=True, slots=True)
class Syntax:
    """What a template's model marks. reasoning: pairs of marks, the one before and the one behind.

    frames: marks that are left out of the text.
    """

    reasoning: tuple[tuple[str, str], ...] = ()
    calls: Calls | None = None
    channels: Channels | None = None
    frames: tuple[str, ...] = field(default=())

    @property
    def marks(self) -> frozenset[str]:
        """Every mark, which must reach the parser although it may be a control token."""
        found = {mark for pair in self.reasoning for mark in pair} | set(self.frames)
        if self.calls is not None:
            found |= set(self.calls.marks)
        if self.channels is not None:
            found |= {self.channels.start, self.channels.message, *self.channels.ends}
        return frozenset(found - {""})


REASONING = (
    ("<think>", "</think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|think|>", "<|end|>"),
    ("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
)

# What shows that marks are there to be left out of the text, and the marks.
FRAMES = (
    ("<|START_RESPONSE|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ("<|START_TEXT|>", ("<|START_TEXT|>", "<|END_TEXT|>")),
    ("between <response></response>", ("<response>", "</response>")),
    ("<|open|>response<|sep|>", ("<|open|>response<|sep|>", "<|close|>response<|sep|>")),
    ("<|close|>message<|sep|>", ("<|close|>message<|sep|>",)),
    ("<|begin|>assistant<|content|>", ("<|content|>", "<|begin|>assistant")),
    ("[BEGIN FINAL RESPONSE]", ("[END FINAL RESPONSE]",)),
)

CHANNELS = (
    (
        ("<|channel|>analysis", "functions."),
        Channels(
            "<|start|>assistant",
            "<|message|>",
            "<|channel|>final<|message|>",
            _CHANNEL_ENDS,
            reasoning=r"<\|channel\|>analysis",
            call=r"to=(?:functions\.)?(?P<name>[\w.-]+)",
        ),
    ),
    (
        ("<atem:", "to=self"),
        Channels(
            "<|start|>assistant",
            "<|message|>",
            "<|start|>assistant<|message|>",
            _CHANNEL_ENDS,
            reasoning=r"to=self",
            call="",
        ),
    ),
)

_HERMES = Calls(
    "objects",
    "<tool_call>",
    "</tool_call>",
    evidence=("<tool_call>", "</tool_call>"),
    pattern='<tool_call>\n{"name": "%NAME%", "arguments": %ARGS%}\n</tool_call>',
)
_ARGUMENTS = '{"name": "%NAME%", "arguments": %ARGS%}'
_FUNCTION_TAGS = Calls(
    "tags",
    "<function=",
    "</function>",
    evidence=("<function=", "<parameter="),
    name_end=">",
    parameter=("<parameter=", ">", "</parameter>"),
    frames=("<tool_call>", "</tool_call>"),
)
_KEYS = ("<arg_key>", "<arg_value>", "</arg_value>")
_GLM = Calls("tags", "<tool_call>", "</tool_call>", ("<tool_call>", "<arg_key>"), parameter=_KEYS)
_INVOKE = Calls(
    "tags",
    '<invoke name="',
    "</invoke>",
    evidence=("<minimax:tool_call>",),
    name_end='">',
    parameter=('<parameter name="', ">", "</parameter>"),
    frames=("<minimax:tool_call>", "</minimax:tool_call>"),
)


def _prefixed(prefix: str, outer: tuple[str, ...]) -> Calls:
    """Return the tags of `_INVOKE` with a prefix in each."""
    return replace(
        _INVOKE,
        begin=f'<{prefix}invoke name="',
        end=f"</{prefix}invoke>",
        evidence=(f"<{prefix}", "invoke"),
        parameter=(f'<{prefix}parameter name="', ">", f"</{prefix}parameter>"),
        frames=tuple(
            mark for name in outer for mark in (f"<{prefix}{name}>", f"</{prefix}{name}>")
        ),
    )


_PYTHON = Calls(
    "python", "<|tool_call_start|>", "<|tool_call_end|>", evidence=("<|tool_call_start|>",)
)
_MINIMAX = "]<]minimax[>["

# The first whose evidence is there; what another row is a part of comes first.
CALLS = (
    Calls(
        "tags",
        f'{_MINIMAX}<invoke name="',
        f"{_MINIMAX}</invoke>",
        evidence=(f"{_MINIMAX}<invoke",),
        name_end='">',
        parameter=(f"{_MINIMAX}<", ">", f"{_MINIMAX}</%KEY%>"),
        frames=(f"{_MINIMAX}<tool_call>", f"{_MINIMAX}</tool_call>"),
    ),
    _prefixed("｜DSML｜", ("tool_calls", "function_calls")),
    _prefixed("atem:", ("function_calls",)),
    _INVOKE,
    Calls(
        "tags",
        '<|open|>call tool="',
        "<|close|>call<|sep|>",
        evidence=('<|open|>call tool="',),
        name_end="<|sep|>",
        header=r"(?P<name>[^\"]+)\".*",
        parameter=('<|open|>argument key="', "<|sep|>", "<|close|>argument<|sep|>"),
        frames=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
    ),
    Calls(
        "tags",
        '<function name="',
        "</function>",
        evidence=('<function name="', '<param name="'),
        name_end='">',
        parameter=('<param name="', ">", "</param>"),
    ),
    Calls(
        "tags",
        "<tool_call:opensource>",
        "</tool_call:opensource>",
        evidence=("<tool_call:opensource>",),
        name_end="<tool_sep:opensource>",
        parameter=("<arg_key:opensource>", "<arg_value:opensource>", "</arg_value:opensource>"),
        frames=("<tool_calls:opensource>", "</tool_calls:opensource>"),
    ),
    _GLM,
    replace(
        _FUNCTION_TAGS,
        evidence=("<seed:tool_call>",),
        frames=("<seed:tool_call>", "</seed:tool_call>"),
    ),
    _FUNCTION_TAGS,
    Calls(
        "json",
        "<function=",
        "</function>",
        evidence=("<function=",),
        name_end=">",
        pattern="<function=%NAME%>%ARGS%</function>",
    ),
    Calls("json", ">>>", evidence=(">>>all",), name_end="\n", pattern=">>>%NAME%\n%ARGS%"),
    Calls(
        "json",
        "[TOOL_CALLS]",
        evidence=("[TOOL_CALLS]", "[ARGS]"),
        name_end="[ARGS]",
        header=r"\s*(?P<name>[^\[\s]+)\s*(?:\[CALL_ID\](?P<id>.*))?",
        pattern="[TOOL_CALLS]%NAME%[ARGS]%ARGS%",
    ),
    Calls("objects", "[TOOL_CALLS]", evidence=("[TOOL_CALLS]",),
          pattern=f"[TOOL_CALLS][{_ARGUMENTS}]"),
    Calls(
        "json",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```<｜tool▁call▁end｜>",
        evidence=("<｜tool▁call▁begin｜>", "```json"),
        name_end="\n```json\n",
        frames=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        pattern="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>%NAME%\n```json\n%ARGS%"
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Calls(
        "json",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        evidence=("<｜tool▁call▁begin｜>",),
        name_end="<｜tool▁sep｜>",
        frames=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        pattern="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>%NAME%<｜tool▁sep｜>%ARGS%<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    Calls(
        "json",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        evidence=("<|tool_call_argument_begin|>",),
        name_end="<|tool_call_argument_begin|>",
        header=r"\s*(?P<id>(?:functions\.)?(?P<name>[^\s:]+)(?::\d+)?)\s*",
        frames=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        pattern="<|tool_calls_section_begin|><|tool_call_begin|>functions.%NAME%:0"
        "<|tool_call_argument_begin|>%ARGS%<|tool_call_end|><|tool_calls_section_end|>",
    ),
    Calls(
        "json",
        "<|tool_call:begin|>",
        "<|tool_call:end|>",
        evidence=("<|tool_call:args|>",),
        name_end="<|tool_call:args|>",
        header=r"\s*(?P<id>.*?)\s*<\|tool_call:name\|>\s*(?P<name>\S+)\s*",
        frames=("<|tool_calls|>",),
    ),
    Calls(
        "objects",
        "<tool_calls>",
        "</tool_calls>",
        evidence=("<tool_calls>",),
        pattern=f"<tool_calls>[{_ARGUMENTS}]</tool_calls>",
    ),
    _HERMES,
    Calls(
        "objects",
        "<TOOLCALL>",
        "</TOOLCALL>",
        evidence=("<TOOLCALL>",),
        pattern=f"<TOOLCALL>[{_ARGUMENTS}]</TOOLCALL>",
    ),
    Calls(
        "objects",
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        evidence=("<|START_ACTION|>",),
        pattern='<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "%NAME%", "parameters": '
        "%ARGS%}\n]<|END_ACTION|>",
    ),
    Calls(
        "objects",
        "Action:",
        "```",
        evidence=("Write 'Action:' followed by a json-formatted list",),
        frames=("```json",),
    ),
    Calls(
        "objects",
        "<|tools_prefix|>",
        "<|tools_suffix|>",
        evidence=("<|tools_prefix|>",),
        keyed=True,
        pattern='<|tools_prefix|>[{"%NAME%": %ARGS%}]<|tools_suffix|>',
    ),
    Calls(
        "objects",
        "<|function_call|>",
        evidence=("<|function_call|>",),
        pattern=f"<|function_call|>{_ARGUMENTS}",
    ),
    Calls(
        "objects",
        "<|message_sep|>\n\nfunction call<|role_sep|>\n",
        evidence=("function call<|role_sep|>",),
        pattern=f"<|message_sep|>\n\nfunction call<|role_sep|>\n{_ARGUMENTS}",
    ),
    Calls("objects", "functools", evidence=("functools[",), pattern=f"functools[{_ARGUMENTS}]"),
    _PYTHON,
    replace(_PYTHON, evidence=("<|tool_list_start|>",)),
    replace(_PYTHON, evidence=("List of tools: [", "<|im_start|>")),
    Calls("gemma", "<|tool_call>call:", "<tool_call|>", evidence=("<|tool_call>call:",),
          name_end="{"),
    Calls(
        "objects",
        "<|tool_call|>",
        evidence=("<|tool_call|>",),
        pattern=f"<|tool_call|>[{_ARGUMENTS}]",
    ),
    Calls(
        "objects",
        "",
        evidence=('{"name": function name, "parameters":',),
        frames=("<|python_tag|>",),
        pattern='{"name": "%NAME%", "parameters": %ARGS%}',
    ),
)  # fmt: skip


def detect(template: str) -> Syntax:
    """Return what the model of a template marks, by the template's text and what it renders."""
    channels = next((c for evidence, c in CHANNELS if all(e in template for e in evidence)), None)
    return Syntax(
        reasoning=tuple(
            pair
            for pair in REASONING
            if channels is None and pair[0].rstrip() in template and pair[1] in template
        ),
        calls=next((row for row in CALLS if all(e in template for e in row.evidence)), None),
        channels=channels,
        frames=tuple(mark for shown, marks in FRAMES if shown in template for mark in marks),
    )
