"""Splits a model's text into content, reasoning and tool calls while it arrives.

Partial delimiters are never emitted, and the result does not depend on where the text is cut into
pieces. Text that looks like a call and is none stays content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llcuda.chat.bare_calls import read_bare_calls
from llcuda.chat.formats import ChatSyntax, ToolCallFormat
from llcuda.chat.stream_reader import Reading, Show, StreamReader, nothing
from llcuda.chat.tool_arguments import (
    QUOTE,
    Schema,
    from_gemma,
    from_python,
    from_text,
    to_json,
)

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
_IDS = ("id", "tool_call_id")
_NAME = re.compile(r"[\w.-]+")
_HEADER_NAME = re.compile(r"[^\s\"'<>{}()\[\]]+")
_CDATA = ("<![CDATA[", "]]>")
# The beginnings of calls, behind their delimiter: a name, a call in Python, a JSON object.
_CUT_HEADER = re.compile(r"\s*\S{0,200}\s*")
_CUT_PYTHON = re.compile(r"\s*\[?\s*(?:[\w.-]+\s*(?:\(\s*(?:[\w.-]+\s*)?)?)?")
_CUT_OBJECT = re.compile(r"\s*(?:```json)?\s*\[?\s*(?:\{.*)?", re.S)
_MAX_DEPTH = 64  # of values with delimiters of their own
_MAX_MENTIONS = 16  # of calls in reasoning that is not closed


@dataclass(slots=True)
class ChatDelta:
    """The part of an answer that further text added.

    A delta is false when it shows nothing. Deltas can be added.

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
class _ObjectCall:
    """The part of a call that is known while its JSON object is read."""

    name: str = ""
    id: str | None = None
    arguments: str = ""
    begun: bool = False


