"""GBNF, llama.cpp's notation of grammars, to Lark's, as llguidance reads it.

A grammar without recursion becomes one terminal. In others every character is a terminal of its
own: a lexer takes the longest one, and would lose texts that GBNF allows, such as "abc" of
`[a-z]+ "c"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llcuda.errors import GrammarError

MAX_GROUPS = 80  # nested; llguidance refuses a few more

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]|\#[^\r\n]*)+)
    | (?P<define>[a-zA-Z0-9-]+(?:[ \t\r\n]|\#[^\r\n]*)*::=) | (?P<name>[a-zA-Z0-9-]+)
    | "(?P<text>(?:[^"\\]|\\.)*)" | \[(?P<set>(?:[^\]\\]|\\.)*)\] | (?P<token>!?<[^<>\s]+>)
    | (?P<any>\.) | (?P<repeat>[*+?] | \{\s*\d+\s*(?:,\s*\d*\s*)?\}) | (?P<mark>[()|])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}


def to_lark(grammar: str) -> str:
    """Return a grammar of the same texts, and of the tokens that it names.

    Raises GrammarError for one that cannot be read, and where a rule has no finite text.
    """
    parser = _Parser(grammar)
    rules = parser.rules()
    _check(rules)
    names = {name: "start" if name == "root" else f"r{i}" for i, name in enumerate(rules)}
    if _is_flat(rules):
        names = {name: f"R{i}" for i, name in enumerate(rules)}
        return "\n".join(
            [f"start: {names['root']}"]
            + [f"{names[name]}: {_lark(choice, names)}" for name, choice in rules.items()]
        )
    lines = [f"{names[name]}: {_lark(choice, names)}" for name, choice in rules.items()]
    return "\n".join(lines)


class _Rule(str):
    """The name of a rule; other texts among a rule's items are Lark already."""


# A choice is a list of sequences, a sequence a list of items and of what repeats each.
_Choice = list[list[tuple["_Rule | str | _Choice", str]]]


class _Parser:
    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self._tokens = list(self._read())
        self._next = 0

    def _read(self) -> Iterator[tuple[str, str, int]]:
        position = 0
        while position < len(self._grammar):
            match = _TOKEN.match(self._grammar, position)
            if match is None:
                raise self._error("this is no GBNF", position)
            kind = match.lastgroup or ""
            if kind != "space":
                yield kind, match[kind], position
            position = match.end()
        yield "end", "", position

    def _error(self, what: str, position: int) -> GrammarError:
        line = self._grammar.count("\n", 0, position) + 1
        rest = self._grammar[position : position + 20]
        return GrammarError(f"grammar, line {line}: {what}, at {rest!r}")

    def rules(self) -> dict[str, _Choice]:
        """Return the rules."""
        rules: dict[str, _Choice] = {}
        while True:
            kind, text, position = self._tokens[self._next]
            if kind == "end":
                return rules
            if kind != "define":
                raise self._error("expected name ::=", position)
            name = re.split(r"[ \t\r\n#:]", text)[0]
            if name in rules:
                raise self._error(f"rule {name!r} is there twice", position)
            self._next += 1
            rules[name] = self._choice(0)

    def _choice(self, depth: int) -> _Choice:
        choice: _Choice = [[]]
        while True:
            kind, text, position = self._tokens[self._next]
            if kind in ("end", "define") or (kind == "mark" and text == ")"):
                if (depth > 0) != (kind == "mark"):
                    raise self._error("a parenthesis is missing", position)
                return choice
            self._next += 1
            if kind == "mark" and text == "|":
                choice.append([])
            elif kind == "mark":
                if depth == MAX_GROUPS:
                    raise self._error(f"more than {MAX_GROUPS} groups in one another", position)
                choice[-1].append((self._choice(depth + 1), ""))
                self._next += 1
            elif kind == "repeat":
                if not choice[-1] or choice[-1][-1][1]:
                    raise self._error("there is nothing to repeat", position)
                choice[-1][-1] = (choice[-1][-1][0], re.sub(r"\s", "", text))
            else:
                try:
                    choice[-1].append((_item(kind, text), ""))
                except ValueError as error:
                    raise self._error(str(error), position) from None


