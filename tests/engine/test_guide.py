"""Guides: what restricts a text's tokens, one mask a token."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llcuda import Engine, Model
from llcuda.errors import ArgumentError
from tests.support.waiting import ENDLESS, PATIENCE

Mask = npt.NDArray[np.uint32]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


@pytest.fixture(params=[False, True], ids=["copied logits", "device logits"])
def engine(model: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(model, n_parallel=3, ctx_size=256, device_logits=request.param) as engine:
        yield engine


def mask_of(model: Model, tokens: Any) -> Mask:
    """A mask that allows `tokens`."""
    mask = np.zeros((model.vocab_size + 31) // 32, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1) << np.uint32(token % 32)
    return mask


class Sequence:
    """Allows the tokens of a text, one after the other, and then the end."""

    def __init__(self, model: Model, text: str) -> None:
        self.left = model.tokenize(text, add_special=False)
        self.seen: list[int] = []
        self._model = model

    def mask(self) -> Mask:
        """The next token only."""
        return mask_of(self._model, self.left[:1] or self._model.eog_tokens)

    def accept(self, token: int) -> None:
        """Step on."""
        self.seen.append(token)
        assert token == self.left.pop(0)


def test_a_guided_text_is_what_its_guide_allows(engine: Engine, model: Model) -> None:
    """Beside free texts, which it does not touch; it ends where only ends are allowed."""
    alone = engine.submit("Once upon a time", max_tokens=30, temperature=0).result(PATIENCE)
    words = "Tom had a red ball and a blue kite."
    requests = [
        engine.submit("Once upon a time", max_tokens=30, temperature=0),
        engine.submit("One day", guide=Sequence(model, words), max_tokens=60, temperature=1.5),
        engine.submit("One day", guide=Sequence(model, words), max_tokens=3, top_k=0),
    ]
    done = [request.result(PATIENCE) for request in requests]
    assert done[0].text == alone.text
    assert (done[1].text, done[1].finish_reason) == (words, "stop")
    assert (len(done[2].tokens), done[2].finish_reason) == (3, "length")


class Faulty:
    """Fails in one of its methods, at the third token."""

    def __init__(self, model: Model, fault: str) -> None:
        self._model, self._fault, self._count = model, fault, 0

    def mask(self) -> Any:
        """Everything, until it fails."""
        self._count += 1
        if self._count == 3:
            if self._fault == "mask":
                raise ZeroDivisionError("in mask")
            if self._fault == "shape":
                return np.zeros(3, np.uint32)
            if self._fault == "type":
                return np.zeros((self._model.vocab_size + 31) // 32, np.int64)
            if self._fault == "none left":
                return mask_of(self._model, [])
            if self._fault == "no array":
                return [1] * ((self._model.vocab_size + 31) // 32)
            if self._fault == "exit":
                raise SystemExit("in mask")
        return None

    def accept(self, token: int) -> None:
        """Nothing, until it fails."""
        if self._count == 3 and self._fault == "accept":
            raise ZeroDivisionError("in accept")


@pytest.mark.parametrize(
    "fault", ["mask", "accept", "shape", "type", "none left", "no array", "exit"]
)
def test_a_faulty_guide_fails_its_own_request(engine: Engine, model: Model, fault: str) -> None:
    """Its reader gets the exception; the text beside it goes on."""
    beside = engine.submit("Once", max_tokens=40, ignore_eos=True)
    failing = engine.submit("One day", guide=Faulty(model, fault), max_tokens=20)
    with pytest.raises(BaseException, match=r"in |mask|candidate"):
        failing.result(PATIENCE)
    assert len(beside.result(PATIENCE).tokens) == 40
    assert engine.submit("Once", max_tokens=2).result(PATIENCE).tokens


class Shared(Sequence):
    """Writes into one array for all, as a library of bitmasks may."""

    buffer: Mask

    def mask(self) -> Mask:
        """The next token only, in the shared array."""
        self.buffer[:] = super().mask()
        return self.buffer


def test_guides_may_share_an_array(engine: Engine, model: Model) -> None:
    """Each text gets what its own guide wrote."""
    Shared.buffer = mask_of(model, [])
    texts = ["Tom had a red ball.", "Lily saw a fox in the park."]
    requests = [
        engine.submit("One day", guide=Shared(model, text), max_tokens=40) for text in texts
    ]
    assert [request.result(PATIENCE).text for request in requests] == texts


class Together(Sequence):
    """Its masks are asked for all texts at once; `fault` says what comes of it."""

    fault = "none"

    @staticmethod
    def masks(guides: list[Any]) -> Any:
        """Return a mask for each."""
        if guides[0].fault == "one":
            return [*[guide.mask() for guide in guides[:-1]], ValueError("the last of them")]
        if guides[0].fault == "all":
            raise ValueError("all of them")
        if guides[0].fault == "short":
            return []
        return [guide.mask() for guide in guides]


def test_masks_of_a_class_are_asked_at_once(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text gets its own; what fails, fails the texts that it was for."""
    texts = ["Tom had a red ball.", "Lily saw a fox in the park."]

    def run() -> list[Any]:
        requests = [
            engine.submit("One day", guide=Together(model, text), max_tokens=40) for text in texts
        ]
        return [request.result(PATIENCE).text for request in requests]

    assert texts == run()
    for fault, error in (("all", ValueError), ("short", ArgumentError), ("one", ValueError)):
        monkeypatch.setattr(Together, "fault", fault)
        with pytest.raises(error, match=r"of them|a mask for each"):
            run()
    monkeypatch.setattr(Together, "fault", "none")
    assert texts == run()


