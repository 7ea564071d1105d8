from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llcuda import Model, Sampler
from llcuda import samplers as steps
from llcuda.errors import ArgumentError, GrammarError, SamplingError
from tests.support import models
from tests.support.chains import Float32

DIGITS = 'root ::= [0-9] [0-9] [0-9] "."'


def text_of(model: Model, sampler: Sampler, logits: Float32, max_tokens: int = 20) -> str:
    """Return what is sampled until a token ends it."""
    raw = b""
    for _ in range(max_tokens):
        token = sampler.sample_logits(logits, model)
        if model.is_eog(token):
            break
        raw += model.piece_bytes(token)
    return raw.decode()


@pytest.mark.parametrize("seed", range(5))
def test_a_grammar_is_obeyed(seed: int, model: Model, logits: Float32) -> None:
    """Only texts of the grammar come out, and the end comes when it is complete."""
    text = text_of(model, Sampler(grammar=DIGITS, seed=seed, top_k=0, top_p=1.0), logits)
    assert (4, ".") == (len(text), text[-1])
    assert text[:3].isdigit()


def test_a_grammar_goes_on_in_a_clone_and_starts_anew_after_reset(
    model: Model, logits: Float32
) -> None:
    """The state of the grammar belongs to the sampler."""
    sampler = Sampler(grammar=DIGITS, temperature=0)
    first = model.piece(sampler.sample_logits(logits, model))
    rest = text_of(model, sampler.clone(), logits)
    assert 3 == len(rest)
    sampler.reset()
    assert first + rest == text_of(model, sampler, logits)


def test_a_lazy_grammar_begins_at_its_pattern(model: Model, logits: Float32) -> None:
    """Free text until the trigger; then the grammar holds."""
    sampler = Sampler(
        chain=[steps.Grammar('root ::= "#" [0-9] [0-9]', patterns=[r"[\s\S]*?(#)"]), steps.Greedy()]
    )
    free = model.piece(sampler.sample_logits(logits, model))
    assert free == model.piece(int(logits.argmax()))
    sampler.accept(model.tokenize("#", add_special=False)[0])
    assert text_of(model, sampler, logits).isdigit()


def test_a_token_that_the_grammar_forbids_is_not_accepted(model: Model) -> None:
    """accept() of a foreign token is a SamplingError."""
    sampler = Sampler(grammar=DIGITS, model=model)
    with pytest.raises(SamplingError):
        sampler.accept(model.tokenize("x", add_special=False)[0])


NO_GRAMMARS = {
    "empty": "",
    "no root": "a ::= [0-9]",
    "undefined rule": "root ::= number",
    "unfinished": "root ::= [0-9",
    "no text": 'root ::= "',
    "garbage": "%%% ??? :::",
    "left recursion": 'root ::= root "a" | "b"',
    "left recursion through others": 'root ::= a\na ::= b "x"\nb ::= a | "y"',
    "left recursion behind nothing": 'root ::= e root "a"\ne ::= "b"?',
    "too deep": f"root ::= {'(' * 100_000}[0-9]{')' * 100_000}",
    "unbalanced": f"root ::= {'(' * 150}[0-9]",
    "too many": 'root ::= "a"{1000000000}',
    "negative repetition": 'root ::= "a"{3,1}',
    "overflowing repetition": 'root ::= "a"{99999999999999999999999}',
    "nested repetition": 'root ::= (((("a"?){99}){99}){99}){99}',
    "NUL": 'root ::= "a\0b"',
    "surrogate": 'root ::= "\ud800"',
    "bad escape": 'root ::= "\\x"',
    "bad token": "root ::= <[99999999]>",
}


@pytest.mark.parametrize("name", NO_GRAMMARS)
def test_no_grammar(
    name: str, model: Model, logits: Float32, capfd: pytest.CaptureFixture[str]
) -> None:
    """What does not parse is a GrammarError, and nothing is printed."""
    with pytest.raises((GrammarError, SamplingError)) as caught:
        Sampler(grammar=NO_GRAMMARS[name], model=model).sample_logits(logits)
    assert str(caught.value)
    assert ("", "") == capfd.readouterr()


@pytest.mark.parametrize("pattern", ["[", "(", "a{2", "*", "\ud800", "a\0b", 5])
def test_no_pattern_of_a_lazy_grammar(pattern: object, model: Model) -> None:
    """An invalid regular expression is a GrammarError."""
    with pytest.raises((GrammarError, ArgumentError)):
        step = steps.Grammar(DIGITS, patterns=[pattern])  # type: ignore[list-item]
        Sampler(chain=[step, steps.Greedy()], model=model)


@pytest.mark.parametrize(
    "pattern",
    ["(" * 3000 + ")" * 3000, "(" * 2047 + ")" * 2047 + "[", "x" * 4097, "(a{1000}){1000}"],
)
def test_a_pattern_that_is_too_much(pattern: str, model: Model) -> None:
    """Deep nesting and explosion of a lazy grammar's pattern."""
    with pytest.raises((GrammarError, ArgumentError)):
        step = steps.Grammar(DIGITS, patterns=[pattern])
        Sampler(chain=[step, steps.Greedy()], model=model)


def test_a_long_text_before_a_lazy_grammar(model: Model, tmp_path: Path) -> None:
    """Regular expressions recurse for each character; 24,000 would overflow the stack."""
    metadata, tensors = models.llama()
    metadata["tokenizer.ggml.tokens"][100] = "x" * 10_000
    with Model(models.write(tmp_path / "long.gguf", metadata, tensors)) as long:
        step = steps.Grammar('root ::= "#" [0-9]', patterns=["^x*(#)$"])
        sampler = Sampler(chain=[step, steps.Greedy()], model=long)
        for _ in range(15):
            sampler.accept(100)
        sampler.accept(ord("#"))
        assert long.piece(sampler.sample_logits(np.zeros(models.VOCABULARY))).isdigit()
        lazy = Sampler(chain=[steps.Grammar(DIGITS, tokens=[5]), steps.Greedy()], model=long)
        with pytest.raises(SamplingError, match="1 MiB"):
            for _ in range(200):
                lazy.accept(100)
