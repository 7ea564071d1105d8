"""Guides: what restricts a text's tokens, one mask a token."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llcuda import Engine, Model
from llcuda.errors import ArgumentError

Mask = npt.NDArray[np.uint32]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


@pytest.fixture(params=[False, True], ids=["copied logits", "device logits"])
def engine(model: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(model, n_parallel=3, ctx_size=256, device_logits=request.param) as made:
        yield made


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
    alone = engine.submit("Once upon a time", max_tokens=30, temperature=0).result(30)
    words = "Tom had a red ball and a blue kite."
    requests = [
        engine.submit("Once upon a time", max_tokens=30, temperature=0),
        engine.submit("One day", guide=Sequence(model, words), max_tokens=60, temperature=1.5),
        engine.submit("One day", guide=Sequence(model, words), max_tokens=3, top_k=0),
    ]
    done = [request.result(30) for request in requests]
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
        failing.result(30)
    assert len(beside.result(30).tokens) == 40
    assert engine.submit("Once", max_tokens=2).result(30).tokens


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
    assert [request.result(30).text for request in requests] == texts


def test_a_guide_follows_one_text_at_a_time(engine: Engine, model: Model) -> None:
    """A second request with it is refused while the first runs."""
    guide = Faulty(model, "none")
    first = engine.submit("One day", guide=guide, max_tokens=200, ignore_eos=True)
    with pytest.raises(ArgumentError, match="another text"):
        engine.submit("One day", guide=guide, max_tokens=2).result(30)
    first.cancel()
    first.result(30)
    assert engine.submit("One day", guide=guide, max_tokens=2).result(30).tokens


def test_guides_and_guesses_go_together(model: Model) -> None:
    """With speculation a guided text is not guessed, and comes out right."""
    words = "Tom had a red ball. Tom had a red ball. Tom had a red ball."
    with Engine(model, ctx_size=256, speculation=4) as guessing:
        asked = {"guide": Sequence(model, words), "max_tokens": 80}
        assert guessing.submit("One day", **asked).result(30).text == words


def test_what_is_no_guide_is_refused(engine: Engine) -> None:
    """An object without the two methods; one guide for several texts."""
    with pytest.raises(ArgumentError, match="guide="):
        engine.submit("Once", guide="json")
    with pytest.raises(ArgumentError, match="one text"):
        engine.submit_n("Once", 2, guide=Faulty(engine.model, "none"))