def test_a_guide_follows_one_text_at_a_time(engine: Engine, model: Model) -> None:
    """A second request with it is refused while the first runs."""
    guide = Faulty(model, "none")
    first = engine.submit("One day", guide=guide, **ENDLESS)
    with pytest.raises(ArgumentError, match="already used by another request"):
        engine.submit("One day", guide=guide, max_tokens=2).result(PATIENCE)
    first.cancel()
    first.result(PATIENCE)
    assert engine.submit("One day", guide=guide, max_tokens=2).result(PATIENCE).tokens


def test_guides_and_guesses_go_together(model: Model) -> None:
    """With speculation a guided text is not guessed, and comes out right."""
    words = "Tom had a red ball. Tom had a red ball. Tom had a red ball."
    with Engine(model, ctx_size=256, speculation=4) as guessing:
        asked = {"guide": Sequence(model, words), "max_tokens": 80}
        assert guessing.submit("One day", **asked).result(PATIENCE).text == words


def test_what_is_no_guide_is_refused(engine: Engine) -> None:
    """An object without the two methods; one guide for several texts."""
    with pytest.raises(ArgumentError, match="guide="):
        engine.submit("Once", guide="json")
    with pytest.raises(ArgumentError, match="one text"):
        engine.submit_n("Once", 2, guide=Faulty(engine.model, "none"))


class Refrain:
    """Lets a text choose a token, forces what `words` are made of, and so on, `verses` times."""

    def __init__(self, model: Model, words: str, verses: int = 3, ends: bool = True) -> None:
        self._words = model.tokenize(words, add_special=False)
        self._model = model
        self._round = [*self._words, -1]
        self._left = self._round * verses
        self._ends = [min(model.eog_tokens)] if ends else []

    def forced(self) -> list[int]:
        """What follows until the next choice; then the end."""
        run = self._left.index(-1) if -1 in self._left else len(self._left)
        return self._left[:run] + ([] if -1 in self._left else self._ends)

    def mask(self) -> Mask:
        """Any token of a text; the end is none."""
        if not self._left:
            return mask_of(self._model, self._model.eog_tokens)
        assert self._left[0] == -1, "a forced token needs no mask"
        return ~mask_of(self._model, self._model.eog_tokens)

    def accept(self, token: int) -> None:
        """Step on."""
        expected = self._left.pop(0)
        assert expected in (-1, token)


class Plain(Refrain):
    """The same by masks alone."""

    forced = None  # type: ignore[assignment]

    def mask(self) -> Mask:
        """The next token, where it is given."""
        given = self._left and self._left[0] != -1
        return mask_of(self._model, self._left[:1]) if given else super().mask()


WORDS = " and the little fox ran home,"


def test_forced_tokens_are_computed_at_once(engine: Engine, model: Model) -> None:
    """Alone in few steps; the text is what the masks would have made, and ends by itself."""
    count = len(model.tokenize(WORDS, add_special=False))
    engine.metrics.reset()
    done = engine.submit("One day", guide=Refrain(model, WORDS), max_tokens=200, seed=1).result(
        PATIENCE
    )
    assert (done.text.count(WORDS), done.finish_reason) == (3, "stop")
    assert len(done.tokens) == 3 * (count + 1)
    assert engine.metrics.snapshot()["batch"]["steps"] <= 8
    throughput = engine.metrics.snapshot()["throughput"]
    assert throughput["total_tokens"] == len(done.tokens)
    assert throughput["forced_tokens"] == done.forced_tokens == 3 * count
    plain = engine.submit(
        "One day", guide=Plain(model, WORDS), max_tokens=200, temperature=0
    ).result(PATIENCE)
    greedy = engine.submit(
        "One day", guide=Refrain(model, WORDS), max_tokens=200, temperature=0
    ).result(PATIENCE)
    assert greedy.tokens == plain.tokens


