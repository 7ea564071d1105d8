from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llcuda import Model, Sampler
from llcuda import samplers as steps
from llcuda.errors import ArgumentError, ConcurrencyError, SamplingError
from tests.support.chains import Float32, N, after, kept


def test_a_python_step_changes_logits_in_place(model: Model, logits: Float32) -> None:
    """What it writes is what the next step sees."""

    def raise_seven(candidates: npt.NDArray[Any]) -> None:
        candidates["logit"][candidates["id"] == 7] = 100.0

    sampler = Sampler(chain=[steps.Python(raise_seven), steps.Greedy()], model=model)
    assert 7 == sampler.sample_logits(logits)


@pytest.mark.parametrize("choice", [9, np.int32(9)])
def test_a_python_step_chooses(choice: int, model: Model, logits: Float32) -> None:
    """An integer is the token to choose."""
    chain = [steps.TopK(0), steps.Python(lambda candidates: choice)]
    assert 9 == Sampler(chain=chain, model=model).sample_logits(logits)


@pytest.mark.parametrize("kind", ["mask", "indices", "list"])
def test_a_python_step_keeps_some(kind: str, model: Model, logits: Float32) -> None:
    """A mask or indices of the candidates to keep."""

    def keep(candidates: npt.NDArray[Any]) -> Any:
        mask = np.isin(candidates["id"], (20, 30, 40))
        if kind == "mask":
            return mask
        return np.flatnonzero(mask) if kind == "indices" else np.flatnonzero(mask).tolist()

    assert {20, 30, 40} == kept(after(model, [steps.Python(keep)], logits))


def test_what_a_python_step_raises_reaches_the_caller(model: Model, logits: Float32) -> None:
    """The same object, with its traceback; the sampler goes on afterwards."""
    error = KeyError("mine")
    fails = [True]

    def apply(candidates: npt.NDArray[Any]) -> None:
        if fails.pop():
            raise error

    sampler = Sampler(chain=[steps.Python(apply), steps.Greedy()], model=model)
    with pytest.raises(KeyError) as caught:
        sampler.sample_logits(logits)
    assert error is caught.value
    assert any(entry.name == "apply" for entry in caught.traceback)
    fails.append(False)
    assert int(logits.argmax()) == sampler.sample_logits(logits)


@pytest.mark.parametrize("hook", ["accept", "reset"])
def test_what_a_hook_of_a_python_step_raises_reaches_the_caller(
    hook: str, model: Model, logits: Float32
) -> None:
    """Accept and reset as apply."""
    error = OSError("mine")

    def fail(*arguments: object) -> None:
        raise error

    step = steps.Python(lambda candidates: 3, **{hook: fail})
    sampler = Sampler(chain=[step], model=model)
    with pytest.raises(OSError, match="mine") as caught:
        sampler.sample_logits(logits) if hook == "accept" else sampler.reset()
    assert error is caught.value


def test_a_python_step_hears_of_tokens_and_resets(model: Model, logits: Float32) -> None:
    """Accept gets each token, chosen or told; reset follows Sampler.reset."""
    heard: list[Any] = []
    step = steps.Python(
        lambda candidates: 3, accept=heard.append, reset=lambda: heard.append("reset")
    )
    sampler = Sampler(chain=[step], model=model)
    sampler.sample_logits(logits)
    sampler.accept(5)
    sampler.reset()
    assert [3, 5, "reset"] == heard


class Counter:
    """A step with a state of its own."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, candidates: npt.NDArray[Any]) -> int:
        """Choose the next token in turn."""
        self.count += 1
        return self.count


def test_a_cloned_python_step_has_a_state_of_its_own(model: Model, logits: Float32) -> None:
    """The clone goes on from the copy, and neither sees the other."""
    sampler = Sampler(chain=[steps.Python(Counter().apply)], model=model)
    assert [1, 2] == [sampler.sample_logits(logits) for _ in range(2)]
    clone = sampler.clone()
    assert [3, 4] == [clone.sample_logits(logits) for _ in range(2)]
    assert 3 == sampler.sample_logits(logits)


@pytest.mark.parametrize(
    "result",
    [-1, N, 10**30, True, 1.5, "text", [0.5], [], [10**9], [-(10**9)], np.zeros(3, bool), {}, b"x",
     [[0, 1]], np.zeros((2, 2), int), [[0], [0]] * 1000, list(range(N)) * 3],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_python_step_that_returns_nonsense(result: object, model: Model, logits: Float32) -> None:
    """An error of our tree, and never memory beyond the candidates."""
    step = steps.Python(lambda candidates: result)  # type: ignore[arg-type, return-value]
    sampler = Sampler(chain=[step, steps.Greedy()], model=model)
    with pytest.raises((SamplingError, ArgumentError)):
        sampler.sample_logits(logits)


def test_candidates_outlive_the_call(model: Model, logits: Float32) -> None:
    """What a step keeps hold of is not C's memory."""
    views: list[npt.NDArray[Any]] = []
    sampler = Sampler(chain=[steps.Python(views.append), steps.Greedy()], model=model)
    sampler.sample_logits(logits)
    sampler.sample_logits(-logits)
    np.testing.assert_array_equal(views[0]["logit"], logits)


def test_a_python_step_cannot_change_ids(model: Model, logits: Float32) -> None:
    """Later steps look ids up in tables; writes to them are ignored."""

    def scramble(candidates: npt.NDArray[Any]) -> None:
        candidates["id"] = 10**9

    chain = [steps.Python(scramble), steps.Penalties(8, 1.1), steps.Infill(), steps.Greedy()]
    assert 0 <= Sampler(chain=chain, model=model).sample_logits(logits) < N


def test_a_python_step_may_sample_in_turn(model: Model, logits: Float32) -> None:
    """Another sampler inside a step does not disturb the candidates of the outer one."""
    inner = Sampler(temperature=0, model=model)

    def ask(candidates: npt.NDArray[Any]) -> None:
        inner.sample_logits(-logits)

    sampler = Sampler(chain=[steps.Python(ask), steps.Greedy()], model=model)
    assert int(logits.argmax()) == sampler.sample_logits(logits)


def test_a_python_step_cannot_use_its_own_sampler(model: Model, logits: Float32) -> None:
    """Inside the chain, and in another thread at the same time, it is a ConcurrencyError."""
    uses = [
        lambda: sampler.sample_logits(logits),
        lambda: sampler.accept(1),
        lambda: sampler.reset(),
        lambda: sampler.clone(),
    ]
    seen: list[BaseException] = []

    def use(candidates: npt.NDArray[Any]) -> None:
        for each in uses:
            for run in (each, lambda each=each: in_thread(each)):
                with pytest.raises(ConcurrencyError) as caught:
                    run()
                seen.append(caught.value)

    def in_thread(call: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(call).result()

    sampler = Sampler(chain=[steps.Python(use), steps.Greedy()], model=model)
    assert int(logits.argmax()) == sampler.sample_logits(logits)
    assert 8 == len(seen)


def test_a_failed_choice_of_adaptive_p_is_forgotten(model: Model, logits: Float32) -> None:
    """A clone made after a failed sample accepts any token."""

    def fail(candidates: npt.NDArray[Any]) -> None:
        raise KeyError

    sampler = Sampler(chain=[steps.AdaptiveP(0.3, seed=1), steps.Python(fail)], model=model)
    with pytest.raises(KeyError):
        sampler.sample_logits(logits)
    clone = sampler.clone()
    for token in range(N):
        clone.accept(token)
