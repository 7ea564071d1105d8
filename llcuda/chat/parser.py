"""Split a model's text into content, reasoning and tool calls while it flows.

Half a mark is never shown, and where the text is cut into pieces makes no difference. What looks
like a call and is none stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llcuda.chat.formats import FOR_THE_READER, Calls, Syntax
from llcuda.chat.stream_reader import Reader, Steps, nothing
from llcuda.chat.tool_arguments import dump, from_gemma, from_python, typed

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
_IDS = ("id", "tool_call_id")


@dataclass(slots=True)
class ChatDelta:
    """What a piece of text added.

    It is false when nothing of it is shown. Deltas can be added.

    Attributes:
        content: Further content.
        reasoning: Further reasoning.
        tool_calls: Further calls as OpenAI's chunks have them: {"index", "id", "type", "function":
            {"name", "arguments"}} begins a call, {"index", "function": {"arguments"}} adds to its
            JSON.
        text: The text as the model wrote it, delimiters included.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)

    def __add__(self, later: ChatDelta) -> ChatDelta:
        calls = list(self.tool_calls)
        for call in later.tool_calls:
            if calls and "id" not in call and calls[-1]["index"] == call["index"]:
                function = calls[-1]["function"]
                arguments = function["arguments"] + call["function"]["arguments"]
                calls[-1] = {**calls[-1], "function": {**function, "arguments": arguments}}
            else:
                calls.append(call)
        return ChatDelta(
            self.content + later.content,
            self.reasoning + later.reasoning,
            calls,
            self.text + later.text,
        )


@dataclass(slots=True)
class _Draft:
    """What is known of a call that is written as a JSON object."""

    name: str = ""
    id: str | None = None
    arguments: str = ""
    begun: bool = False