def _item(kind: str, text: str) -> _Rule | str | _Choice:
    """Return what stands for a name, a text, a set of characters, or a token."""
    if kind == "name":
        return _Rule(text)
    if kind == "token":
        negated, name = text.startswith("!"), text.lstrip("!")
        if negated and not re.fullmatch(r"<\[\d+\]>", name):
            raise ValueError("expected a number in !<[...]>")
        return name.replace("[", "[^") if negated else name
    if kind == "any":
        return "/(?s:.)/"
    if kind == "text":
        return [[(f"/{_escaped(character)}/", "") for character, _ in _characters(text)]]
    negated = text.startswith("^")
    found = list(_characters(text[negated:]))
    ranges, place = [], 0
    while place < len(found):
        first = last = found[place][0]
        if found[place + 1 : place + 2] == [("-", False)] and place + 2 < len(found):
            last = found[place + 2][0]
            place += 2
        if last < first:
            raise ValueError(f"the range {first!r} to {last!r} is empty")
        ranges.append(f"{_escaped(first)}-{_escaped(last)}")
        place += 1
    if not ranges:
        if negated:
            return "/(?s:.)/"
        raise ValueError("a set without characters")
    return f"/[{'^' if negated else ''}{''.join(ranges)}]/"


def _characters(text: str) -> Iterator[tuple[str, bool]]:
    """Return the characters of a text or a set, and whether they were escaped."""
    for match in _CHARACTER.finditer(text):
        digits = match[1] or match[2] or match[3]
        if match[4] and match[4] not in _ESCAPES:
            raise ValueError(f"unknown escape \\{match[4]}")
        if digits and (int(digits, 16) > 0x10FFFF or 0xD800 <= int(digits, 16) < 0xE000):
            raise ValueError(f"{match[0]} is no character")
        character = chr(int(digits, 16)) if digits else _ESCAPES.get(match[4] or "", match[5])
        yield character, match[5] is None


def _escaped(character: str) -> str:
    return f"\\x{{{ord(character):X}}}"


def _lark(choice: _Choice, names: dict[str, str]) -> str:
    def one(item: _Rule | str | _Choice) -> str:
        if isinstance(item, _Rule):
            return names[item]
        return item if isinstance(item, str) else f"({_lark(item, names)})"

    return " | ".join(
        " ".join(one(item) + repeat for item, repeat in sequence) or '""' for sequence in choice
    )


def _items(choice: _Choice) -> Iterator[_Rule | str]:
    for sequence in choice:
        for item, _ in sequence:
            yield from [item] if isinstance(item, str) else _items(item)


def _is_flat(rules: dict[str, _Choice]) -> bool:
    """Whether no rule leads to itself, and no token is named: the grammar is a regular one."""
    items = {name: set(_items(choice)) for name, choice in rules.items()}
    if any(item.startswith("<") for found in items.values() for item in found):
        return False
    flat: set[str] = set()
    while len(flat) < len(rules):
        more = {
            name
            for name in rules.keys() - flat
            if all(item in flat for item in items[name] if isinstance(item, _Rule))
        }
        if not more:
            return False
        flat |= more
    return True


def _check(rules: dict[str, _Choice]) -> None:
    """Raise GrammarError for a rule that is missing, or that no finite text can satisfy."""
    if "root" not in rules:
        raise GrammarError("the grammar has no rule root")
    finite: set[str] = set()

    def ends(choice: _Choice) -> bool:
        return any(all(item_ends(*pair) for pair in sequence) for sequence in choice)

    def item_ends(item: _Rule | str | _Choice, repeat: str) -> bool:
        if isinstance(item, _Rule) and item not in rules:
            raise GrammarError(f"the grammar has no rule {str(item)!r}")
        if repeat in ("*", "?") or repeat.startswith("{0"):
            return True
        return item in finite if isinstance(item, _Rule) else isinstance(item, str) or ends(item)

    while True:
        more = {name for name in rules.keys() - finite if ends(rules[name])}
        if not more:
            break
        finite |= more
    if len(finite) < len(rules):
        name = next(name for name in rules if name not in finite)
        raise GrammarError(f"no text ever ends rule {name!r} of the grammar")
