from __future__ import annotations

from pathlib import Path

import pytest

from llcuda.errors import GrammarError
from llcuda.native.grammar_check import MAX_CHAIN, check_grammar

GRAMMARS = Path(__file__).parents[2] / "vendor" / "llama.cpp" / "grammars"


def test_the_grammars_of_llama_cpp_pass() -> None:
    """None of the examples is refused."""
    files = sorted(GRAMMARS.glob("*.gbnf"))
    assert len(files) >= 5, "run python build/fetch.py"
    for path in files:
        check_grammar(path.read_text())


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" root | "b"',
        'root ::= ("a"?)* "b"',
        'root ::= list "."\nlist ::= "a" ("," list)?',
        "root ::= e root\ne ::= [a]?",
        'root ::= "((((((((" [(]* "\\"" # (((((',
        'root ::= <think> "a" </think> !<[3]>* .',
        'root ::=\n  "a" |\n  "b"{2,5}',
        "root ::= ",
        "",
        ")(",
        "no grammar at all",
        'root ::= "a" ' + "#" * 100,
    ],
)
def test_what_is_fine_or_llama_cpps_business_passes(grammar: str) -> None:
    """Right recursion, literals with brackets, what does not parse at all."""
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('root ::= root "a" | "b"', "left-recursive"),
        ('root ::= e root "a"\ne ::= "b"?', "left-recursive"),
        ('root ::= e root "a"\ne ::= f\nf ::= "" | "b"', "left-recursive"),
        ('root ::= ("x"* root | "a") "b"', "left-recursive"),
        ('root ::= ("a" | root)* "b"', "left-recursive"),
        ('root ::= x{0,3} root "a"\nx ::= "b"', "left-recursive"),
        (f"root ::= {'(' * 201}a{')' * 201}", "nests deeper"),
        ("\n".join(f"r{i} ::= r{i + 1}" for i in range(MAX_CHAIN + 1)), "begin with one another"),
        ('root ::= "a"{3,1}', "no less than the least"),
        ('root ::= "a"{1000000000}', "at most 2000"),
        ('root ::= "a"{3,1} * )', "no less than the least"),
        ('root ::= "a"{3,1}\nroot ::= "b"', "no less than the least"),
        (f'root ::= "{"x" * 10_000}"{{2000}}', "repeats more than"),
        ('root ::= "a"' + "{2000}" * 1000, "repeats more than"),
        (f'root ::= "{"x" * 10_000}"{"+" * 1000}', "repeats more than"),
        ('root ::= (x{ # none\n 0,3}) root "a"', "left-recursive"),
        ('root ::= [] root "a"', "left-recursive"),
        ('root ::= ((("a"?){99}){99}){99}', "ways at once"),
        ("root ::= a a a a\na ::= b b b b\nb ::= c{0,99}\nc ::= d{50}\nd ::= [x]*", "ways at once"),
        ('root ::= "\0"', "NUL"),
        ('root ::= "\ud800"', "UTF-8"),
        ("#" * (5 << 20), "bytes"),
    ],
    ids=lambda value: value[:40],
)
def test_what_would_end_the_process_is_refused(grammar: str, why: str) -> None:
    """Left recursion that takes all memory, depth that takes the stack."""
    with pytest.raises(GrammarError, match=why):
        check_grammar(grammar)