class ChatParser:
    """Parses one answer, and keeps its message.

    Attributes:
        reasoning_spans: Begin and end of each reasoning in the text, in characters.
    """

    def __init__(
        self,
        syntax: Syntax,
        prompt: str = "",
        tools: Mapping[str, Any] | None = None,
        new_id: Callable[[int], str] = "call_{}".format,
    ) -> None:
        self._calls = calls = syntax.calls if tools is not None else None
        self._channels = syntax.channels
        self._tools = tools or {}
        self._new_id = new_id
        self._reader = Reader()
        self._delta = ChatDelta()
        self._content_parts: list[str] = []  # of the message, so that each delta costs the same
        self._reasoning_parts: list[str] = []
        self._tool_calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []  # the parts of each call's JSON
        self.reasoning_spans: list[tuple[int, int]] = []
        self._space = ""  # white space that is shown when something follows
        self._begun = False  # whether content was shown
        self._strip = False  # what follows reasoning or a call has no space before it
        self._ends = dict(syntax.reasoning)  # of reasoning, by what begins it
        self._frames = syntax.frames
        marks = [*self._ends, *syntax.frames]
        if calls is not None:
            marks += [calls.begin, calls.end, *calls.frames]
        if self._channels is not None:
            marks += [self._channels.start, *self._channels.ends]
        self._marks = tuple(dict.fromkeys(mark for mark in marks if mark))
        self._steps = self._run(prompt.rstrip())

    def feed(self, text: str) -> ChatDelta:
        """Return what further `text` adds."""
        self._reader.put(text)
        return self._go(text)

    def flush(self) -> ChatDelta:
        """Return what was held back: the text has ended."""
        self._reader.end()
        return self._go()

    def message(self) -> dict[str, Any]:
        """Return OpenAI's message of what was parsed so far."""
        content, reasoning = "".join(self._content_parts), "".join(self._reasoning_parts)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._tool_calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": "".join(arguments)}}
                for call, arguments in zip(self._tool_calls, self._arguments, strict=True)
            ]
        return message

    def _go(self, text: str = "") -> ChatDelta:
        self._delta = delta = ChatDelta(text=text)
        next(self._steps, None)
        if delta.content:
            self._content_parts.append(delta.content)
        if delta.reasoning:
            self._reasoning_parts.append(delta.reasoning)
        return delta

    def _run(self, prompt: str) -> Steps:
        calls, channels = self._calls, self._channels
        opened = [end for begin, end in self._ends.items() if prompt.endswith(begin.rstrip())]
        if opened:
            yield from self._reasoning((opened[0],))
        elif channels is not None and prompt.endswith(channels.start):
            yield from self._header()
        elif calls is not None and calls.begin and prompt.endswith(calls.begin):
            yield from self._call(calls, "")
        while True:
            if calls is not None and not calls.begin and not self._begun:
                yield from self._objects(calls, "")
            mark = yield from self._reader.until(self._marks, self._content)
            if not mark:
                break
            if mark in self._ends and self._begun:
                self._content(mark)
            elif mark in self._ends:
                yield from self._reasoning((self._ends[mark],))
            elif channels is not None and mark == channels.start:
                yield from self._header()
            elif calls is not None and mark == calls.begin:
                yield from self._call(calls, mark)
            elif mark in self._frames:
                self._interrupt()
        if not self._strip:
            self._delta.content += self._space

    # --- text ---

    def _content(self, text: str) -> None:
        """Show text; white space at its end only once more follows."""
        if self._strip:
            text = text.lstrip()
        shown = text.rstrip()
        if shown:
            self._delta.content += self._space + shown
            self._begun, self._space, self._strip = True, "", False
        self._space += text[len(shown) :]

    def _interrupt(self) -> None:
        """Note that something else than content came: no white space belongs behind it."""
        self._space, self._strip = self._space if self._begun else "", True

    def _reasoning(self, ends: tuple[str, ...]) -> Steps:
        """Show reasoning up to one of its ends, without the space around it."""
        space, begun = "", False

        def show(text: str) -> None:
            nonlocal space, begun
            text = text if begun else text.lstrip()
            shown = text.rstrip()
            if shown:
                self._delta.reasoning += space + shown
                space, begun = "", True
            space += text[len(shown) :]

        start = self._reader.position
        end = yield from self._reader.until(ends, show)
        self.reasoning_spans.append((start, self._reader.position - len(end)))
        self._interrupt()

    def _header(self) -> Steps:
        """Read what kind of message begins, and what it holds if that is not content."""
        channels = self._channels
        assert channels is not None
        header: list[str] = []
        found = yield from self._reader.until((channels.message,), header.append)
        text = "".join(header)
        call = re.search(channels.call, text) if channels.call and self._tools else None
        if not found:
            self._content(text)
        elif call is not None:
            self._begin_call(call["name"])
            yield from self._reader.value(self._argue)
            yield from self._reader.until(channels.ends, nothing)
        elif re.search(channels.reasoning, text):
            yield from self._reasoning(channels.ends)

    # --- calls ---

    def _begin_call(self, name: str, identity: str | None = None) -> None:
        self._interrupt()
        index = len(self._tool_calls)
        identity = identity or self._new_id(index)
        call = {"id": identity, "type": "function", "function": {"name": name}}
        self._tool_calls.append(call)
        self._arguments.append([])
        function = {"name": name, "arguments": ""}
        self._delta.tool_calls.append({"index": index, **call, "function": function})

    def _argue(self, text: str) -> None:
        """Add to the arguments of the last call."""
        index, calls = len(self._tool_calls) - 1, self._delta.tool_calls
        if not calls or calls[-1]["index"] != index:
            calls.append({"index": index, "function": {"arguments": ""}})
        calls[-1]["function"]["arguments"] += text
        self._arguments[-1].append(text)

    def _call(self, calls: Calls, mark: str) -> Steps:
        """Read what follows the mark of a call; what is none is content, with its mark."""
        if calls.form == "objects":
            yield from self._objects(calls, mark)
        elif calls.form == "python":
            yield from self._python(calls, mark)
        else:
            yield from self._named(calls, mark)

    def _named(self, calls: Calls, mark: str) -> Steps:
        header: list[str] = []
        last = (calls.end,) if calls.form == "tags" else ()
        stops = (calls.name_end or calls.parameter[0], *last)
        found = yield from self._reader.until(stops, header.append, take=False)
        match = re.fullmatch(calls.header, "".join(header), re.S) if found else None
        if match is None:
            self._content(mark + "".join(header))
            return
        if found == calls.name_end and calls.form != "gemma":
            yield from self._reader.over(found)
        if match["name"] == FOR_THE_READER and calls.begin == ">>>":
            return
        self._begin_call(match["name"], match.groupdict().get("id"))
        if calls.form == "tags":
            yield from self._tags(calls, match["name"])
        elif calls.form == "gemma":
            body: list[str] = []
            yield from self._reader.until((calls.end,), body.append)
            self._argue(from_gemma("".join(body)))
        else:
            yield from self._reader.blank()
            yield from self._reader.value(self._argue)
            yield from self._reader.over(calls.end)

    def _tags(self, calls: Calls, name: str) -> Steps:
        """Read parameters that have marks of their own, each as soon as it is whole."""
        schema = self._tools.get(name)
        schemas = schema.get("properties") if isinstance(schema, dict) else None
        schemas = schemas if isinstance(schemas, dict) else {}
        begin, key_end, value_end = calls.parameter
        before = "{"
        while (mark := (yield from self._reader.until((begin, calls.end), nothing))) == begin:
            header: list[str] = []
            value: list[str] = []
            yield from self._reader.until((key_end,), header.append)
            key = re.split(r'["<]', "".join(header))[0].strip()
            end = value_end.replace("%KEY%", key)
            if not (yield from self._reader.until((end,), value.append)):
                return
            self._argue(before + f"{dump(key)}: ")
            self._argue(typed("".join(value), schemas.get(key), "".join(header)))
            before = ", "
        if mark:
            self._argue("{}" if before == "{" else "}")

    def _python(self, calls: Calls, mark: str) -> Steps:
        body: list[str] = []
        end = yield from self._reader.until((calls.end,), body.append)
        found = from_python("".join(body))
        for name, arguments in found:
            self._begin_call(name)
            self._argue(arguments)
        if not found:
            self._content(mark + "".join(body) + end)

    def _objects(self, calls: Calls, mark: str) -> Steps:
        """Read JSON objects, in a list or one after the other."""
        reader, before = self._reader, len(self._tool_calls)
        reader.record()
        yield from reader.blank()
        for frame in calls.frames:
            yield from reader.over(frame)
            yield from reader.blank()
        listed = bool(mark) and (yield from reader.over("["))
        while True:
            yield from reader.blank()
            if len(self._tool_calls) > before and (yield from reader.peek()) in (",", ";"):
                yield from reader.over((yield from reader.peek()))
                yield from reader.blank()
            if (yield from reader.peek()) != "{" or not (yield from self._object(calls)):
                break
        text = reader.recorded()
        if len(self._tool_calls) == before:
            self._content(mark + text)
            return
        if listed:
            yield from reader.over("]")
            yield from reader.blank()
        yield from reader.over(calls.end)

    def _object(self, calls: Calls) -> Steps:
        """Read one object; return whether it was whole, and a call."""
        reader, draft = self._reader, _Draft()
        yield from reader.over("{")
        yield from reader.blank()
        while not (yield from reader.over("}")):
            if not (yield from self._pair(calls, draft)):
                return False
            yield from reader.blank()
            yield from reader.over(",")
            yield from reader.blank()
        if draft.begun and not draft.arguments:
            self._argue("{}")
        return draft.begun

    def _pair(self, calls: Calls, draft: _Draft) -> Steps:
        """Read a key and its value; return whether they are whole."""
        reader = self._reader
        raw: list[str] = []
        if (yield from reader.peek()) != '"' or not (yield from reader.value(raw.append)):
            return False
        key = _loads(raw)
        yield from reader.blank()
        if not (yield from reader.over(":")):
            return False
        yield from reader.blank()
        if calls.keyed and isinstance(key, str):
            draft.name, draft.begun, key = key, True, _ARGUMENTS[0]
            self._begin_call(draft.name)
        value: list[str] = []
        flowing = draft.begun and key in _ARGUMENTS and (yield from reader.peek()) == "{"

        def show(text: str) -> None:
            value.append(text)
            if flowing:
                self._argue(text)

        whole = yield from reader.value(show)
        if key in _NAMES and whole and not draft.begun:
            name = _loads(value)
            known = isinstance(name, str) and bool(calls.begin or name in self._tools)
            draft.name = name if known else ""
        elif key in _IDS and whole and isinstance(_loads(value), str):
            draft.id = _loads(value)
        elif key in _ARGUMENTS:
            inner = _loads(value)  # arguments may be JSON in a text
            draft.arguments = inner if isinstance(inner, str) else "".join(value)
            if draft.begun and not flowing:
                self._argue(draft.arguments)
        if draft.name and not draft.begun:
            draft.begun = True
            self._begin_call(draft.name, draft.id)
            self._argue(draft.arguments)
        return whole


def _loads(parts: list[str]) -> Any:
    """Return the value of JSON, None for what is none."""
    try:
        return json.loads("".join(parts))
    except (ValueError, RecursionError):
        return None
