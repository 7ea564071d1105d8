r"""Lark grammars of texts within a JSON string.

The argument of a call is written as JSON, while a grammar describes the text. Each character of the
text becomes a terminal of its own, as JSON has it: `\n` for a line end. A terminal of several
characters would need two bytes of lookahead to end before an escape, which llguidance's lexer does
not have.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from llcuda.errors import GrammarError

START = "r_start"  # the name of the first rule
MAX_CHARS = 2**16
_ESCAPED = ('"', "\\", *map(chr, range(0x20)))  # characters that a JSON string escapes
_UNESCAPED = r'[^"\\\x00-\x1f]'
# Where a class has an unescaped character, if it has one.
_OTHERS = "".join(chr(code) for code in range(0x20, 0x3000) if chr(code) not in _ESCAPED)
_PART = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
    |"(?P<low>\\.|[^"\\\n])"\s*\.\.\s*"(?P<high>\\.|[^"\\\n])"
    |(?P<text>"(?:\\.|[^"\\\n])*")(?P<case>i?)
    |/(?P<regex>(?:\\.|[^/\\\n])+)/(?P<flags>[a-z]*)
    |%import\s+common\.(?P<common>\w+)(?:[ \t]*->[ \t]*(?P<alias>\w+))?
    |(?P<refused>%\w+|@\w+|<[^<>\s]+>|&|~(?!\s*\d)|\w+\.-?\d+|\w+\[[^\]]*\](?=\s*:))
    |(?P<name>[A-Za-z_]\w*)""",
    re.VERBOSE,
)
_COMMON = {
    "DIGIT": "[0-9]", "HEXDIGIT": "[a-fA-F0-9]", "INT": "[0-9]+", "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+", "LCASE_LETTER": "[a-z]", "UCASE_LETTER": "[A-Z]",
    "LETTER": "[a-zA-Z]", "WORD": "[a-zA-Z]+", "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*", "LF": r"\n",
    "CR": r"\r", "NEWLINE": r"(\r?\n)+", "WS": r"[ \t\f\r\n]+", "WS_INLINE": r"[ \t]+",
    "FLOAT": r"[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "NUMBER": r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "ESCAPED_STRING": r'"([^"\\\n]|\\.)*"',
}  # fmt: skip
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a"}
_CODE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|[xu]\{([0-9a-fA-F]{1,6})\})")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\\[])*\]")
_GROUP = re.compile(r"\((?:\?(?::|P?<[A-Za-z]\w*>))?(?!\?)")
_COUNT = re.compile(r"([*+?]|\{\d+(?:,\d*)?\})\??")


def escaped_rules(grammar: str) -> str:
    """Return the rules of a grammar for its texts within a JSON string.

    Args:
        grammar: A grammar in llguidance's Lark.

    Returns:
        Rules in llguidance's Lark, whose first one is called `START`.

    Raises:
        GrammarError: It has a part that cannot be rewritten.
    """
    if len(grammar) > MAX_CHARS:
        rule = f"a grammar of {len(grammar)} characters cannot be kept within a call"
        raise GrammarError(f"{rule}, at most {MAX_CHARS}")
    try:
        return _PART.sub(_rewritten, grammar)
    except RecursionError:
        raise GrammarError("a regular expression is nested too deeply") from None


def _rewritten(part: re.Match[str]) -> str:
    if name := part["name"]:
        return _renamed(name)
    if part["comment"] is not None:
        return ""
    if text := part["text"]:
        return _literal(text, bool(part["case"]))
    if low := part["low"]:
        bounds = (re.escape(_read(f'"{bound}"')) for bound in (low, part["high"]))
        return _class_terminal(f"[{'-'.join(bounds)}]".replace("/", r"\/"))
    if (pattern := part["regex"]) and part["flags"] in ("", "s"):
        return _RegexReader(pattern, bool(part["flags"])).read()
    if (name := part["common"]) in _COMMON:
        return f"{_renamed(part['alias'] or name)}: {_RegexReader(_COMMON[name], False).read()}"
    raise _refused(part[0])