class ChatParser:
    """Parses one answer, and keeps its message.

    Args:
        syntax: The delimiters of the model.
        prompt: The prompt of the answer, which may open reasoning, a header or a call.
        tools: The schema of each tool's parameters by the tool's name; None looks for no calls.
        bare_tools: The same for calls without delimiters, of which the whole answer consists; None
            looks for no such calls.
        new_id: Makes the id of a call of its index.
        read_call: Reads the text behind the delimiter of a call in place of the parser. It gets the
            reader, and the delimiter: "" when the prompt has opened the call.
        begun: Whether the text goes on with what stands in the prompt: with the reasoning that
            `prompt` opens, or else with content.

    Attributes:
        reasoning_spans: Begin and end of each reasoning in the text, in characters.
        in_reasoning: Whether the text so far ends within reasoning.
    """

    def __init__(
        self,
        syntax: ChatSyntax,
        prompt: str = "",
        tools: Mapping[str, Any] | None = None,
        bare_tools: Mapping[str, Any] | None = None,
        new_id: Callable[[int], str] = "call_{}".format,
        read_call: Callable[[StreamReader, str], Reading[None]] | None = None,
        begun: bool = False,
    ) -> None:
        self.reasoning_spans: list[tuple[int, int]] = []
        self._syntax = syntax
        calls = syntax.tool_calls
        if tools is None and calls is not None and not calls.content_name:
            calls = None
        self._calls = calls
        self._tools = tools
        if calls is not None and not calls.begin:
            bare_tools = None  # such calls are the format
        self._bare_tools = {
            name: Schema(given, given) for name, given in (bare_tools or {}).items()
        }
        self._new_id = new_id
        self._read_call = read_call
        self._reader = StreamReader()
        self._delta = ChatDelta()
        self._content_parts: list[str] = []  # of the message
        self._reasoning_parts: list[str] = []
        self._tool_calls: list[dict[str, Any]] = []
        self._argument_parts: list[list[str]] = []  # of each call
        self.in_reasoning = False
        self._begun = begun
        self._space = ""  # white space that is content if more content follows
        self._has_content = begun and not syntax.open_reasoning_ends(prompt)
        self._skips_space = False  # reasoning or a call has no space behind it
        self._cuts_call = False
        self._reasoning_begins = {row.begin: row for row in syntax.reasoning}
        self._reasoning_ends = {row.end: row for row in syntax.reasoning}
        delimiters = [*self._reasoning_begins, *self._reasoning_ends, *syntax.frames]
        if calls is not None:
            delimiters += [calls.begin, calls.end, *calls.frames]
        if syntax.channels is not None:
            delimiters += [syntax.channels.start, *syntax.channels.ends]
        self._delimiters = tuple(dict.fromkeys(filter(None, delimiters)))
        self._reading = self._read_answer(prompt)

    def feed(self, text: str) -> ChatDelta:
        """Return what further `text` adds."""
        self._reader.feed(text)
        return self._go_on(text)

    def flush(self) -> ChatDelta:
        """Return what was held back: the text has ended.

        More than half of the delimiter before a call is no content, nor is the beginning of the
        one behind it.
        """
        held, calls = self._reader.unread, self._calls
        if held and calls is not None:
            begins = any(b.startswith(held) and len(held) * 2 > len(b) for b in calls.begins)
            self._cuts_call = self._cuts_call or begins
            if begins or (self._tool_calls and calls.end.startswith(held)):
                self._reader.rest()
        self._reader.end()
        return self._go_on("")

    def message(self) -> dict[str, Any]:
        """Return OpenAI's message of what was parsed so far."""
        content, reasoning = "".join(self._content_parts), "".join(self._reasoning_parts)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._tool_calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": "".join(parts)}}
                for call, parts in zip(self._tool_calls, self._argument_parts, strict=True)
            ]
        return message

    @property
    def ends_within_call(self) -> bool:
        """Whether the text ended before a call was whole."""
        return self._cuts_call or any(_loads(parts) is None for parts in self._argument_parts)

    def _go_on(self, text: str) -> ChatDelta:
        self._delta = delta = ChatDelta(text=text)
        next(self._reading, None)
        if delta.content:
            self._content_parts.append(delta.content)
        if delta.reasoning:
            self._reasoning_parts.append(delta.reasoning)
        return delta

    def _read_answer(self, prompt: str) -> Reading[None]:
        calls, channels = self._calls, self._syntax.channels
        if ends := self._syntax.open_reasoning_ends(prompt):
            row = self._syntax.open_reasoning(prompt)
            words = row.begin if row is not None and row.spoken and not self._begun else ""
            yield from self._reasoning(ends, words, begun=self._begun)
        elif self._syntax.opens_channel(prompt):
            yield from self._header()
        elif calls is not None and calls.begin and prompt.rstrip().endswith(calls.begin):
            yield from self._call(calls, "")
        while True:
            if self._bare_tools and not self._has_content and not self._tool_calls:
                bare_calls = yield from read_bare_calls(self._reader, self._bare_tools)
                for name, arguments in bare_calls:
                    self._begin_call(name)
                    self._add_arguments(arguments)
            if calls is not None and not calls.begin and not self._has_content:
                yield from self._objects(calls, "")
            delimiter = yield from self._reader.until(self._delimiters, self._content)
            if not delimiter:
                break
            if delimiter in self._syntax.frames:
                self._interrupt()
            elif (row := self._reasoning_begins.get(delimiter)) is not None:
                if self._has_content and not row.anywhere:
                    self._content(delimiter)
                else:
                    words = delimiter if row.spoken else ""
                    ends = self._syntax.reasoning_ends(row)
                    yield from self._reasoning(ends, words, len(words))
            elif (row := self._reasoning_ends.get(delimiter)) is not None:  # of no reasoning
                if self._has_content and not row.anywhere:
                    self._content(delimiter)
                else:
                    self._interrupt()
            elif channels is not None and delimiter == channels.start:
                yield from self._header()
            elif calls is not None and delimiter == calls.begin:
                yield from self._call(calls, delimiter)
        if not self._skips_space:
            self._delta.content += self._space

    # --- text ---

    def _content(self, text: str) -> None:
        """Show text; white space at its end only when more follows."""
        if self._skips_space:
            text = text.lstrip()
        shown = text.rstrip()
        if shown:
            self._delta.content += self._space + shown
            self._has_content, self._space, self._skips_space = True, "", False
        self._space += text[len(shown) :]

    def _interrupt(self) -> None:
        """Note that something else than content came: no white space belongs behind it."""
        self._space, self._skips_space = self._space if self._has_content else "", True

    def _reasoning(
        self, ends: tuple[str, ...], words: str = "", written: int = 0, begun: bool = False
    ) -> Reading[None]:
        """Show reasoning up to its end, or to a call in it, without the space around it.

        Args:
            ends: The delimiters that end it.
            words: Its first words, which were read.
            written: The number of their characters that stand in the answer, not in the prompt.
            begun: Whether the prompt has the beginning of the reasoning.
        """
        space = ""
        self.in_reasoning = True

        def show(text: str) -> None:
            nonlocal space, begun
            text = text if begun else text.lstrip()
            shown = text.rstrip()
            if shown:
                self._delta.reasoning += space + shown
                space, begun = "", True
            space += text[len(shown) :]

        show(words)
        begin = self._reader.position - written
        calls = self._calls if self._syntax.channels is None else None
        begins = calls.begins if calls is not None else ()
        marked = False
        while True:
            stop = yield from self._reader.until((*ends, *begins), show)
            end = self._reader.position - len(stop)
            if calls is None or stop not in begins:
                break
            if calls.ends_reasoning:
                self.in_reasoning = False
                if (yield from self._call_in_reasoning(calls, stop, ends, show)):
                    break
                self.in_reasoning = True
                continue
            if not marked:
                self._reader.mark(stop)
                marked = True
            show(stop)
        self.in_reasoning = False
        self.reasoning_spans.append((begin, end))
        self._interrupt()
        kept = self._reader.unmark() if marked else ""
        if calls is not None and not stop:
            self._calls_at_the_end(calls, kept)

    def _header(self) -> Reading[None]:
        """Read the header of a message within the answer, and the message unless it has calls."""
        channels, reader = self._syntax.channels, self._reader
        assert channels is not None
        parts: list[str] = []
        delimiter = yield from reader.until((channels.message,), parts.append)
        header = "".join(parts)
        tool = channels.tool(header)
        if not delimiter:
            if channels.is_content(header) and "<|" not in header:  # a text without a header
                self._content(header)
        elif tool and channels.json_calls:
            name = tool.removeprefix("functions.")
            if self._tools and (name in self._tools or name != tool):
                self._begin_call(name)
                yield from self._arguments(channels.ends)
            yield from reader.until(channels.ends, nothing)
        elif re.search(channels.reasoning, header):
            yield from self._reasoning(channels.ends)
        elif not tool:
            ends = (*channels.ends, channels.start)
            end = yield from reader.until(ends, self._content, take=False)
            if end != channels.start:
                yield from reader.skip(end)

    # --- calls ---

    def _begin_call(self, name: str, identity: str | None = None) -> None:
        self._interrupt()
        index = len(self._tool_calls)
        identity = identity or self._new_id(index)
        call = {"id": identity, "type": "function", "function": {"name": name}}
        self._tool_calls.append(call)
        self._argument_parts.append([])
        function = {"name": name, "arguments": ""}
        self._delta.tool_calls.append({"index": index, **call, "function": function})

    def _add_arguments(self, text: str) -> None:
        """Add to the arguments of the last call."""
        index, calls = len(self._tool_calls) - 1, self._delta.tool_calls
        if not calls or calls[-1]["index"] != index:
            calls.append({"index": index, "function": {"arguments": ""}})
        calls[-1]["function"]["arguments"] += text
        self._argument_parts[-1].append(text)

    def _call(self, calls: ToolCallFormat, delimiter: str) -> Reading[None]:
        """Read the text behind the delimiter of a call; both are content if it is no call."""
        if self._read_call is not None:
            yield from self._read_call(self._reader, delimiter)
        elif calls.notation == "objects":
            yield from self._objects(calls, delimiter)
        elif calls.notation == "python":
            yield from self._python(calls, delimiter)
        else:
            yield from self._named(calls, delimiter)

    def _no_call(self, delimiter: str, text: str, beginning: re.Pattern[str]) -> Reading[None]:
        """Show a text that is no call, unless it is the beginning of one and the text ends here.

        Args:
            delimiter: The delimiter of a call, "" where the text itself may be a call.
            text: What stands behind it.
            beginning: Matches the beginning of a call.
        """
        is_cut = delimiter and beginning.fullmatch(text) and not (yield from self._reader.peek())
        if is_cut and _loads([text]) is None:
            self._cuts_call = True
        else:
            self._content(delimiter + text)

    def _named(self, calls: ToolCallFormat, delimiter: str) -> Reading[None]:
        """Read a call whose name stands before its arguments."""
        match, header = yield from self._call_header(calls)
        if match is None and calls.content_name:  # whose delimiter stands before content, too
            self._content(delimiter + header)
        elif match is None:
            yield from self._no_call(delimiter, header, _CUT_HEADER)
        elif not calls.content_name or match["name"] in (self._tools or ()):
            yield from self._named_call(calls, match)
        elif match["name"] != calls.content_name:
            self._content(delimiter + header)

    def _call_header(
        self, calls: ToolCallFormat, others: tuple[str, ...] = ()
    ) -> Reading[tuple[re.Match[str] | None, str]]:
        """Read the text before the arguments of a call; return its name, and the whole text.

        Args:
            calls: The format of the call.
            others: Delimiters that end a text which is not a header.
        """
        parts: list[str] = []
        last = (calls.end,) if calls.notation == "tags" else ()
        stops = (calls.name_end or calls.parameter[0], *last)
        stop = yield from self._reader.until((*stops, *others), parts.append, take=False)
        header = "".join(parts)
        match = re.fullmatch(calls.header, header, re.S) if stop in stops else None
        if match is not None and stop == calls.name_end and calls.notation != "gemma":
            yield from self._reader.skip(stop)
            header += stop
        return match, header

    def _call_in_reasoning(
        self, calls: ToolCallFormat, delimiter: str, ends: tuple[str, ...], show: Show
    ) -> Reading[bool]:
        """Read a call that begins within the reasoning; return whether it is one.

        Only the name of a tool makes it one. Other text is shown.
        """
        reader = self._reader
        if delimiter != calls.begin:
            reader.start_recording()
            yield from reader.skip_space()
            begun = yield from reader.skip(calls.begin)
            delimiter += reader.stop_recording()
            if not begun:
                show(delimiter)
                return False
        if self._read_call is not None:
            yield from self._read_call(reader, calls.begin)
            return True
        if not calls.begin.startswith("<|") and not (yield from self._names_tool(calls)):
            show(delimiter)  # what follows need not wait for the end of a header
            return False
        match, header = yield from self._call_header(calls, ends)
        if match is None or match["name"] not in (self._tools or ()):
            show(delimiter + header)
            return False
        yield from self._named_call(calls, match)
        return True

    def _names_tool(self, calls: ToolCallFormat) -> Reading[bool]:
        """Return whether the header of a call with the name of a tool comes next; reads nothing."""
        reader = self._reader
        reader.mark()
        yield from reader.skip_space()
        name = yield from reader.word(_HEADER_NAME)
        yield from reader.skip_space()
        name_end = (calls.name_end or calls.parameter[0]).lstrip()
        stop = yield from reader.one_of((name_end, calls.end))
        reader.rewind()
        return bool(stop) and name in (self._tools or ())

    def _calls_at_the_end(self, calls: ToolCallFormat, text: str) -> None:
        """Add the calls with which reasoning that was never closed ends.

        Args:
            calls: The format of the calls.
            text: The reasoning from the first delimiter of a call on, which was shown.
        """
        pattern = "|".join(map(re.escape, calls.begins))
        for match in [*re.finditer(pattern, text)][:_MAX_MENTIONS] if text else ():
            parser = ChatParser(ChatSyntax(tool_calls=calls), tools=self._tools)
            parser.feed(text[match.start() :])
            parser.flush()
            message = parser.message()
            functions = [call["function"] for call in message.get("tool_calls", ())]
            if functions and not message["content"] and all(map(self._is_complete, functions)):
                for function in functions:
                    self._begin_call(function["name"])
                    self._add_arguments(function["arguments"])
                break

    def _is_complete(self, function: dict[str, str]) -> bool:
        """Return whether a call names a tool, and is not cut off."""
        return (
            function["name"] in (self._tools or ()) and _loads([function["arguments"]]) is not None
        )

    def _named_call(self, calls: ToolCallFormat, match: re.Match[str]) -> Reading[None]:
        """Read the arguments of a call."""
        reader = self._reader
        self._begin_call(match["name"], match.groupdict().get("id"))
        if calls.notation == "tags":
            yield from self._tags(calls, match["name"])
        elif calls.notation == "gemma":
            body: list[str] = []
            while (yield from reader.until((QUOTE, calls.end), body.append, take=False)) == QUOTE:
                yield from reader.skip(QUOTE, body.append)  # no delimiter counts between quotes
                yield from reader.until((QUOTE,), body.append, take=False)
                yield from reader.skip(QUOTE, body.append)
            yield from reader.skip(calls.end)
            self._add_arguments(from_gemma("".join(body)))
        else:
            ends = (calls.behind_arguments, calls.end)
            yield from self._arguments(tuple(filter(None, ends)))
            for text in ends:
                yield from reader.skip_space()
                yield from reader.skip(text)

    def _arguments(self, ends: tuple[str, ...]) -> Reading[None]:
        """Read the arguments of the last call: JSON, or what else stands there up to an end."""
        reader = self._reader
        yield from reader.skip_space()
        if not ends or (yield from reader.peek()) in ("{", "["):
            yield from reader.json_value(self._add_arguments)
            return
        parts: list[str] = []
        end = yield from reader.until(ends, parts.append, take=False)
        text = "".join(parts).strip()
        if text or end:
            self._add_arguments(text or "{}")

    def _tags(self, calls: ToolCallFormat, name: str) -> Reading[None]:
        """Read parameters that have delimiters of their own, each as soon as it is complete."""
        schema = (self._tools or {}).get(name)
        parameters = Schema(schema, schema)
        begin, key_end, _ = calls.parameter
        separator = "{"
        while (tag := (yield from self._reader.until((begin, calls.end), nothing))) == begin:
            parts: list[str] = []
            yield from self._reader.until((key_end,), parts.append)
            header = "".join(parts)
            key = re.split(r'["<]', header)[0].strip()
            value = yield from self._tag_value(calls, key, header, parameters.property(key))
            if value is None:
                return
            self._add_arguments(separator + f"{to_json(key)}: ")
            self._add_arguments(value)
            separator = ", "
        if tag:
            self._add_arguments("{}" if separator == "{" else "}")

    def _tag_value(
        self, calls: ToolCallFormat, key: str, header: str, schema: Schema, depth: int = 0
    ) -> Reading[str | None]:
        """Read a value and the delimiter behind it; return its JSON, None when it is cut off."""
        reader = self._reader
        begin, key_end, value_end = calls.parameter
        end = value_end.replace("%KEY%", key)
        parts: list[str] = []
        children: list[tuple[str, str]] = []
        inner = begin if calls.nested and depth < _MAX_DEPTH else _CDATA[0] if calls.cdata else ""
        while stop := (yield from reader.until((end, *filter(None, (inner,))), parts.append)):
            if stop == end:
                break
            if calls.cdata:
                yield from reader.until(_CDATA[1:], parts.append)
                continue
            names: list[str] = []
            yield from reader.until((key_end,), names.append)
            name = "".join(names)
            listed = name == "item" and "object" not in schema.types()
            below = schema.items() if listed else schema.property(name)
            value = yield from self._tag_value(calls, name, "", below, depth + 1)
            if value is None:
                return None
            children.append((name, value))
        if not stop:
            return None
        text = "".join(parts)
        types = schema.types()
        if not children and types in ({"object"}, {"array"}) and not text.strip():
            return "{}" if types == {"object"} else "[]"
        if not children:
            quoted = 'string="true"' in header or 'type="string"' in header
            return from_text(text, schema, quoted=quoted, padded=calls.padded)
        if "array" in types or ("object" not in types and all(n == "item" for n, _ in children)):
            return f"[{', '.join(value for _, value in children)}]"
        return f"{{{', '.join(f'{to_json(name)}: {value}' for name, value in children)}}}"

    def _python(self, calls: ToolCallFormat, delimiter: str) -> Reading[None]:
        """Read calls in Python, in a list or a single one."""
        reader, before = self._reader, len(self._tool_calls)
        reader.start_recording()
        yield from reader.skip_space()
        listed = yield from reader.skip("[")
        while (yield from self._python_call()):
            reader.start_recording()
            yield from reader.skip_space()
            if not (yield from reader.skip(",")):
                break
            yield from reader.skip_space()
        text = reader.stop_recording()
        if len(self._tool_calls) == before:
            yield from self._no_call(delimiter, text, _CUT_PYTHON)
            return
        self._content(text.strip(" ,\n"))
        if listed:
            yield from reader.skip("]")
            yield from reader.skip_space()
        yield from reader.skip(calls.end)

    def _python_call(self) -> Reading[bool]:
        """Read one call with named arguments; return whether it is one, and complete.

        The reader's record holds what is not part of the call.
        """
        reader, before = self._reader, len(self._tool_calls)
        name = yield from reader.word(_NAME)
        if not name or not (yield from reader.skip("(")):
            return False
        yield from reader.skip_space()
        separator = "{"
        while not (yield from reader.skip(")")):
            key = yield from reader.word(_NAME)
            yield from reader.skip_space()
            if not key or not (yield from reader.skip("=")):
                if len(self._tool_calls) > before:
                    if (yield from reader.peek()):
                        self._add_arguments("}")
                    else:
                        reader.start_recording()
                return False
            if len(self._tool_calls) == before:
                self._begin_call(name)
            self._add_arguments(f"{separator}{to_json(key)}: ")
            separator = ", "
            value: list[str] = []
            if not (yield from reader.python_value(value.append)):
                reader.start_recording()
                return False
            self._add_arguments(from_python("".join(value)))
            yield from reader.skip(",")
            yield from reader.skip_space()
            reader.start_recording()
        if len(self._tool_calls) == before:
            self._begin_call(name)
        self._add_arguments("{}" if separator == "{" else "}")
        return True

    def _objects(self, calls: ToolCallFormat, delimiter: str) -> Reading[None]:
        """Read JSON objects, in a list or one after the other."""
        reader, before = self._reader, len(self._tool_calls)
        reader.start_recording()
        yield from reader.skip_space()
        for frame in calls.frames:
            yield from reader.skip(frame)
            yield from reader.skip_space()
        listed = bool(delimiter) and (yield from reader.skip("["))
        while True:
            yield from reader.skip_space()
            if len(self._tool_calls) > before and (yield from reader.peek()) in (",", ";"):
                yield from reader.skip((yield from reader.peek()))
                yield from reader.skip_space()
            if (yield from reader.peek()) != "{" or not (yield from self._object(calls)):
                break
        text = reader.stop_recording()
        if len(self._tool_calls) == before:
            yield from self._no_call(delimiter, text, _CUT_OBJECT)
            return
        if listed:
            yield from reader.skip("]")
            yield from reader.skip_space()
        yield from reader.skip(calls.end)

    def _object(self, calls: ToolCallFormat) -> Reading[bool]:
        """Read one object; return whether it is complete, and a call."""
        reader, call = self._reader, _ObjectCall()
        yield from reader.skip("{")
        yield from reader.skip_space()
        while not (yield from reader.skip("}")):
            if not (yield from self._pair(calls, call)):
                return False
            yield from reader.skip_space()
            yield from reader.skip(",")
            yield from reader.skip_space()
        if call.begun and not call.arguments:
            self._add_arguments("{}")
        return call.begun

    def _pair(self, calls: ToolCallFormat, call: _ObjectCall) -> Reading[bool]:
        """Read a key and its value; return whether they are complete."""
        reader = self._reader
        raw: list[str] = []
        if (yield from reader.peek()) != '"' or not (yield from reader.json_value(raw.append)):
            return False
        key = _loads(raw)
        yield from reader.skip_space()
        if not (yield from reader.skip(":")):
            return False
        yield from reader.skip_space()
        if calls.keyed and isinstance(key, str):
            call.name, call.begun, key = key, True, _ARGUMENTS[0]
            self._begin_call(call.name)
        value: list[str] = []
        flowing = call.begun and key in _ARGUMENTS and (yield from reader.peek()) == "{"

        def show(text: str) -> None:
            value.append(text)
            if flowing:
                self._add_arguments(text)

        complete = yield from reader.json_value(show)
        if key in _NAMES and complete and not call.begun:
            name = _loads(value)
            known = isinstance(name, str) and bool(calls.begin or name in (self._tools or ()))
            call.name = name if known else ""
        elif key in _IDS and complete and isinstance(_loads(value), str):
            call.id = _loads(value)
        elif key in _ARGUMENTS:
            inner = _loads(value)  # arguments may be JSON in a text, or null
            call.arguments = inner if isinstance(inner, str) else "".join(value)
            if call.arguments == "null":
                call.arguments = "{}"
            if call.begun and not flowing:
                self._add_arguments(call.arguments)
        if call.name and not call.begun:
            call.begun = True
            self._begin_call(call.name, call.id)
            self._add_arguments(call.arguments)
        return complete


def _loads(parts: list[str]) -> Any:
    """Return the value of JSON, None for other text."""
    try:
        return json.loads("".join(parts))
    except (ValueError, RecursionError):
        return None
