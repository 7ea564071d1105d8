"""What is wrong with a GBNF grammar that llcuda must say, because llama.cpp would not live to.

llama.cpp's parser recurses into groups, and misses left recursion behind a rule that may be empty
through another; it would take all memory then. Whatever else does not parse is left to llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from llcuda.errors import GrammarError

MAX_GROUPS = 200  # nested; the parser recurses
MAX_CHAIN = 2000  # rules that begin with one another; so does the check of left recursion
MAX_WIDTH = 10_000  # ways in which a text may go on; llama.cpp keeps a stack for each
MAX_REPEAT = 2000  # llama.cpp's own bound
MAX_BYTES = 4 << 20

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t]|\#[^\r\n]*)+) | (?P<newline>[\r\n]+)
    | (?P<define>[a-zA-Z0-9-]+(?:[ \t]|\#[^\r\n]*)*::=) | (?P<name>[a-zA-Z0-9-]+)
    | (?P<empty>"") | (?P<terminal>"(?:[^"\\]|\\.)*" | \[(?:[^\]\\]|\\.)*\] | !?<[^>]*> | \.)
    | (?P<repeat>[*+?] | \{\s*(?P<least>\d+)\s*(?P<open>,\s*(?P<most>\d*)\s*)?\})
    | (?P<mark>[()|])""",
    re.VERBOSE | re.DOTALL,
)
# A rule is a list of alternatives, an alternative a list of items: a rule's name, or whether a
# terminal may be empty.
_Item = str | bool
_Rules = dict[str, list[list[_Item]]]


class _UnreadableError(Exception):
    """llama.cpp's parser has something to say."""


def check_grammar(grammar: str) -> None:
    """Raise GrammarError for a grammar that would end the process."""
    try:
        size = len(grammar.encode())
    except UnicodeEncodeError as error:
        raise GrammarError(f"the grammar cannot be encoded as UTF-8: {error}") from None
    if "\0" in grammar:
        raise GrammarError("the grammar contains a NUL character")
    if size > MAX_BYTES:
        raise GrammarError(f"the grammar has {size} bytes, at most {MAX_BYTES} are allowed")
    try:
        rules = _parse(grammar)
    except _UnreadableError:
        return
    _check_recursion(rules)


def _tokens(grammar: str) -> Iterator[re.Match[str]]:
    position = 0
    while position < len(grammar):
        match = _TOKEN.match(grammar, position)
        if match is None:
            raise _UnreadableError
        yield match
        position = match.end()


def _parse(grammar: str) -> _Rules:
    """Return the rules, groups and repetitions as rules of their own."""
    rules: _Rules = {}
    open_rules: list[str] = []  # the rule and the groups in it that are being read

    def add(name: str) -> str:
        rules[name] = [[]]
        return name

    for match in _tokens(grammar):
        kind, text = match.lastgroup, match.group()
        if kind == "define":
            if len(open_rules) > 1:
                raise _UnreadableError
            open_rules = [add(re.split(r"[ \t#:]", text)[0])]
        elif kind in ("space", "newline"):
            continue
        elif not open_rules:
            raise _UnreadableError
        elif text == "(":
            if len(open_rules) > MAX_GROUPS:
                raise GrammarError(f"the grammar nests deeper than {MAX_GROUPS} groups")
            group = add(f"({len(rules)}")
            rules[open_rules[-1]][-1].append(group)
            open_rules.append(group)
        elif text == ")":
            if len(open_rules) < 2:
                raise _UnreadableError
            open_rules.pop()
        elif text == "|":
            rules[open_rules[-1]].append([])
        elif match["repeat"]:
            _repeat(rules, rules[open_rules[-1]][-1], match, f"*{len(rules)}")
        else:
            item = text if kind == "name" else kind == "empty"
            rules[open_rules[-1]][-1].append(item)
    return rules


def _repeat(rules: _Rules, items: list[_Item], match: re.Match[str], name: str) -> None:
    """Rewrite the last item x of `items`: x* -> r, r ::= x r | nothing; x+ -> x r."""
    if not items:
        raise _UnreadableError
    item = items.pop()
    sign, most = match["repeat"], match["most"]
    least = int(match["least"][:6]) if match["least"] else int(sign == "+")
    copies = int(most[:6]) if most else least
    if copies < least or copies > MAX_REPEAT:
        raise GrammarError(f"{sign}: expected at most {MAX_REPEAT} and no less than the least")
    if sign in "*+" or (match["open"] is not None and not most):
        rules[name] = [[item, name], []]
    elif sign == "?" or copies > least:
        rules[name] = [[item] * max(copies - least, 1), []]
    items.extend([item] * least)
    if name in rules:
        items.append(name)


def _empty_rules(rules: _Rules) -> set[str]:
    """Return the rules that may produce nothing, through others too."""
    empty: set[str] = set()
    while True:
        more = {
            name
            for name, alternatives in rules.items()
            if name not in empty
            and any(all(item is True or item in empty for item in a) for a in alternatives)
        }
        if not more:
            return empty
        empty |= more


def _check_recursion(rules: _Rules) -> None:
    empty = _empty_rules(rules)
    # first[rule]: the rules that it may begin with, and whether something follows them there.
    first: dict[str, dict[str, bool]] = {name: {} for name in rules}
    for name, alternatives in rules.items():
        for items in alternatives:
            for i, item in enumerate(items):
                if isinstance(item, str) and item in rules:
                    follows = i + 1 < len(items)
                    first[name][item] = first[name].get(item, False) or follows
                if not (item is True or item in empty):
                    break
    component = _components(first)
    _check_width(rules, empty, component)
    for name, others in first.items():
        for other, follows in others.items():
            if follows and component[name] == component[other]:
                shown = next((n for n in (name, other) if n[0] not in "(*"), "root")
                raise GrammarError(f"the grammar is left-recursive in rule {shown!r}")


def _check_width(rules: _Rules, empty: set[str], order: Iterable[str]) -> None:
    """Count with how many terminals each rule may begin, those that it may begin with first."""
    width: dict[str, int] = {}
    for name in order:
        width[name] = 0
        for items in rules[name]:
            for item in items:
                width[name] += width.get(item, 0) if isinstance(item, str) else 1
                if not (item is True or item in empty):
                    break
        if width[name] > MAX_WIDTH:
            raise GrammarError(f"the grammar can go on in more than {MAX_WIDTH} ways at once")


def _components(first: dict[str, dict[str, bool]]) -> dict[str, int]:
    """Return the number of each rule's strongly connected component (Tarjan), without recursion.

    In such an order that a rule comes after those that it begins with.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    component: dict[str, int] = {}
    stack: list[str] = []
    for root in first:
        if root in index:
            continue
        work = [(root, iter(first[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            if len(work) > MAX_CHAIN:
                raise GrammarError(f"more than {MAX_CHAIN} rules begin with one another")
            name, others = work[-1]
            for other in others:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    work.append((other, iter(first[other])))
                    break
                if other not in component:
                    low[name] = min(low[name], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    while name not in component:
                        component[stack.pop()] = index[name]
    return component
