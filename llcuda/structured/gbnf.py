"""Translation of GBNF, llama.cpp's notation for grammars, to Lark as llguidance reads it.

A regular grammar becomes one terminal. In other grammars each character is a terminal of its own: a
lexer takes the longest match, and would lose texts that GBNF allows, such as "abc" of `[a-z]+ "c"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from llcuda.native.gbnf import Alternatives, Item, closure, error_at, grammar_error, parse

MAX_RULES = 20_000  # rules and groups
_ANY = "/(?s:.)/"
_TOKEN = re.compile(r"!<\[[0-9]+\]>|<[^<>\s]+>")
_CHARACTER = re.compile(
    r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}


def to_lark(grammar: str) -> tuple[str, float]:
    """Translate a grammar, in time that grows with its length only.

    Args:
        grammar: GBNF whose first rule is `root`; rules may stand in any order.

    Returns:
        A Lark grammar of the same texts, and of the tokens that the grammar names; and what it
        costs to compile, see `llcuda.structured.cost`.

    Raises:
        GrammarError: The grammar cannot be read, has too many rules, a rule is missing or defined
            twice, or no finite text satisfies one.
    """
    parsed = parse(grammar, MAX_RULES)
    if parsed.error is not None:
        raise parsed.error
    rules: dict[str, Alternatives] = {}
    for rule in parsed.rules:
        if rule.name in rules:
            raise error_at(grammar, rule.position, f"rule {rule.name!r} is defined twice")
        rules[rule.name] = rule.alternatives
    _check(rules)
    is_regular = _is_regular(rules)
    prefix = "R" if is_regular else "r"  # a terminal's name in Lark is upper-case
    names = {name: f"{prefix}{i}" for i, name in enumerate(rules)}

    def lark(item: Item) -> str:
        if len(item.repeats) > 1:
            raise error_at(grammar, item.position, "two repetitions in a row; use parentheses")
        for repeat in item.repeats:
            if repeat.maximum is not None and repeat.maximum < repeat.minimum:
                raise error_at(grammar, item.position, f"{repeat} allows no number of repetitions")
        try:
            symbol = names[item.text] if item.kind == "name" else _terminal(item)
        except ValueError as error:
            raise error_at(grammar, item.position, str(error)) from None
        if any(repeat.maximum == 0 for repeat in item.repeats):
            return '""'
        return symbol + "".join(map(str, item.repeats))

    lines = [f"start: {names['root']}"]
    for name, alternatives in rules.items():
        sequences = (" ".join(map(lark, items)) or '""' for items in alternatives)
        lines.append(f"{names[name]}: {' | '.join(sequences)}")
    cost = _expanded_size(rules) if is_regular else _parser_cost(rules)
    return "\n".join(lines), cost


def _expanded_size(rules: Mapping[str, Alternatives]) -> float:
    """Return the size of a regular grammar whose rules are written out in one another."""
    sizes: dict[str, float] = {}
    pending = ["root"]
    while pending:
        items = [item for sequence in rules[pending[-1]] for item in sequence]
        if missing := [name for name in _names(items) if name not in sizes]:
            pending += missing
        else:
            sizes[pending.pop()] = sum(_item_size(item, sizes) for item in items)
    return sizes["root"]


def _item_size(item: Item, sizes: Mapping[str, float]) -> float:
    size = sizes[item.text] if item.kind == "name" else float(len(item.text))
    for repeat in item.repeats:
        size *= max(repeat.minimum, repeat.maximum or 0) + 1
    return size + 1


def _parser_cost(rules: Mapping[str, Alternatives]) -> float:
    """Return the cost of a grammar whose items the parser may all follow at once."""
    items = (item for rule in rules.values() for sequence in rule for item in sequence)
    size = sum(_item_size(item, dict.fromkeys(rules, 1.0)) for item in items)
    return size * size / 100


def _terminal(item: Item) -> str:
    """Translate a text, a set of characters or a token. Raises ValueError."""
    if item.kind == "any":
        return _ANY
    if item.kind == "token":
        if not _TOKEN.fullmatch(item.text):
            raise ValueError("expected a token such as <think>, <[5]> or !<[5]>")
        return item.text.replace("!<[", "<[^")
    if item.kind == "text":
        characters = " ".join(f"/{_escaped(character)}/" for character, _ in _characters(item.text))
        return f"({characters})" if characters else '("")'
    return _set(item.text)


def _set(text: str) -> str:
    negated = text.startswith("^")
    characters = list(_characters(text[negated:]))
    ranges, place = [], 0
    while place < len(characters):
        first = last = characters[place][0]
        if characters[place + 1 : place + 2] == [("-", False)] and place + 2 < len(characters):
            last = characters[place + 2][0]
            place += 2
        if last < first:
            raise ValueError(f"the range {first!r} to {last!r} is empty")
        ranges.append(f"{_escaped(first)}-{_escaped(last)}")
        place += 1
    if ranges:
        return f"/[{'^' if negated else ''}{''.join(ranges)}]/"
    if negated:
        return _ANY
    raise ValueError("this set has no characters")


def _characters(text: str) -> Iterator[tuple[str, bool]]:
    """Return the characters of a text or a set, and whether they were escaped."""
    for match in _CHARACTER.finditer(text):
        digits = match[1] or match[2] or match[3]
        if match[4] and match[4] not in _ESCAPES:
            raise ValueError(f"unknown escape \\{match[4]}")
        if digits and (int(digits, 16) > 0x10FFFF or 0xD800 <= int(digits, 16) < 0xE000):
            raise ValueError(f"{match[0]} is not a character")
        character = chr(int(digits, 16)) if digits else _ESCAPES.get(match[4] or "", match[5])
        yield character, match[5] is None


def _escaped(character: str) -> str:
    return f"\\x{{{ord(character):X}}}"


def _is_regular(rules: Mapping[str, Alternatives]) -> bool:
    """Whether no rule leads to itself, and no token is named."""
    items = {name: [item for items in rules[name] for item in items] for name in rules}
    if any(item.kind == "token" for rule in items.values() for item in rule):
        return False
    return len(closure([(name, _names(rule)) for name, rule in items.items()])) == len(rules)


def _check(rules: Mapping[str, Alternatives]) -> None:
    """Raise GrammarError for a rule that is missing, or that no finite text can satisfy."""
    sequences = [(name, items) for name, rule in rules.items() for items in rule]
    for name in ("root", *(name for _, items in sequences for name in _names(items))):
        if name not in rules:
            raise grammar_error(f"it has no rule {name!r}")
    required = [
        (name, _names(item for item in items if not item.is_optional)) for name, items in sequences
    ]
    finite = closure(required)
    if endless := next((name for name in rules if name not in finite), None):
        raise grammar_error(f"no text ever ends rule {endless.partition('(')[0]!r}")


def _names(items: Iterable[Item]) -> list[str]:
    return [item.text for item in items if item.kind == "name"]
