"""Messages about arguments: the parameter, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import ChatTemplate, Context, ImportanceMatrix, Model, Sampler, quantize
from llcuda.errors import BatchError, LlcudaError
from llcuda.samplers import Greedy

Make = Callable[..., Context]

FIRST = 'write rules such as root ::= "yes" | "no"'
# The call, the parameter at fault, the beginning of the problem, and the remedy.
WRONG: dict[str, tuple[Callable[[Model, Context], Any], str, str, str | None]] = {
    "token": (lambda m, _: m.piece(-1), "token", "token=-1: expected a token, 0 to ", None),
    "detokenize text": (
        lambda m, _: m.detokenize("x"),  # type: ignore[arg-type]
        "tokens", "tokens='x': expected a list of tokens", None,
    ),
    "detokenize": (
        lambda m, _: m.detokenize([1, 99999]), "tokens", "tokens: token 99999: expected 0 to ",
        None,
    ),
    "text": (
        lambda m, _: m.tokenize(5),  # type: ignore[arg-type]
        "text", "text: expected str or bytes, got int", None,
    ),
    "texts": (
        lambda m, _: m.token_list(["x", "y"]), "prompt", "prompt: 'x' is an element of a list",
        "give one text at a time",
    ),
    "no tokens": (
        lambda _, c: c.decode([]), "tokens", "tokens=[]: expected at least one token",
        "decode a token first, e.g. BOS",
    ),
    "negative token": (
        lambda _, c: c.decode([-1]), "tokens", "tokens: token -1 is not one of the model's 0 to ",
        "use the tokens that tokenize() of this model returns",
    ),
    "negative row": (
        lambda _, c: c.decode_batch([-1], [0]), "tokens", "tokens: token -1 is not one of ",
        "use the tokens that tokenize() of this model returns",
    ),
    "sequence": (
        lambda _, c: c.decode([1], seq=7), "seq", "seq=7: expected 0 to 0",
        "create the context with a larger sequences=",
    ),
    "row of a sequence": (
        lambda _, c: c.decode_batch([1], [7]), "seq", "seq=7: expected 0 to 0",
        "create the context with a larger sequences=",
    ),
    "embeddings": (
        lambda _, c: c.set_embeddings(True), "on", "on=True: this context has no embeddings",
        "create it with embeddings=True",
    ),
    "state": (lambda _, c: c.memory.load(b"x" * 99), "state", "state: these bytes are not ", None),
    "logit bias": (
        lambda m, _: Sampler(logit_bias={99999: 1.0}, model=m), "logit_bias",
        "logit_bias=99999: expected a token, 0 to ", None,
    ),
    "grammar": (
        lambda m, _: Sampler(grammar="x", model=m), "grammar",
        "grammar: it does not parse from rule 'root': expecting ::=", FIRST,
    ),
    "rule": (
        lambda m, _: Sampler(grammar="root ::= foo", model=m), "grammar",
        "grammar: it does not parse from rule 'root': Undefined rule identifier 'foo'", FIRST,
    ),
    "empty grammar": (
        lambda m, _: Sampler(grammar=" ", model=m), "grammar", "grammar: it is empty",
        "write a rule: root ::= ...",
    ),
    "left recursion": (
        lambda m, _: Sampler(grammar='root ::= root "a"', model=m), "grammar",
        "grammar: it is left-recursive in rule 'root'", "write the repetition as x* or x+",
    ),
    "two ways": (
        lambda *_: Sampler(chain=[Greedy()], temperature=1.0), "chain",
        "chain, temperature: expected one of chain=, params= and keywords",
        "put all settings into one of them",
    ),
    "no model": (
        lambda *_: Sampler().sample_logits(np.zeros(3, np.float32)), "model",
        "model: this sampler has no model yet", "give model=",
    ),
    "template": (
        lambda m, _: ChatTemplate.of(m, "chatml"), "template", "template", "give ",
    ),
    "file type": (
        lambda m, _: quantize(m.path, "x.gguf", "q4_m"), "file_type",
        "file_type='q4_m': expected one of F32, F16, ", "did you mean 'Q4_K_M'?",
    ),
    "tensor type": (
        lambda m, _: quantize(m.path, "x.gguf", tensor_types={"ffn": "q9"}), "tensor_types",
        "tensor_types='q9': expected one of F32, F16, ", None,
    ),
    "matrix": (
        lambda *_: ImportanceMatrix("/nope"),  # type: ignore[arg-type]
        "entries", "entries='/nope': expected a dict", "ImportanceMatrix.load(path) reads a file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_is_named_with_its_rule_and_remedy(
    name: str, model: Model, make_context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`parameter`, `problem` and `remedy` are what a caller needs; the message joins them."""
    monkeypatch.chdir(tmp_path)
    call, parameter, problem, remedy = WRONG[name]
    with pytest.raises(LlcudaError) as caught:
        call(model, make_context(model, ctx_size=64))
    error = caught.value
    assert error.parameter == parameter
    assert error.problem.startswith(problem)
    assert (error.remedy or "").startswith(remedy or "")
    assert (error.remedy is None) == (remedy is None)
    assert str(error) == (f"{error.problem}; {error.remedy}" if remedy else error.problem)


def test_a_batch_of_different_lengths(model: Model, make_context: Make) -> None:
    """The lengths are named, and no single parameter is at fault."""
    with pytest.raises(BatchError, match="2 tokens, 1 seqs, 2 positions, 2 logits") as caught:
        make_context(model).decode_batch([1, 2], [0])
    assert caught.value.parameter is None