@pytest.mark.parametrize("texts", [1, 3])
def test_forced_tokens_draw_nothing(
    model: Model, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed at once or one by one: the same random numbers and penalties, the same text."""
    tokens = []
    for limit in (0, 8):
        monkeypatch.setattr("llcuda.engine.output_processor.JUMP_SEQUENCES", limit)
        with Engine(model, n_parallel=texts, ctx_size=256, flash_attention=False) as engine:
            requests = [
                engine.submit(
                    "One day",
                    guide=Refrain(model, WORDS, 6),
                    max_tokens=200,
                    temperature=1,
                    repeat_penalty=1.2,
                    seed=seed,
                )
                for seed in range(texts)
            ]
            tokens.append([request.result(PATIENCE).tokens for request in requests])
    assert tokens[0] == tokens[1]


def test_forced_tokens_have_logprobs(engine: Engine, model: Model) -> None:
    """Those of the model, as a mask would leave them."""
    asked = {"max_tokens": 200, "temperature": 0, "logprobs": 2}
    forced, masked = (
        engine.submit("One day", guide=kind(model, WORDS), **asked).result(PATIENCE)
        for kind in (Refrain, Plain)
    )
    assert forced.logprobs is not None
    assert masked.logprobs is not None
    assert [item.token for item in forced.logprobs] == forced.tokens == masked.tokens
    assert [item.logprob for item in forced.logprobs] == pytest.approx(
        [item.logprob for item in masked.logprobs], abs=0.2
    )
    assert all(len(item.top) == 2 for item in forced.logprobs)


@pytest.mark.parametrize("others", [0, 2])
def test_what_ends_a_text_ends_it_among_forced_tokens(
    engine: Engine, model: Model, others: int
) -> None:
    """max_tokens, a stop text, a stop token, the context's end; beside other texts too."""
    beside = [engine.submit("Once", max_tokens=150, ignore_eos=True) for _ in range(others)]
    words = model.tokenize(WORDS, add_special=False)

    def run(prompt: Any = "One day", guide: Any = None, **asked: Any) -> Any:
        guide = guide or Refrain(model, WORDS, 1, ends=False)
        return engine.submit(prompt, guide=guide, temperature=1, **asked).result(PATIENCE)

    for count in range(1, len(words) + 1):
        done = run(max_tokens=count)
        assert (done.tokens, done.finish_reason) == (words[:count], "length")
    done = run(stop=["fox"])
    assert (done.text, done.finish_reason) == (" and the little ", "stop")
    assert len(done.tokens) < len(words)
    done = run(stop_tokens=words[2:3])
    assert (done.tokens, done.finish_reason) == (words[:2], "stop")
    whole = run(guide=Refrain(model, WORDS), max_tokens=200)
    at_its_end = run(guide=Refrain(model, WORDS), max_tokens=len(whole.tokens))
    assert (len(at_its_end.tokens), at_its_end.finish_reason) == (len(whole.tokens), "stop")
    prompt = [model.bos or 1] * 200
    full = run(prompt, guide=Refrain(model, WORDS, 30), max_tokens=400)
    assert (full.finish_reason, len(full.tokens)) == ("context", 56)
    shifted = run(prompt, guide=Refrain(model, WORDS, 30), max_tokens=120, overflow="shift")
    assert (shifted.finish_reason, len(shifted.tokens)) == ("length", 120)
    for request in beside:
        assert len(request.result(PATIENCE).tokens) == 150


@pytest.mark.parametrize(
    "answer",
    [ZeroDivisionError("in forced"), SystemExit("in forced"), "text", [-1], [2**40], ["a"], 7],
    ids=str,
)
def test_a_faulty_forecast_fails_its_own_request(engine: Engine, model: Model, answer: Any) -> None:
    """Its reader gets the exception; the text beside it goes on."""

    class Forecast(Faulty):
        def forced(self) -> Any:
            if self._count < 2:
                return []
            if isinstance(answer, BaseException):
                raise answer
            return answer

    beside = engine.submit("Once", max_tokens=40, ignore_eos=True)
    failing = engine.submit("One day", guide=Forecast(model, ""), max_tokens=20)
    with pytest.raises(BaseException, match=r"forced"):
        failing.result(PATIENCE)
    assert len(beside.result(PATIENCE).tokens) == 40


def test_endless_forced_tokens_end(engine: Engine, model: Model) -> None:
    """By max_tokens, or with the context."""

    class Endless(Refrain):
        def forced(self) -> list[int]:
            return self._words[:1] * 100_000

        def accept(self, token: int) -> None:
            assert token == self._words[0]

    for max_tokens, reason in ((100, "length"), (10_000, "context")):
        done = engine.submit("One day", guide=Endless(model, WORDS), max_tokens=max_tokens).result(
            PATIENCE
        )
        assert done.finish_reason == reason
        assert set(done.tokens) == {model.tokenize(WORDS, add_special=False)[0]}
