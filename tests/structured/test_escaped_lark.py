"""Lark grammars of texts within a JSON string."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from llcuda import Model, structured
from llcuda.errors import GrammarError
from llcuda.structured.escaped_lark import START, escaped_rules
from tests.support.guides import fits

PATCH = r"""
start: begin hunk+ end
begin: "*** Begin Patch" LF
end: "*** End Patch" LF?
hunk: "*** Add File: " /(.+)/ LF ("+" /(.*)/ LF)+  // a "comment"
%import common.LF
"""


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        (PATCH, ['*** Begin Patch\n*** Add File: "a"\n+x\\y\n+\n*** End Patch'],
         ["*** Begin Patch\n*** End Patch", '*** Begin Patch\n*** Add File: \n+\n*** End Patch\n']),
        ('start: "say \\"hi\\"" | /[\\n"]+/', ['say "hi"', '\n"\n'], ["say hi", "n", "\\"]),
        (r'start: /[^a]{2}\t(x|\\)?/', ['b"\t', "\\\n\tx", "é\u0001\t\\"], ["ab\t", "bb t"]),
        ('start: ("a".."c")+ "xé/"i | "." .. "0"', ["abcXÉ/", "/"], ["dx"]),
        (r'start: (" ".."~")+', ['a"\\~'], ["é", "\n"]),
        (r"start: /.+/s /\d\x22\u{5c}[\s]/", ['a\n"1"\\\n'], ['"1"\\x']),
        ("start: NUMBER WS NAME\n%import common.NUMBER\n%import common.WS\n"
         "%import common.ESCAPED_STRING -> NAME", ['1.5 \t"a\\"b"'], ['1.5 "a']),
        ('start: a{2} A? // twice\na: "x"\nA: /(b|c\\.|)+?d{1,2}/', ["xx", "xxc.bd", "xxdd"],
         ["x", "xxb"]),
        ('start: (line "\\n")+ "end"\nline: /[^\\n]*/', ["en\nend\nend"], ["end", "en"]),
    ],
)  # fmt: skip
def test_texts_within_a_call(model: Model, grammar: str, yes: list[str], no: list[str]) -> None:
    """The same texts as JSON has them, and no others."""
    rules = f"start: {START}\n{escaped_rules(grammar)}"
    compiled = structured.compile(model, {"type": "lark", "grammar": rules})

    def is_kept(text: str) -> bool:
        return fits(model, compiled, json.dumps(text, ensure_ascii=False)[1:-1])

    assert [text for text in yes if not is_kept(text)] == []
    assert [text for text in no if is_kept(text)] == []


@pytest.mark.parametrize(
    "grammar",
    ['start: "a"\n%ignore " "', 'A.2: "a"', "start: /(a/", "start: /a)/", "start: /*/",
     'start: %json {"type": "object"}', "start: /a/ & /b/", "start: ~/a/", "start: @other",
     "start: <think>", 'start[lazy]: "a"', "start: /^a/", "start: /a$/", r"start: /\bA/",
     r"start: /\p{L}/", "start: /(?i:a)/", "start: /(?=a)b/", "start: /[a&&b]/", "start: /[[:a:]]/",
     "start: /a/i", r'start: "\x41"', "start: A\n%import common.B",
     "start: /[z-a]/"],
)  # fmt: skip
def test_what_is_refused(grammar: str) -> None:
    """What would have another meaning, or none, within JSON."""
    with pytest.raises(GrammarError, match="cannot be kept within a call"):
        escaped_rules(grammar)


def test_hostile_grammars() -> None:
    """Neither the depth nor the size of a grammar is the process's."""
    with pytest.raises(GrammarError, match="nested too deeply"):
        escaped_rules(f"start: /{'(' * 30_000}a{')' * 30_000}/")
    with pytest.raises(GrammarError, match="at most 65536"):
        escaped_rules("start: " + '"a"' * 30_000)
    classes = " ".join(f"/[\\n\\x{number:02x}]/" for number in range(256)) * 20
    assert escaped_rules(f"start: {classes}")