def _renamed(name: str) -> str:
    """Return the name of a rule, which terminals become as well."""
    return f"{'t' if name.lstrip('_')[:1].isupper() else 'r'}_{name.lower()}"


def _read(literal: str) -> str:
    try:
        return str(json.loads(literal))  # as llguidance reads it
    except ValueError:
        raise _refused(literal) from None


def _literal(literal: str, any_case: bool) -> str:
    text = _read(literal)
    if not text:
        return '""'
    letters = [(letter.lower(), letter.upper()) if any_case else (letter,) for letter in text]
    terminals = [" | ".join(map(_terminal, dict.fromkeys(options))) for options in letters]
    return f"({' '.join(f'({one})' if any_case else one for one in terminals)})"


def _terminal(letters: str) -> str:
    """Return the terminal of a character, whose other case may be several."""
    return json.dumps(json.dumps(letters, ensure_ascii=False)[1:-1], ensure_ascii=False)


@lru_cache(maxsize=256)
def _class_terminal(text: str) -> str:
    """Return the terminal of a class of characters."""
    try:
        members = re.compile(text)
    except re.error:
        raise _refused(text) from None
    escaped = [letter for letter in _ESCAPED if members.fullmatch(letter)]
    parts = [re.escape(json.dumps(letter)[1:-1]) for letter in escaped]
    if not escaped:
        parts = [text]
    elif text.startswith("[^") or members.search(_OTHERS):
        parts.append(f"[{text}&&{_UNESCAPED}]")
    return f"/{'|'.join(parts)}/"


class _RegexReader:
    """Rewrites a regular expression as an expression of Lark, character by character."""

    def __init__(self, pattern: str, dot_is_any: bool) -> None:
        self._pattern = pattern
        self._rest = pattern
        self._dot = r"[\s\S]" if dot_is_any else r"[^\n]"

    def read(self) -> str:
        expression = self._alternatives()
        if self._rest:
            raise _refused(f"/{self._pattern}/")
        return expression

    def _alternatives(self) -> str:
        options = [self._sequence()]
        while self._rest.startswith("|"):
            self._rest = self._rest[1:]
            options.append(self._sequence())
        return f"({' | '.join(options)})"

    def _sequence(self) -> str:
        items = []
        while self._rest and self._rest[0] not in "|)":
            item = self._atom()
            if count := _COUNT.match(self._rest):
                self._rest = self._rest[count.end() :]
                item += count[1]
            items.append(item)
        return " ".join(items) or '""'

    def _atom(self) -> str:
        letter, rest = self._rest[0], self._rest
        if letter == "(" and (group := _GROUP.match(rest)):
            self._rest = rest[group.end() :]
            inner = self._alternatives()
            if not self._rest.startswith(")"):
                raise _refused(f"/{self._pattern}/")
            self._rest = self._rest[1:]
            return inner
        found = _CLASS.match(rest)
        if found is not None and not re.search(r"&&|--|~~", found[0]):
            self._rest = rest[found.end() :]
            return _class_terminal(found[0])
        if letter in "([*+?{^$":
            raise _refused(f"/{self._pattern}/")
        if letter == "\\":
            return self._escape()
        self._rest = rest[1:]
        return _class_terminal(self._dot) if letter == "." else _terminal(letter)

    def _escape(self) -> str:
        code = _CODE.match(self._rest)
        escape = code[0] if code else self._rest[:2]
        self._rest = self._rest[len(escape) :]
        letter = escape[1:]
        if code is not None:
            return _terminal(chr(min(int(code[1] or code[2] or code[3], 16), 0x10FFFF)))
        if letter in _LETTERS:
            return _terminal(_LETTERS[letter])
        if letter in ("d", "w", "s", "D", "W", "S"):
            return _class_terminal(f"[{escape}]")
        if letter.isalnum() or not letter:
            raise _refused(escape)
        return _terminal(letter)


def _refused(part: str) -> GrammarError:
    return GrammarError(f"{part.strip()[:80]!r} cannot be kept within a call")
