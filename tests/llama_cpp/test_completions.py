"""create_completion: OpenAI's dicts of what the engine generates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from llcuda import Engine, Model
from llcuda.errors import ArgumentError, ClosedError, ContextLengthError, GrammarError
from llcuda.llama_cpp import Llama, LlamaGrammar, LogitsProcessorList, StoppingCriteriaList
from tests.support.waiting import PATIENCE

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


def text_of(answer: Any) -> str:
    """Return the text of a completion."""
    [choice] = answer["choices"]
    text: str = choice["text"]
    return text


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0.8, "seed": 7},
        {"temperature": -1.0, "seed": 7},
        {"temperature": 0.8, "seed": 7, "mirostat_mode": 2},
        {"top_k": -1, "seed": 3, "temperature": 1.2, "typical_p": 0.7},
        {"frequency_penalty": 1.0, "presence_penalty": 0.5, "repeat_penalty": 1.3},
        {"logit_bias": {"300": 50.0}},
        {"stop": ["Tom", "Lily"], "max_tokens": 40},
        {"stop": "."},
        {"grammar": LlamaGrammar.from_string('root ::= " Tom" | " Lily"')},
        {"grammar": LlamaGrammar.from_json_schema({"enum": [" Tom", 12]})},
    ],
    ids=repr,
)
def test_the_context_writes_what_the_engine_does(llm: Llama, given: dict[str, Any]) -> None:
    """A function for each token, which makes the context generate, changes nothing else."""
    asked = {"prompt": PROMPT, **GREEDY, "logprobs": 2, **given}
    answer = llm.create_completion(**asked)
    same = llm.create_completion(**asked, stopping_criteria=lambda tokens, logits: False)
    for key in ("text", "finish_reason", "index"):
        assert answer["choices"][0][key] == same["choices"][0][key]
    scores, others = (one["choices"][0]["logprobs"] for one in (answer, same))
    assert scores["tokens"] == others["tokens"]
    assert scores["text_offset"] == others["text_offset"]
    np.testing.assert_allclose(scores["token_logprobs"], others["token_logprobs"], atol=0.02)
    assert answer["usage"] == same["usage"]


def test_a_completion(llm: Llama) -> None:
    """OpenAI's fields; the text is the engine's; calling the object is the same."""
    answer = llm.create_completion(PROMPT, **GREEDY, model="mine")
    assert answer["id"].startswith("cmpl-") and answer["object"] == "text_completion"
    assert answer["model"] == "mine" and isinstance(answer["created"], int)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert text_of(answer) == text_of(llm(PROMPT, **GREEDY))
    with Model("demo") as model, Engine(model, ctx_size=256, threads=1) as engine:
        expected = engine.submit(PROMPT, temperature=0, max_tokens=12).result(PATIENCE)
    assert text_of(answer) == expected.text


def test_penalties_leave_the_prompt_out(llm: Llama) -> None:
    """The first token of the answer is the same with any repeat_penalty."""
    prompt = "Tom had a red ball. Tom had a red ball. Tom had a red"
    first = {text_of(llm(prompt, max_tokens=1, temperature=0, repeat_penalty=p)) for p in (1, 100)}
    assert len(first) == 1


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_the_chunks_are_the_whole(llm: Llama, echo: bool, logprobs: int | None) -> None:
    """Their texts and tokens join to those of the whole; the last one has the finish reason."""
    asked: dict[str, Any] = {**GREEDY, "echo": echo, "logprobs": logprobs}
    [whole] = llm(PROMPT, **asked)["choices"]
    chunks = [chunk["choices"][0] for chunk in llm(PROMPT, **asked, stream=True)]
    assert whole["text"] == "".join(chunk["text"] for chunk in chunks)
    assert whole["text"].startswith(PROMPT) == echo
    assert [None] * (len(chunks) - 1) + ["length"] == [chunk["finish_reason"] for chunk in chunks]
    if logprobs is not None:
        for key in ("tokens", "token_logprobs", "text_offset"):
            parts = [value for chunk in chunks[:-1] for value in chunk["logprobs"][key]]
            assert whole["logprobs"][key] == parts
        assert len(whole["logprobs"]["tokens"]) == 12 + 5 * echo


def test_a_stream_that_is_left_early(llm: Llama) -> None:
    """It ends its request, and the next one begins at once."""
    stream = llm(PROMPT, max_tokens=200, stream=True)
    next(stream)
    stream.close()
    assert text_of(llm(PROMPT, **GREEDY))


def test_seeds(llm: Llama) -> None:
    """A seed repeats a text; calls without one follow from the seed that was set."""
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5}
    texts = [text_of(llm(PROMPT, seed=seed, **asked)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    series = []
    for _ in range(2):
        llm.set_seed(5)
        series.append([text_of(llm(PROMPT, **asked)) for _ in range(3)])
    assert series[0] == series[1]
    assert len(set(series[0])) == 3


def test_threads(llm: Llama) -> None:
    """Any number of threads may ask at once."""
    expected = text_of(llm(PROMPT, **GREEDY))
    with Llama("demo", n_ctx=64, n_threads=1, n_parallel=4) as four, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: text_of(four(PROMPT, **GREEDY)), range(8)))
    assert answers == [expected] * 8


def test_functions_over_logits(llm: Llama) -> None:
    """They get all tokens before the next one, and logits that they may write into."""
    seen: list[list[int]] = []
    [token] = llm.tokenize(b" Tom", add_bos=False)

    def force(input_ids: Any, scores: Any) -> Any:
        seen.append(input_ids.tolist())
        scores[token] = 1e3
        return scores

    asked: dict[str, Any] = {"max_tokens": 3, "temperature": 0}
    answer = llm(PROMPT, logits_processor=LogitsProcessorList([force]), **asked)
    prompt = llm.tokenize(PROMPT.encode())
    assert text_of(answer) == " Tom Tom Tom"
    assert seen == [prompt, [*prompt, token], [*prompt, token, token]]
    stops = StoppingCriteriaList([lambda tokens, logits: len(tokens) == len(prompt) + 2])
    short = llm(PROMPT, logits_processor=[force], stopping_criteria=stops, **asked)
    assert (text_of(short), short["choices"][0]["finish_reason"]) == (" Tom Tom", "stop")


def test_a_failing_function_reaches_the_caller(llm: Llama) -> None:
    """Its exception comes through, one that returns something else is an error."""

    def fail(input_ids: Any, scores: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        llm(PROMPT, logits_processor=fail)
    on_context = {"stopping_criteria": lambda input_ids, scores: False}
    for given in ({}, on_context):
        with pytest.raises(ArgumentError, match=r"logits_processor: .*shape \(2,\), expected"):
            llm(PROMPT, logits_processor=lambda input_ids, scores: scores[:2], **given)
    assert text_of(llm(PROMPT, **GREEDY))


def test_a_grammar_ends_the_text(llm: Llama) -> None:
    """Of GBNF, of a schema, as text."""
    for grammar in ('root ::= " yes"', LlamaGrammar.from_string('root ::= " yes"')):
        answer = llm(PROMPT, grammar=grammar, max_tokens=9)["choices"][0]
        assert (answer["text"], answer["finish_reason"]) == (" yes", "stop")
    schema = LlamaGrammar.from_json_schema('{"const": 12}')
    assert text_of(llm(PROMPT, grammar=schema)) == "12"


def test_a_full_context(llm: Llama) -> None:
    """max_tokens of None, 0 or too many ends there; a prompt that fills it is an error."""
    bias = {llm.tokenize(b" Tom", add_bos=False)[0]: 1e6}
    for limit in (None, 0, -1, 10_000):
        answer = llm(PROMPT, max_tokens=limit, temperature=0, logit_bias=bias)
        assert answer["usage"]["total_tokens"] == 256
        assert answer["choices"][0]["finish_reason"] == "length"
    stops = {"stopping_criteria": lambda tokens, logits: False}
    for given in ({}, stops):
        with pytest.raises(
            ContextLengthError, match=r"prompt: has 256 tokens.*; give Llama a larger n_ctx$"
        ):
            llm([5] * 256, **given)
    assert issubclass(ContextLengthError, ValueError)


def test_a_suffix_without_tokens_for_a_gap(llm: Llama) -> None:
    """It stands behind the text."""
    answer = llm(PROMPT, suffix=" The end.", **GREEDY)
    assert text_of(answer).endswith(" The end.")
    chunks = list(llm(PROMPT, suffix=" The end.", stream=True, **GREEDY))
    assert text_of(answer) == "".join(map(text_of, chunks))


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"prompt": 5}, ArgumentError, "prompt: expected a text, or tokens"),
        ({"prompt": ["a"]}, ArgumentError, "prompt: 'a' is an element"),
        ({"prompt": [-1]}, ArgumentError, "prompt: token -1"),
        ({"temperature": "hot"}, ArgumentError, "temperature='hot': expected a number"),
        ({"top_p": 2.0}, ArgumentError, "top_p=2.0: expected a number from 0 to 1"),
        ({"mirostat_mode": 3}, ArgumentError, "mirostat_mode=3: expected a whole number from 0"),
        ({"max_tokens": "all"}, ArgumentError, "max_tokens='all': expected a whole number"),
        ({"logprobs": -1}, ArgumentError, "logprobs=-1: expected"),
        ({"stop": 5}, ArgumentError, "stop=5: expected"),
        ({"seed": 1.5}, ArgumentError, "seed=1.5: expected a whole number"),
        ({"logit_bias": {"Tom": 1}}, ArgumentError, "logit_bias=.*: expected token -> number"),
        ({"logit_bias": {9999: 1.0}}, ArgumentError, "9999"),
        ({"grammar": 5}, ArgumentError, "grammar=5: expected a LlamaGrammar"),
        ({"grammar": "root ::= ("}, GrammarError, "grammar, line 1: a parenthesis"),
        ({"suffix": 5}, ArgumentError, "suffix=5: expected a text"),
        ({"stream": 1}, ArgumentError, "stream=1: expected True or False"),
        ({"logits_processor": 5}, ArgumentError, "logits_processor=5: expected a function"),
        ({"stopping_criteria": "."}, ArgumentError, "stopping_criteria='.': expected a function"),
        ({"n": 2}, TypeError, "unknown keyword n: call the method once for each answer"),
        ({"max_new_tokens": 2}, TypeError, "max_new_tokens: this class calls it max_tokens$"),
        ({"mirostat": 2}, TypeError, "this class calls it mirostat_mode$"),
        ({"n_ctx": 2}, TypeError, r"n_ctx: a keyword of Llama\(\)$"),
    ],
    ids=repr,
)
def test_wrong_arguments(
    llm: Llama, given: dict[str, Any], kind: type[Exception], says: str
) -> None:
    """Each is an error that names the parameter, before anything is computed."""
    with pytest.raises(kind, match=says):
        llm.create_completion(**{"prompt": PROMPT, **given})


def test_a_parameter_without_effect_is_warned_of(llm: Llama) -> None:
    """llama.cpp has no tail-free sampling any more."""
    with pytest.warns(UserWarning, match=r"tfs_z=0\.9: it has no effect; .*min_p"):
        llm(PROMPT, tfs_z=0.9, **GREEDY)


def test_a_closed_model() -> None:
    """Every call is a ClosedError; closing again does nothing."""
    llama = Llama("demo", n_ctx=64, n_threads=1)
    llama.close()
    llama.close()
    for call in (lambda: llama(PROMPT), lambda: llama.eval([1]), lambda: llama.tokenize(b"a")):
        with pytest.raises(ClosedError):
            call()
    assert "closed" in repr(llama)
