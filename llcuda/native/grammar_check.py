"""Checks of a grammar that llama.cpp's parser would not survive.

llama.cpp's parser recurses into groups, copies what is repeated, and misses left recursion behind
a rule that may be empty through another one, which takes all memory when the grammar is used.
llama.cpp itself reports whatever else is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llcuda.native.gbnf import Grammar, Item, Repeat, closure, grammar_error, parse

MAX_CHAIN = 2000  # rules that begin with one another; llama.cpp's check of left recursion recurses
MAX_WIDTH = 10_000  # ways in which a text may go on; llama.cpp keeps a stack for each
MAX_REPEAT = 2000  # llama.cpp's own bound
MAX_ELEMENTS = 4 << 20  # of 8 bytes, which llama.cpp makes of repetitions
MAX_BYTES = 4 << 20

# A rule is a list of alternatives, an alternative a list of symbols: the name of a rule, or whether
# a terminal may be empty.
_Symbol = str | bool
_Rules = dict[str, list[list[_Symbol]]]


def check_grammar(grammar: str) -> None:
    """Refuse a grammar that would end the process or take all memory.

    Args:
        grammar: GBNF. A text that is not GBNF passes if its readable beginning does: llama.cpp says
            what is wrong.

    Raises:
        GrammarError: The grammar is left-recursive, nested too deeply, too large, or contains
            characters that C cannot be given.
    """
    try:
        size = len(grammar.encode())
    except UnicodeEncodeError as error:
        raise grammar_error(f"it cannot be encoded as UTF-8: {error}") from None
    if "\0" in grammar:
        raise grammar_error("it contains a NUL character")
    if size > MAX_BYTES:
        raise grammar_error(f"it has {size} bytes, at most {MAX_BYTES} are allowed")
    _check_recursion(_without_repeats(parse(grammar)))


def _without_repeats(grammar: Grammar) -> _Rules:
    """Return the rules, with repetitions as rules of their own."""
    rules: _Rules = {}
    elements = 0
    for rule in grammar.rules:
        rules[rule.name] = alternatives = []
        for items in rule.alternatives:
            symbols: list[_Symbol] = []
            for item in items:
                repeated = [_symbol(item)]
                size = len(item.text) if item.kind in ("text", "set") else 1
                for repeat in item.repeats:
                    elements += size * _copies(repeat)
                    if elements > MAX_ELEMENTS:
                        raise grammar_error(
                            f"it repeats more than {MAX_ELEMENTS} characters and rules"
                        )
                    size = size * repeat.minimum + 1
                    rest = f"{rule.name}*{len(rules)}"
                    repeated, rest_alternatives = _expand(repeated, repeat, rest)
                    if rest_alternatives:
                        rules[rest] = rest_alternatives
                symbols += repeated
            alternatives.append(symbols)
    return rules


def _copies(repeat: Repeat) -> int:
    """Return how often llama.cpp copies what is repeated."""
    copies = max(repeat.minimum, 1) if repeat.maximum is None else repeat.maximum
    if copies < repeat.minimum or copies > MAX_REPEAT:
        raise grammar_error(
            f"{repeat}: expected at most {MAX_REPEAT} repetitions and no less than the least"
        )
    return copies


def _expand(
    symbols: list[_Symbol], repeat: Repeat, rest: str
) -> tuple[list[_Symbol], list[list[_Symbol]]]:
    """Return x{2,} as x x rest, and the alternatives of the rule rest ::= x rest | nothing."""
    required = symbols * repeat.minimum
    if repeat.maximum is None:
        return [*required, rest], [[*symbols, rest], []]
    optional = symbols * (repeat.maximum - repeat.minimum)
    return ([*required, rest], [optional, []]) if optional else (required, [])


def _symbol(item: Item) -> _Symbol:
    if item.kind == "name":
        return item.text
    return item.text == "" or (item.kind, item.text) == ("set", "^")


def _check_recursion(rules: _Rules) -> None:
    empty = closure(  # the rules that may produce nothing, through others too
        [
            (name, [symbol for symbol in symbols if isinstance(symbol, str)])
            for name, alternatives in rules.items()
            for symbols in alternatives
            if False not in symbols
        ]
    )
    # first[rule]: the rules that it may begin with, and whether something follows them there.
    first: dict[str, dict[str, bool]] = {name: {} for name in rules}
    for name, alternatives in rules.items():
        for symbols in alternatives:
            for i, symbol in enumerate(symbols):
                if isinstance(symbol, str) and symbol in rules:
                    follows = i + 1 < len(symbols)
                    first[name][symbol] = first[name].get(symbol, False) or follows
                if not (symbol is True or symbol in empty):
                    break
    component = _components(first)
    _check_width(rules, empty, component)
    for name, others in first.items():
        for other, follows in others.items():
            if follows and component[name] == component[other]:
                written = re.split(r"[(*]", name)[0]  # not the name of a group or a repetition
                raise grammar_error(
                    f"it is left-recursive in rule {written!r}",
                    "write the repetition as x* or x+",
                )


def _check_width(rules: _Rules, empty: set[str], order: Iterable[str]) -> None:
    """Count with how many terminals each rule may begin, those that it may begin with first."""
    width: dict[str, int] = {}
    for name in order:
        width[name] = 0
        for symbols in rules[name]:
            for symbol in symbols:
                width[name] += width.get(symbol, 0) if isinstance(symbol, str) else 1
                if not (symbol is True or symbol in empty):
                    break
        if width[name] > MAX_WIDTH:
            raise grammar_error(f"it can go on in more than {MAX_WIDTH} ways at once")


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
                raise grammar_error(f"more than {MAX_CHAIN} rules begin with one another")
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
