"""The same text alone, in company, with guesses."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda import Completion, Engine, Model
from llcuda.engine.speculation import NGRAM, Drafter
from tests.support.waiting import PATIENCE

WORDS = """Once upon a time there was little fox named Tom who lived in the forest and liked to play
with his friend owl One day they found red ball"""


def salad(model: Model, dice: random.Random, length: int) -> list[int]:
    """Return so many tokens of random words."""
    return model.tokenize(" ".join(dice.choices(WORDS.split(), k=length)))[:length]


@pytest.mark.parametrize("speculation", [0, 4])
def test_batch_invariant_results_are_exact(speculation: int) -> None:
    """Reuse, also of whole prompts, company and guesses change no bit of the log-probabilities."""
    dice = random.Random(8)
    with Model("demo", devices=()) as model:
        first = [salad(model, dice, length) for length in range(5, 151, 12)]
        kept = salad(model, dice, 150)
        prompts = [
            kept,
            *first,
            *(kept[: 20 + 6 * i] + prompt[:10] for i, prompt in enumerate(first)),
        ]
        asked: list[dict[str, Any]] = [
            {
                "temperature": i % 2,
                "seed": i,
                "max_tokens": 5 + i,
                "ignore_eos": True,
                "logprobs": 1,
            }
            for i in range(len(prompts))
        ]
        sizes: dict[str, Any] = {"ctx_size": 256, "threads": 1, "batch_invariant": True}
        alone = []
        for prompt, parameters in zip(prompts, asked, strict=True):
            with Engine(model, **sizes) as engine:
                alone.append(engine.submit(prompt, **parameters).result(PATIENCE))
        many: dict[str, Any] = {"n_parallel": 6, "cache_size": 256 * 12, **sizes}
        with Engine(model, speculation=speculation, **many) as engine:
            engine.submit(kept, max_tokens=2).result(PATIENCE)
            with engine.loop.hold():
                requests = [
                    engine.submit(prompt, **parameters)
                    for prompt, parameters in zip(prompts, asked, strict=True)
                ]
            together = [request.result(PATIENCE) for request in requests]
            snapshot = engine.metrics.snapshot()
    for shared, single in zip(together, alone, strict=True):
        assert (shared.tokens, shared.logprobs) == (single.tokens, single.logprobs)
    assert len(kept) - 1 == together[0].cached_tokens
    assert snapshot["reuse"]["ratio"] > 0.2
    assert snapshot["batch"]["mean_rows"] > 3


@pytest.fixture
def always_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no loss silence the drafter."""
    monkeypatch.setattr(Drafter, "update", lambda *arguments: None)


@pytest.mark.usefixtures("always_guess")
def test_guesses_change_no_result(model: Model) -> None:
    """Right and wrong ones, by turns with steps that guess nothing."""
    asked: dict[str, Any] = {
        "grammar": 'root ::= (" Tom had a ball." | " Mia saw the owl and the fox." | [a-z ]+) root',
        "max_tokens": 150,
        "ignore_eos": True,
        "logprobs": 0,
        "seed": 1,
        "temperature": 1,
    }
    sizes: dict[str, Any] = {"n_parallel": 2, "ctx_size": 256, "threads": 1}
    logprobs = []
    for speculation in (0, 4):
        with Engine(model, speculation=speculation, batch_invariant=True, **sizes) as engine:
            done = engine.submit("Tom had a ball.", **asked).result(PATIENCE)
            logprobs.append([report.logprob for report in done.logprobs or ()])
            steps = engine.metrics.snapshot()["batch"]["decode_steps"]
    assert 50 < steps < 140
    assert logprobs[0] == logprobs[1]


REFRAIN = "abcdfghjk"  # a token for each letter in the tiny models' vocabulary
FORCED: dict[str, Any] = {
    "grammar": f'root ::= "{REFRAIN}" root', "temperature": 0, "logprobs": 0, "max_tokens": 150,
}  # fmt: skip


