"""Structured output in the tokens of real vocabularies."""

from __future__ import annotations

import pytest

from llcuda import Model, structured
from llcuda.errors import GrammarError
from llcuda.structured import CompiledGrammar


def allows(model: Model, grammar: CompiledGrammar, text: str) -> bool:
    """Whether a guide allows each token of a text, as the model's tokenizer divides it."""
    guide = grammar.guide()
    for token in model.tokenize(text, add_special=False):
        if not guide.mask()[token // 32] >> token % 32 & 1:
            return False
        guide.accept(token)
    return True


@pytest.mark.parametrize("name", ["gemma", "qwen"])
def test_escapes_end_as_they_begin(name: str, request: pytest.FixtureRequest) -> None:
    r"""A model that begins "Se\u00f1or" can write all of it; an escaped name is the name."""
    model: Model = request.getfixturevalue(name)
    properties = {"name": {"type": "string"}, "n": {"type": "integer"}}
    grammar = structured.compile(model, schema={"type": "object", "properties": properties})
    for value in (r"Se\u00f1or", r"caf\u00e9", r"\ud83e\udd8a", r"tab\t", "Señor"):
        assert allows(model, grammar, f'{{"name": "{value}"}}')
    assert allows(model, grammar, '{"name": "x", "other": "y"}')
    assert not allows(model, grammar, r'{"name": "x", "\u006e": "y"}')


def test_what_a_large_vocabulary_makes_too_complex_is_refused(qwen: Model) -> None:
    """Before the first token: its masks pass the lexer's limit at the second one."""
    patterns = [{"pattern": pattern} for pattern in (" an", "she", "doctor")]
    schema = {"type": "string", "maxLength": 2000, "allOf": patterns}
    with pytest.raises(GrammarError, match=r"too complex .*too many expressions"):
        structured.compile(qwen, schema=schema)
    structured.compile(qwen, schema={**schema, "allOf": patterns[:1]})
