"""Guess the next tokens from the text itself (n-gram lookup), without a draft model.

Plain Python over tokens. A guess is verified in the same batch by sampling at each of its rows and
going on while the sample equals the guess: what is sampled is what would have been sampled
without it, greedy or not. Rows of guesses cost time, on some machines nearly as much as steps; so
each text keeps accounts, and a drafter that loses falls silent for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3
LOSS = 4.0  # tokens that guesses may cost more than they bring, until silence
CREDIT = 8.0  # what earlier success counts at most
PAUSE = 128  # tokens of silence after a loss, twice as many after the next


class Drafter:
    """Proposes what followed the last `NGRAM` tokens when they came before."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM
        self._balance = 0.0
        self._pause = PAUSE
        self._silent_until = 0

    def draft(self, tokens: Sequence[int]) -> list[int]:
        """Return at most `longest` tokens that may follow `tokens`; often none."""
        for end in range(self._indexed, len(tokens)):
            self._follows[tuple(tokens[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        if len(tokens) < NGRAM or len(tokens) < self._silent_until:
            return []
        start = self._follows.get(tuple(tokens[-NGRAM:]))
        return [] if start is None else list(tokens[start : start + self._longest])

    def judge(self, right: int, cost: float, length: int) -> None:
        """Learn what guesses brought and cost, in tokens, in a text that has `length` now."""
        self._balance = min(self._balance + right - cost, CREDIT)
        if self._balance >= CREDIT:
            self._pause = PAUSE
        if self._balance < -LOSS:
            self._silent_until = length + self._pause
            self._pause *= 2
            self._balance = 0.0


class StepCosts:
    """What a decode step takes without guesses, by its number of texts: learned as it goes."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def knows(self, texts: int) -> bool:
        """Whether a step of so many texts was seen."""
        return texts in self._seconds

    def learn(self, texts: int, seconds: float) -> None:
        """Note a step without guesses."""
        before = self._seconds.get(texts, seconds)
        self._seconds[texts] = before + 0.2 * (seconds - before)

    def extra(self, texts: int, seconds: float) -> float:
        """Return how many tokens plain steps would have brought in the time beyond a plain one."""
        return texts * max(0.0, seconds / self._seconds[texts] - 1)