@pytest.fixture(scope="module")
def exact_llama(model_files: dict[str, Path]) -> Iterator[Model]:
    """A model in F32, whose rounding is small."""
    with Model(model_files["llama"]) as model:
        yield model


def facts(completion: Completion) -> tuple[Any, ...]:
    """Return what guesses must not change, scores as far as rounding leaves them equal."""
    scores = [round(score.logprob, 2) for score in completion.logprobs or ()]
    return completion.text, completion.tokens, scores, completion.finish_reason


@pytest.mark.usefixtures("always_guess")
@pytest.mark.parametrize(
    "end",
    [{"stop": "c"}, {"stop": "kab"}, {"stop_tokens": [66]}, {"max_tokens": 7}],
    ids=["stop", "a stop of three tokens", "stop token", "length"],
)
def test_a_guess_that_ends_a_text_leaves_its_neighbour_alone(
    exact_llama: Model, end: dict[str, Any]
) -> None:
    """Right guesses go beyond the end of one text: both texts are what they are without guesses."""
    results = []
    for speculation in (0, 5):
        sizes: dict[str, Any] = {"n_parallel": 3, "ctx_size": 256, "threads": 1}
        with Engine(exact_llama, speculation=speculation, **sizes) as engine:
            with engine.loop.hold():
                requests = [
                    engine.submit(prompt, **{**FORCED, **given})
                    for prompt, given in ((REFRAIN * 2, {}), (REFRAIN * 3, end), (REFRAIN, {}))
                ]
            results.append([facts(request.result(PATIENCE)) for request in requests])
            steps = engine.metrics.snapshot()["batch"]["decode_steps"]
    assert results[0] == results[1]
    assert 20 < steps < 60  # of 150: guesses were right


@pytest.mark.usefixtures("always_guess")
@pytest.mark.parametrize("overflow", ["shift", "error"])
@pytest.mark.parametrize("ctx_size", [61, 62, 63, 64])
def test_guesses_end_where_the_context_ends(
    exact_llama: Model, ctx_size: int, overflow: str
) -> None:
    """However many right tokens would follow: the text is that without guesses, over shifts too."""
    results = []
    for speculation in (0, 5):
        sizes: dict[str, Any] = {"n_parallel": 2, "ctx_size": ctx_size, "threads": 1}
        with Engine(exact_llama, speculation=speculation, **sizes) as engine:
            with engine.loop.hold():
                requests = [
                    engine.submit(prompt, overflow=overflow, **FORCED)
                    for prompt in (REFRAIN * 2, REFRAIN * 3)
                ]
            results.append([facts(request.result(PATIENCE)) for request in requests])
            steps = engine.metrics.snapshot()["batch"]["decode_steps"]
    assert results[0] == results[1]
    assert steps < 60


def test_guesses_after_a_shift(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what followed the last tokens before, in the text as it is now."""
    guesses: list[tuple[list[int], list[int]]] = []
    propose = Drafter.propose

    def watch(self: Drafter, tokens: list[int]) -> list[int]:
        draft = propose(self, tokens)
        if draft:
            guesses.append((list(tokens), draft))
        return draft

    monkeypatch.setattr(Drafter, "propose", watch)
    monkeypatch.setattr(Drafter, "update", lambda *arguments: None)
    asked: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "overflow": "shift"}
    with Engine(model, ctx_size=64, threads=1, speculation=4) as engine:
        grammar = 'root ::= " Tom had a ball." root'
        engine.submit("Tom had a ball.", grammar=grammar, **asked).result(PATIENCE)
    assert len(guesses) > 50
    for tokens, draft in guesses:
        places = range(NGRAM, len(tokens))
        assert any(
            tokens[place - NGRAM : place] == tokens[-NGRAM:]
            and tokens[place : place + len(draft)] == draft
            for place in places
        )
