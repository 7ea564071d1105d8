"""A small template language: `{a|b}` chooses, `$key` fills in a word, `{a|~b}` reserves b.

An option that begins with `~` is never chosen for training text; held-out text chooses reserved
options half of the time, so that a model can be tried on wordings it never saw. The module knows
nothing of stories.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar
from zlib import crc32


class Slot(NamedTuple):
    """A word to fill in."""

    key: str


class Choice(NamedTuple):
    """Alternatives; `reserved` ones are for held-out text."""

    options: tuple[tuple["Part", ...], ...]
    reserved: tuple[tuple["Part", ...], ...]
    site: int


Part = str | Slot | Choice
Item = TypeVar("Item")

_TOKEN = re.compile(r"\$(\w+)|([{}|])|([^${}|]+)")
_SENTENCE_START = re.compile(r'(^|[.!?:] |[.!?:,] "|^"|\n"?)([a-z])')


@cache
def parse(template: str) -> tuple[Part, ...]:
    """The parts of a template; raises ValueError when braces do not match."""
    stack: list[list[list[Part]]] = [[[]]]
    for slot, mark, literal in _TOKEN.findall(template):
        if mark == "{":
            stack.append([[]])
        elif mark == "|" and len(stack) > 1:
            stack[-1].append([])
        elif mark == "}" and len(stack) > 1:
            stack[-2][-1].append(_choice(stack.pop()))
        elif mark:
            raise ValueError(f"unexpected {mark!r} in template {template!r}")
        else:
            stack[-1][-1].append(Slot(slot) if slot else literal)
    if len(stack) != 1:
        raise ValueError(f"unclosed brace in template {template!r}")
    return tuple(stack[0][0])


def _choice(options: list[list[Part]]) -> Choice:
    open_options: list[tuple[Part, ...]] = []
    reserved: list[tuple[Part, ...]] = []
    for option in options:
        if option and isinstance(option[0], str) and option[0].startswith("~"):
            reserved.append((option[0][1:], *option[1:]))
        else:
            open_options.append(tuple(option))
    site = crc32(repr((open_options, reserved)).encode())
    return Choice(tuple(open_options), tuple(reserved), site)


class Preferring(Random):
    """Random choices in which some options are likelier than others; which ones, `taste` says.

    Without preferences a model trained on the text would see ties everywhere, and its greedy output
    would hang on rounding errors; with one taste for all, every greedy story would be the same.
    """

    taste = 0

    def index(self, count: int, site: int) -> int:
        """A number below `count`; the favourite of n options has n ** (1 / 3) times its share."""
        return (int(count * self.random() ** 1.5) + site // 7 + site * self.taste) % count

    def choice(self, seq: Sequence[Item]) -> Item:  # type: ignore[override]
        """One element of a sequence whose first element has a stable `repr`."""
        return seq[self.index(len(seq), crc32(repr(seq[0]).encode()))]

    def several(self, population: Iterable[Item], count: int) -> list[Item]:
        """Different elements, the favourites more often."""
        pool = list(population)
        return [pool.pop(self.index(len(pool), 7919 * (i + 3))) for i in range(count)]


def options(text: str) -> tuple[str, ...]:
    """Alternatives written with "|" between them."""
    return tuple(text.split("|"))


def render(
    template: str,
    rng: Random,
    words: Mapping[str, str],
    *,
    held_out: bool = False,
    used: set[str] | None = None,
) -> str:
    """The template filled in, each sentence beginning with a capital letter."""
    out: list[str] = []
    _render(parse(template), rng, words, held_out, used, out)
    text = "".join(out)
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def _render(
    parts: tuple[Part, ...],
    rng: Random,
    words: Mapping[str, str],
    held_out: bool,
    used: set[str] | None,
    out: list[str],
) -> None:
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Slot):
            if used is not None:
                used.add(part.key)
            out.append(words[part.key])
        else:
            rows = part.options
            if part.reserved and ((held_out and rng.random() < 0.5) or not rows):
                rows = part.reserved
            if isinstance(rng, Preferring):
                index = rng.index(len(rows), part.site)
            else:
                index = int(rng.random() * len(rows))
            _render(rows[index], rng, words, held_out, used, out)
