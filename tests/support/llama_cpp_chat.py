"""Reads the cases of llama.cpp's tests/test-chat.cpp: what models write, and the message it means.

Interprets the few kinds of statement that lead to a case, and passes over others. `read_cases`
fails if a case was passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

_TOKEN = re.compile(
    r"""(?:\s+|//[^\n]*|/\*.*?\*/)
    |R"(?P<fence>[^(\s]*)\((?P<raw>.*?)\)(?P=fence)"
    |"(?P<text>(?:[^"\\]|\\.)*)"
    |(?P<letter>'(?:[^'\\]|\\.)+')
    |(?P<number>\d[\w.]*)
    |(?P<name>[A-Za-z_]\w*(?:::[A-Za-z_]\w*)*)
    |(?P<sign>\W)""",
    re.X | re.S,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_FIELDS = (
    "role", "content", "content_parts", "tool_calls", "reasoning_content", "tool_name",
    "tool_call_id",
)  # fmt: skip
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_MODIFIERS = {"static", "const"}
_OPTIONS = {
    "reasoning_format", "tools", "enable_thinking", "parallel_tool_calls", "messages",
    "add_generation_prompt", "continue_final_message", "json_schema", "is_partial", "tool_choice",
    "expect_reconstruction",
}  # fmt: skip
_EXPECTED = {
    "expect_content": "content",
    "expect_reasoning": "reasoning_content",
    "expect_tool_calls": "tool_calls",
}


class _UnknownError(Exception):
    """A statement that is not interpreted."""


@dataclass
class Case:
    """One answer of a model.

    Attributes:
        line: Its line in the source.
        template: The file of the template.
        text: The text as the model writes it.
        expected: The message, by llama.cpp's names of the fields.
        options: The options that were set: tools, enable_thinking, messages, is_partial, ...
    """

    line: int
    template: str
    text: str
    expected: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def read_cases(path: Path) -> list[Case]:
    """Return every case of a test-chat.cpp, in their order."""
    program = _Program(path.read_text())
    program.run()
    reached = {case.line for case in program.cases}
    missed = sorted(program.places - reached)
    assert program.places and not missed, f"{path.name}: cannot read the cases of lines {missed}"
    return program.cases


def message(
    content: str = "", reasoning: str = "", name: str = "", arguments: str = "", identity: str = ""
) -> dict[str, Any]:
    """Return a message of an assistant."""
    calls = [[name, arguments, identity]] if name or identity else []
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": calls,
    }


def _message_with_calls(reasoning: str, content: str, calls: list[list[str]]) -> dict[str, Any]:
    pairs = [[name, arguments, ""] for name, arguments in calls]
    return {**message(content, reasoning), "tool_calls": pairs}


_HELPERS: dict[str, Callable[..., Any]] = {
    "simple_assist_msg": message,
    "message_with_tool_calls": lambda name, arguments: message("", "", name, arguments),
    "message_with_tool_calls_and_reasoning": lambda n, a, r: message("", r, n, a),
    "message_with_reasoning_and_tool_call": lambda r, n, a: message("", r, n, a),
    "message_with_content_and_tool_call": lambda c, n, a: message(c, "", n, a),
    "message_with_reasoning_content_and_multiple_tool_calls": _message_with_calls,
    "std::string": lambda text="": text,
    "std::move": lambda value: value,
}


class _Program:
    """The tokens of a source, and the place that is read."""

    def __init__(self, source: str) -> None:
        self.cases: list[Case] = []
        self._tokens: list[tuple[str, str, int]] = []  # kind, text, line
        line = 1
        for match in _TOKEN.finditer(source):
            if match.lastgroup is not None:
                kind = "text" if match["raw"] is not None else match.lastgroup
                text = match[kind] if match["raw"] is None else match["raw"]
                if kind == "text" and match["raw"] is None:
                    text = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text, flags=re.S)
                self._tokens.append((kind, text, line))
            line += match[0].count("\n")
        self._at = 0
        self._scopes: list[dict[str, Any]] = [dict(_HELPERS)]
        signs = [text for _, text, _ in self._tokens]
        self.places = {
            self._tokens[i][2] for i in range(len(signs)) if signs[i : i + 3] == [".", "test", "("]
        }

    def run(self) -> None:
        """Read the globals, then run the functions, but for those that another one calls."""
        functions: dict[str, tuple[int, int, str]] = {}  # begin, end, first parameter
        while self._at < len(self._tokens):
            begin = self._at
            try:
                self._declare()
            except _UnknownError:
                self._at = begin
                if (head := self._function()) and self._text() == "{":
                    begin = self._at
                    self._skip_pair()
                    functions[head[0]] = (begin, self._at, head[1])
                else:
                    self._at = begin
                    self._skip_statement()
        main = functions.pop("main")
        called = {
            text
            for begin, end, _ in functions.values()
            for kind, text, _ in self._tokens[begin:end]
            if kind == "name"
        }
        assert main[1] == len(self._tokens)
        for name, (begin, _, parameter) in functions.items():
            if name not in _HELPERS:
                self._scopes[0][name] = partial(self._call, begin, parameter)
        for name in functions.keys() - called - _HELPERS.keys():
            self._scopes[0][name](None)

    def _function(self) -> tuple[str, str] | None:
        """Read the head of a function; return its name and its first parameter."""
        while self._text() in _MODIFIERS:
            self._at += 1
        if self._kind() != "name":
            return None
        self._at += 1
        name = self._text()
        if self._kind() != "name":
            return None
        self._at += 1
        if self._text() != "(":
            return None
        begin = self._at + 1
        self._skip_pair()
        texts = [text for _, text, _ in self._tokens[begin : self._at - 1]]
        first = texts[: texts.index(",")] if "," in texts else texts
        return name, first[-1] if first else ""

    def _call(self, begin: int, parameter: str, argument: Any, *_: Any) -> None:
        back, self._at = self._at, begin
        self._scopes.append({parameter: argument})
        self._block()
        self._scopes.pop()
        self._at = back

    # --- tokens ---

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _text(self) -> str:
        """Return the next name or sign."""
        if self._at >= len(self._tokens) or self._kind() == "text":
            return ""
        return self._tokens[self._at][1]

    def _take(self, sign: str) -> bool:
        if self._text() != sign:
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise _UnknownError

    def _skip_pair(self) -> None:
        """Pass over brackets and what is between them."""
        ends = [_CLOSING[self._text()]]
        self._at += 1
        while ends and self._at < len(self._tokens):
            text = self._text()
            if text in _CLOSING:
                ends.append(_CLOSING[text])
            elif text == ends[-1]:
                ends.pop()
            self._at += 1

    def _skip_statement(self) -> None:
        """Pass over a statement: up to a semicolon, or over a block that ends it."""
        while self._at < len(self._tokens):
            text = self._text()
            if text in _CLOSING:
                self._skip_pair()
                if text == "{" and self._text() not in (";", ")", ",", "catch", "else"):
                    return
            elif text == "}":
                return
            else:
                self._at += 1
                if text == ";":
                    return

    # --- statements ---

    def _block(self) -> None:
        self._expect("{")
        self._scopes.append({})
        while not self._take("}"):
            self._statement()
        self._scopes.pop()

    def _statement(self) -> None:
        begin = self._at
        if self._text() == "{":
            self._block()
            return
        for read in (self._loop, self._declare, self._assign, self._evaluate):
            self._at = begin
            try:
                read()
            except (_UnknownError, TypeError, KeyError, IndexError, AttributeError, ValueError):
                continue
            return
        self._at = begin
        self._skip_statement()

    def _loop(self) -> None:
        self._expect("for")
        self._expect("(")
        names = []
        while not self._take(":"):
            if self._kind() == "name":
                names.append(self._text())
            elif self._text() not in ("*", "&"):
                raise _UnknownError
            self._at += 1
        values = self._value()
        self._expect(")")
        begin = self._at
        for value in values:
            self._at = begin
            self._scopes.append({names[-1]: value})
            self._block()
            self._scopes.pop()

    def _declare(self) -> None:
        while self._text() in _MODIFIERS:
            self._at += 1
        if self._kind() != "name":
            raise _UnknownError
        kind = self._text()
        self._at += 1
        if self._take("<"):
            while not self._take(">"):
                self._at += 1
        while self._take("*") or self._take("&"):
            pass
        if self._kind() != "name":
            raise _UnknownError
        name = self._text()
        self._at += 1
        value: Any = message() if kind == "common_chat_msg" else None
        if self._take("="):
            value = self._value()
        elif self._text() == "{":
            value = self._value()
            if kind == "common_chat_msg":
                value = dict(zip(_FIELDS, value, strict=True))
        self._expect(";")
        self._scopes[-1][name] = value

    def _assign(self) -> None:
        target = self._name()
        self._expect(".")
        name = self._text()
        self._at += 1
        self._expect("=")
        value = self._value()
        self._expect(";")
        target[name] = value

    def _evaluate(self) -> None:
        self._value()
        self._expect(";")

    # --- values ---

    def _name(self) -> Any:
        name = self._text()
        if self._kind() != "name":
            raise _UnknownError
        self._at += 1
        if name in ("true", "false"):
            return name == "true"
        if name.startswith("COMMON_"):
            return name
        if name == "peg_tester":
            return lambda path, *_: path
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise _UnknownError

    def _value(self) -> Any:
        value = self._operand()
        while self._take("+"):
            value = value + self._operand()
        return value

    def _operand(self) -> Any:
        if self._kind() == "text":
            text = ""
            while self._kind() == "text":
                text += self._tokens[self._at][1]
                self._at += 1
            return text
        if self._text() == "{":
            return self._list("{")
        value = self._name()
        while True:
            if self._text() == "(":
                value = value(*self._list("("))
            elif self._take("."):
                line, name = self._tokens[self._at - 1][2], self._text()
                self._at += 1
                arguments = self._list("(")
                if isinstance(value, str) and name == "test":
                    value = Case(line, value, arguments[0], {"role": "assistant"})
                else:
                    self._set(value, name, arguments)
            else:
                return deepcopy(value) if isinstance(value, dict | list) else value

    def _list(self, begin: str) -> list[Any]:
        self._expect(begin)
        values = []
        while not self._take(_CLOSING[begin]):
            values.append(self._value())
            if self._text() != _CLOSING[begin]:
                self._expect(",")
        return values

    def _set(self, case: Any, name: str, arguments: list[Any]) -> None:
        """Apply a method of a case."""
        if not isinstance(case, Case):
            raise _UnknownError
        if name == "run":
            self.cases.append(case)
        elif name == "expect":
            case.expected = arguments[0]
        elif name in _EXPECTED:
            case.expected[_EXPECTED[name]] = arguments[0]
        elif name in _OPTIONS:
            case.options[name] = arguments[0] if arguments else True
        else:
            raise _UnknownError
