"""Guesses from the text, and the accounts of what they bring."""

from llcuda.engine.speculation import LOSS, PAUSE, Drafter, StepCosts


def test_a_repetition_is_proposed() -> None:
    """What followed the last three tokens before, at most `longest` of it."""
    drafter = Drafter(4)
    assert drafter.propose([1, 2, 3, 4, 5, 6]) == []
    assert drafter.propose([1, 2, 3, 4, 5, 6, 7, 1, 2, 3]) == [4, 5, 6, 7]
    assert drafter.propose([1, 2]) == []


def test_losses_silence_and_silence_grows() -> None:
    """After a loss nothing is proposed for PAUSE tokens, after the next for twice as many."""
    drafter = Drafter(2)
    text = [1, 2, 3] * 400
    at = 9
    for pause in (PAUSE, 2 * PAUSE):
        assert drafter.propose(text[:at])
        drafter.update(accepted=0, cost=LOSS + 1, length=at)
        assert drafter.propose(text[: at + pause - 1]) == []
        at += pause
        assert drafter.propose(text[:at])


def test_what_pays_goes_on() -> None:
    """Guesses that bring more than they cost are never silenced; a few bad ones are forgiven."""
    drafter = Drafter(2)
    text = [1, 2, 3] * 100
    for length in range(9, 200):
        assert drafter.propose(text[:length])
        drafter.update(accepted=2, cost=1.5, length=length)
    drafter.update(accepted=0, cost=LOSS + 2, length=200)
    assert drafter.propose(text[:201])


def test_costs_are_learned_by_the_number_of_texts() -> None:
    """The time beyond a plain step, in the tokens that plain steps bring."""
    costs = StepCosts()
    assert not costs.knows(2)
    costs.learn(2, 0.010)
    assert costs.knows(2)
    assert not costs.knows(1)
    assert costs.extra(2, 0.030) == 4.0
    assert costs.extra(2, 0.005) == 0.0
    costs.learn(2, 0.020)
    assert 0 < costs.extra(2, 0.024) < 4
