"""GBNF, llama.cpp's notation for grammars, as plain data.

https://github.com/ggml-org/llama.cpp/tree/master/grammars describes the notation. This parser reads
every grammar that llama.cpp reads, and some more: it allows a line break anywhere. It does not
decode escapes, nor look up tokens. It never recurses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from llcuda.errors import GrammarError

MAX_GROUPS = 200  # nested in one another; llama.cpp's parser recurses

_SPACE = r"(?:[ \t\r\n]|\#[^\r\n]*+)*+"  # possessive: a comment of many # takes no time
_TOKEN = re.compile(
    rf"""(?P<space>(?=[ \t\r\n#]){_SPACE})
    | (?P<define>(?P<defined>[a-zA-Z0-9-]+){_SPACE}::=) | (?P<name>[a-zA-Z0-9-]+)
    | "(?P<text>(?:[^"\\]|\\.)*)" | \[(?P<set>(?:[^\]\\]|\\.)*)\] | (?P<token>!?<[^>]*>)
    | (?P<any>\.) | (?P<mark>[()|])
    | (?P<repeat>(?P<sign>[*+?])
      | \{{{_SPACE}(?P<minimum>[0-9]+){_SPACE}(?P<open>,{_SPACE}(?P<maximum>[0-9]*){_SPACE})?\}})
    | (?P<wrong>.)""",
    re.VERBOSE | re.DOTALL,
)
_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True, slots=True)
class Repeat:
    """A number of repetitions.

    Attributes:
        minimum: The least number.
        maximum: The largest number; None is no limit.
    """

    minimum: int
    maximum: int | None

    def __str__(self) -> str:
        for sign, bounds in _SIGNS.items():
            if bounds == (self.minimum, self.maximum):
                return sign
        if self.minimum == self.maximum:
            return f"{{{self.minimum}}}"
        return f"{{{self.minimum},{'' if self.maximum is None else self.maximum}}}"


@dataclass(slots=True)
class Item:
    """A part of a sequence, and its repetitions, in the order in which they are written.

    Attributes:
        kind: "name" (of a rule or a group), "text", "set", "token" or "any".
        text: The name, or the text between the terminal's delimiters; a token has them.
        position: Where it begins in the grammar, in characters.
        repeats: The repetitions.
    """

    kind: str
    text: str
    position: int
    repeats: list[Repeat] = field(default_factory=list)

    @property
    def is_optional(self) -> bool:
        """Whether its repetitions allow none."""
        return any(repeat.minimum == 0 for repeat in self.repeats)


Alternatives = list[list[Item]]


@dataclass(slots=True)
class Rule:
    """A rule, or a group of one.

    Attributes:
        name: The name; that of a group is the name of its rule, "(" and a number.
        position: Where it is defined in the grammar, in characters.
        alternatives: Sequences of items.
    """

    name: str
    position: int
    alternatives: Alternatives = field(default_factory=lambda: [[]])


@dataclass(slots=True)
class Grammar:
    """The rules of a grammar in their order; llama.cpp takes the last one of each name.

    Attributes:
        rules: The rules up to the first error.
        error: Why the parser stopped there; None at the end of the grammar.
    """

    rules: list[Rule]
    error: GrammarError | None


def parse(grammar: str, max_rules: int | None = None) -> Grammar:
    """Parse a grammar up to its end, or up to what is not GBNF, which llama.cpp refuses, too.

    Args:
        grammar: The grammar.
        max_rules: The largest number of rules and groups; None is no limit.

    Raises:
        GrammarError: Groups are nested deeper than MAX_GROUPS, or there are too many.
    """
    rules: list[Rule] = []
    return Grammar(rules, _parse(grammar, rules, max_rules))


def _parse(grammar: str, rules: list[Rule], max_rules: int | None) -> GrammarError | None:
    """Append the rules up to the first error, which is returned."""
    open_rules: list[Rule] = []  # the current rule, and the groups that are open in it

    def begin(name: str, position: int) -> None:
        if len(rules) == max_rules:
            raise grammar_error(f"it has more than {max_rules} rules and groups")
        rules.append(Rule(name, position))
        open_rules.append(rules[-1])

    for match in _TOKEN.finditer(grammar):
        kind, text, position = match.lastgroup or "", match.group(), match.start()
        if kind == "space":
            continue
        if kind == "wrong":
            return error_at(grammar, position, "this is not GBNF")
        if kind == "define":
            if len(open_rules) > 1:
                return error_at(grammar, position, "a parenthesis is not closed before this rule")
            open_rules.clear()
            begin(match["defined"], position)
            continue
        if not open_rules:
            return error_at(grammar, position, "expected name ::=")
        items = open_rules[-1].alternatives[-1]
        if text == "(":
            if len(open_rules) > MAX_GROUPS:
                raise grammar_error(
                    f"it nests deeper than {MAX_GROUPS} groups", "name some of them as rules"
                )
            group = f"{open_rules[0].name}({len(rules)}"
            items.append(Item("name", group, position))
            begin(group, position)
        elif text == ")":
            if len(open_rules) == 1:
                return error_at(grammar, position, "this parenthesis was not opened")
            open_rules.pop()
        elif text == "|":
            open_rules[-1].alternatives.append([])
        elif kind == "repeat":
            if not items:
                return error_at(grammar, position, "there is nothing to repeat")
            items[-1].repeats.append(_repeat(match))
        else:
            items.append(Item(kind, match[kind], position))
    if len(open_rules) > 1:
        return error_at(grammar, len(grammar), "a parenthesis is not closed")
    return None


def _repeat(match: re.Match[str]) -> Repeat:
    if match["sign"]:
        return Repeat(*_SIGNS[match["sign"]])
    minimum = _number(match["minimum"])
    if match["open"] is None:
        return Repeat(minimum, minimum)
    return Repeat(minimum, _number(match["maximum"]) if match["maximum"] else None)


def _number(digits: str) -> int:
    """Return a number, or one that is too large for any use in place of a larger one."""
    return int(digits.lstrip("0")[:11] or "0")


def grammar_error(rule: str, remedy: str | None = None) -> GrammarError:
    """Return the error `grammar: rule; remedy`."""
    return GrammarError(f"grammar: {rule}", parameter="grammar", remedy=remedy)


def error_at(grammar: str, position: int, problem: str) -> GrammarError:
    """Return an error that names the line and shows the text at `position`."""
    line = grammar.count("\n", 0, position) + 1
    rest = grammar[position : position + 20]
    return GrammarError(f"grammar, line {line}: {problem}, at {rest!r}", parameter="grammar")


def closure(implications: Sequence[tuple[str, Sequence[str]]]) -> set[str]:
    """Return the names that hold, in time that grows with the implications only.

    Args:
        implications: Pairs of a name and of the names that make it hold together.
    """
    missing = [len(names) for _, names in implications]
    used_by: dict[str, list[int]] = {}
    for i, (_, names) in enumerate(implications):
        for name in names:
            used_by.setdefault(name, []).append(i)
    pending = [name for name, names in implications if not names]
    proven: set[str] = set()
    while pending:
        name = pending.pop()
        if name in proven:
            continue
        proven.add(name)
        for i in used_by.get(name, ()):
            missing[i] -= 1
            if not missing[i]:
                pending.append(implications[i][0])
    return proven
