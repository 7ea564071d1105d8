from __future__ import annotations

import pytest

from llcuda.errors import GrammarError
from llcuda.native.gbnf import MAX_GROUPS, Item, Repeat, Rule, closure, parse


def test_rules_groups_and_terminals() -> None:
    """A group is a rule named after the one around it; terminals stand as they are written."""
    grammar = parse('root ::= ("a\\n" | x)* [^b]+ !<[5]>\nx ::= . # any\n')
    assert grammar.error is None
    assert grammar.rules == [
        Rule(
            "root",
            0,
            [
                [
                    Item("name", "root(1", 9, [Repeat(0, None)]),
                    Item("set", "^b", 22, [Repeat(1, None)]),
                    Item("token", "!<[5]>", 28),
                ]
            ],
        ),
        Rule("root(1", 9, [[Item("text", "a\\n", 10)], [Item("name", "x", 18)]]),
        Rule("x", 35, [[Item("any", ".", 41)]]),
    ]


@pytest.mark.parametrize(
    ("text", "repeat", "again"),
    [
        ("*", Repeat(0, None), "*"),
        ("+", Repeat(1, None), "+"),
        ("?", Repeat(0, 1), "?"),
        ("{3}", Repeat(3, 3), "{3}"),
        ("{ 2 , }", Repeat(2, None), "{2,}"),
        ("{2,#two or three\n3}", Repeat(2, 3), "{2,3}"),
        ("{000,001}", Repeat(0, 1), "?"),
    ],
)
def test_repetitions(text: str, repeat: Repeat, again: str) -> None:
    """Numbers of repetitions; their text is GBNF again."""
    (rule,) = parse(f'root ::= "a"{text}').rules
    assert rule.alternatives[0][0].repeats == [repeat]
    assert str(repeat) == again


def test_a_number_of_any_length() -> None:
    """Numbers that no parser takes remain too large."""
    (rule,) = parse(f'root ::= "a"{{{"9" * 10_000}}}').rules
    assert rule.alternatives[0][0].repeats[0].minimum > 10**9


@pytest.mark.parametrize(
    ("grammar", "error"),
    [
        ('root ::= "a"\nb ::= %', r"line 2: this is not GBNF, at '%'"),
        ('root ::= "a" (b\nb ::= "c"', "line 2: a parenthesis is not closed before"),
        ("root ::= (b", "a parenthesis is not closed"),
        ("root ::= b)", "not opened"),
        ("root ::= *", "nothing to repeat"),
        ("no grammar at all", "expected name ::="),
    ],
)
def test_errors(grammar: str, error: str) -> None:
    """They name the line, and keep the rules before them."""
    parsed = parse(grammar)
    with pytest.raises(GrammarError, match=error):
        raise parsed.error or AssertionError
    assert [rule.name for rule in parsed.rules[:1]] == ["root"] * grammar.startswith("root")


def test_the_depth_of_groups() -> None:
    """Is limited, and reported at once: what follows may be anything."""
    assert parse(f"root ::= {'(' * MAX_GROUPS}a{')' * MAX_GROUPS}").error is None
    with pytest.raises(GrammarError, match="nests deeper"):
        parse(f"root ::= {'(' * (MAX_GROUPS + 1)} %")


def test_closure() -> None:
    """Names that follow from nothing, alone or together; not those that need themselves."""
    implications = [("a", []), ("b", ["a", "a"]), ("c", ["b", "d"]), ("d", ["d"]), ("c", ["e"])]
    assert closure(implications) == {"a", "b"}
    assert closure([*implications, ("e", ["a", "b"])]) == {"a", "b", "c", "e"}
    chain = [(f"r{i}", [f"r{i + 1}"]) for i in range(100_000)]
    assert len(closure([*chain, ("r100000", [])])) == 100_001
